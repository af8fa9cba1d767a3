"""What a model must beat: byte counts with at most one byte of context, and a compressor that saw the training text."""

import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.tasks.language import SEPARATOR, Chunk, LanguageModelling

LARGEST_XZ = 16 << 20
"""More bytes than this would take longer than an entrant's training."""


@dataclass(frozen=True)
class Baselines:
    """Held-out bits per byte of models that know nothing of attention; ``xz`` is None where it was not measured."""

    unigram: float
    bigram: float
    xz: float | None


def byte_baselines(task: LanguageModelling) -> tuple[float, float]:
    """Unigram and bigram models of the training part, judged on the very chunks that the entrants are judged on.

    Unigram: add one. Bigram: Witten-Bell, p(b|a) = (c(ab) + t(a) p(b)) / (c(a) + t(a)) with t(a) kinds of followers.
    """
    stream = task.stream.long()
    single = torch.bincount(stream, minlength=256).double() + 1
    unigram = single / single.sum()
    pairs = torch.bincount(stream[:-1] * 256 + stream[1:], minlength=65_536).double().view(256, 256)
    kinds = (pairs > 0).sum(1, keepdim=True).clamp(min=1)
    bigram = (pairs + kinds * unigram) / (pairs.sum(1, keepdim=True) + kinds)
    before, after = _pairs(task.chunks["test"])
    return float(-unigram[after].log2().mean()), float(-bigram[before, after].log2().mean())


def xz_bits_per_byte(task: LanguageModelling) -> float | None:
    """How much xz grows when the test part is put behind the training part, in bits per byte of the test part.

    None where the text is too large for that to be quick.
    """
    train = SEPARATOR.join(document.data for document in task.split.train)
    test = SEPARATOR.join(document.data for document in task.split.test)
    if len(train) + len(test) > LARGEST_XZ:
        return None
    with ThreadPoolExecutor(2) as pool:  # lzma releases the GIL
        alone, both = pool.map(_compressed, (train, train + test))
    return 8 * (both - alone) / len(test)


def baselines(task: LanguageModelling) -> Baselines:
    """All three figures."""
    return Baselines(*byte_baselines(task), xz_bits_per_byte(task))


def _pairs(chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
    """Each held-out byte and the one before it."""
    contexts, targets = (b"".join(getattr(chunk, side) for chunk in chunks) for side in ("context", "target"))
    return torch.tensor(list(contexts)), torch.tensor(list(targets))


def _compressed(data: bytes) -> int:
    """The size after xz; the dictionary (64 MB) holds everything that is ever asked for here."""
    return len(lzma.compress(data, preset=9))
