"""BigBird's importers against loops: lists with repetitions, masks, random blocks of evaluation, ETC, DeepSpeed."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors import load
from regard.authors.bigbird import block_counts, multiset_attention
from regard.authors.replay import replay
from regard.patterns.layouts import bigbird_layout

PORT = "huggingface/transformers@v5.23.0:src/transformers/models/big_bird/modeling_big_bird.py:BigBirdBlockSparse"
PORT += "Attention"
DEEPSPEED = "microsoft/DeepSpeed@38327e0:deepspeed/ops/sparse_attention/sparsity_config.py:BigBirdSparsityConfig"
EQUATIONS = "equations (Zaheer et al. 2007.14062 sec. 2, BigBird-ETC)"


def run(source, config, tensors, state=None):
    meta = {"mechanism": "bigbird", "source": source, "config": json.dumps(config), "main_output": "out"}
    given = {f"in/{name}": t for name, t in tensors.items()}
    return replay(given | {f"param/{name}": t for name, t in (state or {}).items()}, meta)


def weights(dim, bias=True):
    state = {f"{name}.weight": torch.randn(dim, dim, dtype=torch.float64) / 2 for name in ("query", "key", "value")}
    return state | ({f"{name}.bias": torch.randn(dim, dtype=torch.float64) for name in ("query", "key", "value")}
                    if bias else {})  # fmt: skip


def listed(i, blocks, drawn):
    """What a block of queries lists, repetitions and all."""
    return range(blocks) if i in (0, blocks - 1) else [*sorted({0, blocks - 1, i - 1, i, i + 1}), *drawn]


def loop(state, x, keep, rand_blocks, block, heads):
    """The port, row by row: keys of listed blocks, -10000 on masked ones, nothing from padded queries."""
    width = x.shape[-1] // heads
    q, k, v = (
        (x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)).unflatten(-1, (heads, width))
        for name in ("query", "key", "value")
    )
    out, blocks = torch.zeros_like(v), x.shape[1] // block
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (len(x), heads, x.shape[1]))).tolist():
        own = i // block
        drawn = rand_blocks[h, own - 1].tolist() if 0 < own < blocks - 1 else []
        keys = [c * block + t for c in listed(own, blocks, drawn) for t in range(block)]
        scores = k[b, keys, h] @ q[b, i, h] / width**0.5 - 10000.0 * ~keep[b, keys]
        out[b, i, h] = scores.softmax(0) @ v[b, keys, h] * keep[b, i]
    return out.flatten(2)


@pytest.mark.parametrize("mask", [None, "attention_mask", "to_mask"])
@pytest.mark.parametrize(("blocks", "random", "bias"), [(4, 1, True), (5, 2, False), (8, 3, True), (9, 0, True)])
def test_the_port(mask, blocks, random, bias):
    block, dim = 3, 8
    n, state = blocks * block, weights(dim, bias)
    x = torch.randn(2, n, dim, dtype=torch.float64)
    table = torch.randint(0, blocks, (2, blocks - 2, random))  # illegal and repeated ones as well
    keep = torch.ones(2, n, dtype=torch.bool)
    tensors = {"hidden_states": x, "rand_blocks": table, "cotangent": torch.randn_like(x)}
    if mask is not None:
        keep[1, n - 4 :] = False
        shapes = {"to_mask": (2, 1, 1, n), "from_mask": (2, 1, n, 1)} if mask == "to_mask" else {mask: (2, n)}
        tensors |= {name: keep.double().view(shape) for name, shape in shapes.items()}
    config = {"hidden_size": dim, "num_attention_heads": 2, "block_size": block, "num_random_blocks": random,
              "max_position_embeddings": n + 7, "use_bias": bias}  # fmt: skip
    found = run(PORT, config, tensors, state)

    leaves = {name: t.clone().requires_grad_() for name, t in (state | {"hidden_states": x}).items()}
    expected = loop(leaves, leaves["hidden_states"], keep, table, block, 2)
    assert_close(found["out/out"], expected.detach(), rtol=0, atol=1e-12)
    slopes = torch.autograd.grad((expected * tensors["cotangent"]).sum(), list(leaves.values()))
    for name, slope in zip(leaves, slopes, strict=True):
        assert_close(found[f"grad/{name}"], slope, rtol=0, atol=1e-11)


CONFIG = {"hidden_size": 8, "num_attention_heads": 2, "block_size": 2, "num_random_blocks": 2,
          "max_position_embeddings": 24}  # fmt: skip


@pytest.mark.parametrize("config", [CONFIG, CONFIG | {"random_blocks": "hf_eval"}])
def test_in_evaluation_theirs_draws_block_0_and_ours_only_when_asked(config):
    state, x = weights(8), torch.randn(2, 24, 8, dtype=torch.float64)
    keep, nothing = torch.ones(2, 24, dtype=torch.bool), torch.zeros(2, 10, 2, dtype=torch.long)
    theirs = loop(state, x, keep, nothing, 2, 2)
    assert_close(run(PORT, config, {"hidden_states": x}, state)["out/out"], theirs, rtol=0, atol=1e-12)
    layer = load("bigbird", PORT, config, state)
    asked = "random_blocks" in config
    assert torch.allclose(layer(x), theirs) == asked
    if not asked:
        assert_close(layer(x), loop(state, x, keep, layer.core.rand_blocks, 2, 2), rtol=0, atol=1e-12)


def test_block_counts_are_those_of_the_lists():
    table = torch.randint(-1, 7, (3, 5, 4))
    counts = block_counts(table, 14, 2)
    for h in range(3):
        for i in range(7):
            drawn = [x for x in table[h, i - 1].tolist() if x >= 0] if 0 < i < 6 else []
            assert counts[h, i].tolist() == [[*listed(i, 7, drawn)].count(x) for x in range(7)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("block", "window", "random", "globals_", "n"),
    [(6, 3, 2, 5, 54), (4, 5, 1, 3, 30), (5, 1, 3, 1, 20), (4, 3, 0, 2, 16), (3, 3, 2, 0, 18)],
)
def test_the_external_form(block, window, random, globals_, n, masked):
    length, blocks = n + globals_, -(-n // block)
    q, k, v = (torch.randn(2, 2, length, 8, dtype=torch.float64) for _ in range(3))
    table = torch.randint(0, blocks, (2, blocks, random))
    keep = torch.ones(2, length, dtype=torch.bool)
    if masked:
        keep[1, length - 6 :], keep[0, 7] = False, False
    tensors = {"q": q, "k": k, "v": v, "keep_mask": keep, "num_global": torch.tensor([globals_])}
    config = {"block": block, "window_blocks": window, "num_random_blocks": random, "num_global": globals_}
    found = run(EQUATIONS, config, tensors | ({"rand_blocks": table} if random else {}))["out/out"]
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (2, 2, length))).tolist():
        own = (i - globals_) // block
        near = {*range(own - window // 2, own + window // 2 + 1), *(table[h, own].tolist() if i >= globals_ else [])}
        keys = [j for j in range(length) if keep[b, j]
                and (min(i, j) < globals_ or (j - globals_) // block in near)]  # fmt: skip
        weights = (k[b, h, keys] @ q[b, h, i] / 8**0.5).softmax(0)
        assert_close(found[b, h, i], weights @ v[b, h, keys], rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("by_head", [False, True])
def test_deepspeed(causal, by_head):
    config = {"num_heads": 2, "block": 4, "different_layout_per_head": by_head, "num_random_blocks": 1,
              "num_sliding_window_blocks": 3, "num_global_blocks": 2,
              "attention": "unidirectional" if causal else "bidirectional"}  # fmt: skip
    q, k, v = (torch.randn(2, 2, 32, 8, dtype=torch.float64) for _ in range(3))
    random = torch.randint(0, 8, (2 if by_head else 1, 8, 1))
    layout = bigbird_layout(8, random=random, globals=2, causal=causal).expand(2, -1, -1)
    found = run(DEEPSPEED, config, {"q": q, "k": k, "v": v, "layout": layout.long()})["out/out"]
    allowed = layout.repeat_interleave(4, 1).repeat_interleave(4, 2)
    scores = (q @ k.mT / 8**0.5).masked_fill(~allowed, -torch.inf)
    assert_close(found, scores.softmax(-1) @ v, rtol=0, atol=1e-12)


def test_refusals():
    q = torch.randn(1, 1, 13, 4)
    with pytest.raises(ValueError, match="13 tokens are not four or more whole blocks of 2"):
        multiset_attention(q, q, q, torch.zeros(1, 4, 1, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="5 rows of random blocks for 6 blocks"):
        multiset_attention(q[:, :, 1:], q[:, :, 1:], q[:, :, 1:], torch.zeros(1, 5, 1, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="random_blocks='hf_train' is neither"):
        load("bigbird", PORT, CONFIG | {"random_blocks": "hf_train"}, {})
