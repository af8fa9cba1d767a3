import math

import pytest
import torch

from regard.verify.comparison import LIMITS, RECORDED, compare, relative_error, repeat

X = torch.tensor([1.0, 200.0])


def complaint(recorded, found, main=""):
    return compare(recorded, found, main=main, limits=RECORDED).complaint


def test_errors_are_relative_to_the_largest_value_but_to_no_less_than_one():
    assert relative_error(X + 0.2, X) == pytest.approx(1e-3)
    assert relative_error(torch.tensor([0.003]), torch.tensor([0.001])) == pytest.approx(2e-3)
    assert relative_error(torch.tensor([3]), torch.tensor([1], dtype=torch.uint8)) == 2.0  # also below 0 in unsigned
    assert relative_error(torch.tensor([True]), torch.tensor([False])) == 1.0
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0.0


def test_infinities_and_nan_must_stand_in_the_same_places():
    odd = torch.tensor([math.inf, -math.inf, math.nan, 4.0])
    assert relative_error(odd, odd) == 0.0
    assert relative_error(odd + 1.0, odd) == 0.25  # infinities do not make the scale
    assert relative_error(odd * torch.tensor([-1, 1, 1, 1]), odd) == math.inf
    assert math.isnan(relative_error(torch.tensor([math.nan]), torch.tensor([1.0])))


def test_each_kind_has_its_own_limit():
    recorded = {"out/y": X, "grad/x": X}
    assert not complaint(recorded, {"out/y": X * (1 + 0.8e-5), "grad/x": X * (1 + 4e-5)})
    assert "out/y is off by 4" in complaint(recorded, {"out/y": X * (1 + 4e-5), "grad/x": X})
    assert "grad/x is off by 6" in complaint(recorded, {"out/y": X, "grad/x": X * (1 + 6e-5)})


def test_nan_is_beyond_every_limit_and_the_worst_of_all():
    recorded = {"out/a": X, "out/b": X, "out/c": X}
    found = compare(recorded, {"out/a": X, "out/b": X * math.nan, "out/c": X + 1e3}, main="", limits=RECORDED)
    assert math.isnan(found.outputs)
    assert "out/b is off by nan" in found.complaint
    assert found.gradients is None


def test_the_main_output_and_every_gradient_must_be_there():
    recorded = {"out/y": X, "out/map": X, "grad/x": X}
    assert not complaint(recorded, {"out/y": X, "grad/x": X}, main="y")
    assert not complaint(recorded, {"out/y": X, "grad/x": X, "out/ours": X}, main="out/y")
    assert complaint(recorded, {"out/y": X, "grad/x": X}) == "out/map is missing"
    assert complaint(recorded, {"out/y": X}, main="y") == "grad/x is missing"
    assert "out/map is off" in complaint(recorded, {"out/y": X, "out/map": X + 1, "grad/x": X}, main="y")


def test_shapes_must_agree():
    assert complaint({"out/y": X}, {"out/y": X[:, None]}) == "out/y is (2, 1), recorded is (2,)"


def test_floating_tensors_are_cast_and_nothing_else(monkeypatch):
    seen = {}

    def replay(tensors, meta):
        seen.update({name: t.dtype for name, t in tensors.items()}, tf32=torch.backends.cudnn.allow_tf32)
        return {"out/y": tensors["in/x"] + 0.01}

    monkeypatch.setattr("regard.verify.comparison.replay", replay)
    case = {"in/x": X, "in/index": X.long(), "in/mask": X > 0, "out/y": X}
    before = torch.backends.cudnn.allow_tf32
    assert "off by" in repeat(case, {}).complaint
    assert seen["in/x"] is torch.float32
    assert not repeat(case, {}, dtype=torch.bfloat16).complaint
    assert seen == {"in/x": torch.bfloat16, "in/index": torch.int64, "in/mask": torch.bool, "tf32": False}
    assert torch.backends.cudnn.allow_tf32 == before
    assert LIMITS[torch.float32] == LIMITS[torch.float64] == RECORDED
