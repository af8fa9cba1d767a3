"""``regard compose``: new music from a model that is trained first where there is none, and what it sounds like."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from regard.cli.display import make_console, say
from regard.cli.training import train_shown
from regard.tasks.audio import FORMATS, read_audio, write_audio
from regard.tasks.documents import InputError, printable
from regard.tasks.music import RATE, read_songs
from regard.tasks.sound_picture import draw_sounds
from regard.tasks.sound_statistics import FIGURES, FRAMES, PIECE, compare
from regard.tasks.writing import write_file
from regard.train.budget import Budget
from regard.train.composer import RATES, SHARES, Composer, is_trained, stages
from regard.train.fitting import sentence

DEFAULT_MODEL = "regard-music"
LONGEST = 600.0
"""Seconds: a code is drawn at a time."""


def print_composition(
    out: Path,
    *,
    seconds: float,
    model: Path | None,
    data: Sequence[Path] | None,
    budget: float,
    prime: Path | None,
    seed: int,
    temperature: float,
    top_p: float | None,
) -> None:
    """Write the sound, a picture and a JSON beside it, and print what it is measured by.

    Args:
        out: .wav, .flac or .ogg.
        seconds: of new music.
        model: folder of the model, which is trained into it first where there is none; None: ``regard-music``.
        data: sound to learn from; None: the Debian package that is installed.
        budget: seconds of training, over all three models.
        prime: a recording that is continued.
        seed: of the training and of the music.
        temperature, top_p: of the draws.

    Raises:
        InputError: a number out of range, a file that cannot be read or written, or no model and nothing to train on.
    """
    recording = _check(out, seconds, prime, temperature, top_p)
    console, folder = make_console(), model or Path(DEFAULT_MODEL)
    composer = _trained(console, folder, data, budget, seed)
    for facts in composer.facts:
        say(console, f"{facts['stage']}: {sentence(facts)}")
    say(console, _codebooks(composer))
    generator = torch.Generator().manual_seed(seed)
    with console.status("") as status:

        def tell(level: int, done: int, whole: int) -> None:
            status.update(f"drawing codes of level {level}: {done:,} of {whole:,}")

        options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "generator": generator, "tell": tell}
        sound, start = composer.compose(seconds, prime=recording, **options)
        status.update("measuring")
        figures = compare(composer.reference, composer.model, {"composed": [sound[start:]]}, generator)
    figures = {"composed": figures.pop("composed"), "held-out music": composer.held_out, **figures}
    remarks = write_audio(out, sound, RATE)
    pictures = {"composed": sound[start:], "held-out music": composer.example}
    write_file(out.with_suffix(".png"), draw_sounds(pictures, torch.tensor(composer.reference.power)))
    told: dict[str, Any] = {
        "seconds": seconds,
        "rate": RATE,
        "begins": start / RATE,
        "prime": None if prime is None else printable(str(prime)),
        "seed": seed,
        "temperature": temperature,
        "top_p": top_p,
        "figures": figures,
        "meaning of the figures": FIGURES,
        "codebooks": composer.codebooks,
        "training": composer.facts,
    }
    write_file(out.with_suffix(".json"), json.dumps(_plain(told), indent=1).encode())
    console.print(_table(figures))
    for remark in remarks:
        say(console, remark)
    if start:
        say(console, f"the first {start / RATE:.2f} s are the recording, given back from its codes")
    say(console, "  ".join(str(out.with_suffix(ending)) for ending in (out.suffix, ".png", ".json")))


def _check(
    out: Path, seconds: float, prime: Path | None, temperature: float, top_p: float | None
) -> Float[Tensor, " N"] | None:
    """What can be told before minutes of training; the recording that is continued."""
    shortest = FRAMES.n_fft / RATE
    if not shortest <= seconds <= LONGEST:
        raise InputError(f"--seconds {seconds:g}: from {shortest:g} to {LONGEST:g} can be composed")
    if not 0 <= temperature < math.inf or (top_p is not None and not 0 < top_p <= 1):
        raise InputError(f"--temperature {temperature:g}, --top-p {top_p}: not negative; above 0 and up to 1")
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"--out {printable(str(out))}: sound is written as {', '.join(FORMATS)}; name one of these")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {printable(str(out))}: there is no folder {out.parent} to write into, or it is one")
    return None if prime is None else read_audio(prime, RATE).waveform


def _trained(console: Console, folder: Path, data: Sequence[Path] | None, budget: float, seed: int) -> Composer:
    """The composer of the folder; trained first, or further, where it is not finished."""
    trained = is_trained(folder)
    if trained and not data:
        return Composer.read(folder)
    songs = read_songs(data)
    if trained:
        composer = Composer.read(folder)
        if any(facts["digest"] != songs.digest for facts in composer.facts):
            raise InputError(f"{folder} was trained on other music: leave --data out, or give another --model")
        return composer
    for remark in songs.remarks:
        say(console, remark)
    for stage in stages(songs, folder, seed=seed):
        share = Budget(seconds=budget * SHARES[stage.name])
        rate, into = RATES[stage.name], folder / stage.name
        train_shown(console, stage.model, stage.task, into, share, rate=rate, facts=stage.facts)
    return Composer.read(folder)


def _codebooks(composer: Composer) -> str:
    """How many codes held-out music uses."""
    told = composer.codebooks
    levels = [
        f"level {level}: {told[f'codes used, level {level}']:.0f} of {len(counts)}, "
        f"perplexity {told[f'perplexity of codes, level {level}']:.0f}"
        for level, counts in enumerate(composer.reference.codes)
    ]
    return f"codes in held-out music: {'; '.join(levels)}"


def _table(figures: dict[str, dict[str, float]]) -> Table:
    """A row for each figure."""
    table = Table(title=f"means over pieces of {PIECE:g} s; distances are to the training part")
    table.add_column("")
    for name in figures:
        table.add_column(name, justify="right")
    for figure in figures["composed"]:
        table.add_row(figure, *(_number(values[figure]) for values in figures.values()))
    return table


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"


def _plain(told: Any) -> Any:
    """JSON has no number that is none."""
    if isinstance(told, dict):
        return {str(name): _plain(value) for name, value in told.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(told, list | tuple):
        return [_plain(value) for value in told]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(told, float) and math.isnan(told) else told
