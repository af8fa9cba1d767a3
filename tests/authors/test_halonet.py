"""Other configurations of lucidrains' and timm's layers, restated with unfolded windows; strided equations."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

LUCIDRAINS = "lucidrains/halonet-pytorch@ff0eb71:halonet_pytorch/halonet_pytorch.py:HaloAttention (fixed)"
TIMM = "huggingface/pytorch-image-models (timm 1.0.31 wheel):timm/layers/halo_attn.py:HaloAttn"


def unfolded(q, k, v, tables, block, halo, stride, scale, scale_rel, mask):
    """q (B, H, D, y, x) of every ``stride``-th pixel, k and v (B, H, D, Y, X), tables of 2 w - 1 rows."""
    window, asks = block + 2 * halo, block // stride

    def blocks(t):
        t = F.pad(t, (halo, halo, halo, halo)).unfold(-2, window, block).unfold(-2, window, block)
        return t.flatten(-2)  # (B, H, D, I, J, w w)

    q = q.unfold(-2, asks, asks).unfold(-2, asks, asks)  # (B, H, D, I, J, p, p)
    index = window - 1 + torch.arange(window) - torch.arange(asks)[:, None]
    row, column = (torch.einsum("bhdijpq,rd->bhijpqr", q, table) for table in tables)
    row = row.gather(-1, index[:, None].expand(*row.shape[:-1], window))
    column = column.gather(-1, index[None].expand(*column.shape[:-1], window))
    logits = scale * torch.einsum("bhdijpq,bhdijw->bhijpqw", q, blocks(k))
    logits = logits + scale_rel * (row[..., None] + column[..., None, :]).flatten(-2)
    if mask:
        outside = blocks(torch.ones_like(k[:, :1, :1])) == 0
        logits = logits.masked_fill(outside[:, :, 0][:, :, :, :, None, None], -torch.inf)
    out = torch.einsum("bhijpqw,bhdijw->bhdipjq", logits.softmax(-1), blocks(v))
    return out.flatten(-2).flatten(3, 4).flatten(1, 2)


def replayed(source, config, state, x):
    meta = {"mechanism": "halonet", "source": source, "config": json.dumps(config)}
    return replay({"in/x": x} | {f"param/{name}": t for name, t in state.items()}, meta)["out/out"]


@pytest.mark.parametrize(("block", "halo", "options"), [(2, 1, {"heads": 3, "dim_head": 4}), (3, 2, {})])
def test_lucidrains(block, halo, options):
    heads, width = options.get("heads", 8), options.get("dim_head", 64)
    inner, length = heads * width, 2 * (block + 2 * halo) - 1
    state = {"to_q.weight": torch.randn(inner, 6), "to_kv.weight": torch.randn(2 * inner, 6)}
    state |= {"to_out.weight": torch.randn(6, inner) / 8, "to_out.bias": torch.randn(6)}
    state |= {f"rel_pos_emb.rel_{axis}": torch.randn(length, width) for axis in ("height", "width")}
    x = torch.randn(2, 6, 2 * block, 3 * block)
    qkv = torch.einsum("bcyx,oc->boyx", x, torch.cat((state["to_q.weight"], state["to_kv.weight"])))
    q, k, v = (t.unflatten(1, (heads, width)) for t in qkv.chunk(3, 1))
    tables = (state["rel_pos_emb.rel_height"], state["rel_pos_emb.rel_width"])
    out = unfolded(q, k, v, tables, block, halo, 1, width**-0.5, width**-0.5, mask=True)
    expected = torch.einsum("bcyx,oc->boyx", out, state["to_out.weight"]) + state["to_out.bias"][:, None, None]
    config = {"dim": 6, "block_size": block, "halo_size": halo} | options
    assert_close(replayed(LUCIDRAINS, config, state, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "block_size": 4, "halo_size": 1, "num_heads": 2, "dim_head": 5, "dim_out": 12},
        {"stride": 2, "block_size": 3, "halo_size": 2, "num_heads": 2, "scale_pos_embed": True},
        {"stride": 2, "block_size": 4, "halo_size": 1, "num_heads": 4, "avg_down": True, "qk_ratio": 0.5},
        {"block_size": 2, "halo_size": 2, "num_heads": 2, "qkv_bias": True, "feat_size": None, "qk_ratio": 0.9},
    ],
)
def test_timm(options):
    dim, heads, block, halo = 16, options["num_heads"], options["block_size"], options["halo_size"]
    dim_out, width = options.get("dim_out", dim), options.get("dim_head", 8 // heads if "avg_down" in options else 8)
    pooled = "avg_down" in options or block == 3
    stride = 1 if pooled else options.get("stride", 1)
    state = {"q.weight": torch.randn(heads * width, dim, 1, 1)}
    state["kv.weight"] = torch.randn(heads * width + dim_out, dim, 1, 1)
    if "qkv_bias" in options:
        state |= {"q.bias": torch.randn(heads * width), "kv.bias": torch.randn(heads * width + dim_out)}
    length = 2 * (block + 2 * halo) - 1
    state |= {f"pos_embed.{axis}_rel": torch.randn(length, width) for axis in ("height", "width")}
    x = torch.randn(2, dim, 2 * block, 4 * block) / 4
    q = F.conv2d(x, state["q.weight"], state.get("q.bias"), stride=stride).unflatten(1, (heads, -1))
    kv = F.conv2d(x, state["kv.weight"], state.get("kv.bias")).unflatten(1, (heads, -1))
    tables, scale = (state["pos_embed.height_rel"], state["pos_embed.width_rel"]), width**-0.5
    scale_rel = scale if "scale_pos_embed" in options else 1.0
    expected = unfolded(
        q, kv[:, :, :width], kv[:, :, width:], tables, block, halo, stride, scale, scale_rel, mask=False
    )
    expected = F.avg_pool2d(expected, 2) if pooled else expected
    config = {"dim": dim} | options
    assert_close(replayed(TIMM, config, state, x), expected, rtol=1e-4, atol=1e-5)
    layer = load("halonet", TIMM, config, state)
    if pooled:
        with pytest.raises(UnsupportedError, match="count every pixel"):
            layer(x, key_mask=torch.ones(2, *x.shape[2:], dtype=torch.bool))
        with pytest.raises(UnsupportedError, match="no weights to show"):
            layer.weigh(x, torch.ones(1, 1, x[0, 0].numel(), 1))


@pytest.mark.parametrize("edge", ["mask", "zeros"])
def test_strided_equations(edge):
    state = {f"{name}.weight": torch.randn(6, 4) for name in "qkv"}
    state |= {f"rel_{axis}": torch.randn(2 * (4 + 1) - 1, 3) for axis in ("row", "col")}
    x = torch.randn(1, 4, 8, 4)
    q, k, v = (torch.einsum("bcyx,oc->boyx", x, state[f"{name}.weight"]).unflatten(1, (2, 3)) for name in "qkv")
    # of all pixels, and then every second one
    tables = tuple(F.pad(state[f"rel_{axis}"], (0, 0, 2, 0)) for axis in ("row", "col"))
    expected = unfolded(q, k, v, tables, 4, 1, 1, 3**-0.5, 3**-0.5, mask=edge == "mask")[:, :, ::2, ::2]
    config = {"dim": 4, "dim_out": 6, "heads": 2, "dim_head_qk": 3, "block_size": 4, "halo_size": 1, "stride": 2}
    assert_close(replayed("equations", config | {"edge": edge}, state, x), expected, rtol=1e-5, atol=1e-5)
