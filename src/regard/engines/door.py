"""The door: what ``attend`` and ``explain`` are given is checked here, in words, and packed for an operator."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from regard.engines.packing import pack
from regard.engines.problem import Request
from regard.patterns import Pattern
from regard.scores import Term


class Admitted(NamedTuple):
    """The arguments of an operator, and what an engine is chosen by."""

    arguments: tuple[Any, ...]
    request: Request


def admit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Any,
    *,
    attn_mask: Tensor | None,
    key_mask: Tensor | None,
    score: Term | Sequence[Term] | None,
    is_causal: bool,
    q_offset: int | None,
    scale: float | int | None,
    dropout_p: float | int,
    enable_gqa: bool,
    return_lse: bool,
    generator: Generator | None,
) -> Admitted:
    """Check the arguments of :func:`regard.attend` and pack them.

    Raises:
        TypeError: something has the wrong type or dtype.
        ValueError: shapes or options contradict each other; the message names them and the way out.
    """
    query, key, value = _autocast(query, key, value)
    _check_tensors(query, key, value, enable_gqa)
    _check_pattern(pattern, query, key, q_offset)
    _check_options(q_offset, scale, dropout_p, generator)
    _check_key_mask(key_mask, query, key)
    _check_attn_mask(attn_mask, query, key)
    terms = _terms(score, query)
    text, tensors = ("Full()", ()) if pattern is None else (pattern.spec, pattern.tensors)
    if is_causal:
        text = "Causal()" if text in ("Full()", "Causal()") else f"({text}) & Causal()"
    seed = _seed(generator) if dropout_p > 0 else None
    spec, packed = pack(text, tensors, key_mask, attn_mask, terms, seed)
    n, m, width = query.shape[-2], key.shape[-2], query.shape[-1]
    batch, own = math.prod(query.shape[:-3]), 1 if attn_mask is None else math.prod(attn_mask.shape[:-3])
    request = Request(
        device=query.device.type,
        dtype=query.dtype,
        shape=(batch, query.shape[-3], key.shape[-3], n, m, width, value.shape[-1]),
        pattern=text,
        shifted=q_offset is not None,
        key_mask=key_mask is not None,
        attn_mask=None if attn_mask is None else attn_mask.dtype,
        mask_rows=attn_mask is not None and attn_mask.ndim > 1 and attn_mask.shape[-2] > 1,
        mask_groups=own > 1 and own != batch,
        mask_grad=attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled(),
        terms=tuple(term.spec for term in terms),
        lse=return_lse,
        dropout=seed is not None,
        grad=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value, *packed)),
    )
    return Admitted((query, key, value, packed, spec, q_offset, scale, dropout_p), request)


def _autocast(*tensors: Any) -> tuple[Tensor, ...]:
    """Query, key and value in autocast's dtype where it is on, as torch does for its own attention."""
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TypeError(f"query, key and value are tensors, not {', '.join(type(t).__name__ for t in tensors)}")
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    shapes = f"query {_of(query)}, key {_of(key)}, value {_of(value)}"
    if min(query.ndim, key.ndim, value.ndim) < 3:
        raise ValueError(f"attention is heads first, (..., H, N, D), and needs at least three dimensions: {shapes}")
    if not (query.dtype == key.dtype == value.dtype and query.is_floating_point()):
        raise TypeError(
            f"query, key and value share one floating dtype; they have {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            f"query, key and value are on {query.device}, {key.device} and {value.device}; move them together"
        )
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(f"the leading dimensions differ; expand() makes them equal without a copy: {shapes}")
    if key.shape[-3:-1] != value.shape[-3:-1]:
        raise ValueError(f"every key has one value, so heads and lengths of key and value agree: {shapes}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key have the same width D: {shapes}")
    if query.shape[-1] == 0 or value.shape[-1] == 0:
        raise ValueError(f"queries, keys and values have a width of at least 1: {shapes}")
    heads, groups = query.shape[-3], key.shape[-3]
    if heads != groups and not enable_gqa:
        raise ValueError(
            f"{heads} query heads and {groups} key heads: pass enable_gqa=True to share key heads: {shapes}"
        )
    if groups == 0 or heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key heads evenly: {shapes}")


