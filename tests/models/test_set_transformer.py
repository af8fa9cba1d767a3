"""Networks on sets: order and padding mean nothing, and what the parts promise."""

import pytest
import torch
from torch.testing import assert_close

from regard.models import DeepSets, SetTransformer, TransformerPooler

BUILD = {
    "set_transformer": lambda **factory: SetTransformer(3, 2, 5, num_inducing=4, dim=8, num_heads=2, **factory),
    "exact": lambda **factory: SetTransformer(3, 2, 5, None, 8, 2, decoder_depth=0, rff_in_pma=True, **factory),
    "pooler": lambda **factory: TransformerPooler(3, 2, 5, 8, 1, 2, 16, num_inducing=4, **factory),
    "full": lambda **factory: TransformerPooler(3, 2, 5, 8, 1, 2, 16, "full", decoder_depth=0, **factory),
    "mean": lambda **factory: DeepSets(3, 2, 5, dim=8, **factory),
    "sum": lambda **factory: DeepSets(3, 2, 5, dim=8, pool="sum", depth=2, **factory),
    "max": lambda **factory: DeepSets(3, 2, 5, dim=8, pool="max", decoder_depth=1, **factory),
}


@pytest.mark.parametrize("kind", BUILD)
def test_order_and_padding_mean_nothing(kind):
    torch.manual_seed(0)
    model = BUILD[kind]().double().eval()
    x, keep = torch.randn(3, 7, 3).double(), torch.tensor([[1] * 7, [0, 1, 1, 0, 1, 0, 0], [0] * 7]).bool()
    y = model(x.masked_fill(~keep[..., None], torch.nan), key_mask=keep)
    assert y.shape == (3, 2, 5)
    assert_close(y[1], model(x[1:2, [4, 1, 2]])[0], rtol=0, atol=1e-12)
    assert_close(y[0], model(x[:1, torch.randperm(7)])[0], rtol=0, atol=1e-12)
    assert y[2].isfinite().all(), "an empty set"
    assert not torch.allclose(y[0], y[1])


@pytest.mark.parametrize("kind", BUILD)
def test_every_parameter_is_made_where_asked_and_learns(kind):
    assert {parameter.device.type for parameter in BUILD[kind](device="meta").parameters()} == {"meta"}
    model = BUILD[kind](dtype=torch.float64)
    model(torch.randn(2, 4, 3).double()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_decoder_is_built_as_asked():
    cloud = SetTransformer(3, 1, 40, dim=16, num_heads=4, decoder_depth=0, dropout=0.5)
    assert len(cloud.decoder.blocks) == 0
    assert cloud.decoder.pool.feed_forward is None
    assert SetTransformer(3, 1, 4, dim=8, num_heads=2, rff_in_pma=True).decoder.pool.feed_forward is not None
    assert not torch.equal(cloud(torch.ones(2, 4, 3))[0], cloud(torch.ones(2, 4, 3))[0]), "dropout in training"
    layers = SetTransformer(2, 4, 5, dim=8, num_heads=2, scale="head", layer_norm=True)
    blocks = [part for part in layers.modules() if type(part).__name__ == "MAB"]
    assert len(blocks) == 7
    assert all(part.scale == "head" and part.norm2 is not None for part in blocks)


def test_what_the_layers_of_a_pooler_tell():
    model = TransformerPooler(3, 1, 2, 8, 2, 2, 16, "routing", clusters=2)
    _, aux = model(torch.randn(2, 5, 3), return_aux=True)
    assert {name.rpartition("/")[0] for name in aux} >= {f"loss/blocks.{number}.attention" for number in (0, 1)}


def test_refusals():
    with pytest.raises(ValueError, match="9 points, but this model was built with max_length=8"):
        TransformerPooler(3, 1, 2, 8, 1, 2, 8)(torch.randn(1, 9, 3))
    with pytest.raises(ValueError, match=r"expected \(batch, length, 3\)"):
        SetTransformer(3, 1, 2)(torch.randn(1, 9, 2))
    with pytest.raises(ValueError, match="pool='median'"):
        DeepSets(3, 1, 2, pool="median")
    with pytest.raises(ValueError, match="depth=0"):
        SetTransformer(3, 1, 2, depth=0)
    with pytest.raises(ValueError, match="decoder_depth=0: an MLP"):
        DeepSets(3, 1, 2, decoder_depth=0)
