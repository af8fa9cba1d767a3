"""Other configurations of the gated layer as plain tensor algebra, the authors' own classes and names, and roles."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

CODE = "lena-voita/the-story-of-heads@efaa0dd:lib/layers/attn.py"


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def weights(c, context, keys, values, out, combined=False):
    wide = keys + values if not combined else 2 * keys + values
    found = {"mem_conv_W": random(context, wide), "mem_conv_b": random(wide)}
    found |= {"out_conv_W": random(values, out), "out_conv_b": random(out)}
    return found if combined else found | {"query_conv_W": random(c, keys), "query_conv_b": random(keys)}


def layer(p, x, context, allowed, gate, heads):
    """-> the output and the heads before their gates."""
    values = p["out_conv_W"].shape[0]
    q, (k, v) = (
        x @ p["query_conv_W"] + p["query_conv_b"],
        (context @ p["mem_conv_W"] + p["mem_conv_b"]).split([p["mem_conv_b"].shape[0] - values, values], -1),
    )
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weight = (q @ k.mT / q.shape[-1] ** 0.5 - 1e9 * (1 - allowed)).softmax(-1)
    each = weight @ v
    return (each * gate.view(-1, 1, 1)).transpose(1, 2).flatten(2) @ p["out_conv_W"] + p["out_conv_b"], each


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"hard": True}, {"stretch": [-0.2, 1.3], "temp": 0.7, "l0": 0.4, "l2": 0.3}])
def test_recorded_cases_of_other_options(mode, options):
    heads, low, high = 3, *options.get("stretch", (-0.1, 1.1))
    p = weights(12, 8, 12, 12, 12) | {"log_a": random(1, heads, 1, 1)}
    given = {"query_inp": random(2, 5, 12), "kv_inp": random(2, 7, 8)}
    given["attn_mask"] = (torch.rand(2, 1, 5, 7) < 0.7).double()
    given["attn_mask"][..., 0] = 1.0
    given["attn_mask"][1, 0, 2] = 0.0  # looks at nothing: as if at all
    a = p["log_a"].flatten()
    logits = a
    if mode == "train":
        given["noise"] = torch.rand(1, heads, 1, 1, dtype=torch.float64)
        u = given["noise"].flatten()
        logits = (u.log() - (1 - u).log() + a) / options.get("temp", 0.33)
    gate = (logits.sigmoid() * (high - low) + low).clamp(0, 1)
    gate = (gate > 0.5).double() if options.get("hard") else gate
    y, each = layer(p, given["query_inp"], given["kv_inp"], given["attn_mask"], gate, heads)
    opened = torch.sigmoid(a - options.get("temp", 0.33) * torch.log(torch.tensor(-low / high, dtype=torch.float64)))
    penalty = options.get("l0", 1.0) * opened.sum()
    penalty = penalty + (0.5 * options.get("l2", 0.0) * opened * each.square().sum()).mean()
    tensors = {f"in/{name}": t for name, t in given.items()} | {f"param/{name}": t for name, t in p.items()}
    tensors["in/cotangent"] = random(121)
    config = {"c": 12, "h": heads, "ckv": 8, **options}
    meta = {"mechanism": "head_pruning", "source": "equations (...)", "config": json.dumps(config)}
    found = replay(tensors, meta | {"main_output": "total"})
    assert_close(found["out/total"], torch.cat([y.flatten(), 3 * penalty[None]]), rtol=0, atol=1e-6)  # 1e9 in float64
    assert_close(found["out/gates"].flatten(), gate, rtol=0, atol=1e-12)
    assert found["grad/log_a"].shape == (1, heads, 1, 1)


@pytest.mark.parametrize("kind", ["MultiHeadAttnConcrete", "MultiHeadAttnFixedAliveHeads"])
@pytest.mark.parametrize("combined", [False, True])
def test_the_authors_classes_and_their_names(kind, combined):
    config = {"inp_size": 10, "key_depth": 6, "value_depth": 9, "output_depth": 5, "num_heads": 3}
    config |= {"attn_dropout": 0.5, "attn_value_dropout": 0.5}
    p, fixed = weights(10, 10, 6, 9, 5, combined), [1.0, 0.0, 1.0]
    gate = torch.tensor(fixed, dtype=torch.float64)
    theirs = {f"{name.replace('_conv_', '_conv/')}:0": t for name, t in p.items()}
    if kind == "MultiHeadAttnConcrete":
        theirs["gate/log_a:0"] = torch.tensor([9.0, -9.0, 9.0], dtype=torch.float64).view(1, 3, 1, 1)
    else:
        config["head_gate"] = fixed
    ours = load("head_pruning", f"{CODE}:{kind}", config, theirs).eval()
    if combined:
        p |= {f"query_conv_{name}": p[f"mem_conv_{name}"][..., :6] for name in "Wb"}
        p |= {f"mem_conv_{name}": p[f"mem_conv_{name}"][..., 6:] for name in "Wb"}
    x = random(2, 5, 10)
    everywhere = torch.ones(2, 1, 5, 5, dtype=torch.float64)
    y = ours.out_proj(ours.heads(x, x, everywhere.bool(), ours.gates(None)).transpose(1, 2).flatten(2))
    assert_close(y, layer(p, x, x, everywhere, gate, 3)[0], rtol=0, atol=1e-9)
    assert ours.attn_drop == ours.value_drop.p == 0.5
    if kind == "MultiHeadAttnConcrete":
        torch.nn.init.zeros_(ours.log_alpha)
        assert not torch.equal(ours.train().gates(None), ours.gates(None))


def test_roles_with_other_thresholds():
    maps = torch.eye(4).roll(1, 1)[None, None].expand(2, 1, 4, 4) * 0.9 + 0.025  # everybody looks one place ahead
    given = {"attention": maps, "length": torch.tensor([4, 4])}
    given |= {"head_of": torch.tensor([[1, 2, -1, 0], [1, 0, 0, 0]]), "relation": torch.zeros(2, 4).long()}
    given["frequency_rank"] = torch.tensor([[9, 30, 2, 900], [5, 6, 7, 900]])
    config = {"relations": ["only"], "positional_threshold": 0.6, "syntactic_margin": 0.15, "rare_rank": 20}
    meta = {"mechanism": "head_pruning", "source": "equations", "config": json.dumps(config), "main_output": "out"}
    found = replay({f"in/{name}": t for name, t in given.items()}, meta)
    assert_close(found["out/out"], torch.tensor([(4 * 0.925 + 2 * 0.025) / 6]))
    assert_close(found["out/relative_position_fraction"], torch.tensor([[0.0, 4 / 6]]))  # -1 and 1 by default
    assert found["out/positional"].tolist() == [True]
    assert_close(found["out/syntactic_accuracy"][0, :, 0], torch.tensor([4 / 5, 1 / 5]))
    assert_close(found["out/syntactic_baseline"][0], torch.tensor([3 / 5, 3 / 5]))
    assert found["out/syntactic"].tolist() == [[[True], [False]]]
    assert_close(found["out/rarest_fraction"], torch.tensor([1 / 3]))


def test_what_cannot_be_honoured_is_refused():
    p = weights(4, 4, 4, 4, 4) | {"log_a": torch.zeros(1, 2, 1, 1)}
    with pytest.raises(UnsupportedError, match="local_rep draws a gate for each activation"):
        load("head_pruning", "equations", {"c": 4, "h": 2, "local_rep": True}, p)
    tensors = {"in/query_inp": random(1, 2, 4), "in/kv": random(1, 2, 8)} | {f"param/{n}": t for n, t in p.items()}
    meta = {"mechanism": "head_pruning", "source": "equations", "config": '{"c": 4, "h": 2}'}
    with pytest.raises(UnsupportedError, match="kv holds projected keys"):
        replay(tensors, meta)
