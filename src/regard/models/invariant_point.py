"""Invariant point attention: residues that carry frames look at each other, wherever the whole lies in space.

Jumper et al. 2021, "Highly accurate protein structure prediction with AlphaFold", Nature 596, supplement algorithm 22.
With frames T_i, scalars q, k, v and points q', k', v' in local coordinates, for each head::

    d_ij = sum_p |T_i q'_ip - T_j k'_jp|^2
    a_ij = softmax_j sqrt(1/3) [ q_i.k_j / sqrt(c) + b_ij - softplus(g)/2 sqrt(2 / (9 P)) d_ij ]
    out_i = Linear[ sum_j a_ij v_j,  o = T_i^-1 sum_j a_ij T_j v'_jp,  |o|,  sum_j a_ij z_ij ]

A rotation and a translation of all frames change nothing. As in the authors' code the projections have biases (in the
paper none), and a masked pair has 1e5 less. The squared distance is part of the dot product, [q'; |q'|^2; 1] with
[-2 k'; 1; |k'|^2], in float64, because close points far from the origin are the difference of large numbers. So no
tensor of H R^2 P numbers arises; the last sum needs the map itself, H R^2 numbers. Time O(H R^2 (c + P + c_z)).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.frames import Frames
from regard.ops.masks import check_mask, check_tokens, hide
from regard.ops.projection import Projection

FAR = 1e5
"""What a masked pair has less; the authors' number."""


def invariant_point_attention(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H R D"],
    v: Float[Tensor, "B H R Dv"],
    q_points: Float[Tensor, "B H R P 3"],
    k_points: Float[Tensor, "B H R P 3"],
    v_points: Float[Tensor, "B H R Pv 3"],
    bias: Float[Tensor, "B H R R"],
    pair: Float[Tensor, "B R R Cz"],
    frames: Frames,
    point_weights: Float[Tensor, " H"],
    mask: Bool[Tensor, "B R"] | None = None,
) -> Float[Tensor, "B R F"]:
    """What algorithm 22 computes between its projections.

    Args:
        q, k, v: scalars, heads first.
        q_points, k_points, v_points: in the local coordinates of their residues.
        bias: b, what the pair map adds to the scores of each head.
        pair: z, of which each residue gathers its row.
        frames: T, (B, R).
        point_weights: g; softplus(g) weighs the distances of a head.
        mask: True for real residues.

    Returns:
        H (Dv + 4 Pv + Cz) features a residue: scalars, x, y, z and norms of the points, and pairs, heads first in each.

    Example:
        >>> from regard.ops.frames import identity
        >>> q = torch.randn(1, 2, 5, 4); points = torch.randn(1, 2, 5, 3, 3); pair = torch.randn(1, 5, 5, 6)
        >>> frames, weights = identity(1, 5, like=q), torch.zeros(2)
        >>> bias = torch.zeros(1, 2, 5, 5)
        >>> invariant_point_attention(q, q, q, points, points, points, bias, pair, frames, weights).shape
        torch.Size([1, 5, 44])
    """
    frames = _centred(frames, mask)
    places = frames.at(slice(None), None, slice(None), None)  # (B, 1, R, 1): all heads, all points
    logits = _scores(q, k, places.apply(q_points), places.apply(k_points), point_weights)
    logits = logits + bias * math.sqrt(1 / 3)
    if mask is not None:
        together = mask[:, None, :, None] & mask[:, None, None, :]
        logits = logits - FAR * (~together)
    weights = logits.softmax(-1)
    scalars, points = v.shape[-1], places.apply(v_points).flatten(-2)
    with torch.autocast(q.device.type, enabled=False):  # a sum of places must not be taken in half precision
        seen = weights @ torch.cat((v.to(points), points), -1)
    local = places.invert_apply(seen[..., scalars:].unflatten(-1, (-1, 3)))
    features = (
        seen[..., :scalars].transpose(1, 2),
        local.permute(0, 2, 4, 1, 3),
        (local.square().sum(-1) + 1e-8).sqrt().transpose(1, 2),
        weights.to(pair.dtype).transpose(1, 2).contiguous() @ pair,  # a copy here spares the product its strides
    )
    return torch.cat([t.flatten(2).to(q.dtype) for t in features], -1)


def _centred(frames: Frames, mask: Tensor | None) -> Frames:
    """With the mean of all real residues in the origin, where numbers are smallest; it cancels everywhere."""
    translation = hide(frames.translation, mask)
    count = translation.shape[1] if mask is None else mask.sum(1).clamp(min=1)[:, None, None]
    return Frames(frames.rotation, frames.translation - translation.sum(1, keepdim=True) / count)


def _scores(q: Tensor, k: Tensor, q_points: Tensor, k_points: Tensor, point_weights: Tensor) -> Tensor:
    """Scalars and distances of all pairs in one matrix product, (B, H, R, R)."""
    spread = math.sqrt(1 / (3 * 4.5 * max(1, q_points.shape[-2])))  # a third of the variance, 9/2 a point
    weight = 0.5 * spread * F.softplus(point_weights.double())[:, None, None]
    a, b = q_points.flatten(-2).double(), k_points.flatten(-2).double()
    a_squared, b_squared = (t.square().sum(-1, keepdim=True) for t in (a, b))
    ones = torch.ones_like(a_squared)
    left = (q.double() * math.sqrt(1 / (3 * max(1, q.shape[-1]))), 2 * weight * a, -weight * a_squared, -weight * ones)
    scores = torch.cat(left, -1) @ torch.cat((k.double(), b, ones, b_squared), -1).mT
    return scores.to(torch.promote_types(q.dtype, torch.float32))


