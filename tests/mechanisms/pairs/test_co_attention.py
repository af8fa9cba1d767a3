"""The affinities, both summaries and the gate as loops over pixels, in float64; several references; P; refusals."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.inspect import attention_map
from regard.mechanisms.pairs.co_attention import CoAttention
from regard.registry import UnsupportedError

KINDS = ("vanilla", "symmetric", "channel", "excitation")


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def layer_of(kind, **options):
    layer = CoAttention(6, kind, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def matrix(layer, a, b):
    """W of one pair; a and b hold the real pixels, one a row."""
    if layer.kind == "vanilla":
        return layer.affinity.weight
    if layer.kind == "symmetric":
        return layer.p_proj.weight.T @ layer.diagonal.diag() @ layer.p_proj.weight
    if layer.kind == "channel":
        return (layer.diagonal_a * layer.diagonal_b).diag()
    gates = [torch.sigmoid(fc.weight @ (side.sum(0) / max(1, len(side))) + fc.bias)
             for fc, side in ((layer.excite_a, a), (layer.excite_b, b))]  # fmt: skip
    return (gates[0] * gates[1]).diag()


def gated(layer, z):
    if layer.gate is None:
        return z
    logit = layer.gate.weight[0] @ z + (0 if layer.gate.bias is None else layer.gate.bias)
    return z / (1 + torch.exp(-logit))


def summaries(layer, x, context, mask, others):
    """f(Z_a) Z_a as a map, by real pixels alone."""
    z = torch.zeros_like(x)
    for n in range(len(x)):
        a, b = x[n][:, mask[n]].T, context[n][:, others[n]].T
        w = matrix(layer, a, b)
        for place in mask[n].nonzero().tolist():
            row, column = place
            weights = [torch.exp(v @ w @ x[n, :, row, column]) for v in b]
            z_i = sum((s * v for s, v in zip(weights, b, strict=True)), x.new_zeros(6))
            z[n, :, row, column] = gated(layer, z_i / sum(weights) if len(b) else z_i)
    return z


def turned(layer):
    """The same layer seen from the other side: W^T."""
    other = layer_of(layer.kind, gate=layer.gate is not None)
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        if layer.kind == "vanilla":
            other.affinity.weight.copy_(layer.affinity.weight.T)
        if layer.kind == "excitation":
            other.excite_a, other.excite_b = layer.excite_b, layer.excite_a
    return other


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", [True, False])
def test_matches_the_equations(kind, gate):
    layer, x, context = layer_of(kind, gate=gate), random(3, 6, 2, 4), random(3, 6, 3, 2)
    mask, others = torch.rand(3, 2, 4) < 0.7, torch.rand(3, 3, 2) < 0.6
    others[1] = False
    for masks in ((torch.ones_like(mask), torch.ones_like(others)), (mask, others)):
        hidden = [side.masked_fill(~m[:, None], 0.0) for side, m in zip((x, context), masks, strict=True)]
        odd = (side.masked_fill(~m[:, None], torch.nan) for side, m in zip((x, context), masks, strict=True))
        y, z = layer(*odd, query_mask=masks[0], key_mask=masks[1])
        expected = summaries(layer, x, context, *masks), summaries(turned(layer), context, x, *reversed(masks))
        for found, own, summary in zip((y, z), hidden, expected, strict=True):
            assert_close(found, torch.cat((summary, own), 1), rtol=0, atol=1e-11)


def test_the_weights_are_a_softmax_over_the_map_that_is_summed():
    layer, x, context = layer_of("vanilla"), random(1, 6, 2, 3), random(1, 6, 3, 3)
    weights = attention_map(layer, x, context, kind="exact").tensor[0, 0]
    s = context[0].flatten(1).T @ layer.affinity.weight @ x[0].flatten(1)
    assert_close(weights, s.softmax(0).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("join", [True, False])
def test_several_references_are_averaged_behind_the_gate(join):
    layer, x, references = layer_of("vanilla", join=join), random(2, 6, 3, 4), random(2, 3, 6, 2, 5)
    y, z = layer.fuse(x, references)
    alone = [layer(x, references[:, r]) for r in range(3)]
    assert_close(y, torch.stack([one for one, _ in alone]).mean(0), rtol=0, atol=1e-12)  # own features are the same
    assert_close(z, torch.stack([other for _, other in alone], 1), rtol=0, atol=1e-12)


def test_a_reference_without_pixels_does_not_count():
    layer, x, references = layer_of("excitation"), random(2, 6, 3, 4), random(2, 3, 6, 2, 5)
    keep, mine = torch.rand(2, 3, 2, 5) < 0.7, torch.rand(2, 3, 4) < 0.7
    keep[1, 2] = False
    odd = references.masked_fill(~keep[:, :, None], torch.nan)
    y, z = layer.fuse(x, odd, key_mask=keep, query_mask=mine)
    first = layer.fuse(x[1:], odd[1:, :2], key_mask=keep[1:, :2], query_mask=mine[1:])
    assert_close(y[1:], first[0], rtol=0, atol=1e-12)
    assert_close(z[1:, :2], first[1], rtol=0, atol=1e-12)
    assert not z[1, 2].any()
    assert not y[0][:, ~mine[0]].any()


def test_p_is_orthogonal_by_penalty_or_by_parametrization():
    layer, x, context = CoAttention(6, "symmetric").double(), random(1, 6, 3, 4), random(1, 6, 2, 3)
    assert layer(x, context, return_aux=True)[1]["loss/orthogonality"] < 1e-10
    with torch.no_grad():
        layer.p_proj.weight.mul_(2)
    assert_close(layer(x, context, return_aux=True)[1]["loss/orthogonality"].item(), 6 * 9.0, rtol=1e-6, atol=0)
    torch.nn.utils.parametrizations.orthogonal(layer.p_proj)
    with torch.no_grad():
        layer.p_proj.parametrizations.weight.original.normal_()
    assert layer(x, context, return_aux=True)[1]["loss/orthogonality"] < 1e-10
    assert layer_of("vanilla")(x, context, return_aux=True)[1] == {}


def test_sizes():
    count = {kind: sum(p.numel() for p in CoAttention(6, kind, gate=False).parameters()) for kind in KINDS}
    assert count == {"vanilla": 36, "symmetric": 42, "channel": 12, "excitation": 84}
    assert CoAttention(6, gate_bias=False).gate.bias is None
    x = torch.randn(1, 6, 3, 4).contiguous(memory_format=torch.channels_last)
    y, z = CoAttention(6)(x, torch.randn(1, 6, 2, 5))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert z.is_contiguous()
    assert y.shape == (1, 12, 3, 4)


def test_refusals():
    layer, x = CoAttention(6), torch.randn(2, 6, 3, 4)
    with pytest.raises(ValueError, match="co_attention relates two maps: pass the other one as context"):
        layer(x)
    with pytest.raises(ValueError, match=r"context has shape \(2, 5, 3, 4\), expected \(batch, 6, "):
        layer(x, torch.randn(2, 5, 3, 4))
    with pytest.raises(ValueError, match="2 and 1 maps"):
        layer(x, x[:1])
    with pytest.raises(TypeError, match=r"key_mask is torch\.float32"):
        layer(x, x, key_mask=torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"query_mask has shape \(2, 3\), but the pixels are \(2, 3, 4\)"):
        layer(x, x, query_mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(UnsupportedError, match="takes no segments"):
        layer(x, x, segments=torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"references have shape \(2, 6, 3, 4\), expected \(2, R, 6, H, W\)"):
        layer.fuse(x, x)
    with pytest.raises(ValueError, match=r"key_mask has shape \(2, 3, 4\), but the references are \(2, 1\)"):
        layer.fuse(x, x[:, None], key_mask=torch.ones(2, 3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="kind='square' is none of 'vanilla', 'symmetric'"):
        CoAttention(6, "square")
    with pytest.raises(ValueError, match="dim=0 must be positive"):
        CoAttention(0)
    with pytest.raises(UnsupportedError, match="co_attention cannot be causal: every pixel looks at all of the other"):
        regard.create("co_attention", dim=6, causal=True)
