"""Other configurations of the authors' attention, its form for one map, and their residual unit."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.ops.tanimoto import fractal_tanimoto
from regard.registry import UnsupportedError

LAYERS = "feevos/ceecnet@9dc76f8:nn/layers/attention.py"
UNITS = "feevos/ceecnet@9dc76f8:nn/units/fractal_resnet.py"
KINDS = {"BatchNorm": "batchnorm", "GroupNorm": "groupnorm", "InstanceNorm": "instancenorm", "LayerNorm": "layernorm"}


def norm_state(prefix, norm, width, numbers, index=0):
    name = f"{prefix}{KINDS[norm]}{index}"
    t = {f"param/{name}_gamma": torch.rand(numbers) + 0.5, f"param/{name}_beta": torch.randn(numbers)}
    if norm == "BatchNorm":
        t |= {f"buffer/{name}_running_mean": torch.randn(width), f"buffer/{name}_running_var": torch.rand(width) + 1}
    return t


def normed(x, t, prefix, norm, groups, index=0):
    name = f"{prefix}{KINDS[norm]}{index}"
    if norm == "BatchNorm":
        x = F.batch_norm(x, t[f"buffer/{name}_running_mean"], t[f"buffer/{name}_running_var"])
    elif norm == "LayerNorm":
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)
    else:
        x = F.group_norm(x, groups or x.shape[1])
    gamma, beta = (t[f"param/{name}_{tail}"] for tail in ("gamma", "beta"))
    return x * gamma.repeat_interleave(x.shape[1] // len(gamma))[:, None, None] + beta.repeat_interleave(
        x.shape[1] // len(beta)
    ).view(-1, 1, 1)


def attention_state(prefix, dim, width, heads, kernel, norm, numbers):
    t = norm_state(prefix, norm, width, numbers)
    for i in range(3):
        t[f"param/{prefix}conv2dnormed{i}_conv0_weight"] = torch.randn(width, dim // heads, kernel, kernel) / kernel
        t |= norm_state(f"{prefix}conv2dnormed{i}_", norm, width, numbers)
    return t


def attention(maps, t, prefix, heads, norm, groups, depth):
    sets = []
    for i, x in enumerate(maps):
        weight = t[f"param/{prefix}conv2dnormed{i}_conv0_weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=heads)
        sets.append(normed(x, t, f"{prefix}conv2dnormed{i}_", norm, groups).sigmoid())
    q, k, v = sets
    y = (fractal_tanimoto(q, k, (2, 3), depth) * v + fractal_tanimoto(q, k, (1,), depth) * v) / 2
    return normed(y, t, prefix, norm, groups)


def meta(source, config, call="{}"):
    return {"mechanism": "fractal_tanimoto", "source": source, "config": json.dumps(config), "call": call}


@pytest.mark.parametrize(("norm", "groups", "numbers"), [
    ("BatchNorm", None, 6), ("GroupNorm", 3, 3), ("GroupNorm", 3, 6), ("InstanceNorm", None, 6), ("LayerNorm", None, 6)
])  # fmt: skip
@pytest.mark.parametrize(("heads", "kernel", "depth"), [(1, 3, 0), (2, 1, 7)])
def test_three_maps(norm, groups, numbers, heads, kernel, depth):
    config = {"nkeys": 6, "kernel_size": kernel, "padding": kernel // 2, "nheads": heads, "norm": norm}
    config |= {"norm_groups": groups, "ftdepth": depth}
    t = attention_state("", 4, 6, heads, kernel, norm, numbers)
    maps = [torch.randn(2, 4, 5, 7) for _ in range(3)]
    t |= {f"in/input{i + 1}": x for i, x in enumerate(maps)}
    found = replay(t, meta(f"{LAYERS}:RelFTAttention2D", config, '{"inputs": ["input1", "input2", "input3"]}'))
    assert_close(found["out/out"], attention(maps, t, "", heads, norm, groups, depth), rtol=1e-5, atol=1e-5)


def test_one_map():
    prefix = "ftattention2d0_relftattention2d0_"
    t = attention_state(prefix, 8, 4, 1, 3, "BatchNorm", 4) | {"in/input": torch.randn(2, 8, 5, 7)}
    found = replay(t, meta(f"{LAYERS}:FTAttention2D", {"nkeys": 4}))
    expected = attention([t["in/input"]] * 3, t, prefix, 1, "BatchNorm", None, 5)
    assert_close(found["out/out"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("norm", "groups"), [("BatchNorm", None), ("GroupNorm", 2)])
def test_the_unit(norm, groups):
    inner, block, numbers = "fractalresnet_unit0_ftattention2d0_relftattention2d0_", "resnet_v2_block0_", groups or 4
    t = attention_state(inner, 4, 4, 2, 3, norm, numbers) | {"param/fractalresnet_unit0_gamma": torch.randn(1)}
    t |= {f"param/{block}conv{i}_weight": torch.randn(4, 2, 3, 3) / 3 for i in range(2)}
    t |= {f"param/{block}conv1_bias": torch.randn(4)}
    t |= norm_state(block, norm, 4, numbers) | norm_state(block, norm, 4, numbers, 1)
    x = t["in/input"] = torch.randn(2, 4, 5, 7)
    options = {"padding": (2, 2), "dilation": 2, "groups": 2}
    y = F.conv2d(normed(x, t, block, norm, groups).relu(), t[f"param/{block}conv0_weight"], **options)
    y = normed(y, t, block, norm, groups, 1).relu()
    y = F.conv2d(y, t[f"param/{block}conv1_weight"], t[f"param/{block}conv1_bias"], **options)
    weight = attention([x] * 3, t, inner, 2, norm, groups, 5)
    expected = (x + y) * (1 + t["param/fractalresnet_unit0_gamma"] * weight)
    config = {
        "nfilters": 4,
        "ngroups": 2,
        "nheads": 2,
        "dilation_rate": [2, 2],
        "norm_type": norm,
        "norm_groups": groups,
    }
    found = replay(t, meta(f"{UNITS}:FracTALResNet_unit", config))
    assert_close(found["out/out"], expected, rtol=1e-5, atol=1e-5)


def test_recorded_gradients_are_mxnets_but_those_of_the_loaded_layer_are_true():
    t = attention_state("", 4, 4, 1, 3, "BatchNorm", 4)
    state = {name.split("/")[1]: tensor for name, tensor in t.items()}
    layer = load("fractal_tanimoto", f"{LAYERS}:RelFTAttention2D", {"nkeys": 4}, state).double().eval()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer.compare(x, x, x)[0], x, fast_mode=True)
    t |= {f"in/input{i}": x.detach().float() for i in (1, 2, 3)} | {"in/cotangent": torch.randn(1, 4, 3, 3)}
    told = replay(t, meta(f"{LAYERS}:RelFTAttention2D", {"nkeys": 4}))
    (true,) = torch.autograd.grad((layer.compare(x.detach(), x.detach(), x)[0] * t["in/cotangent"]).sum(), x)
    assert not torch.allclose(told["grad/input3"].double(), true, atol=1e-3)


def test_what_cannot_be_had_is_refused():
    source = f"{LAYERS}:RelFTAttention2D"
    with pytest.raises(UnsupportedError, match="kernel_size=3 with padding=0 changes the size"):
        load("fractal_tanimoto", source, {"nkeys": 4, "padding": 0}, {})
    with pytest.raises(UnsupportedError, match=r"kernel_size=\[3, 5\]: ours has one number"):
        load("fractal_tanimoto", source, {"nkeys": 4, "kernel_size": [3, 5]}, {})
    with pytest.raises(UnsupportedError, match="norm='SyncBatchNorm'"):
        load("fractal_tanimoto", source, {"nkeys": 4, "norm": "SyncBatchNorm"}, {})
    with pytest.raises(UnsupportedError, match="kernel_size=5: their attention pads by 1"):
        load("fractal_tanimoto", f"{UNITS}:FracTALResNet_unit", {"nfilters": 4, "kernel_size": [5, 5]}, {})
    with pytest.raises(UnsupportedError, match="two attentions"):
        load("fractal_tanimoto", f"{UNITS}:FracTALResNet_unit", {"nfilters": 4}, {"gamma1": torch.zeros(1)})
    state = {f"conv2dnormed{i}_conv0_weight": torch.zeros(4, 3 + i // 2, 3, 3) for i in range(3)}
    with pytest.raises(UnsupportedError, match="maps of different widths"):
        load("fractal_tanimoto", source, {"nkeys": 4}, state)
