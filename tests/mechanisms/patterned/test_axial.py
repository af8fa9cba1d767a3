import itertools

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.axial import Axial
from regard.registry import UnsupportedError


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def one_axis(layer, x, axis, keep, causal):
    """Attention of one axis on (B, *grid, C), place by place."""
    heads, width = layer.num_heads, layer.head_dim
    q, k, v = (linear(x).unflatten(-1, (heads, width)) for linear in (layer.q_proj, layer.k_proj, layer.v_proj))
    out = torch.zeros_like(q)
    for place in itertools.product(*map(range, x.shape[:-1])):
        along = [(*place[: axis + 1], j, *place[axis + 2 :]) for j in range(x.shape[axis + 1])]
        along = [other for other in along if keep[other] and not (causal and other[axis + 1] > place[axis + 1])]
        for h in range(heads if along else 0):
            scores = torch.stack([q[place][h] @ k[other][h] / width**0.5 for other in along])
            out[place][h] = scores.softmax(0) @ torch.stack([v[other][h] for other in along])
    return layer.out_proj(out.flatten(-2))


def equations(axial, x, keep):
    grid, outs = x.movedim(1, -1), []
    for axis, layer in enumerate(axial.axes):
        y = one_axis(layer, grid, axis, keep, axial.causal) * keep[..., None]
        outs.append(y)
        grid = y if axial.combine == "chain" else grid
    y = outs[-1] if axial.combine == "chain" else sum(outs)
    return y.movedim(-1, 1)


@pytest.mark.parametrize("combine", ["sum", "chain"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sides", [(5,), (3, 4), (2, 3, 2)])
def test_matches_the_equations(sides, causal, combine):
    axial = Axial(6, 2, len(sides), head_dim=2, causal=causal, combine=combine).double()
    for parameter in axial.parameters():
        torch.nn.init.normal_(parameter)
    x, every = random(2, 6, *sides), torch.ones(2, *sides, dtype=torch.bool)
    assert_close(axial(x), equations(axial, x, every), rtol=0, atol=1e-12)
    keep = torch.rand(2, *sides) < 0.6
    assert_close(axial(x, key_mask=keep), equations(axial, x, keep), rtol=0, atol=1e-12)


def test_who_asks_and_who_is_asked():
    """Pixels that only ask see the others, and those that are only asked answer with 0."""
    axial, x = Axial(6, 2, combine="chain").double(), random(1, 6, 3, 4)
    asked, asks = torch.rand(1, 3, 4) < 0.6, torch.rand(1, 3, 4) < 0.6
    y = axial(x, key_mask=asked, query_mask=asks)
    part = (asked | asks)[..., None]
    first = one_axis(axial.axes[0], x.movedim(1, -1), 0, asked, False) * part
    second = one_axis(axial.axes[1], first, 1, asked, False) * asks[..., None]
    assert_close(y, second.movedim(-1, 1), rtol=0, atol=1e-12)
    assert_close(axial(x, query_mask=asks), axial(x, key_mask=asks))


@pytest.mark.parametrize("combine", ["sum", "chain"])
def test_nothing_depends_on_a_later_pixel_of_the_raster(combine):
    axial, x = Axial(6, 2, causal=True, combine=combine).double(), random(1, 6, 3, 4)
    y = axial(x)
    for place in range(12):
        changed = x.clone()
        changed.flatten(2)[..., place:] += 1
        moved = (axial(changed) - y).abs().flatten(2).amax((0, 1))
        assert not moved[:place].any()
        assert moved[place:].all()


def test_gradients():
    axial, x = Axial(4, 2, causal=True).double(), random(1, 4, 2, 3).requires_grad_()
    keep = torch.tensor([[[True, True, False], [True] * 3]])
    assert torch.autograd.gradcheck(lambda x, *_: axial(x, key_mask=keep), (x, *axial.parameters()), fast_mode=True)


def test_it_starts_as_in_the_authors_code():
    axial = Axial(64, 8)
    for layer in axial.axes:
        for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj):
            assert abs(float(linear.weight.detach().std()) * 8 - 1) < 0.05
            assert not linear.bias.any()


def test_refusals():
    axial, x = regard.create("axial", dim=6, num_heads=2), torch.randn(2, 6, 3, 4)
    with pytest.raises(ValueError, match=r"\(2, 6, 12\), expected \(batch, 6, n_1, n_2\)"):
        axial(x.flatten(2))
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 6\), expected \(batch, 6"):
        axial(x.movedim(1, -1))
    with pytest.raises(TypeError, match=r"key_mask is torch.float32"):
        axial(x, key_mask=torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"query_mask has shape \(2, 12\)"):
        axial(x, query_mask=torch.ones(2, 12, dtype=torch.bool))
    for given in ({"context": x}, {"segments": torch.zeros(2, 3, 4, dtype=torch.long)}):
        with pytest.raises(UnsupportedError, match="axial attends within"):
            axial(x, **given)
    for options, message in (({"num_axes": 0}, "num_axes=0"), ({"combine": "mean"}, "combine='mean' is neither")):
        with pytest.raises(ValueError, match=message):
            Axial(6, 2, **options)
