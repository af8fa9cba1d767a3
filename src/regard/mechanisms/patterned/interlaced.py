"""Interlaced sparse self-attention: among pixels far apart, then among neighbours; two steps join all pixels of a map.

Huang et al. 2019, arXiv:1907.12273, in the form of the authors' code (openseg). The map is padded with zeros to
multiples of (dh, dw), half of them (rounded down) before it, and cut into Gh x Gw cells of dh x dw pixels::

    far:   the Gh Gw pixels with the same place in their cells attend to each other,    z = attention_1(x)
    near:  the dh dw pixels of a cell attend to each other,                             y = attention_2(z)

    attention(x) = N(softmax(q k^T / sqrt(D)) v),    q = N(N(x)), k = N(N(x)) with weights of their own, v linear in x

with N(x) = relu(batch_norm(x W)). Pixels numbered (place in the cell, cell) make the one step attention within rows of
a matrix, and the other within its columns. There is no residual: several pairs of factors side by side, and x itself,
are joined by one more matrix, N([x, y]), where x is widened first if there are several pairs.

The paper's pseudo-code has neither padding nor norms, and a plain attention. The authors' zeros are keys like any
others and count in the batch statistics; ``mask_padding`` leaves them out. For N pixels time is O(N (N / (dh dw) +
dh dw) C), best near dh dw = sqrt(N), where it is O(N^1.5 C); memory is O(N C).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.map_layers import MapLayer
from regard.ops.batch_norm import TokenBatchNorm
from regard.ops.dropout import drop
from regard.registry import Card, Sample, register

Factors = tuple[int, int]
"""(dh, dw), the sides of a cell."""


def to_cells(x: Shaped[Tensor, "B C H W"], factors: Factors) -> Shaped[Tensor, "B P Q C"]:
    """A map padded with zeros and cut into Q cells of P = dh dw pixels, features last.

    Example:
        >>> to_cells(torch.arange(1, 9).view(1, 1, 2, 4), (1, 2))[0, :, :, 0].tolist()
        [[1, 3, 5, 7], [2, 4, 6, 8]]
    """
    (dh, dw), (height, width) = factors, x.shape[2:]
    rows, columns, top, left = _cells(factors, height, width)
    x = F.pad(x, (left, columns * dw - width - left, top, rows * dh - height - top))
    x = x.reshape(x.shape[0], x.shape[1], rows, dh, columns, dw).permute(0, 3, 5, 2, 4, 1)
    return x.reshape(x.shape[0], dh * dw, rows * columns, x.shape[-1])


def from_cells(cells: Shaped[Tensor, "B Q P C"], factors: Factors, sides: Sequence[int]) -> Shaped[Tensor, "B H W C"]:
    """Undo :func:`to_cells`, here cell by cell, for a map of these sides; the features stay last."""
    (dh, dw), (height, width) = factors, sides
    rows, columns, top, left = _cells(factors, height, width)
    x = cells.reshape(cells.shape[0], rows, columns, dh, dw, cells.shape[-1]).transpose(2, 3)
    x = x.reshape(x.shape[0], rows * dh, columns * dw, x.shape[-1])
    for axis, (start, side) in enumerate(((top, height), (left, width)), 1):
        x = x.index_select(axis, torch.arange(side, device=x.device) + start)  # a slice would bind a graph to one size
    return x


def _cells(factors: Factors, height: int, width: int) -> tuple[int, int, int, int]:
    """Rows and columns of cells, and how many zeros stand above and to the left."""
    rows, columns = (height + factors[0] - 1) // factors[0], (width + factors[1] - 1) // factors[1]
    return rows, columns, (rows * factors[0] - height) // 2, (columns * factors[1] - width) // 2


class Normed(nn.Module):
    """relu(batch_norm(x W)), on tokens."""

    def __init__(self, dim: int, out_dim: int, **factory: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out_dim, bias=False, **factory)
        self.norm = TokenBatchNorm(out_dim, **factory)

    def forward(self, x: Float[Tensor, "*B C"], keep: Bool[Tensor, "*B"] | None = None) -> Float[Tensor, "*B D"]:
        """``keep``: True for tokens that enter the statistics."""
        return F.relu(self.norm(self.linear(x), keep))


class Attention(nn.Module):
    """One step: attention within each row of a matrix of tokens, or within each column.

    Args:
        dim, key_dim, value_dim, out_dim: widths of x, of queries and keys, of values and of y.
    """

    def __init__(self, dim: int, key_dim: int, value_dim: int, out_dim: int, **factory: Any) -> None:
        super().__init__()
        self.query, self.key = (
            nn.ModuleList([Normed(dim, key_dim, **factory), Normed(key_dim, key_dim, **factory)]) for _ in range(2)
        )
        self.value = nn.Linear(dim, value_dim, bias=False, **factory)
        self.output = Normed(value_dim, out_dim, **factory)

    def forward(
        self, x: Float[Tensor, "B P Q C"], keep: Bool[Tensor, "B P Q"] | None, *, columns: bool = False
    ) -> Float[Tensor, "B L n D"]:
        """Lines of tokens: L = P rows of Q tokens, or L = Q columns of P; ``keep``: True for those that are seen."""
        q, k, v = x, x, self.value(x)
        for query, key in zip(self.query, self.key, strict=True):
            q, k = query(q, keep), key(k, keep)
        if columns:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            keep = None if keep is None else keep.transpose(1, 2)
        mask = None if keep is None else keep[:1, :, None]  # the same in all maps
        return self.output(attend(q, k, v, attn_mask=mask), keep)


class Block(nn.Module):
    """Both steps for one pair of factors."""

    def __init__(self, factors: Factors, dim: int, key_dim: int, value_dim: int, out_dim: int, **factory: Any) -> None:
        super().__init__()
        self.factors = factors
        self.far = Attention(dim, key_dim, value_dim, out_dim, **factory)
        self.near = Attention(out_dim, key_dim, value_dim, out_dim, **factory)

    def forward(self, x: Float[Tensor, "B C H W"], mask_padding: bool) -> Float[Tensor, "B H W D"]:
        """With the features last."""
        keep = None
        if mask_padding:
            real = torch.ones_like(x[:, :1], dtype=torch.bool)
            keep = to_cells(real, self.factors)[..., 0]
        z = self.far(to_cells(x, self.factors), keep)
        return from_cells(self.near(z, keep, columns=True), self.factors, x.shape[2:])


@register(
    "interlaced",
    samples=[
        Sample(dim=8, factors=(3, 2), mask_padding=True),
        Sample(dim=8, factors=((2, 3), (4, 2)), key_dim=5, value_dim=6, drop=0.1),
        Sample(dim=8, factors=(2, 3), fuse=False),
    ],
)
class Interlaced(MapLayer):
    """Attention far and near in turn, joined with what came in; see the head of this file.

    Args:
        dim: C.
        factors: (dh, dw), the sides of a cell; or several such pairs, side by side.
        key_dim: features of queries and keys, the default is C / 2.
        value_dim: features of values, the default is C.
        out_dim: features of the output, the default is C.
        fuse: join the result with x; False: both steps alone, for one pair of factors.
        mask_padding: leave the zeros around the map out of attention and statistics, which the authors' code does not.
        drop: dropout of whole features of the output, in training.

    Raises:
        ValueError: sizes that do not fit.
        UnsupportedError: masks, segments or a context.
    """

    card = Card(
        title="Interlaced sparse self-attention",
        paper="arXiv:1907.12273",
        year=2019,
        family="patterned",
        data="map",
        stochastic=("dropout", "batch_norm"),
        refuses={
            "causal": "pixels far apart see each other both ways",
            "key_mask": "cells are laid out from the middle of the map, which a mask does not move",
        },
        cost="N^1.5",
        summary="Attention among pixels far apart, then within windows: dense context for high-resolution maps.",
        formula="near(far(x)): attention among equal places of all cells, then within each cell",
    )

    def __init__(
        self,
        dim: int,
        factors: Factors | Sequence[Factors] = (8, 8),
        *,
        key_dim: int | None = None,
        value_dim: int | None = None,
        out_dim: int | None = None,
        fuse: bool = True,
        mask_padding: bool = False,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.factors, self.mask_padding, self.drop = dim, _pairs(factors), mask_padding, drop
        if not fuse and (len(self.factors) > 1 or drop):
            raise ValueError(f"fuse=False leaves one pair of factors as it is, not factors={factors} with drop={drop}")
        out_dim = dim if out_dim is None else out_dim
        widths = (max(1, dim // 2) if key_dim is None else key_dim, dim if value_dim is None else value_dim, out_dim)
        if min(dim, *widths) < 1:
            raise ValueError(f"dim={dim}, and key_dim, value_dim, out_dim are {widths}: they must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.blocks = nn.ModuleList(Block(pair, dim, *widths, **factory) for pair in self.factors)
        whole = len(self.factors) * out_dim
        self.widen = Normed(dim, whole, **factory) if len(self.factors) > 1 else None
        self.fuse = Normed((whole if self.widen else dim) + whole, out_dim, **factory) if fuse else None

    def reset_parameters(self) -> None:
        """As torch draws linear layers and starts batch norms."""
        for part in self.modules():
            if isinstance(part, nn.Linear | TokenBatchNorm):
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
        """Attend far and near; see :class:`regard.map_layers.MapLayer`."""
        found = [block(x, self.mask_padding) for block in self.blocks]
        if self.fuse is None:
            return found[0].movedim(-1, 1)
        pixels = x.movedim(1, -1)
        y = self.fuse(torch.cat((pixels if self.widen is None else self.widen(pixels), *found), -1)).movedim(-1, 1)
        return y * drop(y.new_ones(*y.shape[:2], 1, 1), self.drop * self.training, generator)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, factors={self.factors}, mask_padding={self.mask_padding}"


def _pairs(factors: Factors | Sequence[Factors]) -> tuple[Factors, ...]:
    """One pair or several, as several."""
    pairs: Any = [factors] if all(isinstance(factor, int) for factor in factors) else factors
    found = tuple(map(tuple[int, ...], pairs))
    if not found or any(len(pair) != 2 or min(pair) < 1 for pair in found):
        raise ValueError(f"factors={factors} are no pair of positive numbers (dh, dw), and no pairs of such")
    return tuple((height, width) for height, width in found)
