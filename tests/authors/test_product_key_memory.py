"""XLM's memories with their other options, and lucidrains' PKM, restated token by token."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.authors.replay import replay
from regard.mechanisms.chosen.product_key_memory import ProductKeyMemory
from regard.registry import UnsupportedError

XLM = "facebookresearch/XLM@cd281d3:xlm/model/memory/memory.py:HashingMemory{}"
BASE = {"heads": 2, "knn": 3, "k_dim": 8, "n_keys": 5}


def run(source, config, state, inputs, buffers=(), call="{}"):
    tensors = {f"{'buffer' if name in buffers else 'param'}/{name}": t for name, t in state.items()}
    meta = {"mechanism": "product_key_memory", "source": source, "config": json.dumps(config), "call": call}
    return replay(tensors | {f"in/{name}": t for name, t in inputs.items()}, meta)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def read(q, state, options, flat=False):
    """One token's queries (H, k) -> out, slots and weights, by their rules."""
    keys, values, n = state["keys"], state["values.weight"], options["n_keys"]
    heads, out = [], torch.zeros(values.shape[1], dtype=torch.float64)
    for h, query in enumerate(q):
        several = keys.ndim == (3 if flat else 4)
        own = keys[h] if several else keys
        halves = [query] if flat else query.chunk(2)
        if options.get("normalize_query"):
            halves = [half / half.norm() for half in halves]
        if flat:
            score = own @ halves[0]
        else:
            first, second = (own[0], own[1]) if several else (own, own)
            score = torch.stack([first[i] @ halves[0] + second[j] @ halves[1] for i in range(n) for j in range(n)])
        score, slot = score.topk(options["knn"])
        if "head_permutations" in state:
            slot = state["head_permutations"][h][slot]
        if options.get("modulo_size", -1) != -1:
            slot = slot % options["modulo_size"]
        score = score / options.get("temperature", 1)
        if options.get("score_softmax", True):
            score = score.softmax(-1)
        if options.get("score_subtract"):
            lower = {"min": score.min(), "mean": score.mean(), "median": score.median()}
            score = score - lower[options["score_subtract"]]
        if options.get("score_normalize"):
            score = score / score.abs().sum()
        out = out + sum(s * values[i] for s, i in zip(score, slot, strict=True))
        heads.append((slot, score))
    return out, *(torch.stack(part) for part in zip(*heads, strict=True))


def check(source, options, state, net, x, output_dim=3, buffers=(), tokens=None):
    """Run theirs through the importer and compare with the loop over tokens."""
    config = {"input_dim": 6, "output_dim": output_dim, "params": options}
    found = run(source, config, state, {"input": x}, buffers)
    tokens = x.flatten(0, -2) if tokens is None else tokens
    expected = [read(net(token).view(2, 8), state, options, "Flat" in source) for token in tokens]
    out, slot, weight = (torch.stack(part) for part in zip(*expected, strict=True))
    assert torch.equal(found["out/indices"], slot)
    assert_close(found["out/scores"], weight, rtol=0, atol=1e-10)
    assert_close(found["out/out"].reshape(out.shape), out, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"v_dim": 4},
        {"query_bias": False},
        {"use_different_keys": False, "keys_type": "binary"},
        {"keys_learn": False, "query_net_learn": False, "query_detach_input": True},
        {"modulo_size": 11, "shuffle_indices": True},
        {"normalize_query": True, "temperature": 0.5},
        {"score_subtract": "min", "score_normalize": True},
        {"score_softmax": False, "score_subtract": "median"},
        {"score_softmax": False, "score_subtract": "mean", "implementation": "pq_default"},
        {"score_softmax": False, "score_normalize": True, "sparse": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["ProductFast", "Flat"])
def test_their_options(options, kind):
    flat, given = kind == "Flat", {**BASE, **options}
    if flat:
        given |= {"n_keys": 25, "implementation": "flat"}
    heads = () if options.get("use_different_keys") is False else ((2,) if flat else (2, 2))
    size = options.get("modulo_size", 25)
    state = {
        "keys": random(*heads, given["n_keys"], 8 if flat else 4),
        "values.weight": random(size, options.get("v_dim", 3)),
        "query_proj.query_mlps.0.weight": random(16, 6),
        "query_proj.query_mlps.0.bias": random(16),
    }
    if not given.get("query_bias", True):
        del state["query_proj.query_mlps.0.bias"]
    if "shuffle_indices" in options:
        state["head_permutations"] = torch.stack([torch.randperm(25) for _ in range(2)])
    buffers = ("head_permutations", *(("keys",) if options.get("keys_learn") is False else ()))
    weight, bias = (state.get(f"query_proj.query_mlps.0.{name}", torch.zeros(())) for name in ("weight", "bias"))
    check(XLM.format(kind), given, state, lambda t: weight @ t + bias, random(2, 3, 6), buffers=buffers)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", ["one", "apart", "grouped"])
