"""The steps as loops over pixels and bases, in float64; gradients, the moving average, refusals."""

import pytest
import torch
from torch.testing import assert_close

from regard.mechanisms.lowrank.em_attention import EMAttention, em_attention
from regard.ops.moving_average import follow


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def equations(h, bases, stages, mask):
    """For each map the shares of its pixels, then the bases from those that count."""
    rebuilt, found = torch.zeros_like(h), []
    for b in range(len(h)):
        mu = [bases[:, k] for k in range(bases.shape[1])]
        for _ in range(stages):
            z = torch.stack([torch.stack([pixel @ m for m in mu]).softmax(0) for pixel in h[b]])
            for k in range(len(mu)):
                total = 1e-6 + sum(z[n, k] for n in range(h.shape[1]) if mask[b, n])
                mixed = sum((h[b, n] * z[n, k] / total for n in range(h.shape[1]) if mask[b, n]), 0 * mu[k])
                mu[k] = mixed / (1e-6 + mixed.square().sum().sqrt())
        rebuilt[b] = torch.stack([sum(z[n, k] * mu[k] for k in range(len(mu))) for n in range(h.shape[1])])
        found.append(torch.stack(mu, 1))
    return rebuilt, torch.stack(found)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(stages, masked):
    h, bases = random(3, 6, 4), random(4, 3)
    mask = torch.rand(3, 6) < 0.6 if masked else torch.ones(3, 6, dtype=torch.bool)
    mask[1] &= not masked
    for grad in ("none", "last", "full"):
        found = em_attention(h, bases, stages=stages, grad=grad, key_mask=mask if masked else None)
        for ours, theirs in zip(found, equations(h, bases, stages, mask), strict=True):
            assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_flow_as_far_as_they_should():
    h, bases = random(2, 6, 4).requires_grad_(), random(4, 3)
    assert not em_attention(h, bases)[0].requires_grad
    assert torch.autograd.gradcheck(lambda h: em_attention(h, bases, grad="full"), h)
    _, before = em_attention(h.detach(), bases, stages=2)
    (last,) = torch.autograd.grad(em_attention(h, bases, stages=3, grad="last")[0].sum(), h)
    expected = torch.zeros_like(h)
    for b in range(2):  # one step from where two have led
        rebuilt, _ = em_attention(h[b : b + 1], before[b], stages=1, grad="full")
        expected += torch.autograd.grad(rebuilt.sum(), h)[0]
    assert_close(last, expected, rtol=0, atol=1e-12)
    assert not any(p.requires_grad for p in EMAttention(4).in_proj.parameters())
    assert all(p.requires_grad for p in EMAttention(4, grad="last").parameters())


def layer_equations(layer, x, mask):
    pixels = x.flatten(2).mT
    rebuilt, bases = equations(layer.in_proj(pixels), layer.bases, layer.stages, mask)
    y = torch.relu(rebuilt) @ layer.out_proj.weight.T
    real = y[mask]
    mean, variance = (real.mean(0), real.var(0, correction=0)) if layer.training else (0.0, 1.0)
    y = torch.relu((y - mean) / (variance + layer.norm.eps) ** 0.5 + pixels)
    return (y * mask[..., None]).mT.view(x.shape), bases


@pytest.mark.parametrize("sides", [(4, 5), (7,), (2, 3, 2)])
def test_layers_and_what_their_bases_follow(sides):
    layer, x = EMAttention(4, 3, decay=0.7).double(), random(3, 4, *sides)
    mask = torch.rand(3, *sides) < 0.7
    mask[2] = False
    start = layer.bases.clone()
    assert_close(start.norm(dim=0), torch.ones(3).double(), rtol=0, atol=1e-5)
    y, bases = layer_equations(layer, x, mask.flatten(1))
    found = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask)
    assert_close(found, y, rtol=0, atol=1e-10)
    followed = layer.bases.clone()
    assert_close(followed, 0.7 * start + 0.3 * bases[:2].mean(0), rtol=0, atol=1e-12)
    layer.norm.reset_running_stats()
    y, _ = layer_equations(layer.eval(), x, mask.flatten(1))
    assert_close(layer(x, key_mask=mask), y, rtol=0, atol=1e-10)
    assert torch.equal(layer.bases, followed), "evaluation leaves the bases alone"


@pytest.mark.parametrize("grad", ["none", "last", "full"])
def test_training_steps_have_the_gradients_of_their_own_bases(grad):
    """The bases move in the forward pass; a layer whose bases stay where they were has the same gradients."""
    moving, x = EMAttention(4, 3, 2, grad).double(), random(2, 4, 3, 5)
    still = EMAttention(4, 3, 2, grad, decay=1.0).double()
    still.load_state_dict(moving.state_dict())
    for layer in (moving, still):
        layer(x).square().sum().backward()
    for ours, theirs in zip(moving.parameters(), still.parameters(), strict=True):
        assert ours.grad is theirs.grad is None or torch.equal(ours.grad, theirs.grad)


def test_values_that_are_the_pixels_are_rebuilt():
    layer, x = EMAttention(4, 3).double().eval(), random(2, 4, 3, 5)
    h = layer.in_proj(x.flatten(2).mT)
    assert_close(layer.weigh(x, h[:, None])[:, 0], em_attention(h, layer.bases)[0], rtol=0, atol=1e-12)


def test_a_repeated_forward_pass_moves_nothing():
    layer, x = EMAttention(4, 3).double(), random(2, 4, 3, 5).requires_grad_()
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    once = layer.bases.clone()
    y.sum().backward()
    assert torch.equal(layer.bases, once)


def test_batches_of_padding_move_nothing():
    average = torch.tensor([1.0, 2.0])
    follow(average, torch.full((3, 2), 5.0), 0.5, torch.zeros(3, dtype=torch.bool))
    assert average.tolist() == [1.0, 2.0]
    follow(average, torch.tensor([[5.0, 6.0], [1.0, 0.0]]), 0.5)
    assert average.tolist() == [2.0, 2.5]


def test_refusals():
    for options, message in (
        ({"grad": "all"}, "grad='all'"),
        ({"num_bases": 0}, "num_bases=0"),
        ({"stages": 0}, "stages=0"),
        ({"decay": 1.5}, r"decay=1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            EMAttention(4, **options)
    layer = EMAttention(4, 3)
    with pytest.raises(ValueError, match=r"values has shape \(1, 2, 15, 2\)"):
        layer.weigh(torch.randn(1, 4, 3, 5), torch.randn(1, 2, 15, 2))
