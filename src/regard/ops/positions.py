"""Positions that count from the first real token, whatever padding lies before it.

A pattern that cuts the sequence into blocks would cut a left-padded sequence elsewhere. So the mechanism moves the real
tokens to the front, attends there, and puts its rows back.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def real_first(mask: Bool[Tensor, "B M"], *tensors: Float[Tensor, "B _ M _"]) -> tuple[Tensor, ...]:
    """The tensors with the rows of real tokens first, in their order.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 4, 1)
        >>> real_first(torch.tensor([[False, True, False, True]]), x)[0].flatten().tolist()
        [1.0, 3.0, 0.0, 2.0]
    """
    order = _order(mask)
    return tuple(take_rows(tensor, order) for tensor in tensors)


def put_back(mask: Bool[Tensor, "B N"], out: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H N D"]:
    """Undo :func:`real_first`, and set the rows of the others to 0."""
    return take_rows(out, _order(mask).argsort(-1)).masked_fill(~mask[:, None, :, None], 0.0)


def from_first_real(
    attention: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G N D"],
    v: Float[Tensor, "B G N Dv"],
    key_mask: Bool[Tensor, "B N"],
    query_mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """Self-attention whose positions count only tokens that ask or are asked; the others give 0.

    Args:
        attention: (q, k, v, key_mask) -> out, where position 0 is the first of these tokens.
        q, k, v: queries, keys and values, heads first.
        key_mask: True for real keys.
        query_mask: True for real queries; as the keys by default.
    """
    part = key_mask if query_mask is None else key_mask | query_mask
    q, k, v = real_first(part, q, k, v)
    return put_back(part, attention(q, k, v, key_mask.gather(-1, _order(part))))


def _order(mask: Tensor) -> Tensor:
    return mask.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)


def take_rows(x: Float[Tensor, "B H N D"], rows: Int[Tensor, "B R"]) -> Float[Tensor, "B H R D"]:
    """Row ``rows[b, r]`` of every head: all heads of a token are copied at once, where they lie side by side."""
    batch, heads, n, width = x.shape
    place = rows + n * torch.arange(batch, device=x.device)[:, None]
    tokens = x.transpose(1, 2).reshape(batch * n, heads * width).index_select(0, place.flatten())
    return tokens.view(batch, rows.shape[1], heads, width).transpose(1, 2)
