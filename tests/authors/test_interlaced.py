"""openseg's classes restated with permutations and convolutions, on sizes that do and do not divide."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "openseg-group/openseg.pytorch@aefc755:lib/models/modules/isa_block.py:{}"
SIZES = {"in_channels": 3, "key_channels": 2, "value_channels": 5, "out_channels": 4, "bn_type": "torchbn"}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def norm(width):
    found = {"weight": random(width), "bias": random(width), "running_mean": random(width)}
    return found | {"running_var": torch.rand(width).double() + 0.5, "num_batches_tracked": torch.tensor(1)}


def named(prefix, parts):
    return {f"{prefix}{name}": tensor for name, tensor in parts.items()}


def attention(dim, out):
    state = {"f_value.weight": random(5, dim, 1, 1), "W.0.weight": random(out, 5, 1, 1)} | named("W.1.0.", norm(out))
    for part in ("f_query", "f_key"):
        state |= {f"{part}.0.weight": random(2, dim, 1, 1), f"{part}.2.weight": random(2, 2, 1, 1)}
        state |= named(f"{part}.1.0.", norm(2)) | named(f"{part}.3.0.", norm(2))
    return state


def block():
    return named("long_range_sa.", attention(3, 4)) | named("short_range_sa.", attention(4, 4))


def within(state, prefix):
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def conv(state, conv, norm, x):
    statistics = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(F.conv2d(x, state[f"{conv}.weight"]), *statistics))


def run_attention(state, x):
    q, k = (conv(state, f"{p}.2", f"{p}.3.0", conv(state, f"{p}.0", f"{p}.1.0", x)).flatten(2)
            for p in ("f_query", "f_key"))  # fmt: skip
    v = F.conv2d(x, state["f_value.weight"]).flatten(2)
    weights = (q.mT @ k * q.shape[1] ** -0.5).softmax(-1)
    return conv(state, "W.0", "W.1.0", (weights @ v.mT).mT.unflatten(-1, x.shape[2:]))


def run_block(state, x, factors):
    (dh, dw), (n, _, h, w) = factors, x.shape
    gh, gw = -(-h // dh), -(-w // dw)
    down, right = gh * dh - h, gw * dw - w
    x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    x = x.view(n, -1, gh, dh, gw, dw).permute(0, 3, 5, 1, 2, 4).reshape(n * dh * dw, -1, gh, gw)
    x = run_attention(within(state, "long_range_sa."), x)
    x = x.view(n, dh, dw, -1, gh, gw).permute(0, 4, 5, 3, 1, 2).reshape(n * gh * gw, -1, dh, dw)
    x = run_attention(within(state, "short_range_sa."), x)
    x = x.view(n, gh, gw, -1, dh, dw).permute(0, 3, 1, 4, 2, 5).reshape(n, -1, gh * dh, gw * dw)
    return x[:, :, down // 2 : down // 2 + h, right // 2 : right // 2 + w]


def run(name, config, state, x):
    meta = {"mechanism": "interlaced", "source": SOURCE.format(name), "config": json.dumps(SIZES | config)}
    kinds = {key: "param" if key.endswith(("weight", "bias")) else "buffer" for key in state}
    tensors = {f"{kinds[key]}/{key}": t for key, t in state.items()} | {"in/x": x}
    return replay(tensors, meta | {"call": '{"x": "B x C x H x W"}'})["out/out"]


@pytest.mark.parametrize("kind", ["torchbn", "torchsyncbn", "syncbn"])
@pytest.mark.parametrize(("sides", "factors"), [((5, 7), [2, 3]), ((4, 6), [2, 3]), ((3, 3), [4, 8])])
def test_blocks(sides, factors, kind):
    state, x = block(), random(2, 3, *sides)
    found = run("ISA_Block", {"down_factor": factors, "bn_type": kind}, state, x)
    assert_close(found, run_block(state, x, factors), rtol=0, atol=1e-10)


@pytest.mark.parametrize("factors", [None, [[2, 3]], [[2, 3], [4, 2]]])
def test_modules(factors):
    pairs, x = factors or [[8, 8]], random(2, 3, 5, 7)
    state = {}
    for number in range(len(pairs)):
        state |= named(f"stages.{number}.", block())
    width = 3 + 4 if len(pairs) == 1 else 2 * 4 * len(pairs)
    if len(pairs) > 1:
        state |= {"up_conv.0.weight": random(4 * len(pairs), 3, 1, 1)} | named("up_conv.1.0.", norm(4 * len(pairs)))
    state |= {"conv_bn.0.weight": random(4, width, 1, 1)} | named("conv_bn.1.0.", norm(4))
    own = conv(state, "up_conv.0", "up_conv.1.0", x) if len(pairs) > 1 else x
    found = [run_block(within(state, f"stages.{number}."), x, pair) for number, pair in enumerate(pairs)]
    expected = conv(state, "conv_bn.0", "conv_bn.1.0", torch.cat((own, *found), 1))
    config = {"dropout": 0.05} | ({"down_factors": factors} if factors else {})
    assert_close(run("ISA_Module", config, state, x), expected, rtol=0, atol=1e-10)


def test_attention_alone():
    state, x = attention(3, 3), random(2, 3, 4, 5)
    found = run("SelfAttentionBlock2D", {"out_channels": None}, state, x)
    assert_close(found, run_attention(state, x), rtol=0, atol=1e-10)


def test_other_norms_are_refused():
    for kind in ("gn", "sn", "inplace_abn", None):
        with pytest.raises(UnsupportedError, match="of their norms we have batch norm"):
            run("ISA_Block", {"bn_type": kind}, {}, random(1, 3, 4, 4))
