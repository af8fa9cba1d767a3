"""Sequences and their masks at the door: what does not fit is refused with the shapes and the rule."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regard.registry import UnsupportedError


def check_tokens(x: Tensor, dim: int, name: str = "x") -> None:
    """Refuse what is no (batch, length, dim).

    Raises:
        ValueError: another shape.
    """
    if x.ndim != 3 or x.shape[-1] != dim:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected (batch, length, {dim})")


def check_mask(mask: Tensor | None, batch: int, length: int, name: str = "key_mask") -> None:
    """Refuse a mask that is no Bool (batch, length); True = takes part.

    Raises:
        TypeError: another dtype; integers and floats have no agreed meaning.
        ValueError: another shape.
    """
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} is {mask.dtype}: pass Bool, True for tokens that take part, e.g. {name}.bool()")
    if mask.shape != (batch, length):
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, but the tokens are {(batch, length)}: (batch, length)")


def hide(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, N, C) with masked tokens set to exactly 0, whatever stood there, NaN too."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)


def admit_one_sequence(
    name: str,
    x: Tensor,
    dim: int,
    context: Tensor | None,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The door of a layer that attends within one sequence.

    Args:
        name: of the mechanism, for messages.
        x, context, key_mask, query_mask, segments: as layers take them.
        dim: the width of the layer.

    Returns:
        x with what neither asks nor is asked set to 0, and both masks, each the default of the other.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit.
        UnsupportedError: a context.
    """
    check_tokens(x, dim)
    for title, mask in (("key_mask", key_mask), ("query_mask", query_mask)):
        check_mask(mask, *x.shape[:2], name=title)
    check_segments(segments, *x.shape[:2])
    if context is not None:
        raise UnsupportedError(f"{name} attends within one sequence: it takes no context")
    key_mask, query_mask = (a if b is None else b for a, b in ((query_mask, key_mask), (key_mask, query_mask)))
    part = None if key_mask is None or query_mask is None else key_mask | query_mask
    return hide(x, part), key_mask, query_mask


def hide_rows(out: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, N, D) with the rows of tokens that a mask Bool (B, N) leaves out set to 0; :func:`hide`, heads first."""
    return out if mask is None else out.masked_fill(~mask[:, None, :, None], 0.0)


def check_values(values: Tensor, batch: int, heads: int, length: int) -> None:
    """Refuse values to be weighed that are no (batch or 1, heads or 1, length, any width).

    Raises:
        ValueError: another shape.
    """
    fits = values.ndim == 4 and values.shape[0] in (1, batch) and values.shape[1] in (1, heads)
    if not fits or values.shape[2] != length:
        expected = f"({batch} or 1, {heads} or 1, {length}, any width)"
        raise ValueError(f"values has shape {tuple(values.shape)}, expected {expected}: (batch, heads, length, width)")


def check_segments(segments: Tensor | None, batch: int, length: int) -> None:
    """Refuse ids of documents that are no integers (batch, length).

    Raises:
        TypeError: no integers.
        ValueError: another shape.
    """
    if segments is None:
        return
    if segments.is_floating_point() or segments.is_complex() or segments.dtype == torch.bool:
        raise TypeError(f"segments is {segments.dtype}: pass integers, the same one for all tokens of a document")
    if segments.shape != (batch, length):
        raise ValueError(f"segments has shape {tuple(segments.shape)}, but the tokens are {(batch, length)}")


def positions(tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Int[Tensor, "#B N"]:
    """The number of each real token among those of its document, from 0: what padding and neighbours do not move.

    Args:
        tokens: anything that starts (B, N).
        mask: Bool (B, N), True for real tokens; the numbers of the others mean nothing.
        segments: Int (B, N), one id a document.

    Example:
        >>> tokens = torch.zeros(1, 5)
        >>> positions(tokens)
        tensor([[0, 1, 2, 3, 4]])
        >>> positions(tokens, torch.tensor([[False, True, True, True, True]]), torch.tensor([[7, 7, 7, 2, 2]]))
        tensor([[0, 0, 1, 0, 1]])
    """
    if mask is None and segments is None:
        return torch.arange(tokens.shape[1], device=tokens.device)[None]
    real = torch.ones(tokens.shape[:2], device=tokens.device, dtype=torch.long) if mask is None else mask.long()
    if segments is None:
        return (real.cumsum(-1) - 1).clamp(min=0)
    segments, order = torch.sort(segments, dim=-1, stable=True)
    real = real.gather(-1, order)
    count = real.cumsum(-1)
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    earlier = torch.where(first, count - real, 0).cummax(-1).values  # real tokens of the documents sorted before
    return torch.zeros_like(count).scatter(-1, order, (count - earlier - 1).clamp(min=0))


def from_key_padding_mask(key_padding_mask: Tensor) -> Bool[Tensor, "B M"]:
    """Our ``key_mask`` from the ``key_padding_mask`` of ``torch.nn``, where True means: leave this key out; (B, M).

    Raises:
        TypeError: a float mask; what it adds to the scores is no statement about which keys are real.

    Example:
        >>> from_key_padding_mask(torch.tensor([[False, False, True]]))
        tensor([[ True,  True, False]])
    """
    if key_padding_mask.dtype != torch.bool:
        raise TypeError(f"key_padding_mask is {key_padding_mask.dtype}: pass Bool, e.g. key_padding_mask == -math.inf")
    return ~key_padding_mask
