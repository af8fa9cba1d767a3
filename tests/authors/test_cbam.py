"""Other configurations of the authors' CBAM and BAM, and of squeeze-and-excitation."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

REPOSITORY = "Jongchan/attention-module@459efad:MODELS"


def norm_state(name, width):
    tensors = {f"param/{name}.weight": torch.rand(width) + 0.5, f"param/{name}.bias": torch.randn(width)}
    tensors |= {f"buffer/{name}.running_mean": torch.randn(width), f"buffer/{name}.running_var": torch.rand(width) + 1}
    return tensors | {f"buffer/{name}.num_batches_tracked": torch.tensor(3)}


def normed(x, t, name):
    values = (t[f"buffer/{name}.{k}"] for k in ("running_mean", "running_var"))
    return F.batch_norm(x, *values, t[f"param/{name}.weight"], t[f"param/{name}.bias"])


def linear(name, out, width, *kernel):
    return {f"param/{name}.weight": torch.randn(out, width, *kernel) / width, f"param/{name}.bias": torch.randn(out)}


@pytest.mark.parametrize("pools", [["lse"], ["max", "lp"], None])
@pytest.mark.parametrize("no_spatial", [True, False])
def test_cbam(pools, no_spatial):
    config = {"gate_channels": 9, "reduction_ratio": 2, "no_spatial": no_spatial}
    config |= {"pool_types": pools} if pools else {}
    t = linear("ChannelGate.mlp.1", 4, 9) | linear("ChannelGate.mlp.3", 9, 4)
    if not no_spatial:
        t |= norm_state("SpatialGate.spatial.bn", 1)
        t["param/SpatialGate.spatial.conv.weight"] = torch.randn(1, 2, 7, 7) / 7
    x = t["in/x"] = torch.randn(2, 9, 5, 8)
    known = {"avg": x.mean((2, 3)), "max": x.amax((2, 3)), "lse": x.exp().sum((2, 3)).log()}
    known["lp"] = x.square().sum((2, 3)).sqrt()
    names = ("ChannelGate.mlp.1", "ChannelGate.mlp.3")
    (w1, b1), (w2, b2) = ((t[f"param/{name}.weight"], t[f"param/{name}.bias"]) for name in names)
    z = sum(F.linear(F.linear(known[p], w1, b1).relu(), w2, b2) for p in pools or ("avg", "max"))
    expected = x * z.sigmoid()[:, :, None, None]
    if not no_spatial:
        summary = torch.cat((expected.max(1, keepdim=True)[0], expected.mean(1, keepdim=True)), 1)
        s = F.conv2d(summary, t["param/SpatialGate.spatial.conv.weight"], padding=3)
        expected = expected * normed(s, t, "SpatialGate.spatial.bn").sigmoid()
    meta = {"mechanism": "cbam", "source": f"{REPOSITORY}/cbam.py:CBAM", "config": json.dumps(config)}
    assert_close(replay(t, meta)["out/out"], expected, rtol=1e-5, atol=1e-5)


def test_bam():
    t = linear("channel_att.gate_c.gate_c_fc_0", 3, 48) | norm_state("channel_att.gate_c.gate_c_bn_1", 3)
    t |= linear("channel_att.gate_c.gate_c_fc_final", 48, 3)
    path = "spatial_att.gate_s.gate_s"
    t |= linear(f"{path}_conv_reduce0", 3, 48, 1, 1) | norm_state(f"{path}_bn_reduce0", 3)
    for i in range(2):
        t |= linear(f"{path}_conv_di_{i}", 3, 3, 3, 3) | norm_state(f"{path}_bn_di_{i}", 3)
    t |= linear(f"{path}_conv_final", 1, 3, 1, 1)
    x = t["in/x"] = torch.randn(2, 48, 6, 9)

    def apply(function, name, x, **options):
        return function(x, t[f"param/{name}.weight"], t[f"param/{name}.bias"], **options)

    c = normed(apply(F.linear, "channel_att.gate_c.gate_c_fc_0", x.mean((2, 3))), t, "channel_att.gate_c.gate_c_bn_1")
    c = apply(F.linear, "channel_att.gate_c.gate_c_fc_final", c.relu())
    s = normed(apply(F.conv2d, f"{path}_conv_reduce0", x), t, f"{path}_bn_reduce0").relu()
    for i in range(2):
        s = apply(F.conv2d, f"{path}_conv_di_{i}", s, padding=4, dilation=4)
        s = normed(s, t, f"{path}_bn_di_{i}").relu()
    s = apply(F.conv2d, f"{path}_conv_final", s)
    expected = x * (1 + (c[:, :, None, None] * s).sigmoid())
    meta = {"mechanism": "cbam", "source": f"{REPOSITORY}/bam.py:BAM", "config": '{"gate_channel": 48}'}
    assert_close(replay(t, meta)["out/out"], expected, rtol=1e-5, atol=1e-5)


def test_squeeze_and_excitation_as_convolutions():
    state = {"fc1.weight": torch.randn(2, 6, 1, 1), "fc2.weight": torch.randn(6, 2, 1, 1)}
    state |= {"fc1.bias": torch.randn(2), "fc2.bias": torch.randn(6)}
    x = torch.randn(2, 6, 3, 5)
    hidden = F.conv2d(x.mean((2, 3), keepdim=True), state["fc1.weight"], state["fc1.bias"]).relu()
    expected = x * F.conv2d(hidden, state["fc2.weight"], state["fc2.bias"]).sigmoid()
    layer = load("cbam", "equations (arXiv 1709.01507)", {"channels": 6, "reduction": 3}, state)
    assert_close(layer(x), expected)


def test_an_mlp_without_hidden_units_is_refused():
    with pytest.raises(UnsupportedError, match="8 channels reduced 16 times"):
        load("cbam", f"{REPOSITORY}/cbam.py:CBAM", {"gate_channels": 8}, {})
