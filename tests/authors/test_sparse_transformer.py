"""openai's modes by their index rules, DeepSpeed's masks by their definition, and the paper's sets."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.patterns.layouts import fixed_layout

OPENAI = "openai/sparse_attention@c53f3bd:attention.py:{}attention_impl"
DEEPSPEED = "microsoft/DeepSpeed@38327e0:deepspeed/ops/sparse_attention/sparsity_config.py:{}"


def run(source, config, tensors, mechanism="sparse_transformer", call="{}"):
    meta = {"mechanism": mechanism, "source": source, "config": json.dumps(config), "call": call, "main_output": "y"}
    return replay({f"in/{name}": t for name, t in tensors.items()}, meta)


def dense(q, k, v, mask, added=0.0):
    scores = (q @ k.mT / q.shape[-1] ** 0.5 + added).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def openai_mask(config, n):
    """The authors' rules, pair by pair."""
    mode, c, s = config["attn_mode"], config.get("local_attn_ctx"), config.get("blocksize", 32)
    mask = torch.zeros(config["heads"], n, n, dtype=torch.bool)
    for h in range(config["heads"]):
        for i in range(n):
            for j in range(i + 1):
                window, verts, size = (c or n) // s, config.get("num_verts", 4), config.get("vertsize", 1)
                group = h % verts
                summaries = range(window - (group + 1) * size, window - group * size)
                mask[h, i, j] = {
                    "all": True,
                    "local": i - j < (c or n),
                    "strided": (i - j) % (c or n) == 0,
                    "fixed": i // s // max(window, 1) == j // s // max(window, 1)
                    or j // s % max(window, 1) in summaries,
                }[mode]
    return mask


