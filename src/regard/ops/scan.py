"""Causal linear attention in chunks: prefix sums of outer products without storing one for every position."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from regard.memory import LinearState


def causal_products(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    before: LinearState,
    *,
    chunk: int = 64,
) -> tuple[Float[Tensor, "B H N Dv"], Float[Tensor, "B H N"], LinearState]:
    """The sums sum_{j <= i} (q_i . k_j) v_j and sum_{j <= i} q_i . k_j, for every i, exactly.

    Within a chunk the pairs are formed, c x c of them; between chunks the sum of k_j v_j^T is carried, which is stored
    once a chunk. Time O(N (c + D) Dv), memory O(N (c + D + D Dv / c)) with gradients of any order.

    Args:
        q, k: features of queries and keys; a key with features 0 takes no part.
        v: values.
        before: the sums over earlier keys, ``LinearState.start(...)`` where there are none.
        chunk: c; D or a little more is fastest.

    Returns:
        The weighted sums of values, the sums of weights, and the sums over all keys so far.
    """
    n = q.shape[-2]
    chunk = 1 if n == 1 else chunk
    # one graph for every length needs padding and two chunks at every length
    chunks = n // chunk + 2 if torch.compiler.is_compiling() else -(-n // chunk)
    if pad := chunks * chunk - n:
        q, k, v = (F.pad(t, (0, 0, 0, pad)) for t in (q, k, v))
    q, k, v = (t.reshape(*t.shape[:2], chunks, chunk, t.shape[-1]) for t in (q, k, v))
    states, sums = _exclusive(before.state, k.mT @ v), _exclusive(before.normaliser, k.sum(-2))
    weights = (q @ k.mT).tril()
    out = weights @ v + q @ states[:, :, :-1]
    total = weights.sum(-1) + (q @ sums[:, :, :-1, :, None]).squeeze(-1)
    after = LinearState(*(t[:, :, -1].clone(memory_format=torch.contiguous_format) for t in (states, sums)))
    return out.flatten(2, 3)[:, :, :n], total.flatten(2)[:, :, :n], after


def _exclusive(first: Tensor, steps: Tensor) -> Tensor:
    """Prefix sums along dimension 2: what stands before each of T steps, and after the last (T + 1 entries)."""
    terms = torch.cat((first[:, :, None], steps), 2)
    loop = terms.device.type == "cpu" and not torch.compiler.is_compiling()
    return _RunningSum.apply(terms, False) if loop else terms.cumsum(2)


class _RunningSum(torch.autograd.Function):
    """``x.cumsum(2)`` or the same from the end, row by row; on the CPU torch goes by columns, 30 times slower."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, reverse: bool) -> Tensor:
        sums = x.clone()
        rows = sums.unbind(2)
        for before, after in pairwise(reversed(rows) if reverse else rows):
            after.add_(before)
        return sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        ctx.reverse = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return _RunningSum.apply(grad_outputs[0], not ctx.reverse), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _RunningSum.apply(grad_inputs[0], ctx.reverse)
