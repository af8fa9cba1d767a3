"""galsang's ABCNN in other configurations than the recorded ones, beside a plain statement of what it does."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "galsang/ABCNN@f95b9a1:ABCNN.py:ABCNN"
CASES = [
    {"s": 7, "w": 3, "model_type": "ABCNN3", "num_features": 2, "num_layers": 2},
    {"s": 6, "w": 4, "model_type": "ABCNN3", "num_features": 0, "num_layers": 1},
    {"s": 5, "w": 2, "model_type": "BCNN", "num_features": 3, "num_classes": 4},
    {"s": 5, "w": 1, "model_type": "ABCNN1", "num_features": 1, "num_layers": 3},
    {"s": 8, "w": 5, "model_type": "ABCNN2", "num_features": 1, "l2_reg": 0.0004},
]


def parameters(config):
    generator, shapes = torch.Generator().manual_seed(0), {}
    depth = 2 if config.get("num_layers", 2) > 1 else 1
    one = config["model_type"] in ("ABCNN1", "ABCNN3")
    for number in range(1, depth + 1):
        d = 4 if number == 1 else 5
        shapes |= {f"CNN-{number}/aW": (config["s"], d)} if one else {}
        shapes |= {f"CNN-{number}/conv/weights": (d, config["w"], 1 + one, 5), f"CNN-{number}/conv/biases": (5,)}
    classes = config.get("num_classes", 2)
    shapes |= {"output-layer/FC/weights": (config["num_features"] + depth + 1, classes)}
    shapes |= {"output-layer/FC/biases": (classes,)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.4 for name, shape in shapes.items()}


def restated(p, config, x1, x2, features):
    kind, w, s = config["model_type"], config["w"], config["s"]

    def attention(a, b):
        return 1 / (1 + (a[:, :, :, None] - b[:, :, None]).square().sum(1).sqrt())

    pools, sides = [(x1.mean(2), x2.mean(2))], (x1, x2)
    for number in range(1, 3 if config.get("num_layers", 2) > 1 else 2):
        weights, biases = (p[f"CNN-{number}/conv/{name}"] for name in ("weights", "biases"))
        maps = [side[:, :, :, None] for side in sides]
        if kind in ("ABCNN1", "ABCNN3"):
            a, table = attention(*sides), p[f"CNN-{number}/aW"]
            maps = [torch.stack((side, (m @ table).mT), -1) for side, m in zip(sides, (a, a.mT), strict=True)]
        convs = []
        for side in maps:
            wide = F.pad(side, (0, 0, w - 1, w - 1))
            columns = [torch.einsum("bdwm,dwmf->bf", wide[:, :, i : i + w], weights) for i in range(s + w - 1)]
            convs.append(torch.tanh(torch.stack(columns, 2) + biases[:, None]))
        weighed = [conv / w for conv in convs]
        if kind in ("ABCNN2", "ABCNN3"):
            a = attention(*convs)
            weighed = [conv * sums[:, None] for conv, sums in zip(convs, (a.sum(2), a.sum(1)), strict=True)]
        sides = [torch.stack([side[:, :, i : i + w].sum(2) for i in range(s)], 2) for side in weighed]
        pools.append(tuple(conv.mean(2) for conv in convs))
    similarities = torch.stack([F.cosine_similarity(u, v, eps=0) for u, v in pools], 1)
    out = torch.cat((features, similarities), 1) @ p["output-layer/FC/weights"] + p["output-layer/FC/biases"]
    return out, similarities


@pytest.mark.parametrize("config", CASES, ids=lambda config: f"{config['model_type']}-{config['s']}-{config['w']}")
def test_other_configurations(config):
    config = config | {"d0": 4, "di": 5}
    generator = torch.Generator().manual_seed(2)
    p = parameters(config)
    x1, x2 = (torch.randn(3, 4, config["s"], generator=generator).double() for _ in range(2))
    features = torch.randn(3, config["num_features"], generator=generator).double()
    cotangent = torch.randn(3, config.get("num_classes", 2), generator=generator).double()
    tensors = {"in/x1": x1, "in/x2": x2, "in/features": features, "in/cotangent": cotangent}
    meta = {"mechanism": "abcnn", "source": SOURCE, "config": json.dumps(config), "main_output": "out/logits"}
    meta["call"] = json.dumps({"args": ["x1", "x2", "features"]})
    found = replay({f"param/{name}": value for name, value in p.items()} | tensors, meta)
    leaves = [t.requires_grad_() for t in (*p.values(), x1, x2)]
    out, similarities = restated(p, config, x1, x2, features)
    assert_close(found["out/logits"], out, rtol=0, atol=1e-9)
    assert_close(found["out/similarities"], similarities, rtol=0, atol=1e-9)
    slopes = torch.autograd.grad((out * cotangent).sum(), leaves, allow_unused=True, materialize_grads=True)
    for name, slope in zip((*p, "x1", "x2"), slopes, strict=True):
        assert_close(found[f"grad/{name}"], slope, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_refusals():
    config = CASES[0] | {"d0": 4, "di": 5}
    with pytest.raises(UnsupportedError, match="model_type='ABCNN4'"):
        load("abcnn", SOURCE, config | {"model_type": "ABCNN4"}, {})
    with pytest.raises(UnsupportedError, match=r"no part of ABCNN\.py"):
        load("abcnn", SOURCE, config, {"CNN-1/other": torch.zeros(1)})