@pytest.mark.parametrize(
    "config",
    [
        {"attn_mode": "all", "kernel": "dense", "local_attn_ctx": None},
        {"attn_mode": "all", "kernel": "blocksparse", "blocksize": 4},
        {"attn_mode": "local", "kernel": "dense", "local_attn_ctx": 1},
        {"attn_mode": "local", "kernel": "blocksparse", "local_attn_ctx": 8, "blocksize": 4},
        {"attn_mode": "strided", "kernel": "dense", "local_attn_ctx": 5},
        {"attn_mode": "strided", "kernel": "blocksparse", "local_attn_ctx": 8, "blocksize": 4},
        {
            "attn_mode": "fixed",
            "kernel": "blocksparse",
            "local_attn_ctx": 16,
            "blocksize": 4,
            "num_verts": 1,
            "vertsize": 2,
        },
        {
            "attn_mode": "fixed",
            "kernel": "blocksparse",
            "local_attn_ctx": 16,
            "blocksize": 2,
            "num_verts": 2,
            "vertsize": 4,
        },
        {
            "attn_mode": "fixed",
            "kernel": "blocksparse",
            "local_attn_ctx": 16,
            "blocksize": 4,
            "num_verts": 4,
            "vertsize": 1,
        },
        {
            "attn_mode": "fixed",
            "kernel": "blocksparse",
            "local_attn_ctx": 8,
            "blocksize": 4,
            "num_verts": 1,
            "vertsize": 2,
        },
    ],
    ids=lambda config: f"{config['attn_mode']}-{config['kernel']}-{config.get('num_verts')}",
)
def test_openai_modes(config):
    config, n = {"heads": 4, **config}, 32
    q, k, v = (torch.randn(2, n, 12, dtype=torch.float64) for _ in range(3))
    kernel = "blocksparse_" if config["kernel"] == "blocksparse" else ""
    found = run(OPENAI.format(kernel), config, {"query": q, "key": k, "value": v})
    mask = openai_mask(config, n)
    assert torch.equal(found["out/mask"], mask.to(torch.uint8))
    heads = [x.unflatten(-1, (4, 3)).transpose(1, 2) for x in (q, k, v)]
    assert_close(found["out/y"], dense(*heads, mask).transpose(1, 2).flatten(2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["add", "mul"])
@pytest.mark.parametrize("attention", ["add", "mul"])
@pytest.mark.parametrize("rpe", [False, True])
def test_deepspeed_masks(padding, attention, rpe):
    n, options = 24, {"num_heads": 2, "block": 4, "num_local_blocks": 2}
    q, k, v = (torch.randn(2, 2, n, 4, dtype=torch.float64) for _ in range(3))
    keep_keys, keep_pairs = torch.rand(2, n) < 0.8, torch.rand(n, n) < 0.8
    keep_keys[:, 0], keep_pairs[:, 0] = True, True
    tensors = {
        "key_padding_mask": torch.randn(2, n).double() if padding == "add" else keep_keys.double(),
        "attn_mask": torch.randn(n, n).double() if attention == "add" else keep_pairs.double(),
        **({"rpe": torch.randn(2, n, n).double()} if rpe else {}),
    }
    config = {"cls": "FixedSparsityConfig", "kwargs": options, "seq_len": n,
              "key_padding_mask_mode": padding, "attn_mask_mode": attention}  # fmt: skip
    cotangent = torch.randn(2, 2, n, 4, dtype=torch.float64)
    found = run(DEEPSPEED.format("FixedSparsityConfig for the layout; and a remark"), config,
                {"query": q, "key": k, "value": v, "cotangent": cotangent, **tensors})  # fmt: skip

    allowed = fixed_layout(6, local=2).repeat_interleave(4, 1).repeat_interleave(4, 2).expand(2, 2, n, n)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    added = leaves["rpe"] if rpe else torch.zeros(())
    for name, mode, t in (
        ("key_padding_mask", padding, keep_keys[:, None, None]),
        ("attn_mask", attention, keep_pairs),
    ):
        if mode == "add":
            added = added + (leaves[name][:, None, None] if name == "key_padding_mask" else leaves[name])
        else:
            allowed = allowed & t
    y = dense(q, k, v, allowed, added)
    assert_close(found["out/y"], y.detach(), rtol=0, atol=1e-12)
    slopes = (
        torch.autograd.grad((y * cotangent).sum(), list(leaves.values()), allow_unused=True) if y.requires_grad else []
    )
    for name, slope in zip(leaves, slopes, strict=False):
        assert_close(
            found[f"grad/{name}"], torch.zeros_like(leaves[name]) if slope is None else slope, rtol=0, atol=1e-11
        )


def test_a_flat_configuration_takes_its_class_from_the_source():
    config = {"num_heads": 2, "block": 4, "num_sliding_window_blocks": 3, "attention": "bidirectional"}
    q, k, v = (torch.randn(1, 2, 16, 4) for _ in range(3))
    found = run(DEEPSPEED.format("LocalSlidingWindowSparsityConfig"), config, {"q": q, "k": k, "v": v})
    blocks = torch.arange(16) // 4
    assert_close(found["out/y"], dense(q, k, v, (blocks[:, None] - blocks).abs() <= 1), rtol=0, atol=1e-5)


def test_random_blocks_need_the_columns_that_were_drawn():
    config = [{"name": "a", "cls": "BigBirdSparsityConfig", "kwargs": {"num_heads": 1}, "seq_len": 64}]
    with pytest.raises(ValueError, match="needs the columns that were drawn"):
        run(DEEPSPEED.format("*SparsityConfig.make_layout"), config, {})


@pytest.mark.parametrize("kind", ["strided", "fixed"])
@pytest.mark.parametrize(("stride", "c"), [(4, 1), (6, 2), (5, 5)])
def test_the_papers_sets(kind, stride, c):
    n, parts = 23, ["local", "far", "merged"]
    i, j = torch.arange(n)[:, None], torch.arange(n)
    local = (i - j <= stride) if kind == "strided" else (i // stride == j // stride)
    far = ((i - j) % stride == 0) if kind == "strided" else (j % stride >= stride - c)
    mask = torch.stack([local, far.expand(n, n), local | far]) & (j <= i)
    q, k, v = (torch.randn(2, n, 12, dtype=torch.float64) for _ in range(3))
    config = {"kind": kind, "parts": parts, "stride": stride, "c": c if kind == "fixed" else None}
    found = run("equations: the paper's section 4.3", config, {"query": q, "key": k, "value": v})
    assert torch.equal(found["out/mask"].bool(), mask)
    heads = [x.unflatten(-1, (3, 4)).transpose(1, 2) for x in (q, k, v)]
    assert_close(found["out/y"], dense(*heads, mask).transpose(1, 2).flatten(2), rtol=0, atol=1e-12)
