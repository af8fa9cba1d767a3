"""How a problem travels through an opaque operator: all that has a name as one text, all else as a list of tensors.

The list holds, in this order and only where present: the pattern's tensors, key_mask, attn_mask, the tensors of each
term, the seed of dropout.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from regard import patterns, scores
from regard.engines.problem import Problem, Shared
from regard.engines.transforms import outside
from regard.patterns import Pattern
from regard.scores import Term


class Parts(NamedTuple):
    """The list of tensors, sorted by what they are."""

    pattern: tuple[Tensor, ...]
    key_mask: Tensor | None
    attn_mask: Tensor | None
    terms: tuple[tuple[Tensor, ...], ...]
    seed: Tensor | None


@dataclass(frozen=True)
class Packing:
    """What the list of tensors holds.

    Attributes:
        pattern, pattern_tensors: the pattern's text and how many tensors it has.
        key_mask, attn_mask, seed: whether they are there.
        terms: text and number of tensors of each score term.
    """

    pattern: str
    pattern_tensors: int
    key_mask: bool
    attn_mask: bool
    seed: bool
    terms: tuple[tuple[str, int], ...]

    @property
    def attn_mask_at(self) -> int:
        """The place of attn_mask in the list."""
        return self.pattern_tensors + self.key_mask

    @property
    def terms_at(self) -> slice:
        """The places of the terms' tensors in the list."""
        start = self.attn_mask_at + self.attn_mask
        return slice(start, start + sum(count for _, count in self.terms))

    def split(self, tensors: Sequence[Tensor]) -> Parts:
        """Sort the list."""
        rest = iter(tensors)
        return Parts(
            tuple(next(rest) for _ in range(self.pattern_tensors)),
            next(rest) if self.key_mask else None,
            next(rest) if self.attn_mask else None,
            tuple(tuple(next(rest) for _ in range(count)) for _, count in self.terms),
            next(rest) if self.seed else None,
        )


def pack(
    pattern: str,
    pattern_tensors: tuple[Tensor, ...],
    key_mask: Tensor | None,
    attn_mask: Tensor | None,
    terms: tuple[Term, ...],
    seed: Tensor | None,
) -> tuple[str, list[Tensor]]:
    """The text and the list of tensors; strings and lists only, so that dynamo follows."""
    present = " ".join("0" if tensor is None else "1" for tensor in (key_mask, attn_mask, seed))
    spec = f"{len(pattern_tensors)} {present} {pattern}"
    tensors = [*pattern_tensors, *(tensor for tensor in (key_mask, attn_mask) if tensor is not None)]
    for term in terms:
        spec = f"{spec}\n{len(term.tensors)} {term.spec}"
        tensors += term.tensors
    return spec, tensors if seed is None else [*tensors, seed]


@lru_cache(maxsize=1024)
def read(spec: str) -> Packing:
    """What :func:`pack` wrote."""
    head, *lines = spec.split("\n")
    count, key_mask, attn_mask, seed, pattern = head.split(" ", 4)
    terms = tuple((text, int(number)) for number, text in (line.split(" ", 1) for line in lines))
    return Packing(pattern, int(count), key_mask == "1", attn_mask == "1", seed == "1", terms)


def unpack(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    spec: str,
    q_offset: int | None,
    scale: float | None,
    dropout_p: float,
) -> Problem:
    """The problem with its leading dimensions flattened to one, in views."""
    packing = read(spec)
    parts = packing.split(tensors)
    lead, (heads, n, width), m = query.shape[:-3], query.shape[-3:], key.shape[-2]
    batch = math.prod(lead)
    return Problem(
        query=query.reshape(batch, *query.shape[-3:]),
        key=key.reshape(batch, *key.shape[-3:]),
        value=value.reshape(batch, *value.shape[-3:]),
        pattern=_pattern(packing.pattern, parts.pattern),
        q_offset=m - n if q_offset is None else q_offset,
        key_mask=None if parts.key_mask is None else _shared(parts.key_mask, lead, 1),
        attn_mask=None if parts.attn_mask is None else _shared(parts.attn_mask, lead, 3),
        terms=tuple(
            _term(text, given, lead, heads, n) for (text, _), given in zip(packing.terms, parts.terms, strict=True)
        ),
        scale=max(width, 1) ** -0.5 if scale is None else scale,
        dropout_p=dropout_p,
        seed=parts.seed,
    )


def _shared(tensor: Tensor, lead: torch.Size, inner: int) -> Shared:
    """Flatten a mask over its own leading dimensions and remember which row each batch entry reads."""
    while tensor.ndim < inner:
        tensor = tensor[None]
    own = tensor.shape[: tensor.ndim - inner]
    count = math.prod(own)
    flat = tensor.reshape(count, *tensor.shape[tensor.ndim - inner :])
    if count == 1:
        return Shared(flat, None)
    return Shared(flat, torch.arange(count, device=tensor.device).view(own).expand(lead).reshape(-1))


def _term(text: str, tensors: tuple[Tensor, ...], lead: torch.Size, heads: int, n: int) -> Term:
    term = scores.from_spec(text, tensors)
    if any(term.row_tensors):
        flat = [
            t.expand(*lead, heads, n, t.shape[-1]).reshape(-1, heads, n, t.shape[-1]) if by_row else t
            for t, by_row in zip(tensors, term.row_tensors, strict=True)
        ]
        term = scores.from_spec(text, flat)
    return term.bind(heads)


_numbers_only = lru_cache(maxsize=256)(patterns.from_spec)
_held: OrderedDict[tuple[object, ...], Pattern] = OrderedDict()
_lock = Lock()


def _pattern(text: str, tensors: tuple[Tensor, ...]) -> Pattern:
    """The pattern, the same object for the same text and tensors, so that its plan is found again.

    A pattern holds its tensors, which keeps their ids unique while it is remembered.
    """
    if not tensors:
        with outside():
            return _numbers_only(text)
    if any(is_fake(tensor) or tensor.is_inference() for tensor in tensors):  # a tracer's, or without a version
        return patterns.from_spec(text, tensors)
    name = (text, *((id(tensor), tensor._version) for tensor in tensors))
    with _lock:
        found = _held.pop(name, None) or patterns.from_spec(text, tensors)
        _held[name] = found  # the last one in is the last one out
        if len(_held) > 16:
            _held.popitem(last=False)
    return found