def _check_pattern(pattern: Any, query: Tensor, key: Tensor, q_offset: int | None) -> None:
    if pattern is None:
        return
    if isinstance(pattern, Tensor):
        raise TypeError("the fourth argument is a pattern of regard.patterns; a mask is passed by name, attn_mask=")
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern is made of regard.patterns, and this is a {type(pattern).__name__}")
    heads, batch = query.shape[-3], math.prod(query.shape[:-3])
    if pattern.heads is not None and pattern.heads != heads:
        raise ValueError(f"{pattern!r} describes {pattern.heads} heads, and the query has {heads}: {_of(query)}")
    if pattern.batch is not None and pattern.batch != 1 and pattern.batch != batch:
        raise ValueError(f"{pattern!r} describes {pattern.batch} sequences, and the query holds {batch}: {_of(query)}")
    if pattern.rectangular and q_offset is not None and q_offset != key.shape[-2] - query.shape[-2]:
        raise ValueError(f"{pattern!r} is indexed by its own rows and columns: q_offset={q_offset} cannot shift it")


def _check_options(q_offset: Any, scale: Any, dropout_p: float | int, generator: Generator | None) -> None:
    for name, number in (("q_offset", q_offset), ("scale", scale)):
        if isinstance(number, Tensor):
            raise TypeError(f"{name} is a number, not a tensor (a learnt scale is multiplied into the query)")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p is the share of weights dropped, at least 0 and below 1, not {dropout_p}")
    if generator is not None and torch.compiler.is_compiling():
        raise ValueError(
            "a torch.Generator cannot enter a compiled region: leave generator out there, "
            "or call attend outside of the region"
        )


def _check_key_mask(mask: Any, query: Tensor, key: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(
            f"key_mask is bool, True for keys that take part, not {getattr(mask, 'dtype', type(mask).__name__)}; "
            "mask != 0 makes it from ones and zeros, ~mask from a key_padding_mask of torch.nn.MultiheadAttention"
        )
    if mask.ndim < 1 or mask.shape[-1] != key.shape[-2] or not _fits(mask.shape[:-1], query.shape[:-3]):
        raise ValueError(
            f"key_mask {_of(mask)} does not fit {key.shape[-2]} keys and leading dimensions {tuple(query.shape[:-3])}: "
            "it is (..., M)"
        )
    _check_device("key_mask", mask, query)


def _check_attn_mask(mask: Any, query: Tensor, key: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(
            "attn_mask is bool (True takes part) or floating (added to the scores), not "
            f"{getattr(mask, 'dtype', type(mask).__name__)}"
        )
    full = (*query.shape[:-1], key.shape[-2])
    if not _fits(mask.shape, full):
        raise ValueError(f"attn_mask {_of(mask)} does not broadcast to (..., H, N, M) = {tuple(full)}")
    _check_device("attn_mask", mask, query)


def _terms(score: Any, query: Tensor) -> tuple[Term, ...]:
    if score is None:
        return ()
    terms = (score,) if isinstance(score, Term) else tuple(score)
    for term in terms:
        if not isinstance(term, Term):
            raise TypeError(f"score takes terms of regard.scores, and this is a {type(term).__name__}")
        term.check(tuple(query.shape))
    return terms


def _seed(generator: Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randint(1 << 62, (), generator=generator, device=device)


def _check_device(name: str, tensor: Tensor, query: Tensor) -> None:
    if tensor.device != query.device:
        raise ValueError(f"{name} is on {tensor.device} and query on {query.device}; move it there")


def _fits(shape: Sequence[int], full: Sequence[int]) -> bool:
    """Whether a shape broadcasts to another one, without widening that."""
    if len(shape) > len(full):
        return False
    return all(size == 1 or size == whole for size, whole in zip(reversed(shape), reversed(full), strict=False))


def _of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
