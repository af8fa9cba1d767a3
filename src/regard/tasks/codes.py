"""Codes of sound as a language: the task of a prior, to predict each code of a level from those before it.

The codes are those that a trained :class:`regard.models.VQVAE` gives to the parts of songs. A prior of the uppermost
level sees nothing else; one of a lower level is told the codes above it, of the same time.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.models.code_prior import CodePrior
from regard.models.jukebox_conditions import UpperCodes
from regard.models.jukebox_prior import JukeboxPrior
from regard.models.jukebox_transformer import JukeboxTransformer
from regard.models.sound_blocks import Residual
from regard.models.vqvae import VQVAE
from regard.registry import UnsupportedError
from regard.tasks.documents import InputError
from regard.tasks.music import RATE, Song, Songs, draw_places
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

PIECE = 8 * RATE
"""Samples that are encoded at once."""


@dataclass(frozen=True)
class Stream:
    """The codes of one piece of music at each level, level 0 first."""

    name: str
    levels: tuple[Int[Tensor, " _"], ...]


@dataclass(frozen=True)
class CodeBatch(Batch):
    """Codes, with those of the level above as ``context``."""

    @property
    def options(self) -> dict[str, Tensor | None]:
        """What a prior takes beside the codes."""
        return {} if self.context is None else {"upper_codes": self.context}


@torch.no_grad()
def encode_songs(model: VQVAE, songs: Sequence[Song]) -> list[Stream]:
    """The codes of songs, cut to whole codes of the uppermost level; in eval mode, whatever mode the model is in.

    Args:
        model: a trained one, on any device.
        songs: pieces shorter than a code are left out.
    """
    training, hop = model.training, model.hops[-1]
    model.eval()
    device = next(model.parameters()).device
    streams: list[Stream] = []
    for song in songs:
        whole = song.waveform[: len(song.waveform) // hop * hop]
        parts = [model.encode(part[None, :, None].to(device)) for part in whole.split(PIECE // hop * hop) if len(part)]
        if parts:
            levels = tuple(torch.cat([part[level][0].cpu() for part in parts]) for level in range(model.levels))
            streams.append(Stream(song.name, levels))
    model.train(training)
    return streams


@dataclass(frozen=True)
class Coded:
    """All parts of songs as codes.

    Attributes:
        train, validation, test: the streams of each part.
        hops: samples of a code of each level.
        sizes: of each level, how many different codes there are.
    """

    train: tuple[Stream, ...]
    validation: tuple[Stream, ...]
    test: tuple[Stream, ...]
    hops: tuple[int, ...]
    sizes: tuple[int, ...]

    def part(self, part: Part) -> tuple[Stream, ...]:
        """Of this name."""
        return self.validation if part == "validation" else self.test


def code_songs(model: VQVAE, songs: Songs) -> Coded:
    """The codes of all parts."""
    parts = [tuple(encode_songs(model, part)) for part in (songs.train, songs.validation, songs.test)]
    return Coded(*parts, hops=model.hops, sizes=tuple(len(book.table) for book in model.codebooks))  # pyright: ignore[reportArgumentType]


class Codes(Task):
    """Predict the codes of one level; quality is held-out bits per code.

    Args:
        coded: the codes of all parts, by :func:`code_songs`.
        level: whose codes are predicted; below the uppermost one, those above it are told.
        length: codes of a window.
        batch: windows per step.
        seed: of the order of the windows.

    Raises:
        InputError: no piece holds a window.
        ValueError: a window that is no whole number of the codes above.
    """

    unit = "codes"
    loss_unit, loss_scale = "bits per code", 1 / math.log(2)
    metric = Metric("bits per code", lower_is_better=True, digits=3, items="songs")

    def __init__(self, coded: Coded, level: int, *, length: int = 512, batch: int = 4, seed: int = 0) -> None:
        self.coded, self.level, self.length, self.rows, self.seed = coded, level, length, batch, seed
        self.top = level == len(coded.hops) - 1
        self.factor = 1 if self.top else coded.hops[level + 1] // coded.hops[level]
        self.hop, self.num_classes = coded.hops[level], coded.sizes[level]
        self.vocab_size = self.num_classes
        if length % self.factor:
            raise ValueError(f"length={length} is no multiple of {self.factor}, the codes under one of the level above")
        self.long = [stream for stream in coded.train if len(stream.levels[level]) > length]
        if not self.long or not all(any(self._windows(s) for s in part) for part in (coded.validation, coded.test)):
            raise InputError(
                f"no song holds a window of {length} codes, {length * self.hop / RATE:.1f} seconds, in every part: "
                "give longer music"
            )
        self.sizes = torch.tensor([float(len(stream.levels[level]) - length) for stream in self.long])

    def model(
        self, dim: int = 96, depth: int = 3, num_heads: int = 4, mechanism: str = "jukebox", **options: Any
    ) -> nn.Module:
        """Jukebox's prior with row, column and previous-row attention in turns; below the top, an upsampler.

        Raises:
            UnsupportedError: another mechanism.
        """
        if mechanism != "jukebox":
            raise UnsupportedError(f"{mechanism} is not how these priors attend: this task is for jukebox")
        return build_prior(self.num_classes, self.length, self.factor, self.hop, dim, depth, num_heads, **options)

    def batch(self, step: int) -> Batch:
        """Windows drawn uniformly by a generator that depends on seed and step alone; they begin with a code above."""
        places = draw_places(self.sizes, self.rows, step_generator(self.seed, step))
        return self._batch([(self.long[number], start // self.factor * self.factor) for number, start in places])

    def held_out(self, part: Part) -> Iterator[Batch]:
        """All whole windows of the held-out ends, in order."""
        for stream in self.coded.part(part):
            starts = self._windows(stream)
            for first in range(0, len(starts), self.rows):
                yield self._batch([(stream, start) for start in starts[first : first + self.rows]])

    def _windows(self, stream: Stream) -> list[int]:
        return list(range(0, len(stream.levels[self.level]) - self.length + 1, self.length))

    def _batch(self, windows: Sequence[tuple[Stream, int]]) -> CodeBatch:
        level, length, factor = self.level, self.length, self.factor
        codes = torch.stack([stream.levels[level][start : start + length] for stream, start in windows])
        upper = None
        if not self.top:
            above = [(stream.levels[level + 1], start // factor) for stream, start in windows]
            upper = torch.stack([codes[start : start + length // factor] for codes, start in above])
        units, amounts = tuple(stream.name for stream, _ in windows), (float(length),) * len(windows)
        return CodeBatch(codes, codes, units=units, amounts=amounts, context=upper)

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction.flatten(0, 1).float(), batch.targets.flatten())

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """Bits that each row would take in an ideal code."""
        nats = F.cross_entropy(prediction.transpose(1, 2).float(), batch.targets, reduction="none")
        return nats.double().sum(-1) / math.log(2)

    def baselines(self, part: Part = "test") -> dict[str, float]:
        """Bits per code of the held-out windows by counts in training: of codes, pairs, and codes below a code."""
        count = self.num_classes
        bits: dict[str, list[Tensor]] = {"uniform": [], "unigram": [], "bigram": []}
        single = counts_of([stream.levels[self.level] for stream in self.coded.train], count)
        pairs = pair_counts([(s.levels[self.level][:-1], s.levels[self.level][1:]) for s in self.coded.train], count)
        below = None
        if not self.top:
            above = [(self._spread(s), s.levels[self.level]) for s in self.coded.train]
            below, bits["unigram given the code above"] = pair_counts(above, count), []
        for batch in self.held_out(part):
            for row, codes in enumerate(batch.targets):
                alone = smoothed(single)[codes]
                bits["uniform"].append(torch.full((len(codes),), math.log2(count), dtype=torch.float64))
                bits["unigram"].append(-alone.log2())
                after = witten_bell(pairs, single, codes[:-1], codes[1:])
                bits["bigram"].append(-torch.cat((alone[:1], after)).log2())
                if below is not None and batch.context is not None:
                    upper = batch.context[row].repeat_interleave(self.factor)
                    bits["unigram given the code above"].append(-witten_bell(below, single, upper, codes).log2())
        return {name: float(torch.cat(found).mean()) for name, found in bits.items()}

    def _spread(self, stream: Stream) -> Tensor:
        """The code above each code."""
        return stream.levels[self.level + 1].repeat_interleave(self.factor)


def build_prior(
    count: int,
    length: int,
    factor: int,
    hop: int,
    dim: int = 96,
    depth: int = 3,
    num_heads: int = 4,
    **options: Any,
) -> JukeboxPrior:
    """A prior on windows of ``length`` codes.

    Args:
        count: how many different codes there are, on its level and above it.
        length: of its window.
        factor: codes under one of the level above; 1: there is none above.
        hop: samples of a code.
        dim, depth, num_heads: of the transformer.
        options: further ones of :class:`regard.models.jukebox_transformer.JukeboxTransformer`.
    """
    sizes: dict[str, Any] = {"row_length": row_length(length), "attention_ratio": 1.0, "mlp_ratio": 2.0}
    transformer = JukeboxTransformer(dim, depth, num_heads, **sizes | options)
    upper = UpperCodes(count, dim, 1, factor, Residual(dim // 2, 3)) if factor > 1 else None
    return JukeboxPrior(CodePrior(count, length, transformer), upper=upper, hop=hop)


def row_length(window: int) -> int:
    """The largest power of two that is at most the root of twice the window: rows about as long as columns.

    Example:
        >>> row_length(512), row_length(1024)
        (32, 32)
    """
    return 2 ** int(math.log2(max(1, 2 * window)) / 2)


def counts_of(streams: Sequence[Int[Tensor, " _"]], count: int) -> Float[Tensor, " K"]:
    """How often each code occurs."""
    return torch.bincount(torch.cat(list(streams)), minlength=count).double()


def pair_counts(pairs: Sequence[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]], count: int) -> Float[Tensor, "K K"]:
    """How often each code goes with each."""
    joined = torch.cat([first * count + second for first, second in pairs])
    return torch.bincount(joined, minlength=count * count).double().view(count, count)


def smoothed(counts: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """(count + 1) / (all + K)."""
    return (counts + 1) / (counts.sum() + len(counts))


def witten_bell(
    pairs: Float[Tensor, "K K"], single: Float[Tensor, " K"], given: Int[Tensor, " N"], codes: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """(c(a b) + T(a) p(b)) / (c(a) + T(a)), T(a) = how many different codes went with a; p(b) where a never occurred.

    Args:
        pairs, single: counts in training.
        given, codes: a and b.
    """
    kinds, total = (pairs > 0).sum(-1)[given], pairs.sum(-1)[given]
    alone = smoothed(single)[codes]
    return torch.where(total > 0, (pairs[given, codes] + kinds * alone) / (total + kinds).clamp(min=1), alone)
