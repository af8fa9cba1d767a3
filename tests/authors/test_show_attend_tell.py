"""The authors' captioner in other configurations than the recorded ones, beside a plain statement of what it does."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.models.caption_losses import CaptionLoss
from regard.registry import UnsupportedError
from regard.verify.cases import read

SOURCE = "kelvinxu/arctic-captions@f4565bf:capgen.py:build_model"
DATA = Path(__file__).parents[1] / "parity/data/show_attend_tell"
CONFIG = {"dim_word": 4, "ctx_dim": 3, "dim": 5, "n_words": 7, "attn_type": "deterministic", "alpha_c": 1.0}
CASES = {
    "everything": {"n_layers_att": 3, "n_layers_out": 2, "n_layers_init": 3, "prev2out": True, "ctx2out": True}
    | {"selector": True, "use_dropout": True, "use_dropout_lstm": True},
    "encoder": {"lstm_encoder": True, "ctx2out": True},
    "layers": {"n_layers_lstm": 3, "selector": True, "n_layers_init": 2},
    "hard": {"attn_type": "stochastic", "temperature": 1.7, "semi_sampling_p": 0.5, "selector": True},
}


def parameters(config):
    """Their names and shapes."""
    word, dim, size = config["dim_word"], config["dim"], config["n_words"]
    width = 2 * dim if config.get("lstm_encoder") else config["ctx_dim"]
    shapes = {"Wemb": (size, word)}

    def linear(name, enter, leave):
        shapes.update({f"{name}_W": (enter, leave), f"{name}_b": (leave,)})

    for name in ("encoder", "encoder_rev") if config.get("lstm_encoder") else ():
        shapes |= {f"{name}_W": (config["ctx_dim"], 4 * dim), f"{name}_U": (dim, 4 * dim), f"{name}_b": (4 * dim,)}
    for number in range(1, config.get("n_layers_init", 1)):
        linear(f"ff_init_{number}", width, width)
    for number in range(config.get("n_layers_lstm", 1)):
        last = f"_{number}" if number else ""
        linear(f"ff_state{last}", width, dim)
        linear(f"ff_memory{last}", width, dim)
        shapes |= {f"decoder{last}_W": (dim if number else word, 4 * dim), f"decoder{last}_b": (4 * dim,)}
        shapes |= {f"decoder{last}_U": (dim, 4 * dim), f"decoder{last}_Wc": (width, 4 * dim)}
        shapes |= {f"decoder{last}_Wc_att": (width, width), f"decoder{last}_b_att": (width,)}
        shapes |= {f"decoder{last}_Wd_att": (dim, width), f"decoder{last}_U_att": (width, 1)}
        shapes |= {f"decoder{last}_c_tt": (1,)}
        for deep in range(1, config.get("n_layers_att", 1)):
            shapes |= {f"decoder{last}_W_att_{deep}": (width, width), f"decoder{last}_b_att_{deep}": (width,)}
        if config.get("selector"):
            shapes |= {f"decoder{last}_W_sel": (dim, 1), f"decoder{last}_b_sel": (1,)}
    linear("ff_logit_lstm", dim, word)
    if config.get("ctx2out"):
        linear("ff_logit_ctx", width, word)
    for number in range(1, config.get("n_layers_out", 1)):
        linear(f"ff_logit_h{number}", word, word)
    linear("ff_logit", word, size)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5 for name, shape in shapes.items()}


def lstm(p, name, rows):
    """Theirs, which adds its bias twice; one sequence."""
    h = c = rows.new_zeros(p[f"{name}_U"].shape[0])
    out = []
    for row in rows:
        gates = row @ p[f"{name}_W"] + 2 * p[f"{name}_b"] + h @ p[f"{name}_U"]
        i, f, o, g = gates.chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        out.append(h)
    return torch.stack(out)


def restated(p, config, words, mask, ctx, samples=None):
    """(cost, alpha, what was summed) of one caption, step by step; dropout without noise halves."""

    def shrink(x):
        return 0.5 * x if config.get("use_dropout") else x

    if config.get("lstm_encoder"):
        ctx = torch.cat((lstm(p, "encoder", ctx), lstm(p, "encoder_rev", ctx.flip(0)).flip(0)), 1)
    below = torch.stack([p["Wemb"][w] for w in words])
    emb = below = torch.cat((torch.zeros_like(below[:1]), below[:-1]))
    mean = ctx.mean(0)
    for number in range(1, config.get("n_layers_init", 1)):
        mean = shrink(torch.relu(mean @ p[f"ff_init_{number}_W"] + p[f"ff_init_{number}_b"]))
    for number in range(config.get("n_layers_lstm", 1)):
        last = f"_{number}" if number else ""
        q = {name.removeprefix(f"decoder{last}_"): value for name, value in p.items()}
        h = torch.tanh(mean @ p[f"ff_state{last}_W"] + p[f"ff_state{last}_b"])
        c = torch.tanh(mean @ p[f"ff_memory{last}_W"] + p[f"ff_memory{last}_b"])
        keys = ctx @ q["Wc_att"] + q["b_att"]
        for deep in range(1, config.get("n_layers_att", 1)):
            keys = torch.tanh(keys @ q[f"W_att_{deep}"] + q[f"b_att_{deep}"])
        states, alphas, zs, used = [], [], [], []
        for t, row in enumerate(below):
            e = torch.tanh(keys + h @ q["Wd_att"]) @ q["U_att"][:, 0] + q["c_tt"]
            alpha = torch.softmax(config.get("temperature", 1.0) * e, 0)
            use = alpha if samples is None else samples[t]
            z = use @ ctx
            if config.get("selector"):
                z = z * torch.sigmoid(h @ q["W_sel"] + q["b_sel"])
            gates = h @ q["U"] + row @ q["W"] + q["b"] + z @ q["Wc"]
            i, f, o, g = gates.chunk(4)
            i, f, o = (0.5 * gate if config.get("use_dropout_lstm") else gate for gate in (i, f, o))
            new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            new_h = torch.sigmoid(o) * torch.tanh(new_c)
            h, c = (new_h, new_c) if mask[t] else (h, c)
            for kept, value in zip((states, alphas, zs, used), (h, alpha, z, use), strict=True):
                kept.append(value)
        below = torch.stack(states)
    out = shrink(below) @ p["ff_logit_lstm_W"] + p["ff_logit_lstm_b"]
    out = out + emb if config.get("prev2out") else out
    out = out + torch.stack(zs) @ p["ff_logit_ctx_W"] + p["ff_logit_ctx_b"] if config.get("ctx2out") else out
    out = shrink(torch.tanh(out))
    for number in range(1, config.get("n_layers_out", 1)):
        out = shrink(torch.relu(out @ p[f"ff_logit_h{number}_W"] + p[f"ff_logit_h{number}_b"]))
    chances = torch.softmax(out @ p["ff_logit_W"] + p["ff_logit_b"], -1)
    cost = sum(-torch.log(chances[t, w] + 1e-8) * mask[t] for t, w in enumerate(words))
    return cost, torch.stack(alphas), torch.stack(used)


def recording(config, sampled=None):
    generator = torch.Generator().manual_seed(2)
    words, ctx = torch.randint(7, (4, 3), generator=generator), torch.randn(3, 5, 3, generator=generator).double()
    mask = torch.ones(4, 3, dtype=torch.float64)
    mask[3, 1] = mask[2:, 2] = 0
    tensors = {
        "in/x": words,
        "in/mask": mask,
        "in/ctx": ctx,
        "in/cotangent": torch.randn(3, generator=generator).double(),
    }
    if sampled is not None:
        place = torch.randint(5, (4, 3), generator=generator)
        tensors |= {"in/alpha_sample": torch.nn.functional.one_hot(place, 5).double()}
        tensors |= {"in/h_sampling_mask": torch.tensor([float(sampled)]).double()}
    meta = {"mechanism": "show_attend_tell", "source": SOURCE, "config": json.dumps(config), "main_output": "out/cost"}
    return tensors, meta | {"call": json.dumps({"args": ["x", "mask", "ctx"], "sampling": True})}


@pytest.mark.parametrize(("kind", "sampled"), [*itertools.product(CASES, [None]), ("hard", True), ("hard", False)])
def test_other_configurations(kind, sampled):
    config = CONFIG | CASES[kind]
    p = parameters(config)
    tensors, meta = recording(config, sampled)
    found = replay({f"param/{name}": value for name, value in p.items()} | tensors, meta)
    for value in p.values():
        value.requires_grad_()
    samples = tensors["in/alpha_sample"] if sampled else None
    rows = [
        restated(p, config, tensors["in/x"][:, b], tensors["in/mask"][:, b], tensors["in/ctx"][b],
                 None if samples is None else samples[:, b])
        for b in range(3)
    ]  # fmt: skip
    cost, alpha, used = zip(*rows, strict=True)
    assert_close(found["out/cost"], torch.stack(cost).flatten(), rtol=0, atol=1e-9)
    assert_close(found["out/alpha"], torch.stack(alpha, 1), rtol=0, atol=1e-9)
    assert_close(found["out/alpha_sample"], torch.stack(used, 1), rtol=0, atol=1e-9)
    total = (torch.stack(cost).flatten() * tensors["in/cotangent"]).sum()
    slopes = torch.autograd.grad(total, list(p.values()), allow_unused=True, materialize_grads=True)
    for name, slope in zip(p, slopes, strict=True):
        assert_close(found[f"grad/{name}"], slope, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", ["soft", "hard_sampled"])
def test_the_recorded_training_step(case):
    """The objective and its gradient, with the known gradient of the authors' REINFORCE in it."""
    tensors, meta = read(DATA / f"{case}.safetensors")
    config = json.loads(meta["config"])
    state = {name.removeprefix("param/"): value for name, value in tensors.items() if name.startswith("param/")}
    model = load("show_attend_tell", SOURCE, config, state)
    hard = case == "hard_sampled"
    model.baseline.copy_(tensors["in/baseline"][0])
    how = {"objective": "reinforce", "reward": "mean", "reward_weight": 0.1} if hard else {}
    loss = CaptionLoss(
        **how, entropy_weight=config["alpha_entropy_c"], doubly_stochastic=config["alpha_c"], penalty="code", eps=1e-8
    )
    given = {"samples": tensors["in/alpha_sample"].transpose(0, 1), "sampled": torch.tensor(True)} if hard else {}
    mask = tensors["in/mask"].mT > 0
    value, _ = loss(model.eval(), tensors["in/x"].mT, tensors["in/ctx"], word_mask=mask, **given)
    assert_close(value, tensors["out/objective"][0], rtol=0, atol=1e-5)
    value.backward()
    layer = model.decoder[0]
    for name, slope in (
        ("decoder_U_att", layer.attention.u.grad[:, None]),
        ("decoder_Wd_att", layer.attention.query_proj.weight.grad.T),
        ("decoder_Wc", layer.from_context.weight.grad.T),
    ):
        assert_close(slope, tensors[f"out/objective_grad/{name}"], rtol=0, atol=1e-5)


def test_refusals():
    with pytest.raises(UnsupportedError, match="attn_type='local'"):
        load("show_attend_tell", SOURCE, CONFIG | {"attn_type": "local"}, {})
    with pytest.raises(UnsupportedError, match="no part of capgen"):
        load("show_attend_tell", SOURCE, CONFIG, {"ff_other_W": torch.zeros(2, 2)})
    tensors, meta = recording(CONFIG)
    meta["call"] = json.dumps({"args": ["x", "mask", "ctx"], "use_noise": True})
    with pytest.raises(UnsupportedError, match="dropout was drawn"):
        replay({f"param/{name}": value for name, value in parameters(CONFIG).items()} | tensors, meta)
