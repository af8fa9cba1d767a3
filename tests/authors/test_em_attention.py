"""The unit of EMANet restated with its convolutions, for other sizes and numbers of steps."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay

SOURCE = "XiaLiPKU/EMANet@f09ffac:network.py:EMAU"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("config", [{"c": 6, "k": 4}, {"c": 5, "k": 3, "stage_num": 1}])
def test_emau(config):
    width, count, steps = config["c"], config["k"], config.get("stage_num", 3)
    state = {"conv1.weight": random(width, width, 1, 1), "conv1.bias": random(width), "conv2.1.weight": random(width),
             "conv2.0.weight": random(width, width, 1, 1), "conv2.1.bias": random(width)}  # fmt: skip
    kept = {"mu": random(1, width, count), "conv2.1.running_mean": random(width)}
    kept |= {"conv2.1.running_var": torch.rand(width).double() + 0.5, "conv2.1.num_batches_tracked": torch.tensor(2)}
    x, cotangent = random(2, width, 3, 4).requires_grad_(), random(2, width, 3, 4)
    with torch.no_grad():
        h, mu = F.conv2d(x, state["conv1.weight"], state["conv1.bias"]).flatten(2), kept["mu"].repeat(2, 1, 1)
        for _ in range(steps):
            z = torch.einsum("bcn,bck->bnk", h, mu).softmax(2)
            mu = torch.einsum("bcn,bnk->bck", h, z / (1e-6 + z.sum(1, keepdim=True)))
            mu = mu / (1e-6 + mu.norm(dim=1, keepdim=True))
    y = F.relu(torch.einsum("bck,bnk->bcn", mu, z)).view(x.shape)
    statistics = kept["conv2.1.running_mean"], kept["conv2.1.running_var"]
    y = F.batch_norm(F.conv2d(y, state["conv2.0.weight"]), *statistics, state["conv2.1.weight"], state["conv2.1.bias"])
    y = F.relu(y + x)
    y.backward(cotangent)
    tensors = {f"param/{name}": t for name, t in state.items()} | {f"buffer/{name}": t for name, t in kept.items()}
    tensors |= {"in/x": x.detach(), "in/cotangent": cotangent}
    meta = {"mechanism": "em_attention", "source": SOURCE, "config": json.dumps(config), "call": '{"x": "B x C"}'}
    found = replay(tensors, meta)
    assert_close(found["out/out"], y, rtol=0, atol=1e-10)
    assert_close(found["out/mu"], mu, rtol=0, atol=1e-10)
    average = 0.9 * kept["mu"] + 0.1 * mu.mean(0, keepdim=True)
    assert_close(found["out/mu_after_moving_average"], average, rtol=0, atol=1e-10)
    assert_close(found["grad/x"], x.grad, rtol=0, atol=1e-10)
    assert not found["grad/conv1.weight"].any()
