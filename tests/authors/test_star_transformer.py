"""fastNLP's Star-Transformer for other sizes, against its convolutions and unfolds written out."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay

SOURCE = "fastnlp/fastNLP@e03d2dd:fastNLP/modules/torch/encoder/star_transformer.py:StarTransformer"


def weights(hidden, rounds, heads, width, max_len):
    state = {"pos_emb.weight": (max_len, hidden)} if max_len else {}
    for t in range(rounds):
        state |= {f"norm.{t}.weight": (hidden,), f"norm.{t}.bias": (hidden,)}
        for part in ("ring_att", "star_att"):
            for letter in "QKV":
                state |= {f"{part}.{t}.W{letter}.weight": (heads * width, hidden, 1, 1)}
                state |= {f"{part}.{t}.W{letter}.bias": (heads * width,)}
            state |= {f"{part}.{t}.WO.weight": (hidden, heads * width, 1, 1), f"{part}.{t}.WO.bias": (hidden,)}
    return {name: torch.randn(*shape, dtype=torch.float64) * 0.5 for name, shape in state.items()}


def theirs(state, data, mask, rounds, heads):
    """Padding is in the mean and a neighbour; beyond both ends stand keys and values of 0."""
    e = data + state["pos_emb.weight"][: data.shape[1]] if "pos_emb.weight" in state else data
    nodes, relay = e, e.mean(1, keepdim=True)

    def project(name, x):
        return (x @ state[f"{name}.weight"][..., 0, 0].T + state[f"{name}.bias"]).unflatten(-1, (heads, -1))

    def join(name, out):
        return F.leaky_relu(out.flatten(2) @ state[f"{name}.weight"][..., 0, 0].T + state[f"{name}.bias"], 0.01)

    for t in range(rounds):
        normed = F.layer_norm(nodes, data.shape[-1:], state[f"norm.{t}.weight"], state[f"norm.{t}.bias"], 1e-6)
        ring, star, q = f"ring_att.{t}", f"star_att.{t}", project(f"ring_att.{t}.WQ", normed)
        k, v = (
            torch.stack(
                [
                    *F.pad(project(f"{ring}.W{c}", normed), (0, 0, 0, 0, 1, 1)).unfold(1, 3, 1).unbind(-1),
                    project(f"{ring}.W{c}", e),
                    project(f"{ring}.W{c}", relay).expand_as(q),
                ],
                -1,
            )
            for c in "KV"
        )
        share = (torch.einsum("blhd,blhdu->blhu", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        nodes = join(f"{ring}.WO", torch.einsum("blhu,blhdu->blhd", share, v))
        whole = torch.cat((relay, nodes), 1)
        q, k, v = project(f"{star}.WQ", relay), project(f"{star}.WK", whole), project(f"{star}.WV", whole)
        scores = torch.einsum("bshd,blhd->bhsl", q, k) / q.shape[-1] ** 0.5
        seen = torch.cat((torch.ones_like(mask[:, :1]), mask), 1)
        share = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
        relay = join(f"{star}.WO", torch.einsum("bhsl,blhd->bshd", share, v))
        nodes = nodes * mask[..., None]
    return nodes, relay[:, 0]


@pytest.mark.parametrize(("rounds", "heads", "width", "max_len"), [(1, 2, 4, None), (3, 1, 5, 11), (2, 4, 3, 20)])
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8])
def test_any_size(rounds, heads, width, max_len, kind):
    state, data = weights(6, rounds, heads, width, max_len), torch.randn(3, 11, 6, dtype=torch.float64)
    mask = torch.arange(11) < torch.tensor([[11], [7], [1]])
    config = {"hidden_size": 6, "num_layers": rounds, "num_head": heads, "head_dim": width, "max_len": max_len}
    meta = {"mechanism": "star_transformer", "source": SOURCE, "config": json.dumps(config), "main_output": "y"}
    inputs = {"in/data": data, "in/mask": mask.to(kind)}
    found = replay({f"param/{name}": t for name, t in state.items()} | inputs, meta)
    nodes, relay = theirs(state, data, mask, rounds, heads)
    assert_close(found["out/nodes"], nodes, rtol=0, atol=1e-12)
    assert_close(found["out/relay"], relay, rtol=0, atol=1e-12)
    assert_close(found["out/y"], torch.cat((nodes.flatten(), relay.flatten())), rtol=0, atol=1e-12)
