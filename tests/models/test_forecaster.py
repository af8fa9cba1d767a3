"""The forecaster over any mechanism: its start, padding, positions, and what it refuses."""

import pytest
import torch
from torch.testing import assert_close

from regard.models import TransformerForecaster
from regard.registry import UnsupportedError


def made(mechanism="full", **options):
    torch.manual_seed(0)
    model = TransformerForecaster(5, 3, 4, 8, 2, 2, 12, mechanism, **options)
    torch.nn.init.normal_(model.over_features.weight)
    return model.eval()


def test_it_starts_with_the_last_value():
    model, x = TransformerForecaster(5, 3, 4, 8, 1, 2, 12), torch.randn(2, 12, 5)
    assert_close(model(x), x[:, -1:, :3].expand(-1, 4, -1))


@pytest.mark.parametrize("mechanism", ["full", "linear_transformer", "informer"])
def test_padding_on_either_side_changes_nothing(mechanism):
    model, x = made(mechanism), torch.randn(2, 7, 5)
    expected = model(x)
    for keep in (torch.arange(12) < 7, torch.arange(12) >= 5):
        padded = torch.full((2, 12, 5), torch.nan)
        padded[:, keep] = x
        assert_close(model(padded, key_mask=keep.expand(2, -1)), expected, rtol=1e-5, atol=1e-5)


def test_a_short_past_ends_where_a_long_one_does():
    """What is far away has no weight; then the newest steps alone tell the future."""
    model, x = made("full"), torch.randn(2, 12, 5)
    model.blocks = torch.nn.ModuleList()
    with torch.no_grad():
        model.over_time.weight[:, :8] = 0
    assert_close(model(x), model(x[:, 8:]))


def test_the_mechanism_gets_its_options_and_tells_what_it_has_to_tell():
    model = made("local", window=2)
    assert model.blocks[0].attention.core.window == 2
    y, aux = model(torch.randn(2, 12, 5), return_aux=True)
    assert y.shape == (2, 4, 3)
    assert aux == {}
    x = torch.randn(2, 12, 5, requires_grad=True)
    model(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_reset_parameters():
    model = made()
    for parameter in (*model.embedding.parameters(), model.position_embedding.weight, *model.over_time.parameters()):
        torch.nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    x = torch.randn(2, 12, 5)
    assert_close(model(x), x[:, -1:, :3].expand(-1, 4, -1))


def test_refusals():
    with pytest.raises(ValueError, match="3 outputs of 2 inputs"):
        TransformerForecaster(2, 3, 4, 8, 1, 2, 12)
    with pytest.raises(ValueError, match="13 steps, but this model was built with max_length=12"):
        made()(torch.randn(1, 13, 5))
    with pytest.raises(ValueError, match=r"expected \(batch, length, 5\)"):
        made()(torch.randn(1, 12, 4))
    with pytest.raises(TypeError, match="key_mask"):
        made()(torch.randn(1, 12, 5), key_mask=torch.ones(1, 12))
    with pytest.raises(UnsupportedError, match="cannot honour attn_drop"):
        made("linear_transformer", attn_drop=0.1)
