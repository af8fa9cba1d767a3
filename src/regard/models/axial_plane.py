"""The parts of the Axial Transformer: blocks along one axis, and the model of one plane of values made of them.

Ho et al. 2019, arXiv:1912.12180, section 3; the whole is :class:`regard.models.AxialTransformer`.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.layers import MultiHead
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.ops.initialisation import fan_in_normal_
from regard.ops.lines import from_lines, shift, to_lines

HEIGHT, WIDTH = 0, 1
"""Axes of a grid (B, H, W, C): attention along the height is within columns."""

NEARLY_ZERO = 1e-10
"""The scale of the variance with which branches and logits start."""


class AxialBlock(nn.Module):
    """Attention along one axis of a grid and a network for each pixel, each added to what it reads.

    Args:
        dim, num_heads: C and H.
        axis: HEIGHT or WIDTH.
        causal: no pixel sees a later one along the axis.
        mlp_ratio: the hidden width of the network, in multiples of C.
        dropout: on both branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        axis: int,
        *,
        causal: bool = False,
        mlp_ratio: float = 1,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.axis, hidden = axis, int(dim * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim, **factory), nn.LayerNorm(dim, **factory)
        self.attention = MultiHead(dim, num_heads, ScaledDotProduct(causal=causal), **factory)
        self.first, self.second = nn.Linear(dim, hidden, **factory), nn.Linear(hidden, dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with variance 1 / fan-in, 1e-10 of that at the end of both branches; biases 0."""
        attention = self.attention
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, self.first):
            start(linear)
        for linear in (attention.out_proj, self.second):
            start(linear, NEARLY_ZERO)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        """All pixels at once."""
        lines = to_lines(self.norm1(x), self.axis)
        return self._think(x + self.dropout(from_lines(self.attention(lines), x.shape[:-1], self.axis)))

    def stream(self, x: Float[Tensor, "L n C"], memory: Any) -> tuple[Float[Tensor, "L n C"], Any]:
        """The next n pixels of every line along the axis: -> (y, the new memory)."""
        out, memory = self.attention.stream(self.norm1(x), memory)
        return self._think(x + self.dropout(out)), memory

    def _think(self, x: Tensor) -> Tensor:
        hidden = self.first(self.norm2(x))
        return x + self.dropout(self.second(hidden * torch.sigmoid(1.702 * hidden)))


class Positions(nn.Module):
    """A vector for each row plus one for each column.

    Args:
        height, width, dim: sizes.
    """

    def __init__(
        self,
        height: int,
        width: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(height, dim, device=device, dtype=dtype))
        self.columns = nn.Parameter(torch.empty(width, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 25 / C)."""
        start_table(self.rows)
        start_table(self.columns)

    def forward(self) -> Float[Tensor, "1 H W C"]:
        """All of them."""
        return (self.rows[:, None] + self.columns)[None]


class PlaneDecoder(nn.Module):
    """The model of one plane of values, given what stands before each pixel and any conditioning.

    Args:
        height, width, num_values, dim, num_heads: sizes.
        outer_layers, inner_layers: numbers of blocks; the outer ones come in pairs.
        options: those of :class:`AxialBlock`.
    """

    def __init__(
        self,
        height: int,
        width: int,
        num_values: int,
        dim: int,
        num_heads: int,
        outer_layers: int,
        inner_layers: int,
        **options: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {name: options.get(name) for name in ("device", "dtype")}
        self.embedding = nn.Embedding(num_values, dim, **factory)
        self.positions = Positions(height, width, dim, **factory)
        self.outer = alternating(dim, num_heads, outer_layers, causal=True, **options)
        self.inner = nn.ModuleList(
            AxialBlock(dim, num_heads, WIDTH, causal=True, **options) for _ in range(inner_layers)
        )
        self.norm = nn.LayerNorm(dim, **factory)
        self.output = nn.Linear(dim, num_values, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Embeddings N(0, 25 / C) and logits close to 0; blocks and positions start by themselves."""
        start_table(self.embedding.weight)
        start(self.output, NEARLY_ZERO)

    def forward(
        self, x: Int[Tensor, "B H W"], cond: Float[Tensor, "B H W C"] | None = None
    ) -> Float[Tensor, "B H W K"]:
        """Logits of every value, each from the values before it."""
        h, p = self.embedding(x), self._places(cond)
        u = h + p
        for block in self.outer:
            u = block(u)
        r = shift(h, WIDTH) + shift(u, HEIGHT) + p
        for block in self.inner:
            r = block(r)
        return self.output(self.norm(r))

    def draw_slowly(self, noise: Float[Tensor, "B H W K"], cond: Tensor | None = None) -> Int[Tensor, "B H W"]:
        """argmax(logits + noise), one pixel after the other, with the whole plane computed for each."""
        x = torch.zeros(noise.shape[:-1], dtype=torch.long, device=noise.device)
        for row in range(noise.shape[1]):
            for column in range(noise.shape[2]):
                x[:, row, column] = (self(x, cond)[:, row, column] + noise[:, row, column]).argmax(-1)
        return x

    def draw(self, noise: Float[Tensor, "B H W K"], cond: Tensor | None = None) -> Int[Tensor, "B H W"]:
        """The same, from memories: the outer blocks once for a row, the inner ones once for a pixel."""
        batch, height, width, _ = noise.shape
        p = self._places(cond).expand(batch, -1, -1, -1)
        above, columns = torch.zeros_like(p[:, 0]), [_memory(block, batch * width) for block in self.outer]
        rows: list[Tensor] = []
        for row in range(height):
            values = self._draw_row(noise[:, row], above + p[:, row])
            rows.append(values)
            above = (self.embedding(values) + p[:, row])[:, None]
            for number, block in enumerate(self.outer):
                if columns[number] is None:
                    above = block(above)
                else:
                    lines, columns[number] = cast(AxialBlock, block).stream(to_lines(above, HEIGHT), columns[number])
                    above = from_lines(lines, above.shape[:-1], HEIGHT)
            above = above[:, 0]
        return torch.stack(rows, 1)

    def _draw_row(self, noise: Float[Tensor, "B W K"], context: Float[Tensor, "B W C"]) -> Int[Tensor, "B W"]:
        memories = [_memory(block, len(noise)) for block in self.inner]
        left = torch.zeros_like(context[:, :1])
        values: list[Tensor] = []
        for column in range(noise.shape[1]):
            r = left + context[:, column : column + 1]
            for number, block in enumerate(self.inner):
                r, memories[number] = cast(AxialBlock, block).stream(r, memories[number])
            values.append((self.output(self.norm(r)) + noise[:, column : column + 1]).argmax(-1))
            left = self.embedding(values[-1])
        return torch.cat(values, 1)

    def _places(self, cond: Tensor | None) -> Tensor:
        return self.positions() if cond is None else self.positions() + cond


def alternating(dim: int, num_heads: int, layers: int, *, causal: bool, **options: Any) -> nn.ModuleList:
    """Blocks within rows, never masked, and within columns, masked if causal."""
    blocks = [(WIDTH, False), (HEIGHT, causal)] * (layers // 2)
    return nn.ModuleList(AxialBlock(dim, num_heads, axis, causal=masked, **options) for axis, masked in blocks)


def _memory(block: nn.Module, lines: int) -> Any:
    """The empty memory of a causal block; None for one that sees whole lines."""
    attention: Any = block.attention
    return attention.memory(lines) if attention.core.causal else None


def start(layer: nn.Linear | nn.Conv2d, scale: float = 1.0) -> None:
    """Weights normal with variance scale / fan-in, biases 0."""
    fan_in_normal_(layer.weight, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def start_table(table: Tensor) -> None:
    """N(0, 25 / C)."""
    nn.init.normal_(table, std=5 * table.shape[-1] ** -0.5)
