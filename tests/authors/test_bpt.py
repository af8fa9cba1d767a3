"""BPT's importers against a softmax over lists of edges: packed texts of any length, stray edges, leaves and roots."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError
from tests import trees

BLOCK = "yzh119/BPT@3ce980d:modules/attention.py:BPTBlock"
MODEL = "yzh119/BPT@3ce980d:modules/model.py:BinaryPartitionTransformer"
DIM, HEADS, HIDDEN = 8, 2, 12


def block_weights(prefix="", relative=True):
    shapes = {f"proj_{letter}.weight": (DIM, DIM) for letter in "qkvo"}
    shapes |= {f"{norm}.{kind}": (DIM,) for norm in ("norm_in", "norm_inter") for kind in ("weight", "bias")}
    shapes |= {"ffn.0.w_1.weight": (HIDDEN, DIM), "ffn.0.w_1.bias": (HIDDEN,)}
    shapes |= {"ffn.0.w_2.weight": (DIM, HIDDEN), "ffn.0.w_2.bias": (DIM,)}
    shapes |= {"embed_ak.weight": (1000, DIM // HEADS)} if relative else {}
    return {prefix + name: torch.randn(*shape, dtype=torch.float64) * 0.5 for name, shape in shapes.items()}


def graph(lengths, step, clip, causal):
    """Edges of packed texts: (who reads, what is read, label), and where each text begins."""
    found, starts, start = [], [], 0
    for n in lengths:
        sizes = trees.sizes_of(n)
        own = trees.edges(n, step, clip, causal) + ([] if causal else trees.stray_edges(n, step, clip))
        for level in range(1, len(sizes)):
            own += [(sum(sizes[:level]) + (i >> level), i, trees.label(step, clip, level, 0, 0)) for i in range(n)]
        found += [(start + i, start + node, label) for i, node, label in own]
        starts.append(start)
        start += sum(sizes)
    return found, starts, start


def theirs(state, h, edges):
    """One block: what is read, after the projection, and the new states."""
    reads, node, label = torch.tensor(edges).T

    def project(name):
        return (h @ state[f"proj_{name}.weight"].T).unflatten(-1, (HEADS, -1))

    q, k, v = map(project, "qkv")
    keys = k[node]
    if "embed_ak.weight" in state:
        keys = keys + state["embed_ak.weight"][label][:, None]
    weights = ((q[reads] * keys).sum(-1) / q.shape[-1] ** 0.5).exp()
    total = torch.zeros(len(h), HEADS, dtype=h.dtype).index_add(0, reads, weights)
    heads = torch.zeros_like(v).index_add(0, reads, (weights / total[reads])[..., None] * v[node]).flatten(1)
    out = heads @ state["proj_o.weight"].T
    h = F.layer_norm(h + out, (DIM,), state["norm_in.weight"], state["norm_in.bias"])
    inner = F.relu(h @ state["ffn.0.w_1.weight"].T + state["ffn.0.w_1.bias"])
    update = inner @ state["ffn.0.w_2.weight"].T + state["ffn.0.w_2.bias"]
    return heads, out, F.layer_norm(h + update, (DIM,), state["norm_inter.weight"], state["norm_inter.bias"])


def run(source, config, state, inputs, main):
    meta = {"mechanism": "bpt", "source": source, "config": json.dumps(config), "main_output": main}
    return replay({f"param/{k}": t for k, t in state.items()} | {f"in/{k}": t for k, t in inputs.items()}, meta)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("step", "clip", "relative"), [(1, 3, True), (2, 1, True), (4, 0, False)])
def test_one_block_over_packed_texts(step, clip, relative, causal):
    lengths = [13, 1, 8, 6]
    edges, _, total = graph(lengths, step, clip, causal)
    state, h = block_weights(relative=relative), torch.randn(total, DIM, dtype=torch.float64)
    config = {"class": "BPTBlock", "dim_model": DIM, "h": HEADS, "dim_ff": HIDDEN, "rel_pos": relative}
    config |= {"causal": causal, "step": step, "clip_dist": clip}
    found = run(BLOCK, config, state, {"h": h, "lengths": torch.tensor(lengths)}, "out")
    heads, out, new = theirs(state, h, edges)
    assert_close(found["out/attn_heads"], heads, rtol=0, atol=1e-12)
    assert_close(found["out/attn"], out, rtol=0, atol=1e-12)
    assert_close(found["out/out"], new, rtol=0, atol=1e-12)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize(("causal", "relative", "embed"), [(True, True, DIM), (False, True, 5), (False, False, DIM)])
def test_the_network(causal, relative, embed, root):
    lengths, step, clip = [7, 1, 10], 2, 2
    edges, starts, total = graph(lengths, step, clip, causal)
    state = block_weights("layers.0.", relative) | block_weights("layers.1.", relative)
    shapes = {"embed.lut.weight": (20, embed), "generator.proj.weight": (4, DIM), "generator.proj.bias": (4,)}
    shapes |= {"norm.weight": (DIM,), "norm.bias": (DIM,)}
    shapes |= {} if embed == DIM else {"embed_to_hidden.weight": (DIM, embed), "embed_to_hidden.bias": (DIM,)}
    shapes |= {} if relative else {"pos_enc.pe.weight": (5000, DIM)}
    state |= {name: torch.randn(*shape, dtype=torch.float64) * 0.5 for name, shape in shapes.items()}
    tokens = torch.randint(20, (sum(lengths),))
    leaves = torch.tensor([start + i for start, n in zip(starts, lengths, strict=True) for i in range(n)])
    ends = torch.tensor([*starts[1:], total]) - 1
    config = {"vocab_size": 20, "dim_embed": embed, "dim_model": DIM, "dim_ff": HIDDEN, "h": HEADS, "n_classes": 4}
    config |= {"n_layers": 2, "rel_pos": relative, "causal": causal, "step": step, "clip_dist": clip}
    inputs = {"x": tokens, "lengths": torch.tensor(lengths)} | ({"readout_ids": ends} if root else {})
    found = run(MODEL, config, state, inputs, "out")

    x = state["embed.lut.weight"][tokens]
    x = x if embed == DIM else x @ state["embed_to_hidden.weight"].T + state["embed_to_hidden.bias"]
    if not relative:
        x = x + state["pos_enc.pe.weight"][torch.cat([torch.arange(n) for n in lengths])]
    x = F.layer_norm(x, (DIM,), state["norm.weight"], state["norm.bias"])
    h = torch.zeros(total, DIM, dtype=torch.float64).index_copy(0, leaves, x)
    for number in range(2):
        prefix = f"layers.{number}."
        layer = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        h = theirs(layer, h, edges)[2]
    logits = h[ends if root else leaves] @ state["generator.proj.weight"].T + state["generator.proj.bias"]
    assert_close(found["out/h"], h, rtol=0, atol=1e-12)
    assert_close(found["out/out"], logits.log_softmax(-1), rtol=0, atol=1e-12)


def test_refusals():
    config = {"dim_model": DIM, "h": HEADS, "dim_ff": HIDDEN, "rel_pos": True, "step": 64, "clip_dist": 7}
    with pytest.raises(UnsupportedError, match="labels, and theirs are 1000"):
        run(BLOCK, config, {}, {}, "out")
    with pytest.raises(UnsupportedError, match="dim_pos=2"):
        run(MODEL, config | {"dim_pos": 2}, {}, {}, "out")
