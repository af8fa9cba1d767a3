"""Causal linear attention whose sums fade: each token first shrinks what is held by a factor of its own.

With gates 0 < g <= 1 and G_t = log g_1 + ... + log g_t::

    S_t = g_t S_(t-1) + k_t v_t^T        z_t = g_t z_(t-1) + k_t
    q_i^T S_i = sum_{j <= i} exp(G_i - G_j) (q_i . k_j) v_j

Within a chunk the pairs are formed, between chunks the sums are carried. No exponent is positive, so nothing overflows.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from regard.memory import LinearState

RUN = 64
"""Chunks whose sums are carried by one product of matrices."""


def fading_products(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    log_gate: Float[Tensor, "B H N"],
    before: LinearState,
    *,
    chunk: int = 64,
) -> tuple[Float[Tensor, "B H N Dv"], Float[Tensor, "B H N"], LinearState]:
    """q_i^T S_i and q_i . z_i for every i; without gates :func:`regard.ops.scan.causal_products` does the same.

    Time O(N (c + D) Dv), memory O(N (c + D + D Dv / c)) with gradients of any order.

    Args:
        q, k: features of queries and keys; a key with features 0 takes no part.
        v: values.
        log_gate: log g; 0 keeps all that is held.
        before: the sums over earlier keys, ``LinearState.start(...)`` where there are none.
        chunk: c.

    Returns:
        The weighted sums of values, the sums of weights, and the sums after the last key.

    Example:
        >>> q = k = v = torch.ones(1, 1, 3, 1)
        >>> gates = torch.full((1, 1, 3), 0.5)
        >>> fading_products(q, k, v, gates.log(), LinearState.start(1, 1, 1, 1))[0].flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """
    n = q.shape[-2]
    chunk = 1 if n == 1 else chunk
    # one graph for every length needs padding and two chunks at every length
    chunks = n // chunk + 2 if torch.compiler.is_compiling() else -(-n // chunk)
    pad = chunks * chunk - n
    v = F.pad(v, (0, 1), value=1.0)  # the last column of the sums is the normaliser
    q, k, v, log_gate = (F.pad(t, (0, 0, 0, pad)) for t in (q, k, v, log_gate[..., None]))
    q, k, v, log_gate = (t.reshape(*t.shape[:2], chunks, chunk, t.shape[-1]) for t in (q, k, v, log_gate))
    since = log_gate.cumsum(-2)  # how much of what the chunk was given is left, as a logarithm
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    left = (since - since.mT).masked_fill(later, -torch.inf).exp()
    end = since[..., -1:, :]
    first = torch.cat((before.state, before.normaliser[..., None]), -1)
    states = _carried(first, (k * (end - since).exp()).mT @ v, end[..., 0, 0])
    out = ((q @ k.mT) * left) @ v + since.exp() * (q @ states[:, :, :-1])
    out = out.flatten(2, 3)[:, :, :n]
    after = states[:, :, -1]
    return out[..., :-1], out[..., -1], LinearState(after[..., :-1].contiguous(), after[..., -1].contiguous())


def _carried(
    first: Float[Tensor, "B H D C"], steps: Float[Tensor, "B H T D C"], log_gate: Float[Tensor, "B H T"]
) -> Float[Tensor, "B H _ D C"]:
    """The sums before each of T steps and after the last one (T + 1 entries), where step t shrinks what came before."""
    whole = [first[:, :, None]]
    run = max(steps.shape[2], 1) if torch.compiler.is_compiling() else RUN
    for step, gate in zip(steps.split(run, 2), log_gate.split(run, 2), strict=True):
        terms = torch.cat((whole[-1][:, :, -1:], step), 2)
        # in float64: differences of long sums
        since = F.pad(gate.double().cumsum(-1), (1, 0))
        later = torch.ones(since.shape[-1], since.shape[-1], dtype=torch.bool, device=since.device).triu(1)
        left = (since[..., :, None] - since[..., None, :]).masked_fill(later, -torch.inf).exp().to(terms.dtype)
        whole.append((left[..., 1:, :] @ terms.flatten(3)).unflatten(3, terms.shape[3:]))
    return torch.cat(whole, 2)
