"""The query networks of facebookresearch/XLM's memories, beyond a single linear layer."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Grouped(nn.Module):
    """A matrix of its own for each group of features.

    Args:
        into, out: features of all groups together.
        groups: how many.
    """

    def __init__(self, into: int, out: int, groups: int, *, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Conv1d(into, out, 1, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(T, C)."""
        return self.layer(x[..., None])[..., 0]


def chain(sizes: Sequence[int], kernels: Sequence[int] | None, groups: int, bias: bool, norm: bool) -> nn.Sequential:
    """Linear layers, or convolutions of these kernels, with batch norms and ReLU between; ``groups`` side by side."""
    layers: list[nn.Module] = []
    for step, (into, out) in enumerate(pairwise(sizes)):
        apart = groups if step else 1
        if kernels is not None:
            options: dict[str, Any] = {"padding": kernels[step] // 2, "bias": bias, "groups": apart}
            layers.append(nn.Conv2d(into * apart, out * groups, kernels[step], **options))
        elif apart > 1:
            layers.append(Grouped(into * apart, out * groups, apart, bias=bias))
        else:
            layers.append(nn.Linear(into, out * groups, bias=bias))
        if norm:
            layers.append((nn.BatchNorm1d if kernels is None else nn.BatchNorm2d)(out * groups))
        if step < len(sizes) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class QueryNet(nn.Module):
    """Their networks of several layers or of convolutions: one, several side by side, or one with groups.

    Args:
        sizes: widths of the layers of one network.
        kernels: of convolutions; None: linear layers.
        count: so many networks.
        grouped: all in one, as groups.
        bias, norm: of every layer.
    """

    def __init__(
        self, sizes: Sequence[int], kernels: Sequence[int] | None, count: int, *, grouped: bool, bias: bool, norm: bool
    ) -> None:
        super().__init__()
        if grouped:
            nets: nn.Module = chain(sizes, kernels, count, bias, norm)
        elif len(sizes) == 2:
            nets = chain((sizes[0], sizes[1] * count), kernels, 1, bias, norm)
        else:
            nets = nn.ModuleList(chain(sizes, kernels, 1, bias, norm) for _ in range(count))
        self.add_module("query_mlps" if kernels is None else "query_convs", nets)

    def forward(self, x: Tensor) -> Tensor:
        """(T, C) -> (T, H k), or (B, C, height, width) -> (B, H k, height, width)."""
        (nets,) = self.children()
        return torch.cat([net(x) for net in nets], 1) if isinstance(nets, nn.ModuleList) else nets(x)


class Repeat(nn.Module):
    """No network: every head asks with the token itself, or with a permutation of its features.

    Args:
        heads: H.
        shuffle: permute.
    """

    def __init__(self, heads: int, shuffle: bool) -> None:
        super().__init__()
        self.heads, self.shuffle = heads, shuffle

    def forward(self, x: Tensor) -> Tensor:
        """(T, C) -> (T, H C)."""
        if not self.shuffle:
            return x.repeat(1, self.heads)
        # head h: the even ones of 2^(h + 1) equal slices, then the odd ones; head 0 leaves all in place
        slices = [x.unflatten(1, (-1, 2, x.shape[1] >> (h + 1))).transpose(1, 2).flatten(1) for h in range(self.heads)]
        return torch.cat([x, *slices[1:]], 1)
