import pytest
import torch
from torch.testing import assert_close

from regard.ops.binary_tree import level_sizes, span_means
from regard.ops.tree_attention import Tree, read_spans, read_tree
from tests import trees


def dense(q, k, v, real, table, edges):
    """All tokens by all nodes, differentiable."""
    reads, node, label = torch.tensor(edges).T
    scores = (q[:, :, reads] * (k[:, :, node] + table[label])).sum(-1) / q.shape[-1] ** 0.5
    weights = scores.exp() * real[:, None, node]
    total = torch.zeros(q.shape[:3], dtype=q.dtype).index_add(2, reads, weights)
    shares = weights / torch.where(total > 0, total, 1.0)[:, :, reads]
    return torch.zeros(*q.shape[:3], v.shape[-1], dtype=v.dtype).index_add(2, reads, shares[..., None] * v[:, :, node])


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n", "step"), [(1, 1), (6, 1), (13, 2), (40, 3)])
def test_reading_and_all_its_gradients(n, step, causal, means):
    m = n if means else sum(level_sizes(n))
    shapes = ((2, 3, n, 4), (2, 3, m, 4), (2, 3, m, 5), ((2 * step + 1) * 3, 4))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    mask = torch.rand(2, m) < 0.7
    q, k, v, table = inputs
    out = read_tree(q, k, v, Tree(step, 2, causal), mask=mask, table=table)
    real = mask
    if means:
        (k, real), (v, _) = span_means(k, mask), span_means(v, mask)
    expected = dense(q, k, v, real, table, trees.edges(n, step, 2, causal))
    assert_close(out, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(y, inputs, cotangent, allow_unused=True) for y in (out, expected))
    assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_spans_read_their_own_tokens_and_empty_ones_nothing(n):
    sizes = level_sizes(n)
    q, k, v = (torch.randn(2, 3, size, 4, dtype=torch.float64) for size in (sum(sizes) - n, n, n))
    mask = torch.rand(2, n) < 0.5
    mask[0, :4] = False
    out, span = read_spans(q, k, v, mask=mask), 0
    assert out.shape == q.shape
    for level, size in enumerate(sizes[1:], 1):
        for p in range(size):
            tokens = slice(p << level, (p + 1) << level)
            for b in range(2):
                seen, expected = mask[b, tokens], torch.zeros(3, 4, dtype=torch.float64)
                if seen.any():
                    keys, values = k[b, :, tokens][:, seen], v[b, :, tokens][:, seen]
                    share = ((keys @ q[b, :, span, :, None])[..., 0] / 2).softmax(-1)
                    expected = (share[:, None] @ values)[:, 0]
                assert_close(out[b, :, span], expected, rtol=0, atol=1e-12)
            span += 1