def test_their_networks_of_several_layers(form, norm):
    """h units in one network, or in each of four; grouped ones hold the same numbers in other shapes."""
    hidden, count, out = (7, 1, 16) if form == "one" else (3, 4, 4)
    options = BASE | {"query_layer_sizes": "0,7,0" if form == "one" else [0, 3, 0], "query_batchnorm": norm,
                      "multi_query_net": form != "one", "grouped_conv": form == "grouped"}  # fmt: skip
    w1, b1, w2, b2 = random(count, hidden, 6), random(count, hidden), random(count, out, hidden), random(count, out)
    stats = [
        (random(count, s), random(count, s).abs() + 0.5, random(count, s), random(count, s)) for s in (hidden, out)
    ]
    last = 3 if norm else 2
    state = {"keys": random(2, 2, 5, 4), "values.weight": random(25, 3)}
    for g in range(1 if form == "grouped" else count):
        path = "query_proj.query_mlps." + ("" if form == "grouped" else f"{g}.")
        pick = (lambda t: t.flatten(0, 1)) if form == "grouped" else (lambda t, g=g: t[g])
        inner = f"{path}{last}.layer" if form == "grouped" else f"{path}{last}"
        state |= {f"{path}0.weight": pick(w1), f"{path}0.bias": pick(b1), f"{inner}.bias": pick(b2)}
        state[f"{inner}.weight"] = pick(w2)[..., None] if form == "grouped" else pick(w2)
        for place, tensors in zip((1, 4), stats, strict=True) if norm else ():
            names = ("running_mean", "running_var", "weight", "bias")
            state |= {f"{path}{place}.{name}": pick(t) for name, t in zip(names, tensors, strict=True)}
            state[f"{path}{place}.num_batches_tracked"] = torch.tensor(0)

    def batch_norm(t, values):
        mean, variance, scale, shift = values
        return (t - mean) / (variance + 1e-5).sqrt() * scale + shift if norm else t

    def net(token):
        inner = batch_norm(torch.stack([w @ token + b for w, b in zip(w1, b1, strict=True)]), stats[0]).relu()
        return batch_norm(torch.stack([w @ t + b for w, b, t in zip(w2, b2, inner, strict=True)]), stats[1]).flatten()

    buffers = [name for name in state if "running" in name or "tracked" in name]
    check(XLM.format("ProductFast"), options, state, net, random(2, 3, 6), buffers=buffers)


