"""TaLKConv in other configurations than the one recorded, against the kernel's formula written once more."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors import find, load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "lioutasb/TaLKConvolutions@501a457:talkconv/talkconv_fairseq/talkconv_module.py:TaLKConv"


def kernel(x, reach, max_left, max_right, heads, decode):
    """x (N, B, C): scaled prefix sums, read at both ends."""
    n = len(x)
    sums = (x / (max_left + max_right + 1)).cumsum(0).unflatten(-1, (heads, -1))
    out = torch.zeros_like(sums)
    for i, b, h in torch.cartesian_prod(torch.arange(n), torch.arange(x.shape[1]), torch.arange(heads)).tolist():

        def at(place, b=b, h=h):
            return sums[place, b, h] if place >= 0 else torch.zeros_like(sums[0, 0, 0])

        low = (i - reach[i, b, h] * max_left).clamp(0, n - 1)
        high = torch.tensor(float(i)) if decode else (i + reach[i, b, heads + h] * max_right).clamp(0, n - 1)
        ends = (int(low.floor()), int(low.ceil()), int(high.floor()), int(high.ceil()))
        one, two = ends[1] - low, high - ends[2]
        out[i, b, h] = (1 - two) * at(ends[2]) + two * at(ends[3]) - one * at(ends[0] - 1) - (1 - one) * at(ends[1] - 1)
    return out.flatten(2)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(("left", "right"), [(3, 0), (2, 1), (None, None), (30, 4)])
def test_configurations(decode, left, right):
    config = {"hid_dim": 12, "num_heads": 3, "decode": decode, "offsets_dropout": 0.1}
    config |= {} if left is None else {"min_len_left": left, "min_len_right": right}
    ends = 3 if decode else 6
    state = {"offsets.weight": torch.randn(ends, 12).double(), "offsets.bias": torch.randn(ends).double()}
    x = torch.randn(11, 2, 12).double()
    reach = torch.sigmoid(x @ state["offsets.weight"].T + state["offsets.bias"])
    expected = kernel(x, reach, *((1, 1) if left is None else (left, right)), 3, decode)
    meta = {"mechanism": "talk_convolutions", "source": SOURCE, "config": json.dumps(config), "main_output": "y"}
    tensors = {f"param/{name}": t for name, t in state.items()} | {"in/x": x, "in/cotangent": x}
    found = replay(tensors, meta | {"call": json.dumps({"x": "T x B x C (fairseq layout)"})})
    assert_close(found["out/y"], expected, rtol=0, atol=1e-12)
    assert found["grad/offsets.weight"][:3].abs().max() > 0


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UnsupportedError, match="hid_dim=12 is no multiple of num_heads=5"):
        load("talk_convolutions", SOURCE, {"hid_dim": 12, "num_heads": 5}, {})
    importer = find("talk_convolutions", SOURCE)
    module = importer.module(**importer.arguments({"hid_dim": 12}))
    with pytest.raises(UnsupportedError, match=r"TalkConvolutions\.stream"):
        importer.call(module, {"x": torch.zeros(1, 1, 12), "incremental_state": torch.zeros(1)}, {})
