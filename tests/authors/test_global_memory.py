"""The importer of the equations: learned memory of any size, and ETC's sides apart."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError

DIM, HEADS = 8, 2


def linears(*names):
    shapes = (("weight", (DIM, DIM)), ("bias", (DIM,)))
    return {f"{n}.{kind}": torch.randn(*shape, dtype=torch.float64) * 0.5 for n in names for kind, shape in shapes}


def run(config, state, inputs):
    meta = {"mechanism": "global_memory", "source": "equations", "config": json.dumps(config), "main_output": "y"}
    tensors = {f"param/{k}": t for k, t in state.items()} | {f"in/{k}": t for k, t in inputs.items()}
    return replay(tensors, meta)


def attend(state, sides, x, allowed, bias):
    """One dense softmax; ``sides`` gives the suffix of each token's projections, ``bias(h, q)`` what is added."""

    def project(name):
        rows = [x[:, i] @ state[f"{name}{s}.weight"].T + state[f"{name}{s}.bias"] for i, s in enumerate(sides)]
        return torch.stack(rows, 1).unflatten(-1, (HEADS, -1)).transpose(1, 2)

    q, k, v = map(project, "qkv")
    scores = (q @ k.mT + bias(q)) / q.shape[-1] ** 0.5
    out = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2) @ state["o.weight"].T + state["o.bias"]


@pytest.mark.parametrize(("chunk", "mem", "n"), [(3, 1, 7), (4, 5, 8), (20, 2, 6)])
def test_learned_memory_in_front(chunk, mem, n):
    state = linears("q", "k", "v", "o") | {"memory": torch.randn(mem, DIM, dtype=torch.float64)}
    x, valid = torch.randn(2, n, DIM, dtype=torch.float64), torch.arange(n) < torch.tensor([[n], [n - 2]])
    found = run({"chunk": chunk, "dim": DIM, "heads": HEADS, "mem": mem}, state, {"x": x, "valid": valid})
    whole = torch.cat((state["memory"].expand(2, -1, -1), x), 1)
    blocks = torch.arange(n) // chunk
    meets = torch.ones(mem + n, mem + n, dtype=torch.bool)
    meets[mem:, mem:] = blocks[:, None] == blocks
    real = torch.cat((torch.ones(2, mem, dtype=torch.bool), valid), 1)
    y = attend(state, [""] * (mem + n), whole, meets & real[:, None], lambda q: 0)
    assert_close(found["out/y"], y[:, mem:], rtol=0, atol=1e-12)
    assert_close(found["out/memory"], y[:, :mem], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_global_and_long_inputs_apart(shared):
    g, n, radius, top = 3, 9, 2, 2
    names = "qkv" if shared else [a + side for a in "qkv" for side in ("l", "g")]
    state = linears(*names, "o") | {"a": torch.randn(2 * top + 3, HEADS, DIM // HEADS, dtype=torch.float64)}
    long, memory = (torch.randn(2, size, DIM, dtype=torch.float64) for size in (n, g))
    owner = torch.arange(n).expand(2, -1) // 4
    config = {"dim": DIM, "heads": HEADS, "G": g, "radius": radius, "k": top, "shared": shared}
    found = run(config, state, {"x": long, "global": memory, "owner": owner})

    i, j = torch.arange(n)[:, None], torch.arange(n)
    meets, label = torch.ones(g + n, g + n, dtype=torch.bool), torch.full((g + n, g + n), 2 * top + 2)
    meets[g:, g:] = (i - j).abs() <= radius
    label[g:, g:] = (j - i).clamp(-top, top) + top
    label[:g, :g] = (j - i).clamp(-top, top)[:g, :g] + top
    own = owner[0][:, None] == torch.arange(g)
    label[g:, :g][own], label[:g, g:][own.T] = 2 * top + 1, 2 * top + 1

    def bias(q):
        return torch.einsum("bhid,ijhd->bhij", q, state["a"][label])

    sides = [""] * (g + n) if shared else ["g"] * g + ["l"] * n
    y = attend(state, sides, torch.cat((memory, long), 1), meets[None], bias)
    assert_close(found["out/y"], y[:, g:], rtol=0, atol=1e-12)
    assert_close(found["out/memory"], y[:, :g], rtol=0, atol=1e-12)


def test_chunks_and_a_radius_are_refused():
    with pytest.raises(UnsupportedError, match="not both"):
        run({"chunk": 3, "radius": 2, "dim": DIM, "heads": HEADS, "mem": 1}, {}, {})
