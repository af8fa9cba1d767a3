import itertools

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.criss_cross import CrissCross, category_consistent_loss
from regard.registry import UnsupportedError


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def cross(place, sides):
    """The pixels of the cross, the one in its middle once."""
    return [other for other in itertools.product(*map(range, sides))
            if sum(a != b for a, b in zip(place, other, strict=True)) <= 1]  # fmt: skip


def equations(layer, x, keep):
    """Pixel by pixel, on (B, *grid, C)."""
    for _ in range(layer.recurrence):
        q, k, v, y = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x), x.clone()
        for b, *place in itertools.product(*map(range, x.shape[:-1])):
            seen = [(b, *other) for other in cross(place, x.shape[1:-1]) if keep[(b, *other)]]
            if seen:
                here = (b, *place)
                weights = torch.stack([q[here] @ k[other] for other in seen]).softmax(0)
                y[here] = x[here] + layer.gamma * (weights @ torch.stack([v[other] for other in seen]))
        x = y
    return x


@pytest.mark.parametrize("recurrence", [1, 2])
@pytest.mark.parametrize("sides", [(5,), (3, 4), (1, 3), (1, 1), (2, 3, 2)])
def test_matches_the_equations(sides, recurrence):
    layer = CrissCross(6, recurrence, key_dim=2, num_axes=len(sides), gamma=0.7).double()
    x, every = random(2, 6, *sides), torch.ones(2, *sides, dtype=torch.bool)
    expected = equations(layer, x.movedim(1, -1), every).movedim(-1, 1)
    assert_close(layer(x), expected, rtol=0, atol=1e-12)
    keep = torch.rand(2, *sides) < 0.5
    hidden = x.masked_fill(~keep[:, None], 0)
    expected = equations(layer, hidden.movedim(1, -1), keep).movedim(-1, 1) * keep[:, None]
    assert_close(layer(x, key_mask=keep), expected, rtol=0, atol=1e-12)


def test_a_pixel_that_sees_nothing_stays_what_it_was():
    layer, x = CrissCross(6, gamma=0.7).double(), random(1, 6, 3, 4)
    asked = torch.zeros(1, 3, 4, dtype=torch.bool)
    assert torch.equal(layer(x, key_mask=asked, query_mask=~asked), x)


def test_two_steps_join_all_pixels_and_one_does_not():
    x = random(1, 6, 3, 4)
    changed = x.clone()
    changed[..., 0, 0] += 1
    for recurrence, joined in ((1, 3 + 4 - 1), (2, 3 * 4)):
        layer = CrissCross(6, recurrence, gamma=1.0).double()
        assert ((layer(changed) - layer(x)).abs().amax((0, 1)) > 0).sum() == joined


def test_it_starts_as_the_identity():
    layer, x = regard.create("criss_cross", dim=12, recurrence=2), torch.randn(2, 12, 3, 4)
    assert torch.equal(layer(x), x)
    assert layer.q_proj.weight.shape == (1, 12)
    assert CrissCross(64).q_proj.weight.shape == (8, 64)
    bound = 12**-0.5
    assert all(0.7 * bound < linear.weight.abs().max() <= bound for linear in (layer.q_proj, layer.v_proj))
    layer(x).sum().backward()
    assert layer.gamma.grad.abs() > 0


def test_gradients():
    layer, x = CrissCross(4, gamma=0.5).double(), random(1, 4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), fast_mode=True)


def loss_equations(features, labels, near, far, ignored):
    """Category by category, pixel by pixel."""
    pixels = {}
    for b, *place in itertools.product(*map(range, labels.shape)):
        label = int(labels[(b, *place)])
        if label != ignored:
            pixels.setdefault(label, []).append(features[(b, slice(None), *place)])
    centres = {c: torch.stack(members).mean(0) for c, members in pixels.items()}
    variance = 0.0
    for c, members in pixels.items():
        for f in members:
            d = float((f - centres[c]).norm())
            phi = 0.0 if d <= near else (d - near) ** 2 if d <= far else d - far + (far - near) ** 2
            variance += phi / len(members) / len(centres)
    gaps = [max(0.0, 2 * far - float((centres[a] - centres[b]).norm())) ** 2
            for a, b in itertools.permutations(centres, 2)]  # fmt: skip
    return variance, sum(gaps) / max(1, len(gaps)), sum(float(m.norm()) for m in centres.values()) / len(centres)


@pytest.mark.parametrize(("near", "far", "ignored"), [(0.5, 1.5, 255), (1.0, 2.0, 0)])
def test_the_loss_of_the_journal_version(near, far, ignored):
    features, labels = random(2, 3, 4, 5), torch.randint(4, (2, 4, 5))
    labels[0, 0, :2] = ignored
    labels[1, 3, 4] = 9  # a category of one pixel, whose gap is 0
    expected = loss_equations(features, labels, near, far, ignored)
    features.requires_grad_()
    found = category_consistent_loss(
        features, labels, near=near, far=far, weights=(2.0, 3.0, 0.1), ignore_index=ignored
    )
    total = 2 * expected[0] + 3 * expected[1] + 0.1 * expected[2]
    for part, number in zip(found, (total, *expected), strict=True):
        assert abs(float(part.detach()) - number) < 1e-12
    found.total.backward()
    assert features.grad.isfinite().all()
    assert not features.grad[0, :, 0, :2].any()


def test_the_loss_without_pairs_and_without_pixels():
    features, labels = random(1, 3, 2, 2).requires_grad_(), torch.full((1, 2, 2), 7)
    assert category_consistent_loss(features, labels).distance == 0
    nothing = category_consistent_loss(features, labels, ignore_index=7)
    assert not any(nothing)
    nothing.total.backward()
    assert not features.grad.any()
    assert category_consistent_loss(features.bfloat16(), labels).total.dtype == torch.float32


def test_refusals():
    layer, x = regard.create("criss_cross", dim=8), torch.randn(2, 8, 3, 4)
    with pytest.raises(UnsupportedError, match="cannot be causal: a pixel sees both ways"):
        regard.create("criss_cross", dim=8, causal=True)
    with pytest.raises(ValueError, match=r"\(2, 8, 12\), expected \(batch, 8, n_1, n_2\)"):
        layer(x.flatten(2))
    for options, message in (({"recurrence": 0}, "recurrence=0"), ({"num_axes": 4}, "num_axes=4")):
        with pytest.raises(ValueError, match=message):
            CrissCross(8, **options)
