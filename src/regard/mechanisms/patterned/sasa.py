"""Stand-alone self-attention: every pixel attends to the k x k pixels around it, in the place of a convolution.

Ramachandran et al. 2019, arXiv:1906.05909, eq. 2 to 5. A key (a, b) steps below and beside the window's first pixel,
which lies k // 2 rows and columns before the query, has its row's table entry for the first half of the query's
features and its column's for the second; nothing is scaled::

    logit_ab = q . k_ab + q[: D/2] . R_row[a] + q[D/2 :] . R_col[b]        y = sum_ab softmax(logit)_ab v_ab

The parameters do not grow with k. Time for N pixels is O(N k^2 C), memory O(N (C + H k)): no window is copied.

The paper does not say what lies outside of the image. ``edge="mask"``: nothing, windows are cut there. With "zeros"
there are pixels of 0, which take weight from the others, and masked pixels are such zeros too. The layer has no output
projection: in the paper's bottleneck the next 1 x 1 convolution is that. A strided layer attends everywhere and then
takes means of stride x stride pixels, of those that are real, and of fewer at the border of sides that do not divide.

The stem (section 3.2) mixes M values of a pixel by a softmax p that knows its place in the window, in all heads alike::

    v_ab = sum_m p_ab[m] W_m x_ab,     p_ab = softmax_m((E_row[a] + E_col[b]) . nu_m)

which is, for each m, attention with log p_ab[m] added to the logits, the parts joined by their lse.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend, merge
from regard.layers import head_width
from regard.map_layers import WeighingLayer, hide_pixels
from regard.ops.grid_offsets import AxisWindows, by_remainder, outside_lse, with_offsets
from regard.patterns import Halo, Neighborhood, Pattern
from regard.registry import Card, Sample, UnsupportedError, register
from regard.scores import Bias, RelativeGrid

Edge = Literal["mask", "zeros"]


def stand_alone_attention(
    q: Float[Tensor, "B H Y X D"],
    k: Float[Tensor, "B H Y X D"],
    v: Float[Tensor, "B H Y X Dv"],
    rows: Float[Tensor, "H k half"] | None = None,
    columns: Float[Tensor, "H k half"] | None = None,
    *,
    kernel: int,
    edge: Edge = "mask",
    key_mask: Bool[Tensor, "B Y X"] | None = None,
    mixing: Float[Tensor, "M k k"] | None = None,
) -> Float[Tensor, "B H Y X W"]:
    """The formulas at the head of this file.

    Args:
        q, k, v: of each pixel, heads first; with ``mixing`` v holds M values side by side, Dv = M W.
        rows, columns: the relative tables, or neither.
        kernel: k, even or odd, also larger than the image.
        edge: "mask" or "zeros".
        key_mask: True for pixels that take part.
        mixing: the logits of p, for the stem.

    Returns:
        (B, H, Y, X, W), W = Dv without ``mixing``; 0 where a window holds nothing.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 6, 4)
        >>> stand_alone_attention(q, k, v, kernel=3).shape
        torch.Size([1, 2, 5, 6, 4])
    """
    if edge == "zeros" and key_mask is not None:
        k, v = (t.masked_fill(~key_mask[:, None, ..., None], 0.0) for t in (k, v))
        key_mask = None
    y_windows, x_windows = (
        AxisWindows(torch.arange(side, device=q.device) - kernel // 2, kernel, side) for side in q.shape[2:4]
    )
    row_scores = column_scores = q.new_zeros(1, 1, 1, 1, kernel)
    if rows is not None and columns is not None:
        asks_row, asks_column = q.chunk(2, -1)
        row_scores = by_remainder(_products(asks_row, rows), y_windows.steps, 0)
        column_scores = by_remainder(_products(asks_column, columns), x_windows.steps, 1)
        q, k = with_offsets(q, k, row_scores, column_scores)
    if mixing is None:
        out, lse = _in_windows(q, k, v, kernel, key_mask)
    else:
        parts = zip(v.chunk(mixing.shape[0], -1), _by_offset(mixing.log_softmax(0)), strict=True)
        out, lse = merge(
            *zip(*(_in_windows(q, k, part, kernel, key_mask, table) for part, table in parts), strict=True)
        )
    if edge == "mask":
        return out
    beyond = outside_lse(row_scores, column_scores, (y_windows, x_windows))
    return out * torch.sigmoid(lse - beyond)[..., None].to(out.dtype)  # zeros outside are a part with value 0


def blocked_attention(
    q: Float[Tensor, "B H Y X D"],
    k: Float[Tensor, "B H Y X D"],
    v: Float[Tensor, "B H Y X Dv"],
    mixing: Float[Tensor, "M k k"],
    *,
    kernel: int,
    key_mask: Bool[Tensor, "B Y X"] | None = None,
) -> Float[Tensor, "B H Y X W"]:
    """The stem within k x k blocks; arguments as of :func:`stand_alone_attention`."""
    sides = q.shape[2:4]
    y, x = (torch.arange(side, device=q.device) % kernel for side in sides)
    shares = mixing.softmax(0)[:, y[:, None], x]
    v = torch.einsum("bhyxmw,myx->bhyxw", v.unflatten(-1, (mixing.shape[0], -1)), shares)
    mask = None if key_mask is None else key_mask.flatten(1)
    q, k, v = (t.flatten(2, 3) for t in (q, k, v))
    return attend(q, k, v, Halo(tuple(sides), kernel, 0), key_mask=mask, scale=1.0).unflatten(2, sides)


def _products(q: Float[Tensor, "B H Y X D"], table: Float[Tensor, "H R D"]) -> Float[Tensor, "B H Y X R"]:
    return (q.flatten(2, 3) @ table.mT).unflatten(2, q.shape[2:4])


def _by_offset(table: Float[Tensor, "M k k"]) -> Float[Tensor, "M 1 R"]:
    """What belongs to the places of a window, in the order of :class:`regard.scores.RelativeGrid`."""
    kernel = table.shape[-1]
    before, after = kernel - 1 - kernel // 2, kernel // 2
    return F.pad(table, (before, after, before, after)).flatten(1)[:, None]


def _in_windows(
    q: Tensor, k: Tensor, v: Tensor, kernel: int, key_mask: Tensor | None, table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """-> out (B, H, Y, X, W) and lse (B, H, Y, X) of the windows, cut at the border; ``table`` scores offsets."""
    height, width = q.shape[2:4]
    grid = (max(height, kernel), max(width, kernel))
    if grid != (height, width):  # a pattern's kernel is no larger than its grid
        more = (0, grid[1] - width, 0, grid[0] - height)
        real = q.new_ones(q.shape[0], height, width, dtype=torch.bool) if key_mask is None else key_mask
        q, k, v, key_mask = (*(F.pad(t, (0, 0, *more)) for t in (q, k, v)), F.pad(real, more))
    q, k, v = (t.flatten(2, 3) for t in (q, k, v))
    out, lse = attend(
        q,
        k,
        v,
        Neighborhood(grid, kernel, edge="clip"),
        key_mask=None if key_mask is None else key_mask.flatten(1),
        score=None if table is None else Bias(table, RelativeGrid(grid, kernel)),
        scale=1.0,
        return_lse=True,
    )
    out, lse = out.unflatten(2, grid), lse.unflatten(2, grid)
    return out[:, :, :height, :width], lse[:, :, :height, :width]


@register(
    "sasa",
    samples=[
        Sample(dim=12, num_heads=3, kernel=3),
        Sample(dim=8, num_heads=2, kernel=4, stride=2, dim_out=12, edge="zeros", grouped=True),
    ],
)
class SASA(WeighingLayer):
    """Stand-alone self-attention in the place of a convolution; see the head of this file.

    Args:
        dim: C.
        num_heads: H.
        kernel: k, the side of the window; even ones reach one pixel further up and left.
        stride: the output has ceil(side / stride) pixels a side.
        dim_out: C_out, the default is C; head h makes the channels h D to (h + 1) D - 1, D = C_out / H.
        edge: "mask", or "zeros" as in the public code.
        grouped: head h sees the channels h C / H to (h + 1) C / H - 1 only; the paper's parameter counts need False.
        relative: False leaves the tables out.

    Raises:
        ValueError: sizes that do not fit.
    """

    card = Card(
        title="Stand-alone self-attention",
        paper="arXiv:1906.05909",
        year=2019,
        family="patterned",
        data="map",
        refuses={"causal": "a window reaches to all sides"},
        smooth=True,
        dynamic=False,  # windows are planned for fixed sides: a graph holds for one size of maps only
        cost="N k^2",
        summary="Attention within k x k windows with relative positions: replaces convolutions of any size of kernel.",
        formula="softmax(q . k + q[: D/2] . R_row + q[D/2 :] . R_col) v over the k x k pixels around each pixel",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        kernel: int = 7,
        stride: int = 1,
        dim_out: int | None = None,
        *,
        edge: Edge = "mask",
        grouped: bool = False,
        relative: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        head_dim = head_width(dim_out, num_heads)
        if min(kernel, stride) < 1:
            raise ValueError(f"kernel={kernel} and stride={stride} must be positive")
        if edge not in ("mask", "zeros"):
            raise ValueError(f'edge={edge!r} is neither "mask" nor "zeros"')
        if relative and head_dim % 2:
            raise ValueError(f"rows and columns take half of each head: dim_out / num_heads = {head_dim} must be even")
        if grouped and dim % num_heads:
            raise ValueError(f"grouped=True: dim={dim} is no multiple of num_heads={num_heads}")
        self.dim, self.dim_out, self.num_heads, self.head_dim = dim, dim_out, num_heads, head_dim
        self.kernel, self.stride, self.grouped, self.relative = kernel, stride, grouped, relative
        self.edge: Edge = edge
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        seen = dim // num_heads if grouped else dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(seen, dim_out, bias=False, **factory) for _ in range(3))
        shape = (num_heads, kernel, head_dim // 2)
        self.rows, self.columns = (nn.Parameter(torch.empty(shape, **factory)) if relative else None for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices as torch draws linear layers, tables normal with variance 1 / D; the paper does not say."""
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            linear.reset_parameters()
        for table in (self.rows, self.columns):
            if table is not None:
                nn.init.normal_(table, std=self.head_dim**-0.5)

    def pattern_on(self, sides: Sequence[int]) -> Pattern:
        """The windows, before any means; cut at the border."""
        return Neighborhood(tuple(sides), min(self.kernel, *sides), edge="clip")

    def answered(self, query_mask: Tensor) -> Tensor:
        """An output is real if any of the pixels is that it is the mean of."""
        if self.stride == 1:
            return query_mask
        found = F.max_pool2d(query_mask[:, None].float(), self.stride, ceil_mode=True)
        return found[:, 0] > 0

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attend, then take means; see :class:`regard.map_layers.MapLayer`."""
        pixels = x.movedim(1, -1).contiguous()
        return self._mixed(pixels, self._project(self._value_weight(), pixels), key_mask, query_mask)

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
        """What the windows, and the means after them, make of other values."""
        y = self._mixed(x.movedim(1, -1).contiguous(), values.unflatten(2, x.shape[2:]), key_mask, query_mask)
        return y.unflatten(1, (self.num_heads, -1)).flatten(3).mT

    def _mixed(self, pixels: Tensor, v: Tensor, key_mask: Tensor | None, query_mask: Tensor | None) -> Tensor:
        """Attend and take means: -> (B, H W, y, x)."""
        q, k = (self._project(linear.weight, pixels) for linear in (self.q_proj, self.k_proj))
        y = self._attend(q, k, v, key_mask)
        return _means(y.movedim(-1, 2).flatten(1, 2), self.stride, query_mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"kernel": self.kernel, "edge": self.edge, "key_mask": key_mask}
        return stand_alone_attention(q, k, v, self.rows, self.columns, **options)

    def _value_weight(self) -> Tensor:
        return self.v_proj.weight

    def _project(self, weight: Tensor, pixels: Tensor) -> Tensor:
        """-> (B, H, Y, X, D)."""
        if not self.grouped:
            return F.linear(pixels, weight).unflatten(-1, (self.num_heads, -1)).movedim(3, 1)
        groups = pixels.unflatten(-1, (self.num_heads, -1)).movedim(3, 1).flatten(2, 3)
        return (groups @ weight.unflatten(0, (self.num_heads, -1)).mT).unflatten(2, pixels.shape[1:3])

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, kernel={self.kernel}, stride={self.stride}, "
            f"dim_out={self.dim_out}, edge={self.edge!r}, grouped={self.grouped}, relative={self.relative}"
        )


def _means(y: Float[Tensor, "B C Y X"], stride: int, mask: Bool[Tensor, "B Y X"] | None) -> Float[Tensor, "B C y x"]:
    """Means of stride x stride pixels that are real, of fewer at the border."""
    if stride == 1:
        return y
    if mask is None:
        return F.avg_pool2d(y, stride, ceil_mode=True)
    total, share = (F.avg_pool2d(t, stride, ceil_mode=True) for t in (hide_pixels(y, mask), mask[:, None].to(y.dtype)))
    return total / share.clamp(min=stride**-2)


class SASAStem(SASA):
    """The first layer of a network of attention, with values that know their place in the window; see the file's head.

    The paper goes on with batch norm, ReLU and the maximum over 4 x 4 pixels. It speaks of attention "within each 4 x 4
    block": here windows slide, as in the public code; with ``blocked`` the image is cut into k x k blocks, each of
    which attends within itself, a and b being places in the block.

    Args:
        dim: C, the channels of the image.
        dim_out: C_out.
        num_heads: H.
        kernel: k.
        mixtures: M.
        embed_dim: the width of E and nu, the default is D.
        blocked: cut the image into blocks, counted from its first pixel.
        edge, grouped: as in :class:`SASA`.
        relative: also the tables of :class:`SASA`.

    Raises:
        ValueError: sizes that do not fit, or options that blocks have no use for.

    Example:
        >>> SASAStem(3, 16)(torch.randn(1, 3, 9, 8)).shape
        torch.Size([1, 16, 9, 8])
    """

    def __init__(
        self,
        dim: int,
        dim_out: int = 64,
        num_heads: int = 4,
        kernel: int = 4,
        mixtures: int = 4,
        embed_dim: int | None = None,
        *,
        blocked: bool = False,
        edge: Edge = "mask",
        grouped: bool = False,
        relative: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"edge": edge, "grouped": grouped, "relative": relative}
        super().__init__(dim, num_heads, kernel, dim_out=dim_out, **options, **factory)
        if blocked and (relative or edge == "zeros"):
            raise ValueError('blocked=True: blocks have no windows, so neither relative=True nor edge="zeros"')
        if mixtures < 1:
            raise ValueError(f"mixtures={mixtures}: there is one projection of values at least")
        self.blocked, self.mixtures = blocked, mixtures
        width = self.head_dim if embed_dim is None else embed_dim
        self.v_proj = nn.Linear(self.v_proj.in_features, mixtures * dim_out, bias=False, **factory)
        self.row_embedding, self.column_embedding, self.mixing = (
            nn.Parameter(torch.empty(n, width, **factory)) for n in (kernel, kernel, mixtures)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As :class:`SASA`; embeddings normal, and nu such that the logits of p have variance 2."""
        super().reset_parameters()
        if hasattr(self, "mixing"):  # not yet while the base class is being built
            for table in (self.row_embedding, self.column_embedding):
                nn.init.normal_(table)
            nn.init.normal_(self.mixing, std=self.mixing.shape[1] ** -0.5)

    def weigh(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refuse.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("the stem has no weights to show: each key has another value for every query")

    def _value_weight(self) -> Tensor:
        """Of W_1, ..., W_M, which stand below each other, each head's rows together."""
        return self.v_proj.weight.unflatten(0, (self.mixtures, self.num_heads, -1)).transpose(0, 1).flatten(0, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        places = self.row_embedding[:, None] + self.column_embedding
        mixing = (places @ self.mixing.mT).movedim(-1, 0)
        options: dict[str, Any] = {"kernel": self.kernel, "key_mask": key_mask}
        if self.blocked:
            return blocked_attention(q, k, v, mixing, **options)
        return stand_alone_attention(q, k, v, self.rows, self.columns, edge=self.edge, mixing=mixing, **options)
