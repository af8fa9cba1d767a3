"""NATTEN's modules and functions in other configurations, restated as masked attention over all pixels."""

import itertools
import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

NEW = "SHI-Labs/NATTEN@8c8729f:src/natten/{}"
OLD = "SHI-Labs/NATTEN release 0.17.5 (PyPI sdist, built CPU-only):src/natten/natten{0}d.py:NeighborhoodAttention{0}D"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def run(source, config, state, inputs, call="{}"):
    meta = {"mechanism": "neighborhood", "source": source, "config": json.dumps(config), "call": call}
    tensors = {f"param/{name}": t for name, t in state.items()} | {f"in/{name}": t for name, t in inputs.items()}
    return replay(tensors, meta)


def sees(i, j, length, kernel, stride, dilation, causal):
    """Whether place i sees place j of one axis, as the reference mask has it."""
    if i % dilation != j % dilation:
        return False
    group = -(-(length - i % dilation) // dilation)
    i, j = i // dilation, j // dilation
    if causal:
        leader = min(i // stride * stride + stride - 1, group - 1)
        return max(leader - kernel + 1, 0) <= j <= i
    leader = min(i // stride * stride + stride // 2, group - 1)
    start = min(max(leader - kernel // 2, 0), group - kernel)
    return start <= j < start + kernel


def logits(q, k, grid, rules, scale, rpb=None):
    """(B, H, N, N) of heads first queries and keys, -inf outside of the windows."""
    scores = q @ k.mT * scale
    for (n, i), (m, j) in itertools.product(enumerate(itertools.product(*map(range, grid))), repeat=2):
        if not all(sees(*each) for each in zip(i, j, grid, *rules, strict=True)):
            scores[:, :, n, m] = -torch.inf
        elif rpb is not None:
            offsets = [(b - a) // d + c - 1 for a, b, c, d in zip(i, j, rules[0], rules[2], strict=True)]
            scores[:, :, n, m] += rpb[(slice(None), *offsets)]
    return scores


def module(state, x, heads, rules, scale):
    """With the features last, and one matrix for queries, keys and values."""
    grid, width = x.shape[1:-1], x.shape[-1] // heads
    qkv = x @ state["qkv.weight"].T + state.get("qkv.bias", 0.0)
    q, k, v = qkv.flatten(1, -2).unflatten(-1, (3, heads, width)).permute(2, 0, 3, 1, 4)
    out = logits(q, k, grid, rules, scale, state.get("rpb")).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2).unflatten(1, grid) @ state["proj.weight"].T + state["proj.bias"]


def weights(dim, bias):
    state = {"qkv.weight": random(3 * dim, dim), "proj.weight": random(dim, dim), "proj.bias": random(dim)}
    return state | ({"qkv.bias": random(3 * dim)} if bias else {})


@pytest.mark.parametrize(
    ("grid", "config", "rules"),
    [
        ((9,), {"kernel_size": 4, "stride": 2, "dilation": 2, "is_causal": True}, ((4,), (2,), (2,), (True,))),
        ((5, 6), {"kernel_size": 3, "is_causal": [True, False]}, ((3, 3), (1, 1), (1, 1), (True, False))),
        ((3, 4, 4), {"kernel_size": [2, 3, 2], "dilation": [1, 1, 2], "qk_scale": 0.2},
         ((2, 3, 2), (1, 1, 1), (1, 1, 2), (False,) * 3)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bias", [False, True])
def test_modules(grid, config, rules, bias):
    state, x = weights(6, bias), random(2, *grid, 6)
    config = {"embed_dim": 6, "num_heads": 2, "qkv_bias": bias} | config
    expected = module(state, x, 2, rules, config.get("qk_scale", 3**-0.5))
    found = run(NEW.format(f"modules.py:NeighborhoodAttention{len(grid)}D"), config, state, {"x": x})
    assert_close(found["out/out"], expected, rtol=0, atol=1e-10)
    config["na_dim"] = len(grid)
    found = run(NEW.format("modules.py:NeighborhoodAttentionGeneric"), config, state, {"x": x})
    assert_close(found["out/out"], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("grid", "config", "rules"),
    [
        ((8,), {"kernel_size": 3, "dilation": 2, "rel_pos_bias": True}, ((3,), (1,), (2,), (False,))),
        ((6, 5), {"kernel_size": [3, 5], "dilation": [2, 1], "rel_pos_bias": True},
         ((3, 5), (1, 1), (2, 1), (False, False))),
        ((5, 5), {"kernel_size": 3, "dilation": None, "bias": True}, ((3, 3), (1, 1), (1, 1), (False, False))),
        ((5, 5), {"kernel_size": 3, "bias": False}, ((3, 3), (1, 1), (1, 1), (False, False))),
        ((3, 4, 3), {"kernel_size": 3, "rel_pos_bias": True, "attn_drop": 0.1},
         ((3,) * 3, (1,) * 3, (1,) * 3, (False,) * 3)),
        ((6,), {"kernel_size": 3, "is_causal": True}, ((3,), (1,), (1,), (True,))),
    ],
)  # fmt: skip
def test_modules_of_old_releases(grid, config, rules):
    state, x = weights(6, True), random(2, *grid, 6)
    if config.get("rel_pos_bias", config.get("bias")):
        state["rpb"] = random(2, *(2 * kernel - 1 for kernel in rules[0]))
    found = run(OLD.format(len(grid)), {"dim": 6, "num_heads": 2} | config, state, {"x": x})
    assert_close(found["out/out"], module(state, x, 2, rules, 3**-0.5), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [None, 0.0, 0.4])
@pytest.mark.parametrize("extra", [0, 2])
def test_functions(extra, scale):
    """Shared key heads, additional keys, values of another width; 0 as a scale means the default."""
    q, k, v = random(2, 5, 4, 4, 3), random(2, 5, 4, 2, 3), random(2, 5, 4, 2, 2)
    rules = ((3, 2), (1, 2), (1, 2), (True, False))
    config = {"kernel_size": [3, 2], "stride": [1, 2], "dilation": [1, 2], "is_causal": [True, False], "scale": scale}
    config |= {"heads": 4, "heads_kv": 2, "num_additional": extra}
    queries, keys, values = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
    scores = logits(queries, keys, (5, 4), rules, scale or 3**-0.5)
    inputs = {"query": q, "key": k, "value": v}
    if extra:
        more = {"additional_keys": random(2, extra, 2, 3), "additional_values": random(2, extra, 2, 2)}
        inputs |= more
        k, v = (t.transpose(1, 2).repeat_interleave(2, 1) for t in more.values())
        scores, values = torch.cat((scores, queries @ k.mT * (scale or 3**-0.5)), -1), torch.cat((values, v), 2)
    found = run(NEW.format("functional.py:na2d"), config, {}, inputs, json.dumps({"kwargs": list(inputs)}))
    expected = (scores.softmax(-1) @ values).transpose(1, 2).unflatten(1, (5, 4))
    assert_close(found["out/out"], expected, rtol=0, atol=1e-10)
    assert_close(found["out/lse"], scores.logsumexp(-1).transpose(1, 2).unflatten(1, (5, 4)), rtol=0, atol=1e-10)


def test_functions_of_old_releases_take_a_bias():
    q, k, v, rpb = random(1, 7, 2, 3), random(1, 7, 2, 3), random(1, 7, 2, 3), random(2, 5)
    found = run(
        NEW.format("functional.py:na1d"), {"kernel_size": 3}, {}, {"query": q, "key": k, "value": v, "rpb": rpb}
    )
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    scores = logits(q, k, (7,), ((3,), (1,), (1,), (False,)), 3**-0.5, rpb)
    assert_close(found["out/out"], (scores.softmax(-1) @ v).transpose(1, 2), rtol=0, atol=1e-10)


def test_what_we_do_not_compute_is_refused():
    config = {"embed_dim": 6, "num_heads": 2, "kernel_size": 5}
    source = NEW.format("modules.py:NeighborhoodAttention2D")
    with pytest.raises(UnsupportedError, match=r"a map of \(4, 9\) is smaller than kernel \(5, 5\)"):
        run(source, config, weights(6, True), {"x": random(1, 4, 9, 6)})
    q = random(1, 7, 2, 3)
    inputs = {"query": q, "key": q, "value": q}
    with pytest.raises(UnsupportedError, match="no option mask=1"):
        run(NEW.format("functional.py:na1d"), {"kernel_size": 3, "mask": 1}, {}, inputs)
    run(NEW.format("functional.py:na1d"), {"kernel_size": 3, "backend": "flex-fna", "q_tile_shape": [8]}, {}, inputs)
