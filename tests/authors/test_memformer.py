"""lucidrains' Memformer with its decoder and masks, against a plain restatement of what it computes."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay

PORT = "lucidrains/memformer@c8f9a97:memformer/memformer.py:Memformer"
LOWEST = -torch.finfo(torch.float64).max


def drawn(config):
    """A state dict under their names."""
    dim, state = config["dim"], {}

    def add(name, *shape):
        state[name] = torch.randn(shape, dtype=torch.float64) * 0.5

    def attention(name):
        for part, width in (("to_q", dim), ("to_kv", 2 * dim), ("to_out", dim)):
            add(f"{name}.{part}.weight", width, dim)
            add(f"{name}.{part}.bias", width)

    def network(name):
        for part, (rows, columns) in {"0": (4 * dim, dim), "2": (dim, 4 * dim)}.items():
            add(f"{name}.net.{part}.weight", rows, columns)
            add(f"{name}.net.{part}.bias", rows)

    def norm(name):
        add(f"{name}.weight", dim)
        add(f"{name}.bias", dim)

    sides = {"enc": "encoder."} | ({} if config.get("encoder_only") else {"dec": "decoder.net."})
    for side, name in sides.items():
        add(f"{name}token_emb.weight", config[f"{side}_num_tokens"], dim)
        add(f"{name}layer_blocks.rel_pos_emb.relative_attention_bias.weight", 32, config.get(f"{side}_heads", 8))
        for i in range(config[f"{side}_depth"]):
            for part in range(3):
                norm(f"{name}layer_blocks.layers.{i}.{part}.fn.norm")
                (network if part == 2 else attention)(f"{name}layer_blocks.layers.{i}.{part}.fn.fn")
        norm(f"{name}norm")
    if "dec" in sides:
        add("decoder.net.to_logits.weight", config["dec_num_tokens"], dim)
        add("decoder.net.to_logits.bias", config["dec_num_tokens"])
    add("memory_slots", config["num_memory_slots"], dim)
    attention("mem_updater")
    for part, shape in (
        ("weight_ih", (3 * dim, dim)),
        ("weight_hh", (3 * dim, dim)),
        ("bias_ih", (3 * dim,)),
        ("bias_hh", (3 * dim,)),
    ):
        add(f"gru.{part}", *shape)
    norm("mem_ff.fn.norm")
    network("mem_ff.fn.fn")
    return state


def bucket(distance, two_sided):
    """Of i - j, by T5's formula, number by number."""
    count, number = 32, 0
    if two_sided:
        count //= 2
        number = count if distance < 0 else 0
        distance = abs(distance)
    distance = max(distance, 0)
    exact = count // 2
    if distance < exact:
        return number + distance
    far = torch.log(torch.tensor(float(distance)) / exact) / torch.log(torch.tensor(128.0 / exact)) * (count - exact)
    return number + min(exact + int(far), count - 1)


