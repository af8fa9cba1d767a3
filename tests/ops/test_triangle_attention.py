"""Triangle attention edge by edge; its memory; Hugging Face's module with the same weights."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops.triangle_attention import TriangleAttention
from tests.ops import evoformer_loops as loops


@pytest.mark.parametrize("ending", [False, True])
def test_attention_is_the_equation(ending):
    part = loops.redrawn(TriangleAttention(4, 2, 3, ending=ending))
    _, pair, _, seen = loops.protein()
    for mask in (seen, torch.ones_like(seen)):
        expected = loops.triangle_attention(part, pair, mask)
        assert_close(part(pair[None], mask[None])[0], expected, rtol=0, atol=1e-12)
    assert_close(part(pair[None])[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ending", [False, True])
def test_chunks_change_neither_numbers_nor_gradients(ending):
    part = loops.redrawn(TriangleAttention(4, 2, 3, ending=ending))
    _, pair, _, seen = (t[None] for t in loops.protein())
    found = []
    for size in (None, 2):
        x = pair.clone().requires_grad_()
        y = part(x, seen, chunk_size=size)
        found.append((y, *torch.autograd.grad((y * y.detach()).sum(), [x, *part.parameters()])))
    for whole, cut in zip(*found, strict=True):
        assert_close(cut, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("trains", [False, True])
def test_nothing_as_large_as_the_logits_is_ever_made(trains):
    residues = 48
    part = TriangleAttention(8, 2, 4)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            found = out if isinstance(out, (tuple, list)) else (out,)
            sizes = [t.untyped_storage().nbytes() // 4 for t in found if isinstance(t, torch.Tensor)]
            largest = max(largest, *sizes, 0)
            return out

    pair = torch.randn(1, residues, residues, 8, requires_grad=trains)
    with Watch(), torch.set_grad_enabled(trains):
        y = part(pair)
        if trains:
            y.sum().backward()
    assert largest < residues**3  # the logits of both heads would be twice that


@pytest.mark.parametrize("ending", [False, True])
def test_hugging_face_has_the_same_numbers(ending):
    modeling = pytest.importorskip("transformers.models.esm.modeling_esmfold")
    theirs = modeling.EsmFoldTriangleAttention(12, 4, 3, starting=not ending)
    ours = TriangleAttention(12, 3, 4, ending=ending)
    names = {"query": "linear_q", "key": "linear_k", "value": "linear_v", "gate": "linear_g", "out": "linear_o"}
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    state = theirs.state_dict()
    weights = {f"norm.{name}": state[f"layer_norm.{name}"] for name in ("weight", "bias")}
    weights |= {"bias.weight": state["linear.weight"]}
    for name in ours.attention.state_dict():
        part, kind = name.split(".")
        weights[f"attention.{name}"] = state[f"mha.{names[part]}.{kind}"]
    ours.load_state_dict(weights)
    pair, seen = torch.randn(2, 9, 9, 12), torch.rand(2, 9, 9) < 0.7
    seen[..., 0], seen[:, 0] = True, True  # where nothing is seen theirs looks at masked keys
    assert_close(ours(pair, seen), theirs(pair, seen.float()), rtol=0, atol=1e-5)
