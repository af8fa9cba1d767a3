"""Neighborhood attention: every pixel attends to the K nearest along each axis, also at the edges of the map.

Hassani et al. 2022, arXiv:2204.07143 (NAT), and its generalisations: dilation, arXiv:2209.15001, causal axes,
arXiv:2403.04690, and stride, arXiv:2504.16922. The windows are those of the authors' NATTEN, an interval per axis:

    y_i = softmax over j in N(i) of (q_i . k_j / sqrt(D) + b_(j - i)) v_j,    N(i) = product over axes of an interval

Along an axis of n places, the window of place i is centred at i, K // 2 places before it, and at an edge it is shifted
inwards instead of cut: it always holds K places. With dilation d this happens among every d-th place, counted from
i mod d. With stride s, groups of s neighbours share the window of their middle (s = K: blocks). A causal axis ends its
windows at the query and cuts them at the start; with a stride, they start where that of the group's last place does.

For N pixels in A axes time is O(N K^A C) and memory O(N C): nothing is unfolded. K d beyond a side is cut to what
fits, where NATTEN refuses; with K equal to the sides this is full attention.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.attention import attend, merge
from regard.layers import head_width
from regard.map_layers import WeighingLayer
from regard.patterns import Neighborhood as Window
from regard.patterns import Pattern
from regard.registry import Card, Sample, register
from regard.scores import Bias, RelativeGrid

Each = int | Sequence[int]
Extra = tuple[Tensor, Tensor]


def neighborhood_attention(
    q: Float[Tensor, "B H *grid D"],
    k: Float[Tensor, "B G *grid D"],
    v: Float[Tensor, "B G *grid Dv"],
    kernel: Each,
    *,
    dilation: Each = 1,
    stride: Each = 1,
    causal: bool | Sequence[bool] = False,
    scale: float | None = None,
    bias: Float[Tensor, "#H *offsets"] | None = None,
    extra: Extra | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> tuple[Float[Tensor, "B H *grid Dv"], Float[Tensor, "B H *grid"]]:
    """Attention within the neighbourhoods of a grid of one to three axes; see the head of this file.

    Args:
        q, k, v: heads first; query head h reads key head h // (H / G).
        kernel, dilation, stride, causal: K, d, s and causality, of all axes or one for each.
        scale: of the products, 1 / sqrt(D) by default.
        bias: added to the scores, an entry for each offset: (H or 1, 2 K_1 - 1, ..., 2 K_A - 1), in steps of d.
        extra: keys (B, G, M, D) and values (B, G, M, Dv) which every query sees as well, in the same softmax.
        attn_drop: dropout on the weights, applied as given.
        generator: the source of dropout.

    Returns:
        out, and the log of each pixel's sum of exponentials.

    Raises:
        ValueError: sizes that do not fit.

    Example:
        >>> q = k = v = torch.randn(1, 2, 8, 9, 4)
        >>> neighborhood_attention(q, k, v, 3, dilation=(2, 1), causal=(True, False))[0].shape
        torch.Size([1, 2, 8, 9, 4])
    """
    grid = q.shape[2:-1]
    window = _window(grid, kernel, dilation, stride, causal)
    term = None if bias is None else _relative(bias, window)
    q, k, v = (t.flatten(2, -2) for t in (q, k, v))
    options: dict[str, Any] = {"scale": scale, "dropout_p": attn_drop, "generator": generator, "enable_gqa": True}
    out, lse = attend(q, k, v, window, score=term, return_lse=True, **options)
    if extra is not None:
        more, more_lse = attend(q, *extra, return_lse=True, **options)
        out, lse = merge([out, more], [lse, more_lse])
    return out.unflatten(2, grid), lse.unflatten(2, grid)


def _each(value: Each, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _window(sides: Sequence[int], kernel: Each, dilation: Each, stride: Each, causal: bool | Sequence[bool]) -> Window:
    # of a dilation beyond the side nothing is left but the place itself, as with one equal to it
    steps = tuple(min(d, side) for d, side in zip(_each(dilation, len(sides)), sides, strict=True))
    return Window(tuple(sides), kernel, steps, stride, causal)


def _relative(bias: Tensor, window: Window) -> Bias:
    """The bias as a score term; along a dilated axis each entry serves d offsets, of which the window has one."""
    sides = tuple(2 * kernel - 1 for kernel in window.kernel)
    if bias.shape[1:] != sides:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected (heads or 1, {', '.join(map(str, sides))})")
    reach: list[int] = []
    for axis, (kernel, dilation) in enumerate(zip(window.kernel, window.dilation, strict=True)):
        reach.append((kernel - 1) * dilation + 1)
        if dilation > 1:
            offset = torch.arange(1 - reach[-1], reach[-1], device=bias.device)
            bias = bias.index_select(axis + 1, offset.div(dilation, rounding_mode="floor") + kernel - 1)
    return Bias(bias.flatten(1), RelativeGrid(window.grid, tuple(reach)))


@register(
    "neighborhood",
    samples=[
        Sample(dim=6, num_heads=2, kernel=3, relative_bias=True),
        Sample(dim=8, num_heads=4, num_kv_heads=2, kernel=(3, 4), dilation=(2, 1), stride=(1, 2), attn_drop=0.1),
        Sample(dim=8, num_heads=2, kernel=(2, 3), causal=True),
    ],
)
class Neighborhood(WeighingLayer):
    """Multi-head neighbourhood attention on maps; see the head of this file.

    Args:
        dim: C.
        num_heads: H.
        kernel: K of all axes, or one number for each.
        dilation: d, likewise.
        stride: s <= K, likewise.
        causal: of all axes, or one for each.
        num_axes: A, 1 to 3.
        num_kv_heads: G, fewer key and value heads, each shared by H / G query heads.
        head_dim: D, the default is C / H.
        relative_bias: add a learnt number for each head and offset, as NAT and DiNAT do.
        qkv_bias: biases on the projections of queries, keys and values; the output always has one.
        scale: of the products, 1 / sqrt(D) by default.
        attn_drop, proj_drop: dropout on the weights and on the output.

    Raises:
        ValueError: sizes that do not fit.
        UnsupportedError: masks, segments or a context.
    """

    card = Card(
        title="Neighborhood attention",
        paper="arXiv:2204.07143",
        year=2022,
        family="patterned",
        data="map",
        causal="strict",
        gqa=True,
        smooth=True,
        stochastic=("dropout",),
        dynamic=False,  # windows are planned for fixed sides: a graph holds for one size of maps only
        refuses={"key_mask": "windows shift inwards at the edges of a map, and a mask moves no edge"},
        cost="N K^A",
        summary="A sliding window that is never cut at the border: local attention for images, video and audio.",
        formula="softmax(q k^T / sqrt(D) + bias) v over the K nearest pixels along each axis",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        kernel: Each = 7,
        dilation: Each = 1,
        stride: Each = 1,
        *,
        causal: bool | Sequence[bool] = False,
        num_axes: int = 2,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        relative_bias: bool = False,
        qkv_bias: bool = True,
        scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = head_width(dim, num_heads, head_dim)
        groups = num_heads if num_kv_heads is None else num_kv_heads
        if groups < 1 or num_heads % groups:
            raise ValueError(f"num_heads={num_heads} is no multiple of num_kv_heads={groups}")
        self.dim, self.num_heads, self.num_kv_heads, self.head_dim = dim, num_heads, groups, width
        self.num_axes = num_axes
        # a grid has one to three axes, each as long as its dilation at least: the smallest one checks all numbers
        window = Window(_each(dilation, num_axes), kernel, dilation, stride, causal)
        self.kernel, self.dilation, self.stride = window.kernel, window.dilation, window.stride
        self.causal = all(window.causal) or window.causal
        self.scale, self.attn_drop = scale, attn_drop
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(dim, num_heads * width, bias=qkv_bias, **factory)
        self.k_proj, self.v_proj = (nn.Linear(dim, groups * width, bias=qkv_bias, **factory) for _ in range(2))
        self.out_proj = nn.Linear(num_heads * width, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        offsets = (2 * k - 1 for k in self.kernel)
        self.bias = nn.Parameter(torch.empty(num_heads, *offsets, **factory)) if relative_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices as torch draws linear layers; the bias normal with deviation 0.02."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            linear.reset_parameters()
        if self.bias is not None:
            nn.init.trunc_normal_(self.bias, std=0.02)

    def pattern_on(self, sides: Sequence[int]) -> Pattern:
        """The windows."""
        return _window(sides, self.kernel, self.dilation, self.stride, self.causal)

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attend within the neighbourhoods of a map; see :class:`regard.map_layers.MapLayer`."""
        out = self._attend(x, None, generator)
        return self.proj_drop(self.out_proj(out.movedim(1, -2).flatten(-2))).movedim(-1, 1)

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
        return self._attend(x, values.unflatten(2, x.shape[2:]), generator).flatten(2, -2)

    def _attend(self, x: Tensor, values: Tensor | None, generator: Generator | None) -> Tensor:
        """(B, H, *grid, Dv), of the map's own values or of others, one for each query head."""
        pixels = x.movedim(1, -1).contiguous()  # else each projection would copy it
        q, k = (
            linear(pixels).unflatten(-1, (-1, self.head_dim)).movedim(-2, 1) for linear in (self.q_proj, self.k_proj)
        )
        if values is None:
            v = self.v_proj(pixels).unflatten(-1, (-1, self.head_dim)).movedim(-2, 1)
        else:
            k, v = k.repeat_interleave(self.num_heads // self.num_kv_heads, 1), values
        options: dict[str, Any] = {"dilation": self.dilation, "stride": self.stride, "causal": self.causal}
        options |= {"scale": self.scale, "bias": self.bias, "attn_drop": self.attn_drop * self.training}
        return neighborhood_attention(q, k, v, self.kernel, **options, generator=generator)[0]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, kernel={self.kernel}, causal={self.causal}"
