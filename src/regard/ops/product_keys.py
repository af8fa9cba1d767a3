"""Product keys: the best of n^2 sums of two scores, and the rows of a table that they stand for.

The K largest sums s(i, j) = s'(i) + s''(j) are made of the K largest of each half. The sum of the a-th and the b-th
largest has a b - 1 others above it, so that it can be among the K largest only where a b <= K: with K = 32, 119 sums
are looked at instead of 1024 or n^2.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def product_key_search(
    q: Float[Tensor, "T H 2 d"], keys: Float[Tensor, "H 2 n d"], topk: int
) -> tuple[Float[Tensor, "T H K"], Int[Tensor, "T H K"]]:
    """The K largest of the n^2 scores s(i, j) = q' . c_i + q'' . c'_j of each token and head.

    Args:
        q: both halves of each query.
        keys: the sub-keys for the first and for the second half.
        topk: K, at most n.

    Returns:
        The scores, the largest first, and the slots i n + j. Time O(T H n d), memory O(T H n).

    Example:
        >>> keys = torch.tensor([[[[1.0], [2.0]], [[5.0], [3.0]]]])
        >>> score, slot = product_key_search(torch.ones(1, 1, 2, 1), keys, 2)
        >>> score.tolist(), slot.tolist()
        ([[[7.0, 6.0]]], [[[2, 0]]])
    """
    tokens, heads, n = q.shape[0], q.shape[1], keys.shape[2]
    scores = torch.bmm(q.flatten(1, 2).transpose(0, 1), keys.flatten(0, 1).mT)
    best, index = (t.view(heads, 2, tokens, topk) for t in scores.topk(topk))
    first, second = _candidates(topk, q.device)
    score, pair = (best[:, 0, :, first] + best[:, 1, :, second]).topk(topk)
    slot = index[:, 0].gather(-1, first[pair]) * n + index[:, 1].gather(-1, second[pair])
    return score.transpose(0, 1), slot.transpose(0, 1)


def read_slots(
    values: Float[Tensor, "S C"], slot: Int[Tensor, "T H K"], weight: Float[Tensor, "T H K"], *, sparse: bool = False
) -> Float[Tensor, "T C"]:
    """The sum over heads and slots of weight V[slot]; the rows that are read are never laid out one by one.

    Args:
        values: V.
        slot, weight: what each head reads, and how much of it.
        sparse: the gradient of V is a sparse tensor, which holds the rows that were read.
    """
    weight = weight.flatten(1).to(values.dtype)
    return F.embedding_bag(slot.flatten(1), values, mode="sum", per_sample_weights=weight, sparse=sparse)


def slot_softmax(score: Float[Tensor, "T H K"]) -> Float[Tensor, "T H K"]:
    """The weights of the K slots of each head, in float32 at least."""
    return score.to(torch.promote_types(score.dtype, torch.float32)).softmax(-1)


def _candidates(topk: int, device: torch.device) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Ranks (a, b), from 0, of all pairs that can be among the ``topk`` best sums of two sorted lists."""
    pairs = [(first, second) for first in range(topk) for second in range(topk // (first + 1))]
    first, second = torch.tensor(pairs, device=device).unbind(1)
    return first, second
