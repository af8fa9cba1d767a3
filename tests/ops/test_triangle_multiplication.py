"""Triangle multiplication triangle by triangle, and Hugging Face's module with the same weights."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from regard.ops.triangle_multiplication import TriangleMultiplication
from tests.ops import evoformer_loops as loops


@pytest.mark.parametrize("incoming", [False, True])
def test_multiplication_is_the_equation(incoming):
    part = loops.redrawn(TriangleMultiplication(4, 3, incoming=incoming))
    _, pair, _, seen = loops.protein()
    for mask in (seen, torch.ones_like(seen)):
        expected = loops.triangle_multiplication(part, pair, mask)
        assert_close(part(pair[None], mask[None])[0], expected, rtol=0, atol=1e-12)
    assert_close(part(pair[None])[0], expected, rtol=0, atol=1e-12)


def test_sizes_are_refused():
    with pytest.raises(ValueError, match=r"width=0.*positive"):
        TriangleMultiplication(4, 0)


@pytest.mark.parametrize("incoming", [False, True])
def test_hugging_face_has_the_same_numbers(incoming):
    modeling = pytest.importorskip("transformers.models.esm.modeling_esmfold")
    theirs = modeling.EsmFoldTriangleMultiplicativeUpdate(SimpleNamespace(pairwise_state_dim=12), not incoming)
    ours = TriangleMultiplication(12, 12, incoming=incoming)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    state = theirs.state_dict()
    sides = ("b", "a") if incoming else ("a", "b")
    for kind in ("weight", "bias"):
        found = {
            "norm": state[f"layer_norm_in.{kind}"],
            "out_norm": state[f"layer_norm_out.{kind}"],
            "sides": torch.cat([state[f"linear_{side}_p.{kind}"] for side in sides]),
            "side_gates": torch.cat([state[f"linear_{side}_g.{kind}"] for side in sides]),
            "gate": state[f"linear_g.{kind}"],
            "out": state[f"linear_z.{kind}"],
        }
        ours.load_state_dict({f"{name}.{kind}": tensor for name, tensor in found.items()}, strict=False)
    pair, seen = torch.randn(2, 9, 9, 12), torch.rand(2, 9, 9) < 0.7
    assert_close(ours(pair, seen), theirs(pair, seen.float()), rtol=0, atol=1e-5)
