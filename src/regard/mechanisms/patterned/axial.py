"""Axial attention: softmax attention along one axis of an image or video at a time.

Ho et al. 2019, arXiv:1912.12180, section 3.1. With every other axis folded into the batch, attention along axis a is
ordinary multi-head attention within the lines of that axis, with projections of its own::

    combine="sum":    y = attention_1(x) + ... + attention_A(x)          each pixel sees the lines that cross in it
    combine="chain":  y = attention_A(... attention_1(x))                each pixel sees all of them

The paper stacks residual blocks of one axis each (:class:`regard.models.AxialTransformer`); the bare layer, summed or
chained without norm or residual, is that of lucidrains/axial-attention. For N pixels in A axes of equal length, time
is O(A N^(1 + 1/A) C) instead of O(N^2 C). ``causal=True`` masks every axis: nothing depends on a later pixel in raster
order, but the pixels above and to the right are left out too; only the shifts of the Axial Transformer bring them in.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import or_
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import MultiHead
from regard.map_layers import MapLayer
from regard.ops.initialisation import fan_in_normal_
from regard.ops.lines import from_lines, to_lines
from regard.patterns import Axis, Causal, Full, Pattern
from regard.registry import Card, Core, Sample, register

Combine = Literal["sum", "chain"]


def along_axes(
    x: Float[Tensor, "B *grid C"],
    attentions: Sequence[Callable[..., Tensor]],
    masks: Mapping[str, Bool[Tensor, "B *grid"]] | None = None,
    combine: Combine = "sum",
) -> Float[Tensor, "B *grid C"]:
    """Attention along each axis of a grid, summed or one after the other.

    Args:
        x: a grid with the features last.
        attentions: for each axis (lines (L, n, C), masks (L, n) by name) -> (L, n, C).
        masks: handed on to each of them.
        combine: "sum" or "chain".

    Example:
        >>> x = torch.ones(1, 2, 2, 1)
        >>> along_axes(x, [lambda lines: lines.cumsum(1)] * 2).flatten().tolist()
        [2.0, 3.0, 3.0, 4.0]
        >>> along_axes(x, [lambda lines: lines.cumsum(1)] * 2, combine="chain").flatten().tolist()
        [1.0, 2.0, 2.0, 4.0]
    """
    shape = x.shape[:-1]
    outs: list[Tensor] = []
    for axis, attention in enumerate(attentions):
        along = {name: to_lines(mask, axis, features=0) for name, mask in (masks or {}).items()}
        outs.append(from_lines(attention(to_lines(x, axis), **along), shape, axis))
        x = outs[-1] if combine == "chain" else x
    return x if combine == "chain" else reduce(torch.add, outs)


class Line(Core):
    """softmax(q k^T / sqrt(D)) v within each line.

    Args:
        causal: no place sees a later one of its line.
        attn_drop: dropout on the weights, in training.
    """

    def __init__(self, card: Card, causal: bool = False, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.card, self.causal, self.attn_drop = card, causal, attn_drop

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Attend; shapes as in :class:`regard.registry.Core` (queries enter no statistic, ``query_mask`` is idle)."""
        pattern, drop = Causal() if self.causal else Full(), self.attn_drop * self.training
        return attend(q, k, v, pattern, key_mask=key_mask, dropout_p=drop, generator=generator)


@register(
    "axial",
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=12, num_heads=3, combine="chain", causal=True, attn_drop=0.1),
    ],
)
class Axial(MapLayer):
    """Multi-head attention along each axis of a map; see the head of this file.

    Args:
        dim: C.
        num_heads: H, in each axis.
        num_axes: A: 2 for images, 3 for videos or volumes.
        head_dim: D, the default is C / H.
        causal: no pixel sees one that is later along any axis.
        combine: "sum" or "chain" of the axes, in the order of their dimensions.
        qkv_bias: biases on the projections of queries, keys and values; the outputs always have one.
        attn_drop, proj_drop: dropout on the weights and on the output of each axis.

    Raises:
        ValueError: sizes that do not fit.
    """

    card = Card(
        title="Axial attention",
        paper="arXiv:1912.12180",
        year=2019,
        family="patterned",
        data="map",
        causal="strict",
        stochastic=("dropout",),
        cost="N^(1 + 1/A)",
        summary="Exact attention within rows and within columns: all of an image in two steps, for images and volumes.",
        formula="sum over axes a of softmax(q k^T / sqrt(D)) v within each line along a",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_axes: int = 2,
        head_dim: int | None = None,
        *,
        causal: bool = False,
        combine: Combine = "sum",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_axes < 1:
            raise ValueError(f"num_axes={num_axes}: a map has one axis at least")
        if combine not in ("sum", "chain"):
            raise ValueError(f'combine={combine!r} is neither "sum" nor "chain"')
        self.dim, self.num_axes, self.num_heads, self.causal = dim, num_axes, num_heads, causal
        self.combine: Combine = combine
        options: dict[str, Any] = {"head_dim": head_dim, "qkv_bias": qkv_bias, "proj_drop": proj_drop}
        options |= {"device": device, "dtype": dtype}
        self.axes = nn.ModuleList(
            MultiHead(dim, num_heads, Line(self.card, causal, attn_drop), **options) for _ in range(num_axes)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with variance 1 / fan-in, cut off at two deviations; biases 0."""
        for parameter in self.parameters():
            _ = fan_in_normal_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)

    def pattern_on(self, sides: Sequence[int]) -> Pattern | None:
        """The lines that cross in each pixel; those of a chain are seen one after the other."""
        if self.combine == "chain":
            return None
        lines = reduce(or_, (Axis(tuple(sides), axis) for axis in range(len(sides))))
        return lines & Causal() if self.causal else lines  # along a line, later in one order is later in the other

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attend along every axis of a map; see :class:`regard.map_layers.MapLayer`."""
        masks: dict[str, Tensor] = {}
        if key_mask is not None and query_mask is not None:  # in a chain, what is asked must have been answered
            masks = {"key_mask": key_mask, "query_mask": key_mask | query_mask}
        attentions = [partial(layer, generator=generator) for layer in self.axes]
        grid = x.movedim(1, -1).contiguous()  # else each projection would copy it
        return along_axes(grid, attentions, masks, self.combine).movedim(-1, 1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_axes={len(self.axes)}, causal={self.causal}, combine={self.combine!r}"
