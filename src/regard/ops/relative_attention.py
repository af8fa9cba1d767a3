"""Softmax attention whose scores also know distances, as in Transformer-XL: every query has a second one for them.

Dai et al. 2019, arXiv:1901.02860, section 3.3. N queries stand at the end of L keys, and a key that lies t places
behind a query has, besides what it holds, the row r_t of a table::

    score_ij = scale (q_i . k_j + p_i . r_t)        t = i + L - N - j >= 0

The products of p with all distances are one matrix product, whose row i is then shifted by N - 1 - i places. These are
formed as a whole, N x L of them: this is for queries of one segment and the bounded memory before it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from regard.attention import attend
from regard.patterns import Causal

SCORES_AT_ONCE, SCORES_KEPT = 2**23, 2**26
"""Of a batch with more scores than the first some sequences are taken at a time; than the second, and formed again."""


def distance_sinusoids(length: int, dim: int, like: Tensor) -> Float[Tensor, "L C"]:
    """[sin(t f) | cos(t f)] for the distances t = L - 1 ... 0, f_i = 10000^(-2i / C): side by side, not interleaved.

    Args:
        length: L.
        dim: C, even.
        like: gives dtype and device; the angles are computed in float32 at least.

    Example:
        >>> distance_sinusoids(2, 2, torch.zeros(1))[1].tolist()
        [0.0, 1.0]
    """
    precise = torch.promote_types(like.dtype, torch.float32)
    distance = torch.arange(length - 1, -1, -1, device=like.device, dtype=precise)
    frequency = 10000 ** -(torch.arange(0, dim, 2, device=like.device, dtype=precise) / dim)
    angle = distance[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), -1).to(like.dtype)


def relative_weights(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G L D"],
    p: Float[Tensor, "B H N Dr"] | None = None,
    r: Float[Tensor, "#H L Dr"] | None = None,
    *,
    scale: float,
    key_mask: Bool[Tensor, "B L"] | None = None,
) -> tuple[Float[Tensor, "B H N L"], Bool[Tensor, "#B 1 N 1"]]:
    """The weights of :func:`relative_attention`, and which queries see no key: their weights mean nothing."""
    n, length = q.shape[2], k.shape[2]
    scores = _rows(q * scale, k)
    if p is not None and r is not None:
        scores = scores + distance_products(p * scale, r)
    seen = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n)[None, None]
    if key_mask is not None:
        seen = seen & key_mask[:, None, None]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(q.dtype), ~seen.any(-1, keepdim=True)


def relative_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G L D"],
    v: Float[Tensor, "B G L Dv"],
    p: Float[Tensor, "B H N Dr"] | None = None,
    r: Float[Tensor, "#H L Dr"] | None = None,
    *,
    scale: float,
    key_mask: Bool[Tensor, "B L"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(scale (q_i . k_j + p_i . r_t)) v over the keys at or before each query; the last N keys are the queries'.

    Args:
        q: queries for what keys hold.
        k, v: keys and values of L >= N places; each of G heads serves H / G heads of queries.
        p: queries for distances; None: there is no such term.
        r: the table, by distance from L - 1 down to 0, of each head or of all.
        scale: of both products.
        key_mask: True for real keys.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row per query, 0 where it sees no key. Time and memory O(B H N L), the memory in eager mode at most
        :data:`SCORES_KEPT` scores.

    Example:
        >>> q, memory = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
        >>> k = v = torch.cat((memory, q), 2)
        >>> relative_attention(q, k, v, q, torch.randn(2, 8, 4), scale=0.5).shape
        torch.Size([1, 2, 3, 4])
    """
    options: dict[str, Any] = {"scale": scale, "dropout_p": attn_drop, "generator": generator}
    scores = q.shape[1] * q.shape[2] * k.shape[2]
    if torch.compiler.is_compiling() or len(q) * scores <= SCORES_AT_ONCE:  # compiled, one graph for every length
        return _attend(q, k, v, p, key_mask, r, options)
    at_once, outs = max(1, SCORES_AT_ONCE // scores), list[Tensor]()
    few = len(q) * scores <= SCORES_KEPT
    kept = few or attn_drop or not torch.is_grad_enabled()  # what was drawn would be drawn again
    parts: Any = zip(*(_split(t, at_once, len(q)) for t in (q, k, v, p, key_mask)), strict=True)
    for part in parts:
        run: Any = (*part, r, options)
        outs.append(_attend(*run) if kept else checkpoint(_attend, *run, use_reentrant=False))
    return torch.cat(outs)


def _split(t: Tensor | None, size: int, batch: int) -> Sequence[Tensor | None]:
    return [None] * -(-batch // size) if t is None else t.split(size)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: Tensor | None,
    real: Tensor | None,
    r: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    by_distance = None if p is None or r is None else distance_products(p * options["scale"], r).to(q.dtype)
    return attend(q, k, v, Causal(), attn_mask=by_distance, key_mask=real, enable_gqa=True, **options)


def _rows(q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G L D"]) -> Float[Tensor, "B H N L"]:
    """q k^T, where a head of k serves several of q: their rows stand below each other in one product."""
    batch, heads, n, width = q.shape
    return (q.reshape(batch, k.shape[1], -1, width) @ k.mT).view(batch, heads, n, -1)


def distance_products(p: Float[Tensor, "B H N D"], r: Float[Tensor, "#H L D"]) -> Float[Tensor, "B H N L"]:
    """p_i . r_t for every key; what stands at later keys means nothing.

    A column of zeros in front makes a row L + 1 long. Read on with rows of N and L in turn, from the N-th number on,
    each row begins one place later than the row before.
    """
    batch, heads, n, width = p.shape
    length = r.shape[1]
    rows = p.transpose(0, 1).reshape(len(r), -1, width)  # the batch of all heads that share the table
    products = (rows @ F.pad(r, (0, 0, 1, 0)).mT).view(heads, batch, (length + 1) * n)
    return products[..., n:].view(heads, batch, n, length).transpose(0, 1)
