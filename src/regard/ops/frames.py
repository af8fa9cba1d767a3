"""Rigid frames: a rotation and a translation that take local points to global ones, x_global = R x_local + t.

Jumper et al. 2021, "Highly accurate protein structure prediction with AlphaFold", Nature 596, supplement 1.8.1,
algorithms 21 and 23. Everything is element-wise arithmetic, in float32 or better, under autocast too: matrix products
would be taken in half precision there.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """In float32 or better.

    Example:
        >>> precise(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Frames(NamedTuple):
    """One rigid frame a place.

    Attributes:
        rotation: R, (..., 3, 3); its columns are the axes of the frame.
        translation: t, (..., 3), the origin of the frame.
    """

    rotation: Float[Tensor, "*B 3 3"]
    translation: Float[Tensor, "*B 3"]

    def apply(self, points: Float[Tensor, "*P 3"]) -> Float[Tensor, "*Q 3"]:
        """Local points to global ones; leading sizes broadcast.

        Example:
            >>> quarter = Frames(torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), torch.tensor([0.0, 0, 5]))
            >>> quarter.apply(torch.tensor([1.0, 0, 0]))
            tensor([0., 1., 5.])
        """
        return rotate(self.rotation, precise(points)) + self.translation

    def invert_apply(self, points: Float[Tensor, "*P 3"]) -> Float[Tensor, "*Q 3"]:
        """Global points to local ones; leading sizes broadcast.

        Example:
            >>> quarter = Frames(torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), torch.tensor([0.0, 0, 5]))
            >>> quarter.invert_apply(torch.tensor([0.0, 1, 5]))
            tensor([1., 0., 0.])
        """
        return rotate(self.rotation.mT, precise(points) - self.translation)

    def compose(self, inner: "Frames") -> "Frames":
        """The frame that applies ``inner`` first and then this one."""
        rotation = (self.rotation[..., :, :, None] * inner.rotation[..., None, :, :]).sum(-2)
        return Frames(rotation, self.apply(inner.translation))

    def invert(self) -> "Frames":
        """The frame that takes global points back to local ones."""
        rotation = self.rotation.mT
        return Frames(rotation, -rotate(rotation, self.translation))

    def at(self, *places: Any) -> "Frames":
        """The frames at an index of their leading sizes, e.g. ``frames.at(..., None)`` for one more size."""
        return Frames(self.rotation[(*places, slice(None), slice(None))], self.translation[(*places, slice(None))])

    def scaled(self, factor: float) -> "Frames":
        """The same axes in other units of length."""
        return Frames(self.rotation, self.translation * factor)

    def with_fixed_rotation(self) -> "Frames":
        """No gradient through the rotation (algorithm 20, line 20)."""
        return Frames(self.rotation.detach(), self.translation)


def rotate(rotation: Float[Tensor, "*B 3 3"], points: Float[Tensor, "*P 3"]) -> Float[Tensor, "*Q 3"]:
    """R x, element by element."""
    return (rotation * points[..., None, :]).sum(-1)


def identity(*shape: int, like: Tensor) -> Frames:
    """Frames at the origin, in float32 or better, on the device of ``like``."""
    zero = precise(like.new_zeros(*shape, 3))
    return Frames(torch.eye(3, device=zero.device, dtype=zero.dtype).expand(*shape, 3, 3), zero)


def quaternion_to_rotation(quaternion: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 3 3"]:
    """The rotation of a quaternion (w, x, y, z) of any length but 0.

    Example:
        >>> quaternion_to_rotation(torch.tensor([2.0, 0, 0, 0])).diagonal()
        tensor([1., 1., 1.])
    """
    w, x, y, z = F.normalize(precise(quaternion), dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def small_rotation(vector: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """The rotation of the quaternion (1, b, c, d): 0 turns nothing, and no vector turns by 180 degrees (algorithm 23).

    Example:
        >>> small_rotation(torch.zeros(3)).diagonal()
        tensor([1., 1., 1.])
    """
    vector = precise(vector)
    return quaternion_to_rotation(torch.cat((torch.ones_like(vector[..., :1]), vector), -1))


def turn_about_x(sine_cosine: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 3 3"]:
    """The rotation about the first axis by an angle that is given as (sine, cosine) (algorithm 25).

    Example:
        >>> turn_about_x(torch.tensor([0.0, 1.0])).diagonal()
        tensor([1., 1., 1.])
    """
    sine, cosine = precise(sine_cosine).unbind(-1)
    one, zero = torch.ones_like(sine), torch.zeros_like(sine)
    rows = ((one, zero, zero), (zero, cosine, -sine), (zero, sine, cosine))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def from_three_points(
    on_axis: Float[Tensor, "*B 3"], origin: Float[Tensor, "*B 3"], in_plane: Float[Tensor, "*B 3"]
) -> Frames:
    """Gram-Schmidt (algorithm 21): the first axis from ``origin`` to ``on_axis``, the second towards ``in_plane``.

    A residue's frame is ``from_three_points(C, CA, N)``. Three points on a line give a frame that is no rotation, with
    finite numbers and gradients; mask it.

    Args:
        on_axis, origin, in_plane: points.

    Returns:
        Frames with their origin in ``origin``.

    Example:
        >>> frame = from_three_points(torch.tensor([2.0, 0, 0]), torch.zeros(3), torch.tensor([1.0, 3, 0]))
        >>> frame.rotation.diagonal()
        tensor([1., 1., 1.])
    """
    origin = precise(origin)
    first = _unit(precise(on_axis) - origin)
    across = precise(in_plane) - origin
    second = _unit(across - (first * across).sum(-1, keepdim=True) * first)
    third = torch.linalg.cross(first, second)
    return Frames(torch.stack((first, second, third), -1), origin)


def _unit(vector: Tensor) -> Tensor:
    """Of length 1; 0 stays 0."""
    return vector * torch.rsqrt(vector.square().sum(-1, keepdim=True).clamp(min=1e-16))
