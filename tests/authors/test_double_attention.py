"""Other configurations of the copied layer, restated on its own weights."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay

SOURCE = "nguyenvo09/Double-Attention-Network@c378693:double_attention_layer.py:DoubleAttentionLayer"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("m", "n", "reconstruct"), [(3, 2, True), (4, 4, False), (1, 5, None)])
def test_the_copied_layer(m, n, reconstruct):
    widths = {"convA": (m, 6), "convB": (n, 6), "convV": (n, 6)} | ({"conv_reconstruct": (6, m)} if reconstruct else {})
    state = {f"{name}.weight": random(*shape, 1, 1) for name, shape in widths.items()}
    state |= {f"{name}.bias": random(shape[0]) for name, shape in widths.items()}
    x = random(2, 6, 3, 5)

    def conv(name, x):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    a, b, v = (conv(name, x).flatten(2) for name in ("convA", "convB", "convV"))
    z = (a @ b.softmax(-1).mT @ v.softmax(1)).unflatten(-1, (3, 5))
    expected = conv("conv_reconstruct", z) if reconstruct else z
    config = {"in_channels": 6, "c_m": m, "c_n": n} | ({} if reconstruct is None else {"reconstruct": reconstruct})
    meta = {
        "mechanism": "double_attention",
        "source": SOURCE,
        "config": json.dumps(config),
        "call": '{"x": "B x C x H x W"}',
    }
    tensors = {f"param/{name}": t for name, t in state.items()} | {"in/x": x}
    assert_close(replay(tensors, meta)["out/out"], expected, rtol=0, atol=1e-10)
