import pytest
import torch
from torch.testing import assert_close

import regard
from regard.inspect import attention_map
from regard.models import MapClassifier, MapSegmenter, map_attention
from regard.models.map_transformer import MapTransformer

MECHANISMS = ["axial", "kronecker", "full", "linear_transformer", "local:window=0"]


def made(kind=MapClassifier, mechanism="axial", **changes):
    name, _, option = mechanism.partition(":")
    options = {"window": 0} if option else {}
    torch.manual_seed(0)
    return kind(2, 12, 2, 3, 8, name, **{"patch": 2, "num_classes": 4, **options, **changes})


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("size", [(8, 8), (5, 11), (1, 1), (9, 2)])
def test_images_of_any_size(mechanism, size):
    images = torch.randn(1, 2, *size)
    assert made(mechanism=mechanism)(images).shape == (1, 4)
    assert made(MapSegmenter, mechanism)(images).shape == (1, 4, *size)


@pytest.mark.parametrize("kind", [MapClassifier, MapSegmenter])
@pytest.mark.parametrize("mechanism", ["axial", "full"])
def test_every_parameter_has_a_gradient(kind, mechanism):
    model = made(kind, mechanism)
    model(torch.randn(2, 2, 8, 8)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("k_proj.bias"):  # it moves all scores of a query alike
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", [MapClassifier, MapSegmenter])
def test_it_is_the_blocks_on_patches(kind):
    """The whole network, patch by patch, with the attention as the only part that is not written again."""
    model = made(kind).double().eval()
    images = torch.randn(1, 2, 8, 8, dtype=torch.double)
    x = torch.empty(1, 4, 4, 12, dtype=torch.double)
    for row, column in torch.cartesian_prod(torch.arange(4), torch.arange(4)).tolist():
        patch = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        weights = (model.stem.weight * patch).sum((1, 2, 3)) + model.stem.bias
        x[:, row, column] = weights + model.position_embedding[0, :, row, column]
    for block in model.blocks:
        x = x + block.attention(block.norm1(x).movedim(-1, 1)).movedim(1, -1)
        x = x + block.mlp(block.norm2(x))
    x = model.norm(x)
    if kind is MapClassifier:
        assert_close(model(images), model.classes(x.flatten(1, 2).mean(1)))
        return
    out = model(images)
    for row, column in torch.cartesian_prod(torch.arange(8), torch.arange(8)).tolist():
        logits = model.classes(x[:, row // 2, column // 2]).view(1, 4, 2, 2)
        assert_close(out[:, :, row, column], logits[:, :, row % 2, column % 2])


def test_positions_are_sinusoids_of_rows_and_columns_and_are_interpolated():
    model = made()
    places = model.position_embedding[0]
    assert torch.equal(places[:6, 1, 0], places[:6, 1, 3])
    assert torch.equal(places[6:, 0, 1], places[6:, 3, 1])
    assert places[1, :, 0].tolist() == pytest.approx([1, 0.5403, -0.4161, -0.98999], abs=1e-3)  # cos of the row
    with torch.no_grad():
        model.position_embedding.copy_(torch.arange(4.0).view(1, 1, 1, 4))
        model.stem.weight.zero_()
        model.stem.bias.zero_()
    wide = model._embed(torch.zeros(1, 2, 8, 16))
    assert wide.shape == (1, 4, 8, 12)
    assert wide[0, 0, :, 0].tolist() == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


@pytest.mark.parametrize("mechanism", ["axial", "full"])
@pytest.mark.parametrize("kind", [MapClassifier, MapSegmenter])
def test_what_is_padded_changes_nothing(kind, mechanism):
    model = made(kind, mechanism).eval()
    small = torch.randn(1, 2, 5, 7)
    padded = torch.full((1, 2, 8, 8), float("nan"))
    padded[..., :5, :7] = small
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :5, :7] = True
    other = torch.zeros_like(padded)
    other[..., :5, :7] = small
    found, expected = model(padded, key_mask=mask), model(other, key_mask=mask)
    assert_close(found[..., :5, :7], expected[..., :5, :7])
    changed = other.clone()
    changed[..., 6:, :] = 3.0
    assert_close(model(changed, key_mask=mask)[..., :5, :7], expected[..., :5, :7])
    assert model(other, key_mask=torch.zeros_like(mask)).isfinite().all()


def test_refusals():
    model = made()
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\), expected \(batch, 2, H, W\)"):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(TypeError, match=r"key_mask is torch.float32"):
        model(torch.zeros(1, 2, 8, 8), key_mask=torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"key_mask has shape \(1, 4, 4\), but the pixels are \(1, 8, 8\)"):
        model(torch.zeros(1, 2, 8, 8), key_mask=torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="patch=0"):
        made(patch=0)
    with pytest.raises(NotImplementedError, match="MapTransformer has no read_out"):
        MapTransformer(2, 12, 1, 3, 8)(torch.zeros(1, 2, 8, 8))


def test_what_an_attention_tells_is_passed_on():
    model = made(mechanism="axial", dropout=0.1)
    _, told = model(torch.randn(1, 2, 8, 8), return_aux=True)
    assert told == {}
    model.blocks[1].attention.respond = lambda x, *_, **__: (x, {"loss/balance": x.sum()})
    _, told = model(torch.randn(1, 2, 8, 8), return_aux=True)
    assert list(told) == ["loss/blocks.1.attention/balance"]


def test_a_layer_that_makes_other_maps_is_refused_in_words():
    model = made()
    model.blocks[0].attention.respond = lambda x, *_, **__: x[..., :-1]
    with pytest.raises(ValueError, match=r"axial makes \(1, 12, 4, 3\) of \(1, 12, 4, 4\)"):
        model(torch.zeros(1, 2, 8, 8))


def test_a_sequence_mechanism_sees_the_pixels_row_by_row():
    layer = map_attention("full", dim=12, num_heads=3)
    x, mask = torch.randn(2, 12, 3, 5), torch.rand(2, 3, 5) < 0.7
    flat = layer.layer(x.flatten(2).mT, key_mask=mask.flatten(1))
    assert_close(layer(x, key_mask=mask), flat.mT.unflatten(-1, (3, 5)))
    other = torch.randn(2, 12, 4, 4)
    assert_close(layer(x, other).flatten(2).mT, layer.layer(x.flatten(2).mT, other.flatten(2).mT))
    last = x.contiguous(memory_format=torch.channels_last)
    assert layer(last).is_contiguous(memory_format=torch.channels_last)
    found, plain = attention_map(layer, x), attention_map(layer.layer, x.flatten(2).mT)
    assert (found.kind, found.tensor.shape) == ("exact", (2, 3, 15, 15))
    assert_close(found.tensor, plain.tensor)


def test_layers_by_name():
    assert type(map_attention("axial", dim=12, num_heads=3)) is type(regard.create("axial", dim=12, num_heads=3))
    with pytest.raises(TypeError, match="no option 'windwo'"):
        map_attention("local", dim=12, num_heads=3, windwo=3)
    with pytest.raises(regard.registry.UnsupportedError, match="has no weights to show"):
        attention_map(map_attention("memory_compressed", dim=12, num_heads=3), torch.zeros(1, 12, 2, 2), kind="exact")
