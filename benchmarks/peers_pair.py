"""What the pairs of ``peers.py`` are made of: two layers with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from floors import Cost


@dataclass(frozen=True)
class Pair:
    """Two layers with the same weights.

    Attributes:
        peer: the package's layer, x (1, N, 512) -> y.
        ours: ours.
        cost: what a forward pass of ours cannot do without.
        setting: what both are set to.
        differs: why their outputs differ by more than rounding; empty where they do not.
    """

    peer: nn.Module
    ours: nn.Module
    cost: Cost
    setting: str
    differs: str = ""


class AllOf(nn.Module):
    """A self-attention of Hugging Face and the output projection that they keep in a module beside it.

    Args:
        attention: returns a tuple whose first entry is (B, N, C).
        out: the projection.
        arguments: further ones of ``attention``.
    """

    def __init__(self, attention: nn.Module, out: nn.Linear, **arguments: Any) -> None:
        super().__init__()
        self.attention, self.out, self.arguments = attention, out, arguments

    def forward(self, x: Tensor) -> Tensor:
        """The layer without residual and norm."""
        return self.out(self.attention(x, **self.arguments)[0])


class FromSelf(nn.Module):
    """A layer that wants queries, keys and values, given one sequence."""

    def __init__(self, layer: nn.Module, masks: tuple[Any, ...]) -> None:
        super().__init__()
        self.layer, self.masks = layer, masks

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.layer(x, x, x, *self.masks)


class First(nn.Module):
    """A layer that returns its output and more."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.layer(x)[0]


class OnMaps(nn.Module):
    """A layer on maps (B, C, H, W), given their pixels as a sequence."""

    def __init__(self, layer: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.layer, self.sides = layer, (height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.layer(x.mT.unflatten(-1, self.sides)).flatten(2).mT


def copy_each(ours: nn.Module, **sources: nn.Linear) -> None:
    """Give projections of ours a peer's weights; a bias that the peer does not have is 0."""
    for name, source in sources.items():
        copy(ours.get_submodule(name), source.weight, source.bias)


def copy_fused(ours: nn.Module, qkv: nn.Linear, out: nn.Linear) -> None:
    """The same from one matrix for queries, keys and values."""
    for name, weight in zip(("q_proj", "k_proj", "v_proj"), qkv.weight.chunk(3), strict=True):
        copy(ours.get_submodule(name), weight, None)
    copy_each(ours, out_proj=out)


@torch.no_grad()
def copy(target: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Overwrite one projection."""
    target.weight.copy_(weight)
    if target.bias is not None:
        _ = target.bias.zero_() if bias is None else target.bias.copy_(bias)
