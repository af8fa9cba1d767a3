import pytest
import torch
from torch.testing import assert_close

from regard.ops.binary_tree import level_sizes, looks, span_means, span_sums, spread, strays
from tests import trees


def read(found, n):
    """(token, node, label) of some looks."""
    edges = []
    for look in found:
        first, last = look.nodes
        for block, r, w in torch.cartesian_prod(*map(torch.arange, (-(-n // look.block), *look.slot.shape))).tolist():
            i, node = block * look.block + r, first + look.start + w + block * look.stride
            if look.seen[..., r, w] and i < n and first <= node < last:
                edges.append((i, node, int(look.labels[look.slot[r, w]])))
    return sorted(edges)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 21, 37, 64])
def test_every_token_reads_what_the_walk_reads(n, step):
    for causal in (True, False):
        expected = trees.edges(n, step, 2, causal)
        assert read(looks(n, step, 2, causal, torch.device("cpu")), n) == sorted(expected)
        for i in range(n):  # and that is every token once
            spans = [torch.arange(n)] + [torch.arange(n) // 2**level for level in range(1, 20)]
            sizes, covered = level_sizes(n), torch.zeros(n, dtype=torch.long)
            for token, node, _ in expected:
                if token == i:
                    level = next(j for j in range(len(sizes)) if node < sum(sizes[: j + 1]))
                    covered += spans[level] == node - sum(sizes[:level])
            assert covered.tolist() == [1] * (i + 1 if causal else n) + [0] * (n - i - 1 if causal else 0)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stray_edges_are_the_authors(step):
    for n in (1, 2, 3, 5, 6, 7, 8, 13, 22, 37):
        longest = n + 4  # their text may be shorter than others of the batch
        sizes, wide = level_sizes(n), level_sizes(longest)
        level_of = {sum(sizes[:j]): sum(wide[:j]) for j in range(len(sizes))}
        expected = sorted((i, level_of[node], label) for i, node, label in trees.stray_edges(n, step, 2))
        found = [edge for edge in read(strays(longest, torch.tensor([n]), step, 2), longest) if edge[0] < n]
        assert found == expected
    assert trees.stray_edges(5, step, 2)
    assert not trees.stray_edges(8, step, 2)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 13])
def test_sums_and_means_over_spans(n):
    x, mask = torch.randn(2, 3, n, 4, dtype=torch.float64), torch.rand(2, n) < 0.6
    means, real = span_means(x, mask)
    node = 0
    for level, size in enumerate(level_sizes(n)):
        for p in range(size):
            tokens = slice(p * 2**level, (p + 1) * 2**level)
            for b in range(2):
                seen = x[b, :, tokens][:, mask[b, tokens]]
                assert bool(real[b, node]) == (seen.shape[1] > 0)
                assert_close(means[b, :, node], seen.mean(1) if seen.shape[1] else torch.zeros_like(means[b, :, node]))
            node += 1
    assert node == means.shape[2]
    leaf = x.clone().requires_grad_()
    slopes = torch.randn_like(means)
    (expected,) = torch.autograd.grad(span_sums(leaf), leaf, slopes)
    assert_close(spread(slopes, n), expected)
