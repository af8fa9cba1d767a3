import pytest
import torch
from torch.testing import assert_close

import regard
from regard.layers import MultiHead
from regard.mechanisms.lowrank.linformer import Linformer, MixFirst
from regard.registry import UnsupportedError
from tests.samples import heads_first  # q, k, v, key_mask of given sizes, float64


def equations(q, k, v, e, f, mask):
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for b, h in torch.cartesian_prod(*map(torch.arange, q.shape[:2])).tolist():
        seen = mask[b].nonzero().flatten()  # masked keys are simply absent
        mix_k, mix_v = e[h % len(e)][:, : len(seen)] @ k[b, h, seen], f[h % len(f)][:, : len(seen)] @ v[b, h, seen]
        out[b, h] = torch.softmax(q[b, h] @ mix_k.T / q.shape[-1] ** 0.5, -1) @ mix_v
    return out


@pytest.mark.parametrize(("share", "tables"), [("none", 6), ("heads", 2), ("kv", 1)])
@pytest.mark.parametrize(("n", "m", "keep"), [(7, 7, 1.0), (5, 9, 0.6), (1, 11, 0.3)])
def test_matches_the_equations(share, tables, n, m, keep):
    core = Linformer(3, 4, max_length=11, rank=4, share=share).double()
    assert sum(p.numel() for p in core.parameters()) == tables * 4 * 11
    q, k, v, mask = heads_first(n, m, keep=keep)
    f = core.e if core.f is None else core.f
    assert_close(core(q, k, v, key_mask=mask), equations(q, k, v, core.e, f, mask), rtol=0, atol=1e-12)


def test_refusals():
    with pytest.raises(UnsupportedError, match="linformer cannot be causal: every mixture has seen the future"):
        regard.create("linformer", dim=12, num_heads=3, max_length=9, causal=True)
    q, k, v, _ = heads_first(5, 10)
    with pytest.raises(ValueError, match=r"10 keys.*max_length=9"):
        Linformer(3, 4, max_length=9, rank=4).double()(q, k, v)


@pytest.mark.parametrize("options", [{}, {"share": "kv"}, {"qkv_bias": False}, {"num_kv_heads": 1}])
@pytest.mark.parametrize("crossing", [False, True])
def test_mixing_first_is_projecting_first(options, crossing):
    layer = regard.create("linformer", dim=12, num_heads=3, max_length=11, rank=4, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)  # biases too
    x, context = torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(2, 9, 12, dtype=torch.float64)
    context = context if crossing else None
    keep = torch.rand(2, 9 if crossing else 7) < 0.6
    keep[:, 3] = True
    expected = MultiHead.forward(layer, x, context, key_mask=keep)
    assert_close(layer(x, context, key_mask=keep), expected, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad(y.square().sum(), tuple(layer.parameters()))
        for y in (layer(x, context, key_mask=keep), expected)
    ]
    assert_close(*gradients, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("options", [{"share": "none"}, {"rotary": 1e4}, {"qk_norm": True}])
def test_where_mixing_first_would_be_something_else_all_tokens_are_projected(options):
    layer = regard.create("linformer", dim=12, num_heads=3, max_length=9, rank=4, **options)
    x = torch.randn(2, 9, 12)
    seen = []
    layer.k_proj.register_forward_hook(lambda linear, inputs, out: seen.append(out.shape))
    layer(x)
    assert seen == [(2, 9, 12)]


def test_wrong_sizes():
    with pytest.raises(ValueError, match="max_length=0"):
        Linformer(3, 4, max_length=0)
    with pytest.raises(ValueError, match="'layers' is none of"):
        regard.create("linformer", dim=12, num_heads=3, max_length=9, share="layers")
    layer = regard.create("linformer", dim=12, num_heads=3, max_length=9)
    with pytest.raises(ValueError, match=r"10 keys.*max_length=9"):
        layer(torch.randn(1, 10, 12))
    q, k, v, _ = heads_first(5, heads=2)
    with pytest.raises(ValueError, match="3 heads of 4"):
        Linformer(3, 4, max_length=9).double()(q, k, v)


def test_one_core_shares_its_tables_between_layers():
    core = Linformer(3, 4, max_length=9, rank=2)
    layers = torch.nn.ModuleList([MixFirst(12, 3, core), MixFirst(12, 3, core)])
    assert sum(p is core.e for p in layers.parameters()) == 1
    x = torch.randn(1, 9, 12)
    layers[1](layers[0](x)).sum().backward()
    assert core.e.grad is not None
