"""vmap: a mapped dimension is one more leading dimension, unless something that all batch entries share is mapped."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regard.engines.packing import read
from regard.patterns import from_spec as pattern_from_spec
from regard.scores import from_spec as term_from_spec

Dimensions = Any  # int or None for a tensor, a list of them for a list of tensors


def rule(operator: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """The vmap rule of a forward operator (8 arguments) or a backward operator (13, the last one ``needs``)."""

    def mapped(info: Any, in_dims: tuple[Dimensions, ...], *arguments: Any) -> tuple[Any, Any]:
        if _foldable(in_dims, arguments):
            found = operator(*_folded(in_dims, arguments, info.batch_size))
        else:
            slices = [operator(*_slice(in_dims, arguments, number)) for number in range(info.batch_size)]
            found = type(slices[0])(torch.stack(each) for each in zip(*slices, strict=True))
        return found, type(found)(0 for _ in found)

    return mapped


def _foldable(in_dims: tuple[Dimensions, ...], arguments: Sequence[Any]) -> bool:
    """Whether every mapped tensor may have a leading dimension, and no gradient is summed over the mapped one."""
    packing = read(arguments[4])
    parts = packing.split(_slice(in_dims, arguments, 0)[3])
    shared_dims = [*in_dims[3][: packing.pattern_tensors], in_dims[3][-1] if packing.seed else None]
    places = iter(in_dims[3][packing.terms_at])
    for (text, _), tensors in zip(packing.terms, parts.terms, strict=True):
        by_row = term_from_spec(text, tensors).row_tensors
        shared_dims += [place for place, rows in zip([next(places) for _ in tensors], by_row, strict=True) if not rows]
    varies = bool(parts.pattern) and pattern_from_spec(packing.pattern, parts.pattern).batch is not None
    summed = len(arguments) > 8 and any(arguments[-1][3:])
    return not varies and not summed and all(dim is None for dim in shared_dims)


def _slice(in_dims: tuple[Dimensions, ...], arguments: Sequence[Any], number: int) -> list[Any]:
    """The arguments of one entry of the mapped dimension."""

    def pick(value: Any, dim: Dimensions) -> Any:
        if isinstance(dim, list | tuple):
            return [pick(*each) for each in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, number)

    return [pick(value, dim) for value, dim in zip(arguments, in_dims, strict=True)]


def _folded(in_dims: tuple[Dimensions, ...], arguments: Sequence[Any], size: int) -> list[Any]:
    """The arguments with the mapped dimension in front of the leading ones."""

    def front(value: Any, dim: Dimensions) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)

    folded = [front(value, dim) for value, dim in zip(arguments, in_dims, strict=True)]
    packing = read(arguments[4])
    ranks = [0] * packing.pattern_tensors + [1] * packing.key_mask + [3] * packing.attn_mask
    ranks += [3] * (len(arguments[3]) - len(ranks))
    leading = folded[0].ndim - 3
    folded[3] = [
        tensor if dim is None else _aligned(tensor.movedim(dim, 0), leading + rank)
        for tensor, dim, rank in zip(arguments[3], in_dims[3], ranks, strict=True)
    ]
    return folded


def _aligned(tensor: Tensor, ndim: int) -> Tensor:
    """Ones behind the first dimension until the tensor has ``ndim`` of them: its own stay on the right."""
    return tensor.reshape(tensor.shape[0], *[1] * (ndim - tensor.ndim), *tensor.shape[1:])
