"""Sparsemax by its definition, row by row in float64, and its gradient."""

import torch
from torch.testing import assert_close

from regard.ops.sparsemax import sparsemax_where


def test_is_the_nearest_point_of_the_simplex():
    scores, allowed = 2 * torch.randn(4, 3, 6, dtype=torch.float64), torch.rand(4, 1, 6) < 0.7
    allowed[2] = False
    found = sparsemax_where(scores, allowed)
    for b in range(4):
        for row, shares in zip(scores[b], found[b], strict=True):
            seen = row[allowed[b, 0]].sort(descending=True).values
            if not len(seen):
                assert not shares.any()
                continue
            inside = max(k for k in range(1, len(seen) + 1) if 1 + k * seen[k - 1] > seen[:k].sum())
            tau = (seen[:inside].sum() - 1) / inside
            assert_close(shares, torch.where(allowed[b, 0], (row - tau).clamp(min=0), 0.0), rtol=0, atol=1e-12)


def test_gradients():
    scores = torch.randn(2, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(sparsemax_where, (scores,))
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    slopes = torch.autograd.grad(sparsemax_where(scores, hidden).square().sum(), scores)[0]
    assert not slopes.any()


def test_large_and_half_precision_scores():
    scores = torch.tensor([[6e4, -6e4, 5.9e4]], dtype=torch.float16)
    assert sparsemax_where(scores).tolist() == [[1.0, 0.0, 0.0]]
