"""The oracle: the definition of attention, written down, on the whole N x M matrix. Any dtype, any pattern, any device.

It is what every other engine is tested against, and it is never chosen unless asked for by name.
"""

import torch
from torch import Tensor

from regard.engines.problem import Gradients, Problem, Request, Serves, widen
from regard.engines.recompute import gradients


def _matrices(request: Request, pairs: int) -> tuple[int, int]:
    """Scores, weights and mask, all N x M; once more for their gradients."""
    batch, heads, _, n, m, *_ = request.shape
    matrix = batch * heads * n * m * torch.finfo(widen(request.dtype)).bits // 8
    return 3 * matrix, 6 * matrix


serves = Serves(workspace=_matrices)


def composite(problem: Problem) -> tuple[Tensor, Tensor]:
    """-> out (B, H, N, Dv) and lse (B, H, N), in operations that torch differentiates as often as one likes."""
    scores = _scores(problem)
    largest = scores.detach().amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == -torch.inf, 0.0)  # an empty row: exp gives zeros, not NaN
    weights = torch.exp(scores - largest)
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    lse = (largest + total.log()).masked_fill(empty, -torch.inf).squeeze(-1)
    weights = _dropped(weights / total, problem)
    value = problem.value.to(problem.wide).repeat_interleave(problem.rep, 1)
    return (weights @ value).to(problem.query.dtype), lse


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """-> out (B, H, N, Dv) and lse (B, H, N)."""
    return composite(problem)


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None, needs: tuple[bool, ...]
) -> Gradients:
    """Gradients by torch's autograd through the definition."""
    return gradients(composite, problem, grad_out, grad_lse, needs)


def _scores(problem: Problem) -> Tensor:
    """Logits (B, H, N, M), -inf where a pair takes no part."""
    query, key = problem.query.to(problem.wide), problem.key.to(problem.wide).repeat_interleave(problem.rep, 1)
    scores = problem.scale * (query @ key.mT)
    (batch, heads, n, m), device = scores.shape, scores.device
    b, h = (torch.arange(size, device=device) for size in (batch, heads))
    i, j = torch.arange(n, device=device) + problem.q_offset, torch.arange(m, device=device)
    where = b[:, None, None, None], h[None, :, None, None], i[None, None, :, None], j[None, None, None, :]
    for term in problem.terms:
        scores = term(scores, *where, term.tensors)
    # The pattern is worked out where its tensors are; masks of numbers are made on the CPU.
    allowed = problem.pattern.dense(n, m, heads, problem.q_offset if not problem.pattern.rectangular else None, device)
    if problem.key_mask is not None:
        allowed = allowed & problem.key_mask.rows()[:, None, None, :]
    if problem.attn_mask is not None:
        mask = problem.attn_mask.rows()
        if mask.dtype == torch.bool:
            allowed = allowed & mask
        else:
            scores = scores + mask.to(scores.dtype)
    return scores.masked_fill(~allowed, -torch.inf)


def _dropped(weights: Tensor, problem: Problem) -> Tensor:
    if problem.seed is None:
        return weights
    generator = torch.Generator().manual_seed(int(problem.seed))
    kept = torch.rand(weights.shape, generator=generator) >= problem.dropout_p
    return weights * kept.to(weights) / (1 - problem.dropout_p)
