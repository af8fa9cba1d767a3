"""Nystromformer's codes by their formulas in float64: text, reorganised, T2T-ViT, transformers and lucidrains."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

REPOSITORY = "mlpen/Nystromformer@5689313"
TEXT = f"{REPOSITORY}:code/attention_nystrom.py:NystromAttention"
LRA = f"{REPOSITORY}:LRA/code/attention_nystrom.py:NystromAttention"
REORGANISED = (
    f"{REPOSITORY}:reorganized_code/encoders/backbones/efficient_attentions/attention_nystrom.py:NystromAttention"
)
TOKENS = f"{REPOSITORY}:ImageNet/T2T-ViT/models/token_nystromformer.py:NysAttention"
PORT = "pypi transformers==5.23.0:models/nystromformer/modeling_nystromformer.py:NystromformerSelfAttention"
LUCIDRAINS = "pypi nystrom-attention==0.0.14:nystrom_attention/nystrom_attention.py:NystromAttention"


def start(a, kind):
    """What Z starts from is divided by: sums of columns, of the batch or of each matrix, perhaps times sums of rows."""
    columns, rows = a.sum(-2), a.sum(-1)
    if kind == "exact":
        return columns.max(-1).values[..., None, None]
    return columns.max() * (rows.max() if kind == "product" else 1)


def factored(q, k, v, landmarks, kind, added=0.0, iterations=6):
    """Softmaxes of q and k as they are; segments of floor(N / m) tokens come before those of one more."""
    short = q.shape[-2] // landmarks
    first = (short + 1) * landmarks - q.shape[-2]
    lengths = [short] * first + [short + 1] * (landmarks - first)
    q_marks, k_marks = (torch.stack([piece.mean(-2) for piece in x.split(lengths, -2)], -2) for x in (q, k))
    f1, a, f3 = (q @ k_marks.mT).softmax(-1), (q_marks @ k_marks.mT).softmax(-1), (q_marks @ k.mT + added).softmax(-1)
    z, one = a.mT / start(a, kind), torch.eye(landmarks, dtype=a.dtype)
    for _ in range(iterations):
        z = z / 4 @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z)))
    return f1 @ z @ (f3 @ v)


def convolved(v, weight):
    return F.conv2d(v, weight, padding=(weight.shape[2] // 2, 0), groups=len(weight))


def agrees(source, config, state, inputs, theirs):
    """Outputs and gradients, by replay, are those of ``theirs(state, inputs)``."""
    leaves = {name: t.requires_grad_() for name, t in (state | inputs).items() if name != "mask"}
    expected = theirs(state, inputs)
    cotangent = torch.randn_like(expected)
    slopes = torch.autograd.grad((expected * cotangent).sum(), list(leaves.values()))
    tensors = {f"param/{name}": t.detach() for name, t in state.items()} | {"in/cotangent": cotangent}
    tensors |= {f"in/{name}": t.detach() for name, t in inputs.items()}
    meta = {"mechanism": "nystrom", "source": source, "config": json.dumps(config), "main_output": "out"}
    found = replay(tensors, meta)
    assert_close(found["out/out"], expected.detach(), rtol=0, atol=1e-10)
    for name, slope in zip(leaves, slopes, strict=True):
        assert_close(found[f"grad/{name}"], slope, rtol=1e-8, atol=1e-8)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


KERNELS = [
    (TEXT, {}, "original"),
    (LRA, {"conv_kernel_size": 5}, "original"),
    (TEXT, {"inv_coeff_init_option": True, "inv_init_coeff_option": "exact"}, "exact"),
    (TEXT, {"inv_coeff_init_option": True, "inv_init_coeff_option": "original"}, "original"),
    (REORGANISED, {"conv_kernel_size": 3}, "product"),
]


@pytest.mark.parametrize(("source", "options", "kind"), KERNELS)
@pytest.mark.parametrize(("length", "landmarks"), [(24, 4), (24, 1), (8, 8)])
@pytest.mark.parametrize("real", [24, 5, 0])
def test_kernels(source, options, kind, length, landmarks, real):
    """Padded tokens are multiplied by 0, -1e9 hides them from the third softmax alone, even where all are padding."""
    config = {"head_dim": 6, "num_head": 3, "num_landmarks": landmarks, **options}
    config["max_seq_len" if source == REORGANISED else "seq_len"] = length
    mask = (torch.arange(length) < torch.tensor([[length], [real]])).double()
    inputs = {name: random(2, 3, length, 6) for name in "qkv"} | {"mask": mask}
    width = options.get("conv_kernel_size")
    state = {"conv.weight": random(3, 1, width, 1)} if width else {}

    def theirs(state, inputs):
        keep = inputs["mask"][:, None, :, None]
        q, k, v = inputs["q"] * keep / 6**0.25, inputs["k"] * keep / 6**0.25, inputs["v"]
        added = -1e9 * (1 - keep.mT)
        y = (q @ k.mT + added).softmax(-1) @ v if landmarks == length else factored(q, k, v, landmarks, kind, added)
        return y + convolved(v * keep, state["conv.weight"]) if state else y

    agrees(source, config, state, inputs, theirs)


@pytest.mark.parametrize(("length", "landmarks"), [(53, 8), (24, 8), (8, 8)])
@pytest.mark.parametrize(("width", "kind", "bias"), [(0, "exact", False), (3, "original", True)])
def test_t2t(length, landmarks, width, kind, bias):
    """Queries are divided by sqrt(dim), not by the width of the head."""
    config = {"dim": 10, "num_heads": 1, "in_dim": 6, "qkv_bias": bias, "num_landmarks": landmarks}
    config |= {"kernel_size": width, "init_option": kind}
    state = {"qkv.weight": random(18, 10), "proj.weight": random(6, 6), "proj.bias": random(6)}
    state |= {"qkv.bias": random(18)} if bias else {}
    state |= {"conv.weight": random(1, 1, width, 1)} if width else {}

    def theirs(state, inputs):
        q, k, v = F.linear(inputs["x"], state["qkv.weight"], state.get("qkv.bias"))[:, None].split(6, -1)
        y = factored(q / 10**0.5, k, v, landmarks, kind)
        y = y + convolved(v, state["conv.weight"]) if width else y
        return v[:, 0] + F.linear(y[:, 0], state["proj.weight"], state["proj.bias"])

    agrees(TOKENS, config, state, {"x": random(2, length, 10)}, theirs)


@pytest.mark.parametrize(("length", "landmarks", "width"), [(24, 4, 5), (24, 4, None), (8, 8, 3)])
def test_the_port(length, landmarks, width):
    config = {"hidden_size": 12, "num_attention_heads": 3, "num_landmarks": landmarks}
    config |= {"segment_means_seq_len": length, "conv_kernel_size": width, "inv_coeff_init_option": False}
    state = {
        f"{name}.{kind}": random(*shape)
        for name in ("query", "key", "value")
        for kind, shape in (("weight", (12, 12)), ("bias", (12,)))
    }
    state |= {"conv.weight": random(3, 1, width, 1)} if width else {}
    mask = torch.zeros(2, 1, 1, length, dtype=torch.float64)
    mask[1, ..., 5:] = torch.finfo(torch.float32).min

    def theirs(state, inputs):
        x, added = inputs["hidden_states"], inputs["attention_mask"].detach()
        q, k, v = (
            F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]).unflatten(-1, (3, 4)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        q = q / 2
        if landmarks == length:
            y = (q @ k.mT + added).softmax(-1) @ v
        else:
            y = factored(q, k, v, landmarks, "original", added)
        y = y + convolved(v, state["conv.weight"]) if width else y
        return y.transpose(1, 2).flatten(2)

    inputs = {"hidden_states": random(2, length, 12), "attention_mask": mask}
    expected = theirs(state, inputs)
    tensors = {f"param/{name}": t for name, t in state.items()} | {f"in/{name}": t for name, t in inputs.items()}
    meta = {"mechanism": "nystrom", "source": PORT, "config": json.dumps(config), "main_output": "out"}
    assert_close(replay(tensors, meta)["out/out"], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("length", "options"), [(24, {}), (21, {"pinv_iterations": 3}), (3, {"residual": False})])
def test_lucidrains(length, options):
    """Zeros stand before the sequence until its length divides; they are keys like any other."""
    config = {"dim": 10, "dim_head": 6, "heads": 3, "num_landmarks": 4, "residual_conv_kernel": 5, **options}
    state = {"to_qkv.weight": random(54, 10), "to_out.0.weight": random(10, 18), "to_out.0.bias": random(10)}
    state |= {"res_conv.weight": random(3, 1, 5, 1)} if options.get("residual", True) else {}

    def theirs(state, inputs):
        x = F.pad(inputs["x"], (0, 0, -length % 4, 0))
        q, k, v = (t.unflatten(-1, (3, 6)).transpose(1, 2) for t in F.linear(x, state["to_qkv.weight"]).split(18, -1))
        y = factored(q / 6**0.5, k, v, 4, "product", iterations=options.get("pinv_iterations", 6))
        y = y + convolved(v, state["res_conv.weight"]) if "res_conv.weight" in state else y
        y = F.linear(y.transpose(1, 2).flatten(2), state["to_out.0.weight"], state["to_out.0.bias"])
        return y[:, -length:]

    agrees(LUCIDRAINS, config, state, {"x": random(2, length, 10)}, theirs)


KERNEL = {"head_dim": 6, "num_head": 3, "num_landmarks": 4, "seq_len": 24}
REFUSED = [
    (TEXT, KERNEL | {"seq_len": 22}, "22 is not divisible by num_landmarks=4"),
    (TEXT, KERNEL | {"conv_kernel_size": 4}, "even width 4"),
    (TEXT, KERNEL | {"inv_coeff_init_option": True}, "KeyError in their code"),
    (TEXT, KERNEL | {"seq_len": 20}, "24 tokens, but this module was built for 20"),
    (TOKENS, {"dim": 12, "in_dim": 6}, "num_heads=8"),
    (PORT, {"inv_coeff_init_option": True}, "cannot be built"),
    (LUCIDRAINS, {"dim": 12}, "use regard's own nystrom"),
]


@pytest.mark.parametrize(("source", "config", "message"), REFUSED)
def test_refusals(source, config, message):
    tensors = {f"in/{name}": random(2, 3, 24, 6) for name in "qkv"} | {"in/mask": torch.ones(2, 24)}
    tensors |= {"in/x": random(2, 24, 12)}
    if source == LUCIDRAINS:
        tensors |= {"param/to_qkv.weight": random(1536, 12), "param/to_out.0.weight": random(12, 512)}
        tensors |= {"param/to_out.0.bias": random(12), "param/res_conv.weight": random(8, 1, 33, 1)}
    with pytest.raises(UnsupportedError, match=message):
        replay(tensors, {"mechanism": "nystrom", "source": source, "config": json.dumps(config)})
