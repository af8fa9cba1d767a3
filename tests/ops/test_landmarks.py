import pytest
import torch
from torch.testing import assert_close

from regard.ops.landmarks import segment_means
from tests.samples import heads_first


def equations(x, segments, mask):
    """Segments of floor(n / m) tokens, then of one more, over the real tokens of each sequence."""
    means, counts = x.new_zeros(*x.shape[:2], segments, x.shape[-1]), torch.zeros(len(x), segments, dtype=torch.long)
    for b in range(len(x)):
        real = mask[b].nonzero().flatten().tolist()
        short = len(real) // segments
        first = (short + 1) * segments - len(real)
        for j in range(segments):
            counts[b, j] = short + (j >= first)
            taken, real = real[: counts[b, j]], real[counts[b, j] :]
            if taken:
                means[b, :, j] = x[b, :, taken].mean(1)
        assert not real
    return means, counts


@pytest.mark.parametrize(("n", "keep"), [(12, 1.0), (53, 1.0), (5, 1.0), (1, 1.0), (12, 0.5), (53, 0.8), (9, 0.3)])
@pytest.mark.parametrize("segments", [1, 4, 8])
def test_matches_the_equations(n, keep, segments):
    x, _, _, mask = heads_first(n, keep=keep)
    assert_close(segment_means(x, segments, mask), equations(x, segments, mask), rtol=0, atol=1e-14)
    whole = torch.ones_like(mask)
    assert_close(segment_means(x, segments), segment_means(x, segments, whole), rtol=0, atol=0)


def test_padding_is_in_no_segment():
    x, _, _, mask = heads_first(20, keep=0.6)
    mask[1] = False
    spoilt = x.masked_fill(~mask[:, None, :, None], torch.nan).requires_grad_()
    means, counts = segment_means(spoilt, 4, mask)
    assert_close(means, segment_means(x, 4, mask)[0], rtol=0, atol=0)
    assert not means[1].any()
    assert not counts[1].any()
    (slope,) = torch.autograd.grad(means.sum(), spoilt)
    assert not slope.movedim(1, -1)[~mask].any()
    assert slope.movedim(1, -1)[mask].all()
