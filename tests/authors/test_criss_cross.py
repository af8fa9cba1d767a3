"""CCNet's block restated as two softmax arms over rows and columns, under other names and sizes."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "speedinghzl/CCNet@1fae6c6:cc_attention/functions.py:{} applied twice with the same weights"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def run(source, config, state, inputs):
    meta = {"mechanism": "criss_cross", "source": source, "config": json.dumps(config)}
    tensors = {f"param/{name}": t for name, t in state.items()} | {f"in/{name}": t for name, t in inputs.items()}
    return replay(tensors, meta)


def block(state, x):
    def conv(name):
        return torch.nn.functional.conv2d(x, state[f"{name}_conv.weight"], state[f"{name}_conv.bias"])

    q, k, v = map(conv, ("query", "key", "value"))
    rows = torch.einsum("bcij,bcim->bijm", q, k)
    columns = torch.einsum("bcij,bcnj->bijn", q, k)
    columns = columns.masked_fill(torch.eye(x.shape[2], dtype=torch.bool)[None, :, None], -torch.inf)
    weights = torch.cat((columns, rows), -1).softmax(-1)
    columns, rows = weights.split([x.shape[2], x.shape[3]], -1)
    out = torch.einsum("bijn,bcnj->bcij", columns, v) + torch.einsum("bijm,bcim->bcij", rows, v)
    return state["gamma"] * out + x


@pytest.mark.parametrize("prefix", ["", "cca.", "head.cca."])
@pytest.mark.parametrize(
    ("name", "dim", "recurrence"), [("CrissCrossAttention", 17, 3), ("PixelwiseAttention", 8, None)]
)
def test_blocks(name, dim, recurrence, prefix):
    shapes = {"query": dim // 8, "key": dim // 8, "value": dim}
    state = {f"{part}_conv.weight": random(width, dim, 1, 1) * 0.4 for part, width in shapes.items()}
    state |= {f"{part}_conv.bias": random(width) for part, width in shapes.items()} | {"gamma": random(1)}
    x, config = random(2, dim, 3, 5), {"in_dim": dim} | ({"recurrence": recurrence} if recurrence else {})
    found = run(SOURCE.format(name), config, {f"{prefix}{key}": t for key, t in state.items()}, {"x": x})
    expected = x
    for _ in range(recurrence or 1):
        expected = block(state, expected)
    assert_close(found["out/out"], expected, rtol=0, atol=1e-10)


def test_the_loss_has_the_weights_of_the_case():
    features, labels = random(1, 4, 3, 5), torch.randint(3, (1, 3, 5))
    labels[0, 0] = 9
    sizes = {"delta_v": 0.3, "delta_d": 1.0, "ignore_index": 9}
    found = run(
        "equations: CCNet", sizes | {"alpha": 2.0, "beta": 3.0, "gamma": 4.0}, {}, {"h": features, "labels": labels}
    )
    total = 2 * found["out/l_var"] + 3 * found["out/l_dis"] + 4 * found["out/l_reg"]
    assert_close(found["out/out"], torch.cat((total, 2 * total)))
    usual = run("equations: CCNet", sizes, {}, {"h": features, "labels": labels})
    assert_close(usual["out/out"][0], usual["out/l_var"][0] + usual["out/l_dis"][0] + 0.001 * usual["out/l_reg"][0])
    assert min(map(float, (found["out/l_var"], found["out/l_dis"], found["out/l_reg"]))) > 0


def test_what_we_do_not_compute_is_refused():
    with pytest.raises(UnsupportedError, match="in_dim=7 leaves their queries no features"):
        run(SOURCE.format("CrissCrossAttention"), {"in_dim": 7}, {}, {})
    with pytest.raises(UnsupportedError, match="delta_v"):
        run("equations: something else", {"rank": 3}, {}, {})
