import pytest
import torch
from torch.testing import assert_close

from regard.ops.batch_norm import TokenBatchNorm


def pair(**options):
    norms = [TokenBatchNorm(4, **options).double() for _ in range(2)]
    for norm in norms:
        if norm.affine:
            torch.nn.init.constant_(norm.weight, 1.5)
            torch.nn.init.constant_(norm.bias, -0.3)
    return norms


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_masked_tokens_enter_no_statistic(options):
    """Three batches, so that the running statistics move more than once."""
    ours, plain = pair(**options)
    for _ in range(3):
        x = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
        keep = torch.rand(2, 7) < 0.6
        y, expected = ours(x, keep)[keep], torch.nn.BatchNorm1d.forward(plain, x[keep])
        assert_close(y, expected, rtol=0, atol=1e-12)
        cotangent = torch.randn_like(y)
        slopes = [torch.autograd.grad((out * cotangent).sum(), x)[0] for out in (y, expected)]
        assert_close(*slopes, rtol=0, atol=1e-12)
    assert_close(ours.state_dict(), plain.state_dict())


def test_a_batch_of_padding_moves_nothing():
    norm = TokenBatchNorm(4)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert norm(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).isfinite().all()
    assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_in_evaluation_no_token_meets_another():
    norm, x = TokenBatchNorm(4), torch.randn(2, 3, 4)
    norm(x)
    norm.eval()
    assert_close(norm(x, torch.ones(2, 3, dtype=torch.bool))[:1], norm(x[:1]))