class InvariantPointAttention(nn.Module):
    """Algorithm 22; see the head of this file.

    Args:
        dim: c_s, of the single representation.
        pair_dim: c_z.
        num_heads: H.
        head_dim: c, of queries and keys.
        value_dim: of values; the default is c.
        query_points, value_points: points of each query, and of each value.

    Raises:
        ValueError: sizes below 1, or shapes that do not fit.

    Example:
        >>> from regard.ops.frames import identity
        >>> attention = InvariantPointAttention(8, 6, num_heads=2)
        >>> single, pair = torch.randn(1, 5, 8), torch.randn(1, 5, 5, 6)
        >>> attention(single, pair, identity(1, 5, like=single)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int = 384,
        pair_dim: int = 128,
        num_heads: int = 12,
        head_dim: int = 16,
        *,
        value_dim: int | None = None,
        query_points: int = 4,
        value_points: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        value_dim = head_dim if value_dim is None else value_dim
        if min(dim, pair_dim, num_heads, head_dim, value_dim, query_points, value_points) < 1:
            raise ValueError("the sizes of InvariantPointAttention must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.pair_dim, self.num_heads = dim, pair_dim, num_heads
        self.scalars, self.points = (head_dim, value_dim), (query_points, value_points)
        self.query = Projection(dim, num_heads * head_dim, **factory)
        self.key_value = Projection(dim, num_heads * (head_dim + value_dim), **factory)
        self.query_points = Projection(dim, 3 * num_heads * query_points, **factory)
        self.key_value_points = Projection(dim, 3 * num_heads * (query_points + value_points), **factory)
        self.pair_bias = Projection(pair_dim, num_heads, **factory)
        self.point_weights = nn.Parameter(torch.empty(num_heads, **factory))
        features = num_heads * (value_dim + 4 * value_points + pair_dim)
        self.output = Projection(features, dim, "zero", **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """softplus(g) = 1; maps from a normal distribution by their fan-in, the output 0."""
        for part in self.children():
            if isinstance(part, Projection):
                part.reset_parameters()
        nn.init.constant_(self.point_weights, math.log(math.e - 1))

    def forward(
        self,
        single: Float[Tensor, "B R C"],
        pair: Float[Tensor, "B R R Cz"],
        frames: Frames,
        *,
        mask: Bool[Tensor, "B R"] | None = None,
    ) -> Float[Tensor, "B R C"]:
        """Attend.

        Args:
            single: s, one vector a residue.
            pair: z, one vector a pair.
            frames: T, (B, R), in any unit of length; see :class:`regard.models.structure_module.StructureModule`.
            mask: True for real residues; the others change nothing, and get 0.

        Returns:
            The update of the single representation.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
        """
        check_tokens(single, self.dim, "single")
        batch, length, _ = single.shape
        if pair.shape != (batch, length, length, self.pair_dim):
            expected = (batch, length, length, self.pair_dim)
            raise ValueError(f"pair has shape {tuple(pair.shape)}, expected {expected}: one vector a pair of residues")
        if frames.rotation.shape != (batch, length, 3, 3) or frames.translation.shape != (batch, length, 3):
            shapes = f"{tuple(frames.rotation.shape)} and {tuple(frames.translation.shape)}"
            raise ValueError(f"frames have shapes {shapes}, but there are {batch} x {length} residues: one frame each")
        check_mask(mask, batch, length, "mask")
        if mask is None:
            return self.update(single, pair, frames, None)
        rotation = frames.rotation.masked_fill(~mask[..., None, None], 0.0)
        frames = Frames(rotation, hide(frames.translation, mask))
        pair = pair.masked_fill(~(mask[:, :, None] & mask[:, None])[..., None], 0.0)
        return hide(self.update(hide(single, mask), pair, frames, mask), mask)

    def update(self, single: Tensor, pair: Tensor, frames: Frames, mask: Tensor | None) -> Tensor:
        """Without the door: masked residues must hold numbers, and what they get means nothing."""
        q = self.query(single).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self._heads(self.key_value(single)).split(self.scalars, -1)
        q_points = self._points(self.query_points(single))
        k_points, v_points = self._points(self.key_value_points(single)).split(self.points, 3)
        features = invariant_point_attention(
            q, k, v, q_points, k_points, v_points, self._bias(pair), pair, frames, self.point_weights, mask
        )
        return self.output(features)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _points(self, x: Tensor) -> Tensor:
        """(B, R, all x, all y, all z) -> (B, H, R, P, 3)."""
        return x.unflatten(-1, (3, self.num_heads, -1)).permute(0, 3, 1, 4, 2)

    def _bias(self, pair: Tensor) -> Tensor:
        """b (B, H, R, R), heads first at once."""
        return self.pair_bias(pair).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, pair_dim={self.pair_dim}, num_heads={self.num_heads}"
