"""Other configurations of the authors' classes, against a small statement of what their code does."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "zhouhaoyi/Informer2020@29f2a73:models/"


def prob(q, k, v, index, factor, causal, scale=None):
    """Their ProbAttention on heads-first tensors: unscaled scores of the sampled keys choose, running sums wait."""
    n, m = q.shape[2], k.shape[2]
    sampled = torch.einsum("bhnd,bhnud->bhnu", q, k[:, :, index])
    peaks = sampled.amax(-1) - sampled.sum(-1) / m
    top = peaks.topk(min(n, factor * math.ceil(math.log(n))), -1).indices
    out = v.cumsum(2) if causal else v.mean(2, keepdim=True).repeat(1, 1, n, 1)
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if causal:
        scores = scores.masked_fill(torch.ones(n, m).triu(1).bool(), -torch.inf)
    chosen = torch.zeros(q.shape[:3], dtype=torch.bool).scatter(2, top, True)
    return torch.where(chosen[..., None], scores.softmax(-1) @ v, out)


def draw(length, factor, name):
    torch.manual_seed(len(name) + length)
    return torch.randint(length, (length, min(length, factor * math.ceil(math.log(length)))))


@pytest.mark.parametrize(("causal", "factor", "scale"), [(True, 2, None), (False, 1, 0.5), (True, 9, 0.2)])
def test_attention_alone(causal, factor, scale):
    q, k, v = torch.randn(3, 2, 30, 2, 4)
    index = draw(30, factor, "attention")
    tensors = {"in/queries": q, "in/keys": k, "in/values": v, "in/index_sample": index}
    config = f'{{"mask_flag": {str(causal).lower()}, "factor": {factor}, "scale": {scale or "null"}}}'
    found = replay(tensors, {"mechanism": "informer", "source": f"{SOURCE}attn.py:ProbAttention", "config": config})
    expected = prob(*(t.transpose(1, 2) for t in (q, k, v)), index, factor, causal, scale)
    assert_close(found["out/out"], expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


class Theirs:
    """Their network as functions of a state dict."""

    def __init__(self, state, config, inputs):
        self.state, self.config, self.inputs = state, {"activation": "gelu", "factor": 5, **config}, inputs
        self.indices = iter([inputs[name] for name in inputs if name.startswith("index")])

    def linear(self, x, name):
        weight = self.state[f"{name}.weight"]
        return F.linear(x, weight.reshape(weight.shape[:2]), self.state.get(f"{name}.bias"))

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def circular(self, x, name):
        padded = torch.cat((x[:, -1:], x, x[:, :1]), 1)
        return F.conv1d(padded.mT, self.state[f"{name}.weight"], self.state.get(f"{name}.bias")).mT

    def embed(self, x, marks, name):
        dim = self.config["d_model"]

        def waves(place):
            rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
            return torch.stack([(place[..., None] * rate).sin(), (place[..., None] * rate).cos()], -1).flatten(-2)

        y = self.circular(x, f"{name}.value_embedding.tokenConv") + waves(torch.arange(x.shape[1]).float())
        kind = self.config["embed"]
        if kind == "timeF":
            return y + self.linear(marks, f"{name}.temporal_embedding.embed")
        for place, part in enumerate(("month", "day", "weekday", "hour", "minute")[: marks.shape[-1]]):
            table = f"{name}.temporal_embedding.{part}_embed.weight"
            y = y + (
                waves(marks[..., place].floor()) if kind == "fixed" else self.state[table][marks[..., place].long()]
            )
        return y

    def attention(self, x, context, name, causal, full, mix=False):
        heads, out = self.config["n_heads"], None
        q, k, v = (
            self.linear(t, f"{name}.{part}_projection").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, t in (("query", x), ("key", context), ("value", context))
        )
        if full:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        else:
            out = prob(q, k, v, next(self.indices), self.config["factor"], causal)
        out = out.reshape(*x.shape[:2], -1) if mix else out.transpose(1, 2).flatten(2)
        return self.linear(out, f"{name}.out_projection")

    def network(self, x, name, last):
        act = F.relu if self.config["activation"] == "relu" else F.gelu
        return self.norm(x + self.linear(act(self.linear(x, f"{name}.conv1")), f"{name}.conv2"), f"{name}.norm{last}")

    def encode(self, x, name, depth):
        full = self.config["attn"] == "full"
        for number in range(depth):
            layer = f"{name}.attn_layers.{number}"
            x = self.norm(x + self.attention(x, x, f"{layer}.attention", False, full), f"{layer}.norm1")
            x = self.network(x, layer, 2)
            if self.config["distil"] and number < depth - 1:
                between = f"{name}.conv_layers.{number}"
                y, norm = self.circular(x, f"{between}.downConv").mT, f"{between}.norm"
                statistics = [
                    self.state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
                ]
                x = F.max_pool1d(F.elu(F.batch_norm(y, *statistics)), 3, 2, 1).mT
        return self.norm(x, f"{name}.norm")

    def __call__(self):
        given, config = self.inputs, self.config
        x = self.embed(given["x_enc"], given["x_mark_enc"], "enc_embedding")
        if isinstance(config["e_layers"], list):
            parts = [
                (x[:, -(x.shape[1] // 2**i) :], n, f"encoder.encoders.{i}") for i, n in enumerate(config["e_layers"])
            ]
            memory = torch.cat([self.encode(part, name, depth) for part, depth, name in parts], 1)
        else:
            memory = self.encode(x, "encoder", config["e_layers"])
        y = self.embed(given["x_dec"], given["x_mark_dec"], "dec_embedding")
        for number in range(config["d_layers"]):
            layer, full = f"decoder.layers.{number}", config["attn"] == "full"
            own = self.attention(y, y, f"{layer}.self_attention", True, full, config["mix"])
            y = self.norm(y + own, f"{layer}.norm1")
            y = self.norm(y + self.attention(y, memory, f"{layer}.cross_attention", False, True), f"{layer}.norm2")
            y = self.network(y, layer, 3)
        return self.linear(self.norm(y, "decoder.norm"), "projection")[:, -config["out_len"] :]


def layer_shapes(name, config, attentions):
    dim, hidden = config["d_model"], config.get("d_ff") or 4 * config["d_model"]
    for attention in attentions:
        for part in ("query", "key", "value", "out"):
            yield f"{name}.{attention}.{part}_projection.weight", (dim, dim)
            yield f"{name}.{attention}.{part}_projection.bias", (dim,)
    for part, shape in (("conv1", (hidden, dim, 1)), ("conv2", (dim, hidden, 1))):
        yield from ((f"{name}.{part}.weight", shape), (f"{name}.{part}.bias", shape[:1]))
    for number in range(len(attentions) + 1):
        yield from ((f"{name}.norm{number + 1}.{part}", (dim,)) for part in ("weight", "bias"))


def shapes(config):
    dim = config["d_model"]
    for side, width in (("enc", config["enc_in"]), ("dec", config["dec_in"])):
        yield f"{side}_embedding.value_embedding.tokenConv.weight", (dim, width, 3)
        yield f"{side}_embedding.position_embedding.pe", (1, 99, dim)
        time = f"{side}_embedding.temporal_embedding"
        if config["embed"] == "timeF":
            yield f"{time}.embed.weight", (dim, {"h": 4, "d": 3}[config["freq"]])
        for part, size in {"month": 13, "day": 32, "weekday": 7, "hour": 24, "minute": 4}.items():
            if config["embed"] != "timeF" and (part != "minute" or config["freq"] == "t"):
                yield f"{time}.{part}_embed.{'emb.' * (config['embed'] == 'fixed')}weight", (size, dim)
    depths = config["e_layers"]
    several = isinstance(depths, list)
    for i, depth in enumerate(depths if several else [depths]):
        name = f"encoder.encoders.{i}" if several else "encoder"
        for number in range(depth):
            yield from layer_shapes(f"{name}.attn_layers.{number}", config, ["attention"])
        for number in range(depth - 1 if config["distil"] else 0):
            between = f"{name}.conv_layers.{number}"
            yield from ((f"{between}.downConv.weight", (dim, dim, 3)), (f"{between}.downConv.bias", (dim,)))
            yield from (
                (f"{between}.norm.{part}", (dim,)) for part in ("weight", "bias", "running_mean", "running_var")
            )
            yield f"{between}.norm.num_batches_tracked", ()
        yield from ((f"{name}.norm.{part}", (dim,)) for part in ("weight", "bias"))
    for number in range(config["d_layers"]):
        yield from layer_shapes(f"decoder.layers.{number}", config, ["self_attention", "cross_attention"])
    yield from ((f"decoder.norm.{part}", (dim,)) for part in ("weight", "bias"))
    yield from (("projection.weight", (config["c_out"], dim)), ("projection.bias", (config["c_out"],)))


CASES = {
    "plain": {"mix": False},
    "full": {"attn": "full", "activation": "relu", "distil": False, "d_layers": 2},
    "learned": {"embed": "learned", "freq": "t", "d_ff": None},
    "fixed": {"embed": "fixed", "e_layers": 1},
    "daily": {"freq": "d", "factor": 3},
    "stack": {"e_layers": [3, 1]},
}


@pytest.mark.parametrize("case", CASES)
def test_whole_networks(case):
    config = {"enc_in": 3, "dec_in": 2, "c_out": 2, "out_len": 5, "factor": 2, "d_model": 8, "n_heads": 2, "d_ff": 12}
    config |= {"e_layers": 2, "d_layers": 1, "embed": "timeF", "freq": "h", "attn": "prob", "distil": True, "mix": True}
    config |= CASES[case]
    torch.manual_seed(0)
    state = {name: 0.4 * torch.randn(shape) for name, shape in shapes(config)}
    state = {name: t.abs() + 0.5 if name.endswith("running_var") else t for name, t in state.items()}
    state = {name: t.long() if name.endswith("tracked") else t for name, t in state.items()}
    marks = {"h": 4, "d": 3, "t": 5}[config["freq"]]
    integers = torch.tensor([13, 32, 7, 24, 4])[:marks]
    inputs = {"x_enc": torch.randn(2, 25, 3), "x_dec": torch.randn(2, 11, 2)}
    for side, length in (("enc", 25), ("dec", 11)):
        mark = torch.rand(2, length, marks)
        inputs[f"x_mark_{side}"] = mark - 0.5 if config["embed"] == "timeF" else (mark * integers).floor()
    if config["attn"] == "prob":
        depths = config["e_layers"] if isinstance(config["e_layers"], list) else [config["e_layers"]]
        lengths = [n for i, depth in enumerate(depths) for n in [25 >> i, *halves(25 >> i, config)][:depth]]
        names = [f"index_enc{number}" for number in range(len(lengths))]
        lengths += [11] * config["d_layers"]
        names += [f"index_dec{number}" for number in range(config["d_layers"])]
        inputs |= {name: draw(n, config["factor"], name) for name, n in zip(names, lengths, strict=True)}
    expected = Theirs(state, config, inputs)()
    kind = "InformerStack" if case == "stack" else "Informer"
    meta = {"mechanism": "informer", "source": f"{SOURCE}model.py:{kind}", "config": json.dumps(config)}
    tensors = {f"{'buffer' if 'running' in name else 'param'}/{name}": t for name, t in state.items()} | {
        f"in/{name}": t for name, t in inputs.items()
    }
    assert_close(replay(tensors, meta)["out/out"], expected, rtol=1e-5, atol=1e-5)


def halves(length, config):
    for _ in range(9):
        length = -(-length // 2) if config["distil"] else length
        yield length


def test_what_is_not_computed_is_refused():
    q = torch.randn(1, 9, 2, 4)
    meta = {"mechanism": "informer", "source": f"{SOURCE}attn.py:FullAttention", "config": '{"mask_flag": true}'}
    given = {f"in/{name}": q for name in ("queries", "keys", "values")}
    assert replay(given, meta)["out/out"].shape == q.shape
    with pytest.raises(UnsupportedError, match="attn_mask"):
        replay(given | {"in/attn_mask": torch.zeros(9, 9)}, meta)
    config = {"enc_in": 1, "dec_in": 1, "c_out": 1, "out_len": 2, "embed": "timeF", "freq": "q"}
    with pytest.raises(UnsupportedError, match="freq='q'"):
        load("informer", f"{SOURCE}model.py:Informer", config, nn.Linear(1, 1).state_dict())
