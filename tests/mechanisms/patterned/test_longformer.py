import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.longformer import Longformer
from regard.registry import UnsupportedError


def equations(layer, x, keep, marks, *, causal=False, dilation=(1, 1)):
    """Token by token: global ones ask all by their own projections, the others their window and the global ones."""
    out = torch.zeros(len(x), layer.num_heads, x.shape[1], x.shape[2] // layer.num_heads, dtype=x.dtype)
    for b, i, h in torch.cartesian_prod(*map(torch.arange, (len(x), x.shape[1], layer.num_heads))).tolist():
        real = [j for j in range(x.shape[1]) if keep[b, j]]
        d, w = dilation[h], layer.window
        near = [j for j in real if (j - i) % d == 0 and -w * d <= j - i <= (0 if causal else w * d)]
        linears = (layer.q_proj, layer.k_proj, layer.v_proj)
        keys = sorted({*near, *(j for j in real if marks[b, j])})
        if marks[b, i]:
            linears, keys = (layer.q_global, layer.k_global, layer.v_global), real
        q, k, v = (linear(x[b]).unflatten(-1, (layer.num_heads, -1))[:, h] for linear in linears)
        if keys:
            out[b, h, i] = (k[keys] @ q[i] / q.shape[-1] ** 0.5).softmax(0) @ v[keys]
    return layer.out_proj(out.transpose(1, 2).flatten(2)) * keep[..., None]


def build(**options):
    layer = Longformer(8, 2, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer.eval()


@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("num_global", [0, 2, 4])  # 4 in 2 heads of 4: all tokens are projected for them
@pytest.mark.parametrize(("padded", "marked"), [(False, False), (True, False), (False, True), (True, True)])
def test_windows_and_global_tokens(dilation, num_global, padded, marked):
    layer, x = build(window=2, dilation=dilation, num_global=num_global), torch.randn(3, 11, 8, dtype=torch.float64)
    keep = torch.arange(11) < torch.tensor([[11], [7], [9]]) if padded else torch.ones(3, 11, dtype=torch.bool)
    keep[2, :2] &= not padded  # one row is padded on the left as well
    global_mask = torch.zeros(3, 11, dtype=torch.bool)
    global_mask[0, [3, 4, 9]], global_mask[1, 5] = True, True  # a different number by row, none in the last
    marks = keep & ((keep.cumsum(-1) <= num_global) | (global_mask & marked))
    reach = (dilation,) * 2 if isinstance(dilation, int) else dilation
    options = {"key_mask": keep if padded else None, "global_mask": global_mask if marked else None}
    y = layer(x, **options)
    assert_close(y, equations(layer, x, keep, marks, dilation=reach), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, (1, 3)])
def test_causal(dilation):
    layer, x = build(window=2, dilation=dilation, causal=True), torch.randn(2, 11, 8, dtype=torch.float64)
    keep = torch.ones(2, 11, dtype=torch.bool)
    reach = (dilation,) * 2 if isinstance(dilation, int) else dilation
    expected = equations(layer, x, keep, ~keep, causal=True, dilation=reach)
    assert_close(layer(x), expected, rtol=0, atol=1e-12)
    assert not any("global" in name for name in layer.state_dict())


@pytest.mark.parametrize("pieces", [[1] * 11, [4, 1, 6]])
def test_a_stream_of_pieces_is_the_whole_and_the_memory_is_the_window(pieces):
    layer, x = build(window=2, dilation=(1, 3), causal=True), torch.randn(2, 11, 8, dtype=torch.float64)
    memory, outs = layer.memory(2), []
    for piece in x.split(pieces, 1):
        out, memory = layer.stream(piece, memory)
        outs.append(out)
    assert_close(torch.cat(outs, 1), layer(x), rtol=0, atol=1e-12)
    assert memory.key.shape == (2, 2, 6, 4)


def test_documents_have_their_own_windows_and_first_tokens():
    layer, x = build(window=3, num_global=1), torch.randn(1, 9, 8, dtype=torch.float64)
    marks = torch.zeros(1, 9, dtype=torch.bool)
    marks[0, 6] = True
    y = layer(x, segments=torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]]), global_mask=marks)
    assert_close(y[:, :4], layer(x[:, :4]), rtol=0, atol=1e-12)
    assert_close(y[:, 4:], layer(x[:, 4:], global_mask=marks[:, 4:]), rtol=0, atol=1e-12)


def test_unused_projections_get_a_gradient_of_zero():
    layer = build(window=2, num_global=0)
    layer(torch.randn(1, 6, 8, dtype=torch.float64)).sum().backward()
    assert not layer.q_global.weight.grad.any()
    assert layer.q_proj.weight.grad.any()


def test_refusals():
    with pytest.raises(UnsupportedError, match="num_global=1: they see the future"):
        regard.create("longformer", dim=12, num_heads=3, causal=True, num_global=1)
    with pytest.raises(ValueError, match="3 dilations for 2 heads"):
        build(dilation=(1, 2, 3))
    with pytest.raises(ValueError, match="dim=8 is not divisible by num_heads=3"):
        Longformer(8, 3)
    layer, x = build(window=2, causal=True), torch.randn(1, 6, 8, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="takes no global_mask"):
        layer(x, global_mask=torch.ones(1, 6, dtype=torch.bool))
    with pytest.raises(UnsupportedError, match="takes no context"):
        layer(x, x)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        build(window=2).memory(1)
    with pytest.raises(TypeError, match=r"global_mask is torch\.int64"):
        build(window=2)(x, global_mask=torch.ones(1, 6, dtype=torch.long))
