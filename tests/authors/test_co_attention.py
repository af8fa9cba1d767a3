"""COSNet's head with other sizes, and the paper's equations with several frames, restated on their own weights."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

COSNET = "carrierlxk/COSNet@549109d:deeplab/siamese_model_conf.py:CoattentionModel"
EQUATIONS = "equations (arXiv 2001.06810 eq. 1-10)"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 0.5


def run(source, config, state, inputs):
    meta = {"mechanism": "co_attention", "source": source, "config": json.dumps(config), "call": "{}"}
    kinds = {name: "buffer" if "running" in name or "num_batches" in name else "param" for name in state}
    tensors = {f"{kinds[name]}/{name}": t for name, t in state.items()}
    return replay(tensors | {f"in/{name}": t for name, t in inputs.items()}, meta)


def gated(z, weight, bias=0.0):
    return z * torch.sigmoid(torch.einsum("bchw,c->bhw", z, weight.flatten()) + bias)[:, None]


def test_the_head():
    channels, classes = 6, 3
    state = {"linear_e.weight": random(channels, channels), "gate.weight": random(1, channels, 1, 1)}
    for side in "12":
        state |= {f"conv{side}.weight": random(channels, 2 * channels, 3, 3),
                  f"bn{side}.weight": random(channels), f"bn{side}.bias": random(channels),
                  f"bn{side}.running_mean": random(channels), f"bn{side}.running_var": random(channels) ** 2 + 0.5,
                  f"bn{side}.num_batches_tracked": torch.tensor(4),
                  f"main_classifier{side}.weight": random(classes, channels, 1, 1),
                  f"main_classifier{side}.bias": random(classes)}  # fmt: skip
    first, second = random(2, channels, 4, 5), random(2, channels, 4, 5)
    scores = torch.einsum("bchw,dc,bdkl->bhwkl", first, state["linear_e.weight"], second).flatten(3).flatten(1, 2)
    of_first = (second.flatten(2) @ scores.softmax(2).mT).view_as(first)
    of_second = (first.flatten(2) @ scores.softmax(1)).view_as(second)
    found = run(COSNET, {"all_channel": channels, "num_classes": classes}, state, {"exemplar": first, "query": second})
    for side, name, own, summary in (("1", "exemplar", first, of_first), ("2", "query", second, of_second)):
        joint = torch.cat((gated(summary, state["gate.weight"]), own), 1)
        read = (state[f"bn{side}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        hidden = F.batch_norm(F.conv2d(joint, state[f"conv{side}.weight"], padding=1), *read).relu()
        logits = F.conv2d(hidden, state[f"main_classifier{side}.weight"], state[f"main_classifier{side}.bias"])
        assert_close(found["out/out" if side == "1" else "out/mask_query"], logits.sigmoid(), rtol=0, atol=1e-10)
        assert_close(found[f"out/joint_{name}"], joint, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["vanilla", "symmetric", "channel"])
@pytest.mark.parametrize("references", [0, 3])
def test_the_equations(kind, references):
    state = {"vanilla": {"W": random(5, 5)}, "symmetric": {"p": random(5, 5), "d": random(5)},
             "channel": {"d_a": random(5), "d_b": random(5)}}[kind]  # fmt: skip
    w = {"vanilla": lambda: state["W"], "symmetric": lambda: state["p"].T @ state["d"].diag() @ state["p"],
         "channel": lambda: (state["d_a"] * state["d_b"]).diag()}[kind]()  # fmt: skip
    state |= {"w_f": random(5), "b_f": random(1)}
    va, vb = random(2, 5, 3, 4), random(2, *([references] if references else []), 5, 4, 2)
    found = run(EQUATIONS, {"channels": 5, "kind": kind}, state, {"va": va, "vb": vb})
    parts, others = [], []
    for frame in vb.unbind(1) if references else [vb]:
        s = frame.flatten(2).mT @ w @ va.flatten(2)
        z_a, z_b = frame.flatten(2) @ s.softmax(1), va.flatten(2) @ s.mT.softmax(1)
        parts.append(gated(z_a.view_as(va), state["w_f"], state["b_f"]))
        others.append(torch.cat((gated(z_b.view_as(frame), state["w_f"], state["b_f"]), frame), 1))
    expected = torch.stack(others, 1) if references else others[0]
    assert_close(found["out/out"], torch.cat((sum(parts) / len(parts), va), 1), rtol=0, atol=1e-10)
    assert_close(found["out/joint_b"], expected, rtol=0, atol=1e-10)


def test_the_encoder_is_refused():
    with pytest.raises(UnsupportedError, match=r"leave its weights \(encoder.\*\) out"):
        load("co_attention", COSNET, {"all_channel": 4}, {"encoder.conv1.weight": random(4, 3, 7, 7)})
