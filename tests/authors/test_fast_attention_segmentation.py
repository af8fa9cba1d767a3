"""A stage of FANet restated with its convolutions, for every pair of flags, with and without a coarser map."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

TESTING = "feinanshan/FANet@d4e5e3c:Testing/models/fanet/fanet.py:FastAttModule (authors' code)"
TRAINING = "feinanshan/FANet@d4e5e3c:Train/ptsemseg/models/fanet/fanet.py:LAFeatureFusionModule"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def restated(state, x, coarse):
    def convolved(name, x, padding=0, activate=True):
        norm = (state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        y = F.batch_norm(F.conv2d(x, state[f"{name}.conv.weight"], padding=padding), *norm)
        return F.leaky_relu(y, 0.01) if activate else y

    q, k = (F.normalize(convolved(name, x, activate=False).flatten(2), dim=1) for name in ("w_qs", "w_ks"))
    weights = torch.einsum("bdn,bdm->bnm", q, k)
    y = torch.einsum("bnm,bcm->bcn", weights, convolved("w_vs", x).flatten(2)).view(x.shape)
    fused = convolved("latlayer3", y) + x
    if coarse is not None:
        fused = fused + F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=True)
    return convolved("smooth", fused, 1), convolved("up", fused, 1)


def case(width, out):
    state, shapes = {}, {"w_qs": (32, 1), "w_ks": (32, 1), "w_vs": (width, 1), "latlayer3": (width, 1),
                         "up": (width // 2, 1), "smooth": (out, 3)}  # fmt: skip
    for name, (rows, side) in shapes.items():
        state[f"{name}.conv.weight"] = random(rows, width, side, side)
        state |= {f"{name}.bn.{part}": random(rows) for part in ("weight", "bias", "running_mean")}
        state[f"{name}.bn.running_var"] = torch.rand(rows).double() + 0.5
    return state


def run(source, config, state, inputs, call):
    tensors = {f"{'buffer' if 'running' in name else 'param'}/{name}": t for name, t in state.items()}
    tensors |= {f"in/{name}": t for name, t in inputs.items()}
    for name in ("w_qs", "w_ks", "w_vs", "latlayer3", "up", "smooth"):
        tensors[f"buffer/{name}.bn.num_batches_tracked"] = torch.tensor(1)
    meta = {"mechanism": "fast_attention_segmentation", "source": source, "config": json.dumps(config)}
    return replay(tensors, meta | {"call": json.dumps(call)})


@pytest.mark.parametrize(
    ("source", "call"),
    [
        (TESTING, {"up_fea_in": None, "up_flag": True, "smf_flag": True}),
        (TESTING, {"args": ["feat", "up_fea_in", True, False]}),
        (TRAINING, {"kwargs": {"up_fea_in": "up_fea_in", "up_flag": False, "smf_flag": True}}),
        (TRAINING, {"up_fea_in": "up_fea_in", "up_flag": True, "smf_flag": True}),
    ],
)
def test_a_stage(source, call):
    state, x = case(6, 5), random(2, 6, 4, 5)
    coarse = None if call.get("up_fea_in", "given") is None else random(2, 6, 2, 3)
    inputs = {"feat": x} if coarse is None else {"feat": x, "up_fea_in": coarse}
    smooth, up = restated(state, x, coarse)
    found = run(source, {"in_chan": 6, "mid_chn": 256, "out_chan": 5}, state, inputs, call)
    wanted = dict(zip(("up_flag", "smf_flag"), call.get("args", ())[2:], strict=False)) | call | call.get("kwargs", {})
    assert_close(found["out/out"], smooth if wanted["smf_flag"] else up, rtol=0, atol=1e-8)
    assert ("out/up_feat" in found) == (wanted["smf_flag"] and wanted["up_flag"])
    if "out/up_feat" in found:
        assert_close(found["out/up_feat"], up, rtol=0, atol=1e-8)


def test_what_has_no_result_or_no_norm_is_refused():
    state, inputs = case(6, 5), {"feat": random(2, 6, 4, 5)}
    with pytest.raises(UnsupportedError, match="both false"):
        run(TESTING, {"in_chan": 6, "out_chan": 5}, state, inputs, {"up_flag": False, "smf_flag": False})
    with pytest.raises(UnsupportedError, match="norm_layer=None"):
        run(TESTING, {"in_chan": 6, "out_chan": 5, "norm_layer": None}, state, inputs, {})
