"""Music out of a folder: the VQ-VAE and the priors that were trained into it, and what they are measured by.

A folder holds one training of :mod:`regard.train.fitting` each in ``vqvae``, ``prior-1`` (the upper codes) and
``prior-0`` (the lower codes, told the upper ones), and ``reference.json``, which is written last.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.models.jukebox_prior import JukeboxPrior
from regard.models.jukebox_sampling import sample_levels
from regard.models.vqvae import VQVAE
from regard.tasks.codes import Coded, Codes, build_prior, code_songs
from regard.tasks.documents import InputError
from regard.tasks.music import CODES, RATE, Music, Song, Songs, build_vqvae
from regard.tasks.sound_statistics import PIECE, Reference, code_figures
from regard.tasks.task import Task
from regard.tasks.writing import write_file
from regard.train.fitting import is_fitted, read_fitted

KIND, REFERENCE = "music", "reference.json"
WINDOWS, ROWS = (1024, 512), (2, 4)
"""Codes of a window of each prior, level 0 first, and windows a step: 2 and 4 seconds of sound."""

SIZES: dict[str, dict[str, Any]] = {
    "vqvae": {"dim": 32, "depth": 3},
    "prior-1": {"dim": 96, "depth": 3, "num_heads": 4},
    "prior-0": {"dim": 96, "depth": 3, "num_heads": 4},
}
"""Of the models; a folder remembers those of its own."""

RATES = {"vqvae": 3e-3, "prior-1": 3e-3, "prior-0": 3e-3}
"""Peak learning rates."""

SHARES = {"vqvae": 0.4, "prior-1": 0.25, "prior-0": 0.35}
"""Of the budget."""

HEARD = 8.0
"""Seconds at the end of a recording that is continued: more than a window of the upper prior."""


class Stage(NamedTuple):
    """One training: its folder within that of the music, what is trained, and what it is trained on."""

    name: str
    model: nn.Module
    task: Task
    facts: dict[str, Any]


def is_trained(folder: Path) -> bool:
    """Is everything there?

    Raises:
        InputError: what is there is damaged.
    """
    return all(is_fitted(folder / name) for name in SHARES) and (folder / REFERENCE).is_file()


def stages(songs: Songs, folder: Path, *, seed: int = 0) -> Iterator[Stage]:
    """What has to be trained, one after the other; each is asked for when those before it are in the folder.

    After the last one, what sounds are measured by is written, which ends the training.

    Args:
        songs: to learn from.
        folder: of the music.
        seed: of first weights and of the order of windows.
    """
    told: dict[str, Any] = {"kind": KIND, "data": songs.describe(), "digest": songs.digest, "seed": seed}
    music = Music(songs, seed=seed)
    torch.manual_seed(seed)
    sizes = SIZES["vqvae"]
    yield Stage("vqvae", music.model(**sizes), music, told | {"stage": "vqvae", "sizes": sizes})
    model, _ = _read_vqvae(folder)
    told["codes"] = _digest(model)
    coded = code_songs(model, songs)
    for level in reversed(range(model.levels)):
        task = Codes(coded, level, length=WINDOWS[level], batch=ROWS[level], seed=seed)
        torch.manual_seed(seed)
        name = f"prior-{level}"
        yield Stage(name, task.model(**SIZES[name]), task, told | {"stage": name, "sizes": SIZES[name]})
    _write_reference(model, songs, coded, folder)


@dataclass(frozen=True)
class Composer:
    """Everything that is needed to compose.

    Attributes:
        model: the VQ-VAE.
        priors: of levels 0 and 1.
        reference: what sounds are measured by.
        held_out: the figures of held-out music.
        example: a piece of held-out music.
        codebooks: figures of each level's codes of the whole held-out part.
        facts: of the three trainings.
    """

    model: VQVAE
    priors: tuple[JukeboxPrior, ...]
    reference: Reference
    held_out: dict[str, float]
    example: Float[Tensor, " N"]
    codebooks: dict[str, float]
    facts: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, folder: Path) -> "Composer":
        """From a folder that is trained.

        Raises:
            InputError: it is not, or something in it is damaged or belongs to another training.
        """
        model, facts = _read_vqvae(folder)
        told = [facts]
        priors: list[JukeboxPrior] = []
        hops = (*model.hops, model.hops[-1])
        for level in range(model.levels):
            weights, facts = read_fitted(folder / f"prior-{level}", KIND)
            if facts["codes"] != _digest(model):
                raise InputError(f"{folder / f'prior-{level}'} was trained on other codes: delete it to train it again")
            prior = build_prior(CODES, WINDOWS[level], hops[level + 1] // hops[level], hops[level], **facts["sizes"])
            prior.load_state_dict(weights)
            priors.append(prior.eval())
            told.append(facts)
        try:
            known = json.loads((folder / REFERENCE).read_bytes())
            reference, example = Reference.read(known["reference"]), torch.tensor(known["example"])
            figures = known["held out"], known["codebooks"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder / 'reference.json'} is damaged or missing ({error}): delete it and train on"
            ) from error
        return cls(model, tuple(priors), reference, figures[0], example, figures[1], tuple(told))

    def compose(
        self,
        seconds: float,
        *,
        prime: Float[Tensor, " N"] | None = None,
        temperature: float = 1.0,
        top_p: float | None = None,
        generator: Generator | None = None,
        tell: Callable[[int, int, int], None] | None = None,
    ) -> tuple[Float[Tensor, " M"], int]:
        """New music; codes are drawn from the top down, then decoded from the lowest level.

        Args:
            seconds: how much is new.
            prime: a recording to continue, of which the last ``HEARD`` seconds are heard, as whole codes.
            temperature: below 1 is tamer, 0 always takes the likeliest code.
            top_p: only the likeliest codes are drawn, as few as have this probability together.
            generator: the source of the draws.
            tell: see :func:`regard.models.jukebox_sampling.sample_levels`.

        Returns:
            The sound: what was heard, given back from its codes, then what is new; and where that begins.

        Raises:
            InputError: a recording that is shorter than a code.
        """
        hop, given, start = self.model.hops[-1], None, 0
        if prime is not None:
            heard = prime[-(round(HEARD * RATE) // hop * hop) :]
            heard = heard[len(heard) % hop :]
            if not len(heard):
                raise InputError(f"the recording has {len(prime)} samples: a code takes {hop}")
            with torch.no_grad():
                given, start = list(self.model.encode(heard[None, :, None])), len(heard)
        samples = round(seconds * RATE)
        codes = sample_levels(
            self.priors,
            1,
            start + -(-samples // hop) * hop,
            given=given,
            temperature=temperature,
            top_p=top_p,
            generator=generator,
            tell=tell,
        )
        with torch.no_grad():
            sound = self.model.decode(codes[0], 0)[0, :, 0]
        return sound[: start + samples], start


def _read_vqvae(folder: Path) -> tuple[VQVAE, dict[str, Any]]:
    weights, facts = read_fitted(folder / "vqvae", KIND)
    model = build_vqvae(**facts["sizes"])
    model.load_state_dict(weights)
    return model.eval(), facts


def _digest(model: VQVAE) -> str:
    """Which codes: sha256 of all weights."""
    total = hashlib.sha256()
    for tensor in model.state_dict().values():
        total.update(tensor.detach().cpu().numpy().tobytes())
    return total.hexdigest()


def _write_reference(model: VQVAE, songs: Songs, coded: Coded, folder: Path) -> None:
    reference = Reference.of(songs.train, coded)
    held = [song.waveform for song in songs.test]
    codebooks: dict[str, float] = {}
    for level, counts in enumerate(reference.codes):
        codes = torch.cat([stream.levels[level] for stream in coded.test])
        codebooks |= code_figures(codes, torch.tensor(counts).double(), level)
    example = _example(songs.test)
    told = {"reference": reference.told(), "held out": reference.figures(model, held), "codebooks": codebooks}
    data = json.dumps(told | {"example": [round(sample, 5) for sample in example.tolist()]})
    try:
        write_file(folder / REFERENCE, data.encode())
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}") from error


def _example(songs: tuple[Song, ...]) -> Float[Tensor, " N"]:
    """The beginning of the longest held-out piece."""
    longest = max(songs, key=lambda song: len(song.waveform))
    return longest.waveform[: round(PIECE * RATE)]
