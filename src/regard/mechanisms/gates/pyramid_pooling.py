"""Pyramid pooling: what a map shows on the whole, in its halves, thirds and sixths, beside every pixel.

Zhao et al. 2016, arXiv:1612.01105, section 3.2 (PSPNet). For each b of ``bins``, a grid of b x b means of the map
passes a layer of its own and is stretched over the map again::

    y = [x ; U(g_1) ; ... ; U(g_k)]        g_b = relu(norm(W_b mean_b(x)))        U: bilinear, corners on corners

Bin i of n on a side of length a covers floor(i a / n) to ceil((i + 1) a / n) - 1, so bins overlap where n does not
divide a, and repeat pixels where n > a: any size will do, but a mask would move all bins and is refused. As in
hszhao/semseg, the bins follow x in the given order (the authors' Caffe prototxt: in the opposite one).

:func:`spatial_pyramid`, He et al. 2014, arXiv:1406.4729, section 2.2, is the ancestor: it lines all bins up in one
vector of the same length for maps of any size, in front of a classifier.

Means are products with the two 0/1 tables of which place is in which bin, one for rows and one for columns, all bins
in one pass over the map: that costs less than ``adaptive_avg_pool2d`` and exports where that cannot be (to ONNX: sizes
that n does not divide). For N pixels, time is O(N C k), memory N (C + k d).
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.map_layers import MapLayer, like_format
from regard.ops.single_values import refuse_single_values
from regard.registry import Card, Sample, register

Pool = Literal["max", "avg"]
Rule = Literal["bins", "slices", "windows"]


def bin_shares(size: int, bins: int, like: Tensor) -> Float[Tensor, "bins size"]:
    """What each place of a side contributes to the mean of each bin; in whole numbers, for any size.

    Example:
        >>> bin_shares(3, 2, torch.ones(()))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.5000, 0.5000]])
    """
    index, place = torch.arange(bins, device=like.device)[:, None], torch.arange(size, device=like.device)
    first, end = index * size // bins, -(-(index + 1) * size // bins)
    return ((place >= first) & (place < end)).to(like.dtype) / (end - first)


def bin_means(x: Float[Tensor, "B C H W"], bins: Sequence[int]) -> list[Float[Tensor, "B C _ _"]]:
    """The means over b x b bins, for each b.

    Example:
        >>> whole, halves = bin_means(torch.arange(4.0).view(1, 1, 2, 2), (1, 2))
        >>> whole.flatten().tolist(), halves.flatten().tolist()
        ([1.5], [0.0, 1.0, 2.0, 3.0])
    """
    columns = torch.cat([bin_shares(x.shape[3], b, x) for b in bins])
    last = not x.is_contiguous()  # channels last: a product with each row as it lies
    cut = (columns @ x.movedim(1, -1)).movedim(-1, 1) if last else x @ columns.mT
    parts = cut.split(list(bins), -1)
    return [bin_shares(x.shape[2], b, x) @ part for b, part in zip(bins, parts, strict=True)]


def bin_maxima(x: Float[Tensor, "B C H W"], bins: int) -> Float[Tensor, "B C bins bins"]:
    """The same as ``adaptive_max_pool2d`` by slices of fixed places, for exporters that know no adaptive pooling.

    Example:
        >>> bin_maxima(torch.arange(9.0).view(1, 1, 3, 3), 2).flatten().tolist()
        [4.0, 5.0, 7.0, 8.0]
    """
    for axis in (-1, -2):  # columns first: of equal values the first in reading order gets the gradient
        size = x.shape[axis]
        edges = [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]
        x = torch.stack([x.narrow(axis, a, b - a).max(axis).values for a, b in edges], axis)
    return x


def spatial_pyramid(
    x: Float[Tensor, "B C H W"], levels: Sequence[int] = (6, 3, 2, 1), pool: Pool = "max", rule: Rule = "bins"
) -> Float[Tensor, "B _"]:
    """Spatial pyramid pooling: a vector of C (n_1^2 + ... + n_L^2) numbers from a map of any size.

    Args:
        x: a map.
        levels: n_1, ..., n_L.
        pool: "max" or "avg" of each bin.
        rule: how a side of length a is cut. "bins" as at the head of this file. "slices" the same, without adaptive
            pooling, to export a map of one size. "windows" is the form of the paper for training on one size: windows
            of ceil(a / n), floor(a / n) apart, which differ from the bins where n does not divide a.

    Returns:
        Level after level; in each channel after channel, its n x n bins in reading order.

    Raises:
        ValueError: an unknown pool or rule, no levels, or "windows" that are not n, as for (a, n) = (5, 3) or (10, 6).

    Example:
        >>> spatial_pyramid(torch.randn(2, 8, 13, 9), (4, 2, 1)).shape
        torch.Size([2, 168])
    """
    _check(levels, pool, rule)
    if rule == "windows":
        cut = [_windows(x, n, pool) for n in levels]
    elif pool == "avg":
        cut = bin_means(x, levels)
    else:
        cut = [F.adaptive_max_pool2d(x, n) if rule == "bins" else bin_maxima(x, n) for n in levels]
    return torch.cat([part.flatten(1) for part in cut], 1)


def _check(levels: Sequence[int], pool: Pool, rule: Rule) -> None:
    if pool not in get_args(Pool) or rule not in get_args(Rule) or not levels or min(levels) < 1:
        raise ValueError(
            f"levels={levels!r}, pool={pool!r}, rule={rule!r}: levels are one or more numbers of bins, "
            'pool is "max" or "avg", rule "bins", "slices" or "windows"'
        )


def _windows(x: Tensor, n: int, pool: Pool) -> Tensor:
    sides = x.shape[2:]
    sizes, strides = [-(-a // n) for a in sides], [a // n for a in sides]
    for a, size, stride in zip(sides, sizes, strides, strict=True):
        found = (a - size) // stride + 1 if stride else 0
        if found != n:
            raise ValueError(
                f"a side of {a} gives {found} windows of {size}, {stride} apart, not {n}: train on sides that {n} "
                'divides, or take rule="bins"'
            )
    return (F.max_pool2d if pool == "max" else F.avg_pool2d)(x, sizes, strides)


class SpatialPyramid(nn.Module):
    """:func:`spatial_pyramid` as a layer without parameters.

    Example:
        >>> head = nn.Sequential(SpatialPyramid((4, 2, 1)), nn.LazyLinear(10))
        >>> head(torch.randn(2, 8, 13, 13)).shape, head(torch.randn(2, 8, 7, 20)).shape
        (torch.Size([2, 10]), torch.Size([2, 10]))
    """

    def __init__(self, levels: Sequence[int] = (6, 3, 2, 1), pool: Pool = "max", rule: Rule = "bins") -> None:
        super().__init__()
        _check(levels, pool, rule)
        self.levels = tuple(levels)
        self.pool: Pool = pool
        self.rule: Rule = rule

    def forward(self, x: Tensor) -> Tensor:
        """(B, C (n_1^2 + ... + n_L^2)) from (B, C, H, W)."""
        return spatial_pyramid(x, self.levels, self.pool, self.rule)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, pool={self.pool!r}, rule={self.rule!r}"


class Branch(nn.Module):
    """g_b: a layer, a norm and a ReLU on b x b means.

    Args:
        dim, width: C and d.
        groups: of the group norm; None: a batch norm.
    """

    def __init__(self, dim: int, width: int, groups: int | None, **factory: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width, bias=False, **factory)
        self.norm = nn.GroupNorm(groups, width, **factory) if groups else nn.BatchNorm2d(width, **factory)

    def forward(self, means: Float[Tensor, "B C b b"]) -> Float[Tensor, "B d b b"]:
        out = self.linear(means.movedim(1, -1)).movedim(-1, 1)
        refuse_single_values(out, self.norm, ", or build the layer with groups=, which normalises each by itself")
        return self.norm(out).relu()


@register(
    "pyramid_pooling",
    samples=[
        Sample(dim=12),
        Sample(dim=8, bins=(4, 1), width=6, groups=3, claims={"stochastic": ()}),
    ],
)
class PyramidPooling(MapLayer):
    """Means of bins beside every pixel; see the head of this file. The output has C + k d channels: ``dim_out``.

    Args:
        dim: C.
        bins: b_1, ..., b_k.
        width: d, the default is C // k, so that the output has about 2 C channels.
        groups: a group norm of so many groups instead of a batch norm, for training with one map at a time.

    Raises:
        ValueError: no bins, or in training a single map, whose whole has no batch statistics.
        UnsupportedError: masks.
    """

    card = Card(
        title="Pyramid pooling module",
        paper="arXiv:1612.01105",
        year=2016,
        family="gates",
        data="map",
        stochastic=("batch_norm",),
        refuses={
            "key_mask": "its bins are shares of the whole map, which padding would move: cut the padding off",
            "causal": "the means have seen the whole map",
        },
        cost="N k",
        summary="Tells every pixel what the map shows on the whole and in its parts; the head of PSPNet.",
        formula="[x; U(relu(norm(W_b mean_b(x)))) for b x b bins, b = 1, 2, 3, 6]",
    )

    def __init__(
        self,
        dim: int,
        bins: Sequence[int] = (1, 2, 3, 6),
        width: int | None = None,
        groups: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not bins or min(bins) < 1:
            raise ValueError(f"bins={bins!r}: name one or more numbers of bins, such as (1, 2, 3, 6)")
        width = max(1, dim // len(bins)) if width is None else width
        self.dim, self.bins, self.dim_out = dim, tuple(bins), dim + width * len(bins)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.branches = nn.ModuleList(Branch(dim, width, groups, **factory) for _ in bins)

    def reset_parameters(self) -> None:
        """As torch draws layers and norms, which semseg leaves as they are."""
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.BatchNorm2d, nn.GroupNorm)):
                part.reset_parameters()

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """(B, C + k d, H, W) from (B, C, H, W); see :class:`regard.map_layers.MapLayer`."""
        sides = list(x.shape[2:])
        told: list[Tensor] = []
        for branch, means in zip(self.branches, bin_means(x, self.bins), strict=True):
            grid = like_format(branch(means), x)  # and again below: a grid of one pixel has no format
            told.append(like_format(F.interpolate(grid, sides, mode="bilinear", align_corners=True), x))
        return torch.cat((x, *told), 1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, bins={self.bins}, dim_out={self.dim_out}"
