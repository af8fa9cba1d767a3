import itertools

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.interlaced import Interlaced, from_cells, to_cells
from regard.registry import UnsupportedError


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def restless(layer):
    """Every weight and statistic away from its start."""
    layer = layer.double().eval()
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.data = random(*tensor.shape) * 0.5 if tensor.ndim > 1 else torch.rand_like(tensor) + 0.3
    return layer


def normed(part, x):
    y = (x @ part.linear.weight.T - part.norm.running_mean) / (part.norm.running_var + part.norm.eps) ** 0.5
    return (y * part.norm.weight + part.norm.bias).clamp(min=0)


def attend(part, x, groups, real):
    """Among the pixels {place: vector} of each group; those that are not real are seen only if ``real`` is None."""
    q, k = ({p: normed(two[1], normed(two[0], f)) for p, f in x.items()} for two in (part.query, part.key))
    y = {}
    for group in groups:
        seen = [p for p in group if real is None or p in real]
        for p in group:
            out = torch.zeros(part.value.out_features, dtype=torch.float64)
            if seen:
                weights = torch.stack([q[p] @ k[o] / len(q[p]) ** 0.5 for o in seen]).softmax(0)
                out = weights @ torch.stack([part.value(x[o]) for o in seen])
            y[p] = normed(part.output, out)
    return y


def block(part, x, mask_padding):
    """Both steps on one map (C, H, W), which stands in the middle of whole cells."""
    (dh, dw), (height, width) = part.factors, x.shape[1:]
    rows, columns = -(-height // dh) * dh, -(-width // dw) * dw
    top, left = (rows - height) // 2, (columns - width) // 2
    places = list(itertools.product(range(rows), range(columns)))
    real = {(i + top, j + left): x[:, i, j] for i, j in itertools.product(range(height), range(width))}
    pixels = {p: real.get(p, x.new_zeros(len(x))) for p in places}

    def groups(key):
        return [[p for p in places if key(*p) == which] for which in sorted({key(*p) for p in places})]

    seen = real if mask_padding else None
    pixels = attend(part.far, pixels, groups(lambda i, j: (i % dh, j % dw)), seen)
    pixels = attend(part.near, pixels, groups(lambda i, j: (i // dh, j // dw)), seen)
    return torch.stack([torch.stack([pixels[i + top, j + left] for j in range(width)]) for i in range(height)])


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize(("sides", "factors"), [((5, 7), (2, 3)), ((1, 4), (3, 2)), ((4, 6), (2, 3))])
def test_matches_the_equations(sides, factors, mask_padding):
    options = {"key_dim": 2, "value_dim": 5, "out_dim": 4, "mask_padding": mask_padding}
    bare, joined = (restless(Interlaced(3, factors, fuse=fuse, **options)) for fuse in (False, True))
    several = restless(Interlaced(3, (factors, (1, 2)), **options))
    x = random(2, 3, *sides)
    for layer in (bare, joined, several):
        expected = []
        for image in x:
            found = [block(part, image, mask_padding) for part in layer.blocks]
            own = image.movedim(0, -1)
            if layer.fuse is not None:
                own = own if layer.widen is None else normed(layer.widen, own)
                found = [normed(layer.fuse, torch.cat((own, *found), -1))]
            expected.append(found[0].movedim(-1, 0))
        assert_close(layer(x), torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sides", "factors"), [((5, 7), (2, 3)), ((3, 3), (4, 5)), ((1, 1), (1, 1))])
def test_cells_are_put_back(sides, factors):
    x = random(2, 3, *sides)
    assert torch.equal(from_cells(to_cells(x, factors).transpose(1, 2), factors, sides), x.movedim(1, -1))


def test_two_steps_join_all_pixels():
    layer = restless(Interlaced(4, (2, 3), fuse=False))
    x = random(1, 4, 4, 6)
    changed = x.clone()
    changed[..., 1, 2] += 1
    assert ((layer(changed) - layer(x)).abs().amax((0, 1)) > 0).all()


def test_masked_padding_enters_no_statistic():
    """Of a map of one pixel in a large cell, all statistics are those of this pixel."""
    layer, x = Interlaced(4, (3, 3), fuse=False, mask_padding=True).double(), random(2, 4, 1, 1)
    layer(x)
    norm = layer.blocks[0].far.key[0].norm
    expected = layer.blocks[0].far.key[0].linear(x[..., 0, 0]).mean(0)
    assert_close(norm.running_mean, 0.1 * expected)
    layer.mask_padding = False
    layer(x)
    assert_close(norm.running_mean, 0.09 * expected + 0.1 * expected / 9)


def test_dropout_takes_whole_features_and_comes_from_the_generator():
    layer, x = Interlaced(8, (2, 2), drop=0.5), torch.randn(2, 8, 5, 4)
    first, again, other = (layer(x, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    layer.drop = 0.0
    kept = first.flatten(2).any(-1)
    assert not kept.all()
    assert_close(first, layer(x) * kept[..., None, None] * 2)


def test_refusals():
    layer, x = regard.create("interlaced", dim=8), torch.randn(2, 8, 3, 4)
    assert layer.factors == ((8, 8),)
    with pytest.raises(UnsupportedError, match="takes no masks: cells are laid out from the middle"):
        layer(x, key_mask=torch.ones(2, 3, 4, dtype=torch.bool))
    for options, message in (
        ({"factors": (0, 2)}, r"factors=\(0, 2\) are no pair"),
        ({"factors": ((2, 2), (3, 0))}, "are no pair"),
        ({"factors": ()}, "are no pair"),
        ({"factors": ((2, 2), (3, 3)), "fuse": False}, "fuse=False leaves one pair"),
        ({"fuse": False, "drop": 0.1}, "fuse=False leaves one pair"),
        ({"key_dim": 0}, "they must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            Interlaced(8, **options)