class Theirs:
    def __init__(self, config, state):
        self.config, self.state = config, state

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x):
        return F.layer_norm(x, (x.shape[-1],), self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def network(self, name, x):
        return self.linear(f"{name}.net.2", F.gelu(self.linear(f"{name}.net.0", x)))

    def attend(self, name, heads, x, source, seen, bias=None):
        q, (k, v) = self.linear(f"{name}.to_q", x), self.linear(f"{name}.to_kv", source).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        scores = (scores if bias is None else scores + bias).masked_fill(~seen, LOWEST)
        return self.linear(f"{name}.to_out", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def stack(self, side, tokens, context, asks, asked):
        name, heads = {"enc": "encoder.", "dec": "decoder.net."}[side], self.config.get(f"{side}_heads", 8)
        n, decodes = tokens.shape[1], side == "dec"
        table = self.state[f"{name}layer_blocks.rel_pos_emb.relative_attention_bias.weight"]
        buckets = torch.tensor([[bucket(i - j, decodes) for j in range(n)] for i in range(n)])
        pairs = asks[:, None, :, None] & asks[:, None, None]
        pairs = pairs & torch.ones(n, n, dtype=torch.bool).tril() if decodes else pairs
        across = asks[:, None, :, None] & asked[:, None, None] if decodes else torch.ones(1, dtype=torch.bool)
        x = self.state[f"{name}token_emb.weight"][tokens]
        for i in range(self.config[f"{side}_depth"]):
            layer = f"{name}layer_blocks.layers.{i}"
            y = self.norm(f"{layer}.0.fn.norm", x)
            x = x + self.attend(f"{layer}.0.fn.fn", heads, y, y, pairs, table[buckets].permute(2, 0, 1))
            x = x + self.attend(f"{layer}.1.fn.fn", heads, self.norm(f"{layer}.1.fn.norm", x), context, across)
            x = x + self.network(f"{layer}.2.fn.fn", self.norm(f"{layer}.2.fn.norm", x))
        return self.norm(f"{name}norm", x)

    def write(self, slots, x, real):
        count = slots.shape[1]
        seen = torch.eye(count, dtype=torch.bool).expand(len(x), -1, -1)
        seen = torch.cat((seen, real[:, None].expand(-1, count, -1)), -1)[:, None]
        heads, gru = self.config.get("mem_update_attn_heads", 8), torch.nn.GRUCell(x.shape[-1], x.shape[-1]).double()
        gru.load_state_dict({name[4:]: tensor for name, tensor in self.state.items() if name.startswith("gru.")})
        for _ in range(self.config.get("num_mem_updates", 1)):
            found = self.attend("mem_updater", heads, slots, torch.cat((slots, x), 1), seen)
            slots = gru(found.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.network("mem_ff.fn.fn", self.norm("mem_ff.fn.norm", slots))
        return slots


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("given", [False, True], ids=["first slots", "given slots"])
@pytest.mark.parametrize(
    "config",
    [
        {"enc_depth": 1, "dec_num_tokens": 7, "dec_depth": 2, "dec_max_seq_len": 9, "dec_heads": 4, "enc_heads": 2},
        {"enc_depth": 2, "encoder_only": True, "num_mem_updates": 3, "mem_update_attn_heads": 2},
    ],
)
def test_the_port(config, given, masked):
    config = {"dim": 8, "enc_num_tokens": 9, "enc_max_seq_len": 20, "num_memory_slots": 3, **config}
    state, inputs = drawn(config), {"src": torch.randint(9, (2, 19))}
    theirs, real = Theirs(config, state), torch.ones(2, 19, dtype=torch.bool)
    target_real = torch.ones(2, 6, dtype=torch.bool)
    if masked:
        real[0, -4:], target_real[1, -2:] = False, False
        inputs |= {"src_mask": real}
    if given:
        inputs |= {"mems": torch.randn(2, 3, 8, dtype=torch.float64)}
    slots = inputs.get("mems", state["memory_slots"].expand(2, -1, -1))
    encoded = theirs.stack("enc", inputs["src"], slots, real, real)
    expected = {"enc_out": encoded, "mem": theirs.write(slots, encoded, real)}
    if not config.get("encoder_only"):
        inputs["tgt"] = target = torch.randint(7, (2, 6))
        inputs |= {"tgt_mask": target_real} if masked else {}
        y = theirs.stack("dec", target[:, :-1], encoded, target_real[:, :-1], real)
        logits = theirs.linear("decoder.net.to_logits", y)
        expected["dec_out"] = F.cross_entropy(logits.transpose(1, 2), target[:, 1:])
    meta = {"mechanism": "memformer", "source": PORT, "config": json.dumps(config), "main_output": "sum"}
    tensors = {f"param/{k}": t for k, t in state.items()} | {f"in/{k}": t for k, t in inputs.items()}
    found = replay(tensors, meta)
    for name, value in expected.items():
        assert_close(found[f"out/{name}"], value, rtol=0, atol=1e-9, msg=name)
    assert_close(found["out/sum"], torch.cat((encoded, expected["mem"]), 1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("tau", [0.25, 2.0])
def test_the_equations_start_from_the_forgetting_vectors(tau):
    """Without given slots they are those after nothing."""
    state = {name: torch.randn(6, 6, dtype=torch.float64) for name in ("wq", "wk", "wv", "rq", "rk", "rv")}
    state["v_bias"] = torch.randn(4, 6, dtype=torch.float64)
    x, config = torch.randn(2, 5, 6, dtype=torch.float64), {"C": 6, "H": 3, "slots": 4, "temperature": tau}
    meta = {"mechanism": "memformer", "source": "equations", "config": json.dumps(config), "main_output": "cat"}
    start = (state["v_bias"] / state["v_bias"].norm(dim=-1, keepdim=True)).expand(2, -1, -1)
    runs = [
        replay({f"param/{k}": t for k, t in state.items()} | {f"in/{k}": t for k, t in given.items()}, meta)
        for given in ({"x": x}, {"x": x, "mem": start})
    ]
    for name, value in runs[0].items():
        assert_close(value, runs[1][name], rtol=0, atol=1e-12, msg=name)
    assert_close(runs[0]["out/init_mem"], start[0], rtol=0, atol=1e-12)
