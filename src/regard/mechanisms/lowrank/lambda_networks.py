"""Lambda layers: the context becomes a small matrix for each pixel, a lambda, which is applied to its queries.

Bello 2021, arXiv:2102.08602, section 3 and appendix. For pixels n and m, key width k and value width v::

    lambda_n = sum_m (softmax_m(K)_m + E[m - n]) V_m        (k, v), the softmax runs over all pixels
    y[n, h]  = lambda_n^T q[n, h]                           the same lambda for every head h

Keys and values are shared by the heads; of intra-depth u there are u of each, whose lambdas are summed. Queries and
values are batch-normalised, keys are not; there is no scale and no output projection. E belongs to offsets: in the
local form (``kernel=r``, a "lambda convolution") those within r x r, in the global form (``grid=``) all that a map has.
So the position lambdas are a convolution of the values with few channels, whatever the number of heads, and never the
(N, N, k, u) table that is usually gathered. Pixels outside of the map, and masked ones, add nothing. Time for N pixels
is O(N r^2 k v u) forwards as long as r is small, else O(N log N k v u), and always so backwards; memory O(N k v).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.layers import head_width
from regard.map_layers import MapLayer, hide_pixels
from regard.ops.batch_norm import TokenBatchNorm
from regard.ops.dense_gradient import dense_gradient
from regard.ops.masks import check_values, hide_rows
from regard.ops.same_convolution import same_convolution
from regard.registry import Card, Sample, register


def lambda_attention(
    q: Float[Tensor, "B *grid H k"],
    k: Float[Tensor, "B *grid u k"],
    v: Float[Tensor, "B *grid u v"],
    table: Float[Tensor, "k u *kernel"],
    *,
    bias: Float[Tensor, " k"] | None = None,
    key_mask: Bool[Tensor, "B *grid"] | None = None,
) -> Float[Tensor, "B *grid H v"]:
    """Content and position lambdas of a map, applied to its queries, in float32 at least.

    Args:
        q, k, v: queries of each head, keys and values, with the features last.
        table: E, odd sides; the pixel at offset d - r // 2 from the one that asks meets ``table[..., d]``.
        bias: added to each column of every lambda.
        key_mask: True for pixels that count.

    Example:
        >>> q, k, v = torch.randn(1, 4, 5, 2, 3), torch.randn(1, 4, 5, 1, 3), torch.randn(1, 4, 5, 1, 6)
        >>> lambda_attention(q, k, v, torch.randn(3, 1, 7, 7)).shape
        torch.Size([1, 4, 5, 2, 6])
    """
    dtype, shape, (heads, width) = torch.promote_types(q.dtype, torch.float32), q.shape[:-2], q.shape[-2:]
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, table = (t.to(dtype) for t in (q, k, v, table))
        if key_mask is not None:
            hidden = ~key_mask[..., None, None]
            k, v = k.masked_fill(hidden, torch.finfo(dtype).min), v.masked_fill(hidden, 0.0)
        weights = k.flatten(1, -3).softmax(1)
        content = weights.flatten(1, 2).mT @ v.flatten(1, -2)
        if bias is not None:
            some = (
                1.0 if key_mask is None else key_mask.flatten(1).any(1)[:, None, None]
            )  # else there is no lambda at all
            content = content + bias.to(dtype)[:, None] * some
        maps = v.movedim((-1, -2), (1, 2)).flatten(0, 1).contiguous()
        position = same_convolution(maps, table).view(q.shape[0], v.shape[-1], width, -1)
        position = position.permute(0, 3, 2, 1).contiguous().flatten(0, 1)
        first = q.flatten(1, -2) @ content
        out = torch.baddbmm(first.view(-1, heads, v.shape[-1]), q.reshape(-1, heads, width), position)
    return dense_gradient(out).view(*shape, heads, -1)


@register(
    "lambda_networks",
    samples=[
        Sample(dim=12, num_heads=3, head_dim=4, kernel=5),
        Sample(dim=12, num_heads=2, head_dim=4, grid=(9, 11), intra_depth=2, bias=True, dim_out=10),
        Sample(dim=12, num_heads=2, head_dim=4, kernel=3, stride=2, claims={"padding": "end"}),
    ],
)
class LambdaNetworks(MapLayer):
    """Projections and batch norms around lambdas; see the head of this file.

    Args:
        dim: C.
        num_heads: H, of the queries.
        head_dim: k, the width of queries and keys.
        kernel: r, odd, of the local form; None: 23, as in the paper's ResNets.
        grid: sides of the largest map, for the global form instead.
        intra_depth: u.
        dim_out: the width of y, C by default; H times v.
        bias: a learned vector added to each column of the lambdas, which the paper does not have.
        stride: 2 adds the average over 3 pixels along each axis, at every second pixel, that stands for the stride of
            the convolution that was replaced; pixels outside of the map and masked ones are in no average.
        num_axes: 2 for images, 1 for sequences, 3 for volumes.

    Raises:
        ValueError: sizes that do not fit.
    """

    card = Card(
        title="LambdaNetworks",
        paper="arXiv:2102.08602",
        year=2021,
        family="lowrank",
        data="map",
        smooth=True,
        stochastic=("batch_norm",),
        refuses={"causal": "every lambda has seen the whole map"},
        cost="N r^2, N log N",
        summary="Long-range content and position for images at the memory of a convolution, with no map of weights.",
        formula="y_n = (sum over m of (softmax(K)_m + E[m - n]) V_m)^T q_n",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        head_dim: int = 16,
        kernel: int | None = None,
        grid: Sequence[int] | None = None,
        *,
        intra_depth: int = 1,
        dim_out: int | None = None,
        bias: bool = False,
        stride: int = 1,
        num_axes: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sides = _kernel(kernel, grid, num_axes)
        width = head_width(dim if dim_out is None else dim_out, num_heads)
        if min(dim, head_dim, intra_depth) < 1 or stride not in (1, 2):
            raise ValueError(
                f"dim={dim}, head_dim={head_dim}, intra_depth={intra_depth} must be positive, stride={stride} 1 or 2"
            )
        self.dim, self.num_heads, self.num_axes, self.stride = dim, num_heads, num_axes, stride
        self.grid = None if grid is None else tuple(grid)
        self.intra_depth = intra_depth
        if stride == 2:
            self.card: Card = dataclasses.replace(
                self.card, padding="end"
            )  # every second pixel, counted from the first
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=False, **factory)
        self.k_proj = nn.Linear(dim, intra_depth * head_dim, bias=False, **factory)
        self.v_proj = nn.Linear(dim, intra_depth * width, bias=False, **factory)
        self.q_norm = TokenBatchNorm(num_heads * head_dim, **factory)
        self.v_norm = TokenBatchNorm(intra_depth * width, **factory)
        self.table = nn.Parameter(torch.empty(head_dim, intra_depth, *sides, **factory))
        self.bias = nn.Parameter(torch.empty(head_dim, **factory)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal, of deviation 1 for E, (k C)^(-1/2) for queries and C^(-1/2) for keys and values; biases 0."""
        nn.init.normal_(self.q_proj.weight, std=(self.table.shape[0] * self.dim) ** -0.5)
        nn.init.normal_(self.k_proj.weight, std=self.dim**-0.5)
        nn.init.normal_(self.v_proj.weight, std=self.dim**-0.5)
        nn.init.normal_(self.table)
        self.q_norm.reset_parameters()
        self.v_norm.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def admit(
        self,
        x: Tensor,
        context: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The door of all layers on maps, and of those of a global form that fit its table."""
        admitted = super().admit(x, context, key_mask, query_mask, segments)
        if self.grid is not None and any(n > most for n, most in zip(x.shape[2:], self.grid, strict=True)):
            raise ValueError(f"x has shape {tuple(x.shape)}, but this layer knows offsets within grid={self.grid} only")
        return admitted

    def answered(self, query_mask: Tensor) -> Tensor:
        """Of every second pixel, with ``stride=2``."""
        second = (slice(None, None, self.stride),) * (query_mask.ndim - 1)
        return query_mask[(..., *second)].contiguous()  # a graph need not ask then whether it can be viewed as a row

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Form the lambdas and apply them; see :class:`regard.map_layers.MapLayer`."""
        q, k, v = self._project(x, key_mask, query_mask)
        out = lambda_attention(q, k, v, self.table, bias=self.bias, key_mask=key_mask)
        y = out.to(v.dtype).flatten(-2).movedim(-1, 1)
        return y if self.stride == 1 else _halved(y, query_mask)

    def weigh(
        self,
        x: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """What the same weights make of other values: q[n, h] . (softmax(K)_m + E[m - n]) for each head and depth.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H u or 1, M, Dv), one for each pixel.

        Returns:
            (B, H u, N, Dv), before the stride and without the bias; a head of y is the sum of its u.
        """
        x, _, key_mask, query_mask = self.admit(x, context, key_mask, query_mask, segments)
        q, k, _ = self._project(x, key_mask, query_mask)
        batch, sides, depth = x.shape[0], x.shape[2:], self.intra_depth
        check_values(values, batch, self.num_heads * depth, math.prod(sides))
        heads = max(1, values.shape[1] // depth)  # those with values of their own have lambdas of their own
        values = values.to(q.dtype).expand(batch, heads * depth, -1, -1).unflatten(2, sides)
        values = values.unflatten(1, (heads, depth)).flatten(0, 1)
        q = q.unflatten(-2, (heads, -1)).movedim(-3, 1).flatten(0, 1)
        k = k.repeat_interleave(heads, 0)
        mask = None if key_mask is None else key_mask.repeat_interleave(heads, 0)
        outs = [
            lambda_attention(q, k[..., [d], :], values[:, d, ..., None, :], self.table[:, [d]], key_mask=mask)
            for d in range(depth)
        ]
        out = torch.stack(outs, -2).flatten(1, -4)  # (B heads, N, H / heads, u, Dv)
        out = out.movedim(1, -2).reshape(batch, self.num_heads * depth, -1, values.shape[-1])
        return hide_rows(out, None if query_mask is None else query_mask.flatten(1))

    def _project(self, x: Tensor, key_mask: Tensor | None, query_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, *grid, H, k), keys (B, *grid, u, k) and values (B, *grid, u, v)."""
        pixels = x.movedim(1, -1).contiguous()
        q = self.q_norm(self.q_proj(pixels), query_mask)
        v = self.v_norm(self.v_proj(pixels), key_mask)
        return tuple(
            t.unflatten(-1, (parts, -1))
            for t, parts in ((q, self.num_heads), (self.k_proj(pixels), self.intra_depth), (v, self.intra_depth))
        )

    def extra_repr(self) -> str:
        kernel = tuple(self.table.shape[2:])
        return f"dim={self.dim}, num_heads={self.num_heads}, kernel={kernel}, grid={self.grid}, stride={self.stride}"


def _kernel(kernel: int | None, grid: Sequence[int] | None, axes: int) -> tuple[int, ...]:
    """The sides of E."""
    if axes not in (1, 2, 3):
        raise ValueError(f"num_axes={axes}: lines, images and volumes have 1 to 3")
    if grid is None:
        side = 23 if kernel is None else kernel
        if side < 1 or side % 2 == 0:
            raise ValueError(f"kernel={side}: an odd number has a pixel in its middle")
        return (side,) * axes
    if kernel is not None:
        raise ValueError(f"kernel={kernel} is the local form, grid={tuple(grid)} the global one: pass one of them")
    if len(grid) != axes or min(grid) < 1:
        raise ValueError(f"grid={tuple(grid)} holds no {axes} positive sides")
    return tuple(2 * side - 1 for side in grid)


def _halved(y: Float[Tensor, "B C *grid"], mask: Bool[Tensor, "B *grid"] | None) -> Float[Tensor, "B C *half"]:
    """The mean over 3 pixels along each axis, at every second one, of those that are there."""
    pool = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}[y.ndim]
    # contiguous: on CUDA torch's gradient of this mean is wrong for maps whose channels come last in memory
    sums = pool(hide_pixels(y, mask).contiguous(), 3, 2, 1, count_include_pad=False)
    if mask is None:
        return sums
    share = pool(mask[:, None].to(y.dtype), 3, 2, 1, count_include_pad=False)
    return sums / share.masked_fill(share == 0, 1.0)
