"""The four forms as loops over pixels, in float64; windows, masks, groups of frames, starts and refusals."""

import itertools

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.non_local import CAFFE2, NonLocal
from regard.registry import UnsupportedError

FORMS = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


def windows(sides):
    """The pixels of each window, in row-major order; of volumes each frame is cut by itself."""
    steps = [1 if axis == 0 and len(sides) == 3 else 2 for axis in range(len(sides))]
    for corner in itertools.product(*(range(side // step) for side, step in zip(sides, steps, strict=True))):
        ranges = [range(at * step, at * step + step) for at, step in zip(corner, steps, strict=True)]
        yield list(itertools.product(*ranges))


def weight(layer, q, keys, i, j):
    if "gaussian" in layer.form:
        return torch.softmax(torch.stack([layer.scale * q[i] @ k for k in keys]), 0)[j]
    if layer.form == "dot_product":
        return q[i] @ keys[j] / len(keys)
    return torch.relu(layer.pair.flatten() @ torch.cat((q[i], keys[j]))) / len(keys)


def equations(layer, x, mask):
    """z - x before the batch norm, and pixels as rows (B, N, C)."""
    sides = x.shape[2:]
    pixels = list(itertools.product(*map(range, sides)))
    cells = [[pixel] for pixel in pixels] if layer.sub_sample is None else list(windows(sides))
    out = []
    for b in range(len(x)):
        rows = [x[(b, slice(None), *pixel)] for pixel in pixels]
        theta = rows if layer.q_proj is None else [layer.q_proj(row) for row in rows]
        phi, g = (lambda row: row) if layer.k_proj is None else layer.k_proj, layer.v_proj
        keys, values = [], []
        for cell in cells:
            if all(mask[(b, *pixel)] for pixel in cell):
                inside = [x[(b, slice(None), *pixel)] for pixel in cell]
                if layer.sub_sample == "before":
                    inside = [torch.stack(inside).amax(0)]
                keys.append(torch.stack([phi(row) for row in inside]).amax(0))
                values.append(torch.stack([g(row) for row in inside]).amax(0))
        for i, pixel in enumerate(pixels):
            y = sum((weight(layer, theta, keys, i, j) * v for j, v in enumerate(values)), torch.zeros(layer.inner))
            out.append(layer.out_proj(y.double()) * mask[(b, *pixel)])
    return torch.stack(out).unflatten(0, (len(x), -1))


def as_rows(x):
    return x.flatten(2).mT


@pytest.mark.parametrize("sub_sample", [None, "after", "before"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sides", [(5,), (3, 4), (2, 3, 2)])
def test_matches_the_equations(form, sub_sample, sides):
    layer = NonLocal(4, form, 3, sub_sample=sub_sample, norm=False, zero_init=False).double()
    x = torch.randn(2, 4, *sides, dtype=torch.float64)
    mask = torch.ones(2, *sides, dtype=torch.bool)
    assert_close(as_rows(layer(x) - x), equations(layer, x, mask), rtol=0, atol=1e-12)
    mask[1, ..., -1:] = False
    mask[1, :1] = False
    z = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask)
    assert_close(as_rows(z - x * mask[:, None]), equations(layer, x, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS[:2])
def test_the_scale_is_that_of_what_is_multiplied(form):
    layer = NonLocal(4, form, 3, sub_sample=None, scale=True, norm=False, zero_init=False).double()
    assert layer.scale == (4 if form == "gaussian" else 3) ** -0.5
    x = torch.randn(1, 4, 5, dtype=torch.float64)
    assert_close(as_rows(layer(x) - x), equations(layer, x, torch.ones(1, 5).bool()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [True, False])
def test_starts_as_the_identity(norm):
    layer, x = NonLocal(6, norm=norm), torch.randn(2, 6, 4, 4)
    assert torch.equal(layer(x), x)
    if norm:
        assert layer.out_proj.weight.any(), "the scale of the norm is 0, W is not"


def test_the_authors_own_options():
    layer = NonLocal(256, **CAFFE2)
    assert (layer.sub_sample, layer.scale) == ("before", 128**-0.5)
    assert 0.0095 < layer.q_proj.weight.std() < 0.0105
    assert not layer.q_proj.bias.any()
    assert not layer.norm.weight.any()


def test_padding_enters_no_statistic():
    layer = NonLocal(4, sub_sample=None, zero_init=False).train()
    with torch.no_grad():
        layer.norm.weight.fill_(1.0)
    x = torch.randn(2, 4, 3, 5)
    mask = (torch.arange(5) < 3).expand(2, 3, 5)
    padded = layer(x.masked_fill(~mask[:, None], 1e4), key_mask=mask)
    assert_close(padded[..., :3], layer(x[..., :3]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [4, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_groups_of_frames_see_themselves_only(frames, masked):
    layer = NonLocal(4, group_size=2, sub_sample=None, zero_init=False).eval()
    alone = NonLocal(4, sub_sample=None).eval()
    alone.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, frames, 3, 2)
    mask = torch.rand(2, frames, 3, 2) < 0.7 if masked else None
    parts = [
        alone(group, key_mask=None if mask is None else mask[:, at * 2 : at * 2 + 2])
        for at, group in enumerate(x.split(2, 2))
    ]
    assert_close(layer(x, key_mask=mask), torch.cat(parts, 2), rtol=1e-5, atol=1e-5)
    identity = torch.eye(x[0, 0].numel())[None, None]
    weights = layer.weigh(x, identity, key_mask=mask)[0, 0].unflatten(0, (frames, 6)).unflatten(-1, (frames, 6))
    assert weights[0, :, 1].any() or masked
    assert not weights[1, :, 2].any(), "frames 1 and 2 are of different groups"


def test_a_side_of_one_has_no_windows():
    layer, x = NonLocal(4, norm=False, zero_init=False), torch.randn(1, 4, 1, 6)
    assert_close(layer(x), x + layer.out_proj.bias[:, None, None])
    still = NonLocal(4, norm=False, zero_init=False)
    volume = torch.randn(1, 4, 1, 4, 4)
    assert not torch.allclose(still(volume), volume + still.out_proj.bias[:, None, None, None]), "frames are not pooled"


def test_only_pixels_have_weights():
    x, identity = torch.randn(1, 4, 2, 3), torch.eye(6)[None, None]
    with pytest.raises(UnsupportedError, match="no weights of pixels"):
        NonLocal(4).weigh(x, identity)
    assert NonLocal(4, sub_sample=None).weigh(x, identity).shape == (1, 1, 6, 6)


def test_permuted_pixels_permute_the_result():
    layer, x = NonLocal(4, sub_sample=None, zero_init=False).eval(), torch.randn(1, 4, 7)
    order = torch.randperm(7)
    assert_close(layer(x[..., order]), layer(x)[..., order])


def test_refusals():
    with pytest.raises(ValueError, match="form='dot'"):
        NonLocal(4, "dot")
    with pytest.raises(ValueError, match="sub_sample='twice'"):
        NonLocal(4, sub_sample="twice")
    with pytest.raises(ValueError, match="inner=0"):
        NonLocal(4, inner=0)
    with pytest.raises(ValueError, match="'dot_product' divides by M"):
        NonLocal(4, "dot_product", scale=True)
    with pytest.raises(ValueError, match=r"shape \(1, 4, 6, 6\): group_size=2"):
        NonLocal(4, group_size=2)(torch.randn(1, 4, 6, 6))
    with pytest.raises(regard.registry.UnsupportedError, match="takes no context"):
        NonLocal(4)(torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6))
    with pytest.raises(regard.registry.UnsupportedError, match="cannot be causal"):
        regard.create("non_local", dim=4, causal=True)
