"""Other configurations of semseg's module, and other pools of the paper's equations."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "hszhao/semseg@4f274c3:model/pspnet.py:PPM"


@pytest.mark.parametrize("bins", [[1, 2, 3, 6], [5], [4, 1]])
def test_semseg(bins):
    config, t = {"in_dim": 7, "reduction_dim": 3, "bins": bins}, {"in/x": torch.randn(2, 7, 9, 13)}
    expected = [t["in/x"]]
    for i, n in enumerate(bins):
        weight = t[f"param/features.{i}.1.weight"] = torch.randn(3, 7, 1, 1)
        scale = t[f"param/features.{i}.2.weight"] = torch.rand(3)
        shift = t[f"param/features.{i}.2.bias"] = torch.randn(3)
        mean = t[f"buffer/features.{i}.2.running_mean"] = torch.randn(3)
        var = t[f"buffer/features.{i}.2.running_var"] = torch.rand(3) + 0.5
        t[f"buffer/features.{i}.2.num_batches_tracked"] = torch.tensor(1)
        g = F.conv2d(F.adaptive_avg_pool2d(t["in/x"], n), weight)
        g = F.batch_norm(g, mean, var, scale, shift).relu()
        expected.append(F.interpolate(g, (9, 13), mode="bilinear", align_corners=True))
    found = replay(t, {"mechanism": "pyramid_pooling", "source": SOURCE, "config": json.dumps(config)})
    assert_close(found["out/out"], torch.cat(expected, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pool", "function"), [("max", F.adaptive_max_pool2d), ("avg", F.adaptive_avg_pool2d)])
def test_the_equations(pool, function):
    x = torch.randn(2, 3, 7, 10)
    layer = load("pyramid_pooling", "equations", {"levels": [6, 3, 2, 1], "pool": pool}, {})
    assert_close(layer(x), torch.cat([function(x, n).flatten(1) for n in (6, 3, 2, 1)], 1))


def test_other_pools_are_refused():
    with pytest.raises(UnsupportedError, match="pool='stochastic'"):
        load("pyramid_pooling", "equations", {"levels": [1], "pool": "stochastic"}, {})
