"""fewshot-CAN with its own backbone, with other sizes, and its transductive inference, restated."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.models.resnet12 import ResNet12

SOURCE = "blue-blue272/fewshot-CAN@6055985:torchFewShot/models/net.py:Model"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def cam_state(prefix="cam."):
    state = {
        "conv1.conv.weight": random(6, 36, 1, 1), "conv1.conv.bias": random(6), "conv1.bn.weight": random(6),
        "conv1.bn.bias": random(6), "conv1.bn.running_mean": random(6), "conv1.bn.running_var": random(6) ** 2 + 0.5,
        "conv1.bn.num_batches_tracked": torch.tensor(2), "conv2.weight": random(36, 6, 1, 1), "conv2.bias": random(36),
    }  # fmt: skip
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def module(state, f1, f2):
    """Both outputs, with every matrix R."""
    f1, f2 = f1.flatten(3)[:, None], f2.flatten(3)[:, :, None]  # (B, 1, K, C, m) and (B, Q, 1, C, m)
    r = F.normalize(f1, dim=3).mT @ F.normalize(f2, dim=3)

    def attention(r):
        weight = {name: tensor.flatten(1) for name, tensor in state.items() if tensor.ndim == 4}
        g = r.mean(3) @ weight["cam.conv1.conv.weight"].T + state["cam.conv1.conv.bias"]
        read = (state[f"cam.conv1.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        g = F.batch_norm(g.flatten(0, 2), *read).view(g.shape).relu()
        w = g @ weight["cam.conv2.weight"].T + state["cam.conv2.bias"]
        return 1 + ((r * w[..., None, :]).mean(-1) / 0.025).softmax(-1)

    return f1 * attention(r)[..., None, :], f2 * attention(r.mT)[..., None, :]


def scores(state, scale, ftrain, ftest, ytrain):
    classes = torch.einsum("bsk,bschw->bkchw", ytrain, ftrain) / ytrain.sum(1)[..., None, None, None]
    f1, f2 = module(state, classes, ftest)
    return scale * (F.normalize(f1.mean(-1), dim=-1) * F.normalize(f2.mean(-1), dim=-1)).sum(-1)


def run(source, config, state, inputs):
    meta = {"mechanism": "cross_attention_fewshot", "source": source, "config": json.dumps(config), "call": "{}"}
    kinds = {name: "buffer" if "running" in name or "num_batches" in name else "param" for name in state}
    tensors = {f"{kinds[name]}/{name}": t for name, t in state.items()}
    return replay(tensors | {f"in/{name}": t for name, t in inputs.items()}, meta)["out/out"]


def episode(ways, shots, queries, *sizes):
    labels = F.one_hot(torch.arange(ways * shots) % ways, ways).double()[None]
    return {"xtrain": random(1, ways * shots, *sizes), "xtest": random(1, queries, *sizes), "ytrain": labels,
            "ytest": random(1, queries, ways)}  # fmt: skip


def classifier(width, count):
    return {"clasifier.weight": random(count, width, 1, 1), "clasifier.bias": random(count)}


@pytest.mark.parametrize(("ways", "shots", "width"), [(3, 2, 4), (5, 1, 7)])
def test_maps_instead_of_images(ways, shots, width):
    state, inputs = cam_state() | classifier(width, 9), episode(ways, shots, 4, width, 6, 6)
    expected = scores(state, 3.0, inputs["xtrain"], inputs["xtest"], inputs["ytrain"])
    assert_close(run(SOURCE, {"scale_cls": 3, "num_classes": 9}, state, inputs), expected, rtol=0, atol=1e-9)


def test_transductive():
    state, inputs = cam_state() | classifier(4, 64), episode(5, 1, 15, 4, 6, 6)
    ftrain, ftest, ytrain = inputs["xtrain"], inputs["xtest"], inputs["ytrain"]
    found = scores(state, 7.0, ftrain, ftest, ytrain)
    for count in (5, 10, 15):
        best, guess = found.max(2)
        chosen = best[0].argsort(descending=True)[:count]
        more = torch.cat((ytrain, F.one_hot(guess[:, chosen], 5).double()), 1)
        found = scores(state, 7.0, torch.cat((ftrain, ftest[:, chosen]), 1), ftest, more)
    config = {"scale_cls": 7, "iter_num_prob": 1 / 3}
    assert_close(run(f"{SOURCE}.test_transductive", config, state, inputs), found, rtol=0, atol=1e-9)


def test_with_the_backbone():
    backbone = ResNet12().eval()
    state = cam_state() | classifier(512, 64)
    state = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    state |= {f"base.{name}": t for name, t in backbone.state_dict().items()}
    model = load("cross_attention_fewshot", SOURCE, {"scale_cls": 7}, state).eval()
    images = torch.randn(1, 2, 3, 84, 84)
    with torch.no_grad():
        found = model(images[:, :1], torch.tensor([[0]]), images[:, 1:], ways=1)
        maps = backbone(images[0])[None]
        expected = scores(state, 7.0, maps[:, :1], maps[:, 1:], torch.ones(1, 1, 1))
    assert_close(found, expected, rtol=0, atol=1e-4)
