"""google-research's image models restated on their own weights, and lucidrains' layer in other places."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

GOOGLE = "google-research/google-research@0c1bbe5:axial/transformers.py:{}"
LUCIDRAINS = "lucidrains/axial-attention@eff2c10:axial_attention/axial_attention.py:AxialAttention"
SIZES = {"img_height": 3, "img_width": 4, "num_embs": 5, "emb_dim": 8, "emb_init_scale": 5.0, "num_heads": 2,
         "hdim_factor": 3, "res_init_scale": 1e-10, "num_outer_layers": 4, "num_inner_layers": 1}  # fmt: skip


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def run(source, config, state, inputs, call="{}"):
    meta = {"mechanism": "axial", "source": source, "config": json.dumps(config), "call": call}
    tensors = {f"param/{name}": t for name, t in state.items()} | {f"in/{name}": t for name, t in inputs.items()}
    return replay(tensors, meta)


def block_weights(path):
    shapes = {"attn/q": (8, 8), "attn/k": (8, 8), "attn/v": (8, 8), "attn/proj_out": (8, 8), "mlp/proj_in": (8, 24),
              "mlp/proj_out": (24, 8)}  # fmt: skip
    state = {f"{path}/{name}/w": random(*shape) * 0.4 for name, shape in shapes.items()}
    state |= {f"{path}/{name}/b": random(shape[1]) for name, shape in shapes.items()}
    return state | {f"{path}/layernorm_{part}/{name}": random(8) for part in ("attn", "mlp") for name in "gb"}


def plane_weights(scope):
    state = {f"{scope}embs": random(5, 8), f"{scope}pos_embs_h": random(3, 8), f"{scope}pos_embs_w": random(4, 8),
             f"{scope}final_ln/g": random(8), f"{scope}final_ln/b": random(8), f"{scope}final_dense/w": random(8, 5),
             f"{scope}final_dense/b": random(5)}  # fmt: skip
    for name in ("outer_row_0", "outer_col_0", "outer_row_1", "outer_col_1", "inner_row_0"):
        state |= block_weights(scope + name)
    return state


def block(state, path, x, masked):
    """Along the height where the path says col, else along the width."""

    def dense(name, x):
        return x @ state[f"{path}/{name}/w"] + state[f"{path}/{name}/b"]

    def norm(name, x):
        return F.layer_norm(x, (8,), state[f"{path}/{name}/g"], state[f"{path}/{name}/b"])

    lines = "brcnd,bscnd->bcnrs" if "_col_" in path else "brcnd,brsnd->brncs"
    back = "bcnrs,bscnd->brcnd" if "_col_" in path else "brncs,brsnd->brcnd"
    q, k, v = (dense(f"attn/{name}", norm("layernorm_attn", x)).unflatten(-1, (2, 4)) for name in "qkv")
    w = torch.einsum(lines, q, k) / 2
    if masked:
        w = w.masked_fill(torch.ones(w.shape[-2:]).triu(1).bool(), -1e9)
    x = x + dense("attn/proj_out", torch.einsum(back, w.softmax(-1), v).flatten(-2))
    hidden = dense("mlp/proj_in", norm("layernorm_mlp", x))
    return x + dense("mlp/proj_out", hidden * torch.sigmoid(1.702 * hidden))


def plane_logits(state, scope, x, cond):
    h = state[f"{scope}embs"][x]
    p = state[f"{scope}pos_embs_h"][:, None] + state[f"{scope}pos_embs_w"] + cond
    u = h + p
    for i in range(2):
        u = block(state, f"{scope}outer_row_{i}", u, False)
        u = block(state, f"{scope}outer_col_{i}", u, True)
    r = F.pad(h, (0, 0, 1, 0))[:, :, :-1] + F.pad(u, (0, 0, 0, 0, 1, 0))[:, :-1] + p
    r = block(state, f"{scope}inner_row_0", r, True)
    r = F.layer_norm(r, (8,), state[f"{scope}final_ln/g"], state[f"{scope}final_ln/b"])
    return r @ state[f"{scope}final_dense/w"] + state[f"{scope}final_dense/b"]


@pytest.mark.parametrize("scope", ["", "model/", "ar/transformer2d/"])
def test_one_plane(scope):
    state, x = plane_weights(scope), torch.randint(5, (2, 3, 4))
    found = run(GOOGLE.format("Transformer2d"), SIZES, state, {"x": x})
    assert_close(found["out/out"], plane_logits(state, scope, x, 0.0), rtol=0, atol=1e-10)


def test_several_channels():
    """Images (B, H, W, channels); each channel is given those before it."""
    scope, config = "ar_decoder/", SIZES | {"img_channels": 3, "num_exterior_layers": 2}
    state = plane_weights(f"{scope}transformer2d/") | block_weights(f"{scope}exterior_row_0")
    state |= block_weights(f"{scope}exterior_col_0") | {f"{scope}pos_embs_h": random(3, 8)}
    state |= {f"{scope}pos_embs_w": random(4, 8), f"{scope}exterior_input_conv/w": random(3, 3, 6, 8)}
    state[f"{scope}exterior_input_conv/b"] = random(8)
    x, cond = torch.randint(5, (2, 3, 4, 3)), random(2, 3, 4, 8)

    def channel_logits(channel):
        before = x.double() / 255
        before[..., channel:] = 0
        planes = torch.cat((before, F.one_hot(torch.full((2, 3, 4), channel), 3)), -1).movedim(-1, 1)
        w, b = (state[f"{scope}exterior_input_conv/{name}"] for name in "wb")
        h = F.conv2d(planes, w.permute(3, 2, 0, 1), b, padding=1).movedim(1, -1)
        h = h + state[f"{scope}pos_embs_h"][:, None] + state[f"{scope}pos_embs_w"] + cond
        h = block(state, f"{scope}exterior_col_0", block(state, f"{scope}exterior_row_0", h, False), False)
        return plane_logits(state, f"{scope}transformer2d/", x[..., channel], h)

    source, noise = GOOGLE.format("Transformer3d"), random(2, 3, 4, 3, 5)
    expected = torch.stack([channel_logits(channel) for channel in range(3)], 3)
    found = run(source, config, state, {"x": x, "cond": cond, "noise": noise})
    assert_close(found["out/out"], expected, rtol=0, atol=1e-10)
    drawn = found["out/sample"]
    again = run(source, config, state, {"x": drawn, "cond": cond})["out/out"]
    assert torch.equal((again + noise).argmax(-1), drawn)
    slices = torch.tensor([2, 1])
    found = run(source, config, state, {"x_bhwc": x, "cond": cond, "slice_inds_b": slices})
    assert_close(found["out/out"], torch.stack([expected[0, ..., 2, :], expected[1, ..., 1, :]]), rtol=0, atol=1e-10)
    with pytest.raises(UnsupportedError, match=r"dropout=0\.1"):
        run(source, config, state, {"x": x}, json.dumps({"dropout": 0.1}))


def attend(state, axis, x, heads, width):
    """lucidrains' attention of one axis on (L, n, C)."""
    path = f"axial_attentions.{axis}.fn."
    q, (k, v) = x @ state[f"{path}to_q.weight"].T, (x @ state[f"{path}to_kv.weight"].T).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (heads, width)).transpose(1, 2) for t in (q, k, v))
    out = ((q @ k.mT) * width**-0.5).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2) @ state[f"{path}to_out.weight"].T + state[f"{path}to_out.bias"]


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize(("axes", "place"), [(1, -1), (2, -1), (2, 1), (2, 2), (3, 1), (3, -1), (3, -2)])
def test_lucidrains(axes, place, chained):
    config = {"dim": 6, "heads": 3, "dim_heads": 4, "num_dimensions": axes, "dim_index": place}
    config |= {"sum_axial_out": False} if chained else {}
    state = {}
    for a in range(axes):
        state |= {f"axial_attentions.{a}.fn.to_q.weight": random(12, 6) * 0.4,
                  f"axial_attentions.{a}.fn.to_kv.weight": random(24, 6) * 0.4,
                  f"axial_attentions.{a}.fn.to_out.weight": random(6, 12) * 0.4,
                  f"axial_attentions.{a}.fn.to_out.bias": random(6)}  # fmt: skip
    where = place % (axes + 2)
    sides = [2, 3, 4, 5][: axes + 1]
    x = random(*sides[:where], 6, *sides[where:])
    outs, y = [], x
    for number, dimension in enumerate(d for d in range(1, axes + 2) if d != where):
        lines = y.movedim((dimension, where), (-2, -1))
        out = attend(state, number, lines.flatten(0, -3), 3, 4).view(lines.shape)
        outs.append(out.movedim((-2, -1), (dimension, where)))
        y = outs[-1] if chained else x
    found = run(LUCIDRAINS, config, state, {"x": x})
    assert_close(found["out/out"], outs[-1] if chained else sum(outs), rtol=0, atol=1e-10)


def test_other_classes_of_theirs_are_refused():
    with pytest.raises(UnsupportedError, match="not AxialImageTransformer"):
        run(LUCIDRAINS, {"class": "AxialImageTransformer", "dim": 6}, {}, {})
