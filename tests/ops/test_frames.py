import math

import pytest
import torch
from torch.testing import assert_close

from regard.ops.frames import (
    Frames,
    from_three_points,
    identity,
    quaternion_to_rotation,
    small_rotation,
    turn_about_x,
)


def random_frames(*shape, seed=0, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    quaternion = torch.randn(*shape, 4, generator=make, dtype=dtype)
    return Frames(quaternion_to_rotation(quaternion), torch.randn(*shape, 3, generator=make, dtype=dtype))


def hamilton(p, q):
    (a, b, c, d), (e, f, g, h) = p.tolist(), q.tolist()
    return torch.tensor(
        [
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        ],
        dtype=torch.float64,
    )


def test_a_quaternion_turns_points_by_hamiltons_product():
    make = torch.Generator().manual_seed(0)
    q, point = (torch.randn(n, generator=make, dtype=torch.float64) for n in (4, 3))
    back = q * torch.tensor([1.0, -1, -1, -1])
    pure = torch.cat((torch.zeros(1, dtype=torch.float64), point))
    expected = hamilton(hamilton(q, pure), back)[1:] / q.square().sum()
    assert_close(quaternion_to_rotation(q) @ point, expected)


def test_rotations_keep_lengths_and_handedness():
    rotation = random_frames(50).rotation
    assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    assert_close(torch.linalg.det(rotation), torch.ones(50, dtype=torch.float64))


def test_compose_invert_and_apply_agree():
    outer, inner = random_frames(4, seed=1), random_frames(4, seed=2)
    points = torch.randn(4, 3, dtype=torch.float64)
    assert_close(outer.compose(inner).apply(points), outer.apply(inner.apply(points)))
    assert_close(outer.invert().apply(points), outer.invert_apply(points))
    assert_close(outer.invert_apply(outer.apply(points)), points)
    assert_close(outer.invert().compose(outer).rotation, identity(4, like=points).rotation.contiguous())


def test_three_points_are_where_gram_schmidt_puts_them():
    frames = random_frames(6)
    local = torch.tensor(
        [[2.0, 0, 0], [0, 0, 0], [-1.0, 3, 0]], dtype=torch.float64
    )  # on the axis, origin, in the plane
    found = from_three_points(*(frames.apply(point) for point in local))
    assert_close(found.rotation, frames.rotation)
    assert_close(found.translation, frames.translation)


def test_three_points_on_a_line_stay_finite():
    line = torch.zeros(3, 3, requires_grad=True)
    frame = from_three_points(*line)
    frame.rotation.sum().backward()
    assert frame.rotation.isfinite().all()
    assert line.grad.isfinite().all()


def test_an_update_of_zero_turns_nothing_and_a_half_turn_is_its_limit():
    assert_close(small_rotation(torch.zeros(2, 3)), torch.eye(3).expand(2, 3, 3))
    turned = small_rotation(torch.tensor([1e4, 0.0, 0.0]))
    assert_close(turned, torch.diag(torch.tensor([1.0, -1.0, -1.0])), atol=1e-3, rtol=0)
    quarter = small_rotation(torch.tensor([0.0, 0.0, math.tan(math.pi / 8)]))
    root = math.sqrt(0.5)
    assert_close(quarter[0], torch.tensor([root, -root, 0.0]))


def test_a_turn_about_x_leaves_x():
    angle = torch.tensor(0.3)
    turn = turn_about_x(torch.stack((angle.sin(), angle.cos())))
    assert_close(turn @ torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 0, 0]))
    assert_close(turn @ torch.tensor([0.0, 1, 0]), torch.stack((torch.zeros(()), angle.cos(), angle.sin())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_enters_and_float32_comes_out_under_autocast_too(dtype):
    wide = random_frames(5)
    frames = Frames(wide.rotation.float(), wide.translation.float())
    points = torch.randn(5, 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = frames.compose(frames).apply(points)
    assert out.dtype == torch.float32
    assert_close(out.double(), wide.compose(wide).apply(points.double()), atol=1e-5, rtol=1e-5)


def test_scaled_frames_and_fixed_rotations():
    frames = random_frames(3)
    assert_close(frames.scaled(10.0).translation, frames.translation * 10)
    live = Frames(frames.rotation.clone().requires_grad_(), frames.translation.clone().requires_grad_())
    fixed = live.with_fixed_rotation()
    assert not fixed.rotation.requires_grad
    assert fixed.translation.requires_grad
