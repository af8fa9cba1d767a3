"""HaloNet's blocked local attention: all pixels of a b x b block attend to the block and a halo of h pixels around it.

Vaswani et al. 2021, arXiv:2103.12731, section 2.2. Blocks start at multiples of b; the queries of one share the window
of (b + 2 h)^2 keys, whose offsets from a query, r down and c to the right, are -(b + h - 1) to b + h - 1::

    logit = s q . k + t q . (R_row[r] + R_col[c])        y = sum over the window of softmax(logit) v

with s = 1 / sqrt(D), and t = s or, with ``scale_rel=False``, 1. One pair of tables serves all heads. With a stride only
the pixels 0, stride, 2 stride, ... of each axis ask: that is how HaloNets shrink maps, at 1 / stride^2 of the price.

What lies outside of the image is left out; with ``edge="zeros"``, as in timm, pixels of 0 take weight from the others
there, and masked pixels are such zeros too. Sides need not divide: the last blocks are cut. The paper has no output
projection, the next 1 x 1 convolution of its bottleneck is that. timm counts the offsets of strided queries on their
own coarse grid, which no distance in the image is; ``coarse_offsets`` does so for its weights.

For N pixels time is O(N (b + 2 h)^2 C / stride^2) and memory O(N (C + H (b + h))); keys and values are not copied into
windows. Halo 0 gives windows as in Swin, block 1 those of SASA.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.map_layers import WeighingLayer
from regard.ops.grid_offsets import AxisWindows, by_remainder, outside_lse, with_offsets
from regard.patterns import Halo, Pattern
from regard.registry import Card, Sample, register

Edge = Literal["mask", "zeros"]


def halo_attention(
    q: Float[Tensor, "B H y x D"],
    k: Float[Tensor, "B H Y X D"],
    v: Float[Tensor, "B H Y X Dv"],
    rows: Float[Tensor, "R D"],
    columns: Float[Tensor, "R D"],
    *,
    block: int,
    halo: int,
    stride: int = 1,
    scale: float | None = None,
    scale_rel: float | None = None,
    edge: Edge = "mask",
    coarse_offsets: bool = False,
    key_mask: Bool[Tensor, "B Y X"] | None = None,
) -> Float[Tensor, "B H y x Dv"]:
    """The formula at the head of this file.

    Args:
        q: of the pixels 0, stride, 2 stride, ... of each axis, heads first.
        k, v: of every pixel.
        rows, columns: the relative tables, the largest offset last: R = 2 (b + h) - 1, or b + 2 h + b / stride - 1 for
            coarse offsets; in longer tables the first rows are idle.
        block, halo: b and h.
        stride: a divisor of b.
        scale, scale_rel: s and t, the defaults are 1 / sqrt(D) and s.
        edge: "mask" or "zeros".
        coarse_offsets: from a query's place in its block among the queries only, not among the pixels.
        key_mask: True for pixels that take part.

    Returns:
        (B, H, y, x, Dv); 0 where a window holds nothing.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 6, 4)
        >>> halo_attention(q, k, v, *torch.randn(2, 5, 4), block=2, halo=1).shape
        torch.Size([1, 2, 5, 6, 4])
    """
    content = q.shape[-1] ** -0.5 if scale is None else scale
    relative = content if scale_rel is None else scale_rel
    if edge == "zeros" and key_mask is not None:
        k, v = (t.masked_fill(~key_mask[:, None, ..., None], 0.0) for t in (k, v))
        key_mask = None
    windows: list[AxisWindows] = []
    scores: list[Tensor] = []
    for axis, table in enumerate((rows, columns)):
        own = torch.arange(q.shape[axis + 2], device=q.device) * stride
        window = AxisWindows(own // block * block - halo, block + 2 * halo, k.shape[axis + 2])
        place = own % block // (stride if coarse_offsets else 1)
        entry = window.steps - place[:, None] + len(table) - window.span
        products = F.linear(q.movedim(1, 3), table * relative).movedim(3, 1)  # as it lies in memory, without a copy
        windows.append(window)
        scores.append(by_remainder(products, entry, axis))
    wide_q, wide_k = with_offsets(q * content, k, scores[0], scores[1])
    out, lse = attend(
        wide_q.flatten(2, 3),
        wide_k.flatten(2, 3),
        v.flatten(2, 3),
        Halo(tuple(k.shape[2:4]), block, halo, stride),
        key_mask=None if key_mask is None else key_mask.flatten(1),
        scale=1.0,
        return_lse=True,
    )
    out, lse = out.unflatten(2, q.shape[2:4]), lse.unflatten(2, q.shape[2:4])
    if edge == "mask":
        return out
    beyond = outside_lse(scores[0], scores[1], (windows[0], windows[1]))
    return out * torch.sigmoid(lse - beyond)[..., None].to(out.dtype)  # zeros outside are a part with value 0


@register(
    "halonet",
    samples=[
        Sample(dim=12, num_heads=3, block=3, halo=1),
        Sample(dim=8, num_heads=2, block=4, halo=1, stride=2, dim_out=12, edge="zeros", coarse_offsets=True),
        Sample(dim=8, num_heads=2, block=2, halo=2, head_dim=3, project=True, qkv_bias=True, scale_rel=False),
    ],
)
class HaloNet(WeighingLayer):
    """Blocked local attention with halos in the place of a convolution; see the head of this file.

    Args:
        dim: C.
        num_heads: H.
        block, halo: b and h.
        stride: a divisor of b; the output has ceil(side / stride) pixels a side.
        dim_out: C_out, the default is C. Without ``project`` these are the values' channels, head h making h C_out / H
            to (h + 1) C_out / H - 1.
        head_dim: D of queries and keys, the default is C / H; with ``project`` also of values.
        edge: "mask" or "zeros".
        scale_rel: scale the relative term as the products of queries and keys.
        coarse_offsets: count the offsets of strided queries as timm does.
        qkv_bias: biases on the projections of queries, keys and values.
        project: an output projection, with a bias.

    Raises:
        ValueError: sizes that do not fit.
    """

    card = Card(
        title="HaloNet",
        paper="arXiv:2103.12731",
        year=2021,
        family="patterned",
        data="map",
        refuses={"causal": "a block sees its halo on all sides"},
        smooth=True,
        padding="end",
        dynamic=False,  # windows are planned for fixed sides: a graph holds for one size of maps only
        cost="N (b + 2 h)^2",
        summary="Attention of blocks of pixels to themselves and a halo: local attention at the speed of convolutions.",
        formula="softmax(q . k + q . (R_row + R_col)) v over the query's b x b block and h pixels around it",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        block: int = 8,
        halo: int = 3,
        stride: int = 1,
        dim_out: int | None = None,
        head_dim: int | None = None,
        *,
        edge: Edge = "mask",
        scale_rel: bool = True,
        coarse_offsets: bool = False,
        qkv_bias: bool = False,
        project: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = head_width(dim, num_heads, head_dim)
        dim_out = dim if dim_out is None else dim_out
        values = width * num_heads if project else dim_out
        if values % num_heads or dim_out < 1:
            raise ValueError(
                f"dim_out={dim_out} is no multiple of num_heads={num_heads}: choose another, or project=True"
            )
        if min(block, stride, halo + 1) < 1 or block % stride:
            raise ValueError(
                f"block={block}, halo={halo}, stride={stride}: no blocks, or a stride that does not divide them"
            )
        if edge not in ("mask", "zeros"):
            raise ValueError(f'edge={edge!r} is neither "mask" nor "zeros"')
        self.dim, self.dim_out, self.num_heads, self.head_dim = dim, dim_out, num_heads, width
        self.block, self.halo, self.stride = block, halo, stride
        self.scale_rel, self.coarse_offsets = scale_rel, coarse_offsets
        self.edge: Edge = edge
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj, self.k_proj = (nn.Linear(dim, width * num_heads, bias=qkv_bias, **factory) for _ in range(2))
        self.v_proj = nn.Linear(dim, values, bias=qkv_bias, **factory)
        self.out_proj = nn.Linear(values, dim_out, **factory) if project else None
        length = 2 * halo + block + block // (stride if coarse_offsets else 1) - 1
        self.rows, self.columns = (nn.Parameter(torch.empty(length, width, **factory)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices as torch draws linear layers, tables normal with variance 1 / D."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            if linear is not None:
                linear.reset_parameters()
        for table in (self.rows, self.columns):
            nn.init.normal_(table, std=self.head_dim**-0.5)

    def pattern_on(self, sides: Sequence[int]) -> Pattern:
        """The blocks with their halos."""
        return Halo(tuple(sides), self.block, self.halo, self.stride)

    def answered(self, query_mask: Tensor) -> Tensor:
        """An output is real where the pixel is that asks for it."""
        return query_mask[:, :: self.stride, :: self.stride]

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attend; see :class:`regard.map_layers.MapLayer`."""
        pixels = x.movedim(1, -1).contiguous()
        out = self._attend(pixels, self._heads(self.v_proj, pixels), key_mask)
        if self.out_proj is not None:
            return self.out_proj(out.movedim(1, 3).flatten(3)).movedim(-1, 1)
        return out.movedim(-1, 2).flatten(1, 2)

    def mix(
        self,
        x: Tensor,
        source: Tensor,
        values: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """What the windows make of other values; see :class:`regard.map_layers.WeighingLayer`."""
        pixels = x.movedim(1, -1).contiguous()
        return self._attend(pixels, values.unflatten(2, x.shape[2:]), key_mask).flatten(2, 3)

    def _attend(self, pixels: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return halo_attention(
            self._heads(self.q_proj, pixels[:, :: self.stride, :: self.stride]),
            self._heads(self.k_proj, pixels),
            v,
            self.rows,
            self.columns,
            block=self.block,
            halo=self.halo,
            stride=self.stride,
            scale_rel=None if self.scale_rel else 1.0,
            edge=self.edge,
            coarse_offsets=self.coarse_offsets,
            key_mask=key_mask,
        )

    def _heads(self, linear: nn.Linear, pixels: Tensor) -> Tensor:
        """-> (B, H, Y, X, D)."""
        return linear(pixels).unflatten(-1, (self.num_heads, -1)).movedim(3, 1)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, block={self.block}, halo={self.halo}, stride={self.stride}, "
            f"dim_out={self.dim_out}, edge={self.edge!r}, scale_rel={self.scale_rel}"
        )
