"""The starts of AlphaFold's linear maps, by their moments."""

import pytest
import torch

from regard.ops.projection import Projection, reset_all


@pytest.mark.parametrize(
    ("start", "variance"),
    [("linear", 1 / 400), ("relu", 2 / 400), ("glorot", 2 / 700), ("normal", 1 / 400), ("gate", 0), ("zero", 0)],
)
def test_variance_of_the_weights(start, variance):
    weight = Projection(400, 300, start).weight
    assert float(weight.detach().var()) == pytest.approx(variance, rel=0.02)


def test_cut_off_at_two_deviations():
    drawn, uncut = (Projection(400, 300, start).weight.detach() for start in ("linear", "normal"))
    assert float(drawn.abs().max()) <= 2 / 0.8796 / 20
    assert float(uncut.abs().max()) > 3 / 20


def test_biases():
    assert bool((Projection(4, 3, "gate").bias == 1).all())
    assert not Projection(4, 3, "relu").bias.any()
    assert Projection(4, 3, bias=False).bias is None


def test_reset_reaches_norms_and_maps():
    module = torch.nn.Sequential(Projection(4, 3, "gate"), torch.nn.LayerNorm(3))
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    reset_all(module)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_unknown_starts_are_refused():
    with pytest.raises(ValueError, match=r"start='final' is none of linear"):
        Projection(4, 3, "final")