@pytest.mark.parametrize("shuffle", [False, True])
def test_their_identity_network(shuffle):
    options = BASE | {"query_layer_sizes": "", "shuffle_query": shuffle}
    state = {"keys": random(2, 2, 5, 4), "values.weight": random(25, 3)}
    x = random(2, 3, 8)

    def net(token):
        second = [0, 1, 4, 5, 2, 3, 6, 7] if shuffle else range(8)
        return torch.cat([token, token[list(second)]])

    config = {"input_dim": 8, "output_dim": 3, "params": options}
    found = run(XLM.format("ProductFast"), config, state, {"input": x})
    expected = torch.stack([read(net(token).view(2, 8), state, options)[0] for token in x.flatten(0, 1)])
    assert_close(found["out/out"].flatten(0, 1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["one", "two", "grouped"])
def test_their_convolutions(form):
    """Tokens are counted along columns first."""
    options = BASE | {"input2d": True, "query_layer_sizes": "0,0" if form == "one" else "0,4,0",
                      "query_kernel_sizes": "3" if form == "one" else "3,1"}  # fmt: skip
    state = {"keys": random(2, 2, 5, 4), "values.weight": random(25, 3)}
    shapes = {"one": [(16, 6, 3, 3)], "two": [(4, 6, 3, 3), (16, 4, 1, 1)], "grouped": [(16, 6, 3, 3), (16, 4, 1, 1)]}
    if form == "grouped":
        options |= {"multi_query_net": True, "grouped_conv": True}
    layers = [(random(*shape), random(shape[0])) for shape in shapes[form]]
    for place, (weight, bias) in zip((0, 2), layers, strict=False):
        path = f"query_proj.query_convs.{'0.' if form == 'two' else ''}{place}"
        state |= {f"{path}.weight": weight, f"{path}.bias": bias}
    x = random(2, 6, 4, 5)
    q = F.conv2d(x, *layers[0], padding=1)
    if form != "one":
        q = F.conv2d(q.relu(), *layers[1], groups=4 if form == "grouped" else 1)
    tokens = [q[b, :, i, j] for b in range(2) for j in range(5) for i in range(4)]
    config = {"input_dim": 6, "output_dim": 3, "params": options}
    found = run(XLM.format("ProductFast"), config, state, {"input": x})
    expected = torch.stack([read(token.view(2, 8), state, options)[0] for token in tokens])
    assert found["out/out"].shape == (2, 3, 4, 5)
    assert_close(found["out/out"].transpose(1, 3).flatten(0, 2), expected, rtol=0, atol=1e-10)


def test_what_is_plain_becomes_our_layer():
    state = {"keys": random(2, 2, 5, 4), "values.weight": random(25, 3)}
    state |= {
        f"query_proj.query_mlps.0.{name}": random(*shape) for name, shape in (("weight", (16, 6)), ("bias", (16,)))
    }
    config = {"input_dim": 6, "output_dim": 3, "params": {f"mem_{name}": value for name, value in BASE.items()}}
    loaded = regard.authors.load("product_key_memory", XLM.format("ProductFast"), config, state)
    assert isinstance(loaded, ProductKeyMemory)


def pkm(options, state, x):
    """lucidrains' PKM, token by token."""
    n, heads, out = options["num_keys"], options["heads"], []
    for token in x.flatten(0, 1):
        if options.get("pre_layernorm"):
            token = F.layer_norm(token, (6,), state["pre_layernorm.weight"], state["pre_layernorm.bias"])
        q = (state["to_queries.weight"] @ token).view(2, heads, 4)
        q, total = F.layer_norm(q, (4,), state["norm.weight"], state["norm.bias"]), 0
        for h in range(heads):
            keys = state["keys"][h]
            score = torch.stack([q[0, h] @ keys[i, 0] + q[1, h] @ keys[j, 1] for i in range(n) for j in range(n)])
            score, slot = score.topk(options["topk"])
            weight = score.relu() if options.get("non_competitive_gates") else score.softmax(-1)
            total = total + weight @ state["values.weight"][slot]
        if options.get("norm_output"):
            total = F.layer_norm(total, (6,), state["output_norm.weight"], state["output_norm.bias"])
        out.append(total)
    return torch.stack(out).view(x.shape)


@pytest.mark.parametrize("option", [None, "pre_layernorm", "norm_output", "non_competitive_gates"])
def test_lucidrains(option):
    options = {"dim": 6, "heads": 3, "num_keys": 5, "topk": 3, "dim_head": 4} | ({option: True} if option else {})
    state = {"to_queries.weight": random(24, 6), "keys": random(3, 5, 2, 4), "values.weight": random(25, 6),
             "norm.weight": random(4), "norm.bias": random(4)}  # fmt: skip
    name = {"pre_layernorm": "pre_layernorm", "norm_output": "output_norm"}.get(option)
    if name:
        state |= {f"{name}.weight": random(6), f"{name}.bias": random(6)}
    x, source = random(2, 4, 6), "pypi product-key-memory==0.3.0:product_key_memory/product_key_memory.py:PKM"
    assert_close(run(source, options, state, {"x": x})["out/out"], pkm(options, state, x), rtol=0, atol=1e-10)
    for refused in ({"use_layernorm": False}, {"differentiable_topk": True}, {"concat_values_and_combine": True}):
        with pytest.raises(UnsupportedError, match=next(iter(refused))):
            run(source, options | refused, state, {"x": x})


def test_unknown_arguments_are_refused():
    with pytest.raises(UnsupportedError, match="has no nknn"):
        run(XLM.format("ProductFast"), {"input_dim": 6, "output_dim": 3, "params": {"nknn": 3}}, {}, {})
