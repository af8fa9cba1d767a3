"""What Jukebox builds its autoencoders and conditioners of: dilated residual stacks, and steps down or up in time.

Dhariwal et al. 2020, arXiv:2005.00341, figure 2 and appendix B.1. A residual block is::

    x + r Conv_1(relu(Conv_3, dilated g^(k mod cycle)(relu(x))))      r = 1, or 1 / sqrt(depth)

A step down is Conv(kernel 2s, stride s, padding s / 2) and a stack; a step up is a stack and the transposed convolution
of the same numbers. All tensors are (B, C, T).
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Residual:
    """The residual stack of every step.

    Attributes:
        width: channels C.
        depth: blocks.
        expansion: channels between the two convolutions of a block, as a multiple of C.
        growth: of the dilation from block to block.
        cycle: blocks after which dilations start again; None: never.
        scaled: what a block adds is divided by sqrt(depth).
        zeroed: the last convolution of a block starts at 0.
    """

    width: int = 32
    depth: int = 4
    expansion: float = 1.0
    growth: int = 3
    cycle: int | None = None
    scaled: bool = False
    zeroed: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 0 or self.growth < 1 or (self.cycle is not None and self.cycle < 1):
            raise ValueError(f"{self}: width, growth and cycle are at least 1, depth at least 0")
        if int(self.expansion * self.width) < 1:
            raise ValueError(f"expansion={self.expansion} of {self.width} channels leaves none")

    def dilations(self) -> list[int]:
        """Of the blocks.

        Example:
            >>> Residual(depth=5, growth=3, cycle=2).dilations()
            [1, 3, 1, 3, 1]
        """
        return [self.growth ** (k if self.cycle is None else k % self.cycle) for k in range(self.depth)]


class DilatedBlock(nn.Module):
    """x + r mix(relu(dilated(relu(x)))).

    Args:
        residual: the stack that it belongs to.
        dilation: of the first convolution.
    """

    def __init__(self, residual: Residual, dilation: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        width, inner, where = (
            residual.width,
            int(residual.expansion * residual.width),
            {"device": device, "dtype": dtype},
        )
        self.dilated = nn.Conv1d(width, inner, 3, padding=dilation, dilation=dilation, **where)
        self.mix = nn.Conv1d(inner, width, 1, **where)
        self.scale = residual.depth**-0.5 if residual.scaled else 1.0
        self.zeroed = residual.zeroed
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch does; ``mix`` at 0 where the stack says so."""
        self.dilated.reset_parameters()
        self.mix.reset_parameters()
        if self.zeroed:
            nn.init.zeros_(self.mix.weight)
            assert self.mix.bias is not None
            nn.init.zeros_(self.mix.bias)

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        """One block."""
        added = self.mix(F.relu(self.dilated(F.relu(x))))
        return x + (added if self.scale == 1.0 else self.scale * added)


class ResidualStack(nn.Module):
    """Blocks with growing dilations, or the same ones in reverse.

    Args:
        residual: its numbers.
        reverse: largest dilation first.
    """

    def __init__(self, residual: Residual, *, reverse: bool = False, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dilations = residual.dilations()[:: -1 if reverse else 1]
        self.blocks = nn.Sequential(*(DilatedBlock(residual, d, device=device, dtype=dtype) for d in dilations))

    def reset_parameters(self) -> None:
        """Those of its blocks."""
        for block in self.blocks:
            block.reset_parameters()  # pyright: ignore[reportCallIssue]

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        """Block after block."""
        return self.blocks(x)


def check_stride(stride: int, down: int) -> None:
    """Refuse what does not give T / stride^down positions.

    Raises:
        ValueError: an odd stride, or a negative number of steps.
    """
    if down < 0 or (down and (stride < 2 or stride % 2)):
        raise ValueError(
            f"stride {stride}, {down} times: a convolution of width 2s and padding s / 2 divides the length by s only "
            "for even strides; take 2 or 4, and at least 0 steps"
        )


class Downsampler(nn.Module):
    """``down`` steps, each [Conv, stack], and a last convolution of width 3; none at all for ``down=0``.

    Args:
        in_channels, out_channels: of x and of the result.
        down, stride: how often the length is divided by how much.
        residual: the stack of each step.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        down: int,
        stride: int,
        residual: Residual,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_stride(stride, down)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        width = residual.width
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width if number else in_channels, width, 2 * stride, stride, stride // 2, **where),
                ResidualStack(residual, **where),
            )
            for number in range(down)
        )
        self.leave = nn.Conv1d(width, out_channels, 3, padding=1, **where) if down else None

    def reset_parameters(self) -> None:
        """As torch does."""
        for step in self.steps:
            for part in step:  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
                part.reset_parameters()  # pyright: ignore[reportUnknownMemberType]
        if self.leave is not None:
            self.leave.reset_parameters()

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B D t"]:
        """(B, in_channels, T) -> (B, out_channels, T / stride^down)."""
        for step in self.steps:
            x = step(x)
        return x if self.leave is None else self.leave(x)


class Upsampler(nn.Module):
    """A first convolution of width 3 and ``up`` steps, each [stack, transposed Conv]; none at all for ``up=0``.

    Args:
        in_channels, out_channels: of x and of the result.
        up, stride: how often the length is multiplied by how much.
        residual: the stack of each step.
        reverse: largest dilation first in each stack.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        up: int,
        stride: int,
        residual: Residual,
        *,
        reverse: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_stride(stride, up)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        width = residual.width
        self.enter = nn.Conv1d(in_channels, width, 3, padding=1, **where) if up else None
        self.steps = nn.ModuleList(
            nn.Sequential(
                ResidualStack(residual, reverse=reverse, **where),
                nn.ConvTranspose1d(
                    width, width if number < up - 1 else out_channels, 2 * stride, stride, stride // 2, **where
                ),
            )
            for number in range(up)
        )

    def reset_parameters(self) -> None:
        """As torch does."""
        if self.enter is not None:
            self.enter.reset_parameters()
        for step in self.steps:
            for part in step:  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
                part.reset_parameters()  # pyright: ignore[reportUnknownMemberType]

    def forward(self, x: Float[Tensor, "B C t"]) -> Float[Tensor, "B D T"]:
        """(B, in_channels, t) -> (B, out_channels, t stride^up)."""
        if self.enter is not None:
            x = self.enter(x)
        for step in self.steps:
            x = step(x)
        return x
