"""The context block of GCNet restated with its convolutions, for every pooling and fusion."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay

GCNET = "xvjiarui/GCNet@029db54:mmdet/ops/gcb/context_block.py:ContextBlock"
MMCV = "open-mmlab/mmcv@v1.7.0:mmcv/cnn/bricks/context_block.py:ContextBlock"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def restated(state, config, x):
    if config.get("pooling_type", "att") == "att":
        scores = F.conv2d(x, state["conv_mask.weight"], state["conv_mask.bias"])
        context = torch.einsum("bcn,bn->bc", x.flatten(2), scores.flatten(1).softmax(1))[:, :, None, None]
    else:
        context = F.adaptive_avg_pool2d(x, 1)

    def transformed(name):
        weights = {number: (state[f"{name}_conv.{number}.weight"], state[f"{name}_conv.{number}.bias"])
                   for number in (0, 1, 3)}  # fmt: skip
        planes = F.conv2d(context, *weights[0])
        return F.conv2d(F.relu(F.layer_norm(planes, planes.shape[1:], *weights[1])), *weights[3])

    fusions = config.get("fusion_types", ("channel_add",))
    y = x * transformed("channel_mul").sigmoid() if "channel_mul" in fusions else x
    return y + transformed("channel_add") if "channel_add" in fusions else y


@pytest.mark.parametrize(
    ("source", "config"),
    [
        (GCNET, {"inplanes": 8, "ratio": 0.25}),
        (GCNET, {"inplanes": 8, "ratio": 0.4, "pooling_type": "avg", "fusion_types": ["channel_mul"]}),
        (GCNET, {"inplanes": 8, "ratio": 0.5, "fusion_types": ["channel_add", "channel_mul"]}),
        (MMCV, {"in_channels": 8, "ratio": 0.5, "pooling_type": "att", "fusion_types": ["channel_mul"]}),
    ],
)
def test_context_block(source, config):
    planes = int(8 * config["ratio"])
    state = {} if config.get("pooling_type") == "avg" else {"conv_mask.weight": random(1, 8, 1, 1)}
    state |= {"conv_mask.bias": random(1)} if state else {}
    for fusion in config.get("fusion_types", ("channel_add",)):
        state |= {f"{fusion}_conv.0.weight": random(planes, 8, 1, 1), f"{fusion}_conv.0.bias": random(planes),
                  f"{fusion}_conv.1.weight": random(planes, 1, 1), f"{fusion}_conv.1.bias": random(planes, 1, 1),
                  f"{fusion}_conv.3.weight": random(8, planes, 1, 1), f"{fusion}_conv.3.bias": random(8)}  # fmt: skip
    x = random(2, 8, 3, 5)
    tensors = {f"param/{name}": t for name, t in state.items()} | {"in/x": x}
    meta = {"mechanism": "global_context", "source": source, "config": json.dumps(config), "call": "{}"}
    assert_close(replay(tensors, meta)["out/out"], restated(state, config, x), rtol=0, atol=1e-10)
