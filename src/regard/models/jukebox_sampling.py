"""Codes out of Jukebox's priors: from nothing, from given ones, longer than a window, and level by level.

Dhariwal et al. 2020, arXiv:2005.00341, section 4.5. Every code is read once: keys and values of those before it are
kept (:mod:`regard.mechanisms.patterned.jukebox` says how many). A piece longer than a prior's window of n codes is
drawn in windows: each begins h n codes after the one before (h is ``hop_fraction``), reads anew what both share, and
draws h n further codes. The last window is moved back so that it ends with the piece: it reads more of what is there.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from regard.models.decoding import draw
from regard.models.jukebox_conditions import lyric_window
from regard.models.jukebox_prior import JukeboxPrior

Tell = Callable[[int, int], None]


class Prior(Protocol):
    """A :class:`JukeboxPrior`, or a :class:`CodePrior` alone."""

    max_length: int

    @property
    def memory(self) -> Callable[..., Any]:
        """(batch, ...) -> the memory of sequences without a code."""
        ...

    @property
    def resume(self) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
        """(codes, memory) -> (logits, memory)."""
        ...


@torch.no_grad()
def sample_codes(
    prior: Prior,
    batch: int,
    steps: int,
    *,
    prime: Int[Tensor, "B P"] | None = None,
    upper_codes: Int[Tensor, "B n"] | None = None,
    labels: Int[Tensor, "B L"] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator | None = None,
    tell: Tell | None = None,
) -> Int[Tensor, "B P+steps"]:
    """Draw codes within one window, after those of ``prime`` if there are any.

    The prior stays in the mode that it is in: call ``prior.eval()`` first where it has dropout.

    Args:
        prior: of any level.
        batch: B.
        steps: how many codes to draw.
        prime: codes to continue; read at once.
        upper_codes, labels: what the prior is told, for the whole window.
        temperature, top_k, top_p, generator: see :func:`regard.models.decoding.draw`.
        tell: is called with the number of codes drawn and ``steps``, after each.

    Returns:
        The prime and what follows it.

    Raises:
        ValueError: more codes than the prior's window holds, or numbers out of range.

    Example:
        >>> from regard.models.code_prior import CodePrior
        >>> from regard.models.jukebox_transformer import JukeboxTransformer
        >>> prior = CodePrior(11, 24, JukeboxTransformer(16, 3, 2, row_length=6)).eval()
        >>> sample_codes(prior, 2, 24, top_p=0.9).shape
        torch.Size([2, 24])
    """
    _check(temperature, top_k, top_p)
    given = 0 if prime is None else prime.shape[1]
    if steps < 0 or given + steps > prior.max_length:
        raise ValueError(
            f"{given} codes and steps={steps} more do not fit in a window of max_length={prior.max_length}: "
            "sample_windows writes longer pieces"
        )
    if prime is not None and (prime.ndim != 2 or len(prime) != batch):
        raise ValueError(f"prime has shape {tuple(prime.shape)}, expected ({batch}, any): (batch, codes)")
    told = {"upper_codes": upper_codes, "labels": labels}
    memory = prior.memory(batch, **{name: value for name, value in told.items() if value is not None})
    last = prime
    if last is None:
        last = torch.zeros(batch, 0, dtype=torch.long, device=memory.transformer.position.device)
    found = [last]
    for step in range(steps):
        logits, memory = prior.resume(last, memory)
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        last = draw(logits[:, -1], **options, generator=generator)
        found.append(last)
        if tell is not None:
            tell(step + 1, steps)
    return torch.cat(found, 1)


def window_starts(length: int, window: int, hop: int) -> list[int]:
    """Where windows begin so that each adds ``hop`` codes, and the last one ends with the piece.

    Example:
        >>> window_starts(22, 10, 5), window_starts(7, 10, 5)
        ([0, 5, 10, 12], [0])
    """
    return [0] if length <= window else [min(start, length - window) for start in range(0, length - window + hop, hop)]


def sample_windows(
    prior: Prior,
    batch: int,
    length: int,
    *,
    hop_fraction: float = 0.5,
    prime: Int[Tensor, "B P"] | None = None,
    upper_codes: Int[Tensor, "B n"] | None = None,
    labels: Int[Tensor, "B L"] | None = None,
    lyrics: Sequence[Sequence[int]] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator | None = None,
    tell: Tell | None = None,
) -> Int[Tensor, "B length"]:
    """Draw codes until there are ``length`` of them, window after window.

    Args:
        prior: of any level.
        batch: B.
        length: of the piece in codes, those of ``prime`` included.
        hop_fraction: how much of a window is new. Less is slower, and what is drawn has seen more.
        prime: codes to continue.
        upper_codes: of the whole piece.
        labels: of its beginning; each window gets its own offset and length in samples, from ``prior.hop``.
        lyrics: the tokens of each whole text; each window gets those that are likely sung in it.
        temperature, top_k, top_p, generator: see :func:`regard.models.decoding.draw`.
        tell: is called with the number of codes that are there and ``length``, after each.

    Raises:
        ValueError: a length or windows that meet no whole codes of the level above, or numbers out of range.

    Example:
        >>> from regard.models.code_prior import CodePrior
        >>> from regard.models.jukebox_transformer import JukeboxTransformer
        >>> prior = CodePrior(11, 24, JukeboxTransformer(16, 3, 2, row_length=6)).eval()
        >>> sample_windows(prior, 1, 60).shape
        torch.Size([1, 60])
    """
    window, factor = prior.max_length, _factor(prior)
    hop = int(hop_fraction * window) // factor * factor
    if not 0 < hop_fraction <= 1 or hop < 1:
        raise ValueError(
            f"hop_fraction={hop_fraction} of {window} codes is no step: above 0, up to 1, {factor} at least"
        )
    if length % factor or (length > window and window % factor):
        raise ValueError(f"length={length} and windows of {window} must be whole codes above, multiples of {factor}")
    if labels is None and lyrics is not None:
        raise ValueError("lyrics go into rows of labels: pass labels= too")
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    codes = prime
    for start in window_starts(length, window, hop):
        end = min(start + window, length)
        there = 0 if codes is None else codes.shape[1]
        if there >= end:
            continue
        upper = None if upper_codes is None else upper_codes[:, start // factor : end // factor]
        drawn = sample_codes(
            prior,
            batch,
            end - max(there, start),
            prime=None if codes is None else codes[:, start:],
            upper_codes=upper,
            labels=None if labels is None else _labels_of(prior, labels, lyrics, start),
            tell=_counted(tell, max(there, start), length),
            **options,
        )
        codes = drawn if codes is None or start == 0 else torch.cat((codes[:, :start], drawn), 1)
    if codes is None:
        raise ValueError(f"length={length}: a piece has one code at least")
    return codes


def sample_levels(
    priors: Sequence[JukeboxPrior],
    batch: int,
    samples: int,
    *,
    given: Sequence[Tensor | None] | None = None,
    labels: Sequence[Tensor | None] | None = None,
    lyrics: Sequence[Sequence[int]] | None = None,
    hop_fraction: float | Sequence[float] = 0.5,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator | None = None,
    tell: Callable[[int, int, int], None] | None = None,
) -> list[Tensor]:
    """Draw the codes of all levels, the uppermost first, each upon the codes above it.

    Args:
        priors: of levels 0, 1, ..., the last one the uppermost; each knows its ``hop``.
        batch: B.
        samples: of sound, a multiple of the uppermost hop.
        given: codes of each level that are there, to be continued: of a recording ("primed"), or whole ones of the
            upper levels ("upsampling").
        labels: rows for each prior; None where it takes none.
        lyrics: the tokens of each whole text, for priors that read them.
        hop_fraction, temperature: one number, or one for each level.
        top_k, top_p, generator: see :func:`regard.models.decoding.draw`.
        tell: is called with the level, the number of its codes that are there and how many there will be.

    Returns:
        Codes (B, samples / hop) of each level, level 0 first.

    Raises:
        ValueError: samples that are no multiple of every hop, or lists of another length than ``priors``.
    """
    count = len(priors)
    each: dict[str, Sequence[Any]] = {
        "given": [None] * count if given is None else given,
        "labels": [None] * count if labels is None else labels,
        "hop_fraction": [hop_fraction] * count if isinstance(hop_fraction, (int, float)) else hop_fraction,
        "temperature": [temperature] * count if isinstance(temperature, (int, float)) else temperature,
    }
    for name, values in each.items():
        if len(values) != count:
            raise ValueError(f"{name} holds {len(values)} entries for {count} priors: one for each, level 0 first")
    if wrong := [prior.hop for prior in priors if samples % prior.hop or samples < prior.hop]:
        raise ValueError(f"samples={samples} is no multiple of a hop of {wrong[0]} samples a code")
    codes: list[Tensor | None] = [None] * count
    for level in reversed(range(count)):
        prior = priors[level]
        reads = bool(prior.lyrics is not None or prior.lyric_vocabulary)
        codes[level] = sample_windows(
            prior,
            batch,
            samples // prior.hop,
            prime=each["given"][level],
            labels=each["labels"][level],
            hop_fraction=each["hop_fraction"][level],
            temperature=each["temperature"][level],
            upper_codes=None if prior.upper is None or level + 1 == count else codes[level + 1],
            lyrics=lyrics if reads else None,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            tell=None if tell is None else _on_level(tell, level),
        )
    return [found for found in codes if found is not None]


def _on_level(tell: Callable[[int, int, int], None], level: int) -> Tell:
    return lambda done, whole: tell(level, done, whole)


def _counted(tell: Tell | None, before: int, length: int) -> Tell | None:
    return None if tell is None else lambda done, _: tell(before + done, length)


def _factor(prior: Prior) -> int:
    upper = prior.upper if isinstance(prior, JukeboxPrior) else None
    return 1 if upper is None else upper.factor


def _labels_of(prior: Prior, labels: Tensor, lyrics: Sequence[Sequence[int]] | None, start: int) -> Tensor:
    """The rows of the window that begins with code ``start``."""
    if not isinstance(prior, JukeboxPrior):
        raise ValueError("a CodePrior alone takes no labels: put it in a JukeboxPrior with labels=")
    labels, length = labels.clone(), prior.max_length * prior.hop
    labels[:, 1] += start * prior.hop
    labels[:, 2] = length
    if lyrics is not None:
        windows = [
            lyric_window(tokens, prior.lyric_tokens, int(row[0]), int(row[1]), length)
            for tokens, row in zip(lyrics, labels, strict=True)
        ]
        labels[:, labels.shape[1] - prior.lyric_tokens :] = torch.tensor(windows).to(labels)
    return labels


def _check(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: temperature is not negative, top_k at least 1, "
            "top_p above 0 and up to 1"
        )
