"""Pairs for ``vision.py``: packages for maps, and published formulations written plainly, beside ours of equal weights.

The plain ones do what their papers' public code does, in torch operations: padded and unfolded copies of keys and
values for SASA, whole maps of all pairs for DANet's position attention and for non-local blocks, and for CCNet an
affinity of rows and one of columns that are joined for the softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.authors import load

HEADS = 8


@dataclass(frozen=True)
class MapPair:
    """Two layers on maps with the same weights.

    Attributes:
        peer, ours: (1, C, H, W) -> (1, C, H, W).
        setting: what both are set to.
        differs: why results differ by more than rounding; empty where they do not.
    """

    peer: nn.Module
    ours: nn.Module
    setting: str
    differs: str = ""


def paired(mechanism: str, source: str, peer: nn.Module, config: dict[str, Any], setting: str) -> MapPair:
    """The peer, and ours with its configuration and its weights."""
    return MapPair(peer, load(mechanism, source, config, peer.state_dict()), setting)


def halonet_pytorch(dim: int, height: int, width: int) -> MapPair:
    """The package's layer."""
    from halonet_pytorch import HaloAttention

    config: dict[str, Any] = {"dim": dim, "block_size": 8, "halo_size": 3, "dim_head": dim // HEADS, "heads": HEADS}
    source = "lucidrains/halonet-pytorch:halonet_pytorch/halonet_pytorch.py:HaloAttention"
    return paired("halonet", source, HaloAttention(**config), config, "blocks of 8, halo 3")


def lambda_networks(dim: int, height: int, width: int, local: bool) -> MapPair:
    """The package's layer; the global form knows the side of its squares."""
    from lambda_networks import LambdaLayer

    size: dict[str, Any] = {"r": 23} if local else {"n": max(height, width)}
    config: dict[str, Any] = {"dim": dim, "dim_out": dim, "dim_k": 16, "heads": HEADS, "dim_u": 1, **size}
    source = "lucidrains/lambda-networks:lambda_networks/lambda_networks.py:LambdaLayer"
    setting = f"dim_k=16, {'r=23' if local else 'all pixels'}"
    pair = paired("lambda_networks", source, LambdaLayer(**config), config, setting)
    # BatchNorm2d's gradient is wrong for one map in the memory order that the package's einsums leave
    return replace(pair, differs="its gradients, by an error of torch 2.13")


def axial_attention(dim: int, height: int, width: int) -> MapPair:
    """The package's layer."""
    from axial_attention import AxialAttention

    config: dict[str, Any] = {"dim": dim, "dim_index": 1, "heads": HEADS, "num_dimensions": 2}
    source = "lucidrains/axial-attention:axial_attention/axial_attention.py:AxialAttention"
    return paired("axial", source, AxialAttention(**config), config, "sum of both axes (default)")


def natten(dim: int, height: int, width: int) -> MapPair:
    """The package's layer, on channels last."""
    from natten import NeighborhoodAttention2D

    config: dict[str, Any] = {"embed_dim": dim, "num_heads": HEADS, "kernel_size": 7}
    peer: Any = NeighborhoodAttention2D(**config)
    pair = paired("neighborhood", "SHI-Labs/NATTEN:natten/modules.py:NeighborhoodAttention2D", peer, config, "7 x 7")
    return replace(pair, peer=FeaturesLast(pair.peer))


class FeaturesLast(nn.Module):
    """A layer on (B, H, W, C), given (B, C, H, W)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


class PlainSASA(nn.Module):
    """Zeros around the image, keys and values unfolded into windows of 7 x 7."""

    def __init__(self, dim: int, kernel: int = 7) -> None:
        super().__init__()
        self.kernel = kernel
        self.q, self.kk, self.v = (nn.Conv2d(dim, dim, 1, bias=False) for _ in range(3))
        width = dim // HEADS
        self.rel_row, self.rel_col = (
            nn.Parameter(torch.randn(HEADS, kernel, width // 2) * width**-0.5) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Every pixel over its window."""
        q = self.q(x).unflatten(1, (HEADS, -1))
        k, v = (self._windows(conv(x)) for conv in (self.kk, self.v))
        row = self.rel_row.mT[:, :, :, None].expand(-1, -1, -1, self.kernel)
        column = self.rel_col.mT[:, :, None].expand(-1, -1, self.kernel, -1)
        k = k + torch.cat((row, column), 1).flatten(2)[None, :, :, :, None, None]
        weights = torch.einsum("bhdyx,bhdwyx->bhwyx", q, k).softmax(2)
        return torch.einsum("bhwyx,bhdwyx->bhdyx", weights, v).flatten(1, 2)

    def _windows(self, x: Tensor) -> Tensor:
        """(B, H, D, k k, Y, X)."""
        found = F.unfold(x, self.kernel, padding=self.kernel // 2)
        return found.view(x.shape[0], HEADS, -1, self.kernel**2, *x.shape[2:])


class PlainPosition(nn.Module):
    """All pixels over all pixels, as in DANet."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_conv, self.key_conv = (nn.Conv2d(dim, dim // 8, 1) for _ in range(2))
        self.value_conv, self.gamma = nn.Conv2d(dim, dim, 1), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """With the residual."""
        q, k, v = (conv(x).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        weights = torch.bmm(q.mT, k).softmax(-1)
        return self.gamma * torch.bmm(v, weights.mT).view(x.shape) + x


class PlainNonLocal(nn.Module):
    """All pixels over all pixels, in half of the channels, without sub-sampling and norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(dim, dim // 2, 1) for _ in range(3))
        self.W = nn.Conv2d(dim // 2, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """With the residual."""
        q, k, v = (conv(x).flatten(2) for conv in (self.theta, self.phi, self.g))
        y = torch.bmm(torch.bmm(q.mT, k).softmax(-1), v.mT).mT
        return self.W(y.reshape(x.shape[0], -1, *x.shape[2:])) + x


class PlainCrissCross(nn.Module):
    """The affinities of columns and of rows, one softmax over both, twice, as in CCNet."""

    def __init__(self, dim: int, recurrence: int = 2) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.query_conv, self.key_conv = (nn.Conv2d(dim, dim // 8, 1) for _ in range(2))
        self.value_conv, self.gamma = nn.Conv2d(dim, dim, 1), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """With the residual."""
        for _ in range(self.recurrence):
            x = self._once(x)
        return x

    def _once(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        q, k, v = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        q_columns, k_columns, v_columns = (t.permute(0, 3, 1, 2).flatten(0, 1) for t in (q, k, v))  # (B W, C, H)
        q_rows, k_rows, v_rows = (t.permute(0, 2, 1, 3).flatten(0, 1) for t in (q, k, v))  # (B H, C, W)
        itself = torch.zeros(height, height).fill_diagonal_(-torch.inf)  # the pixel counts once, in its row
        columns = (torch.bmm(q_columns.mT, k_columns) + itself).unflatten(0, (-1, width))
        rows = torch.bmm(q_rows.mT, k_rows).unflatten(0, (-1, height))
        weights = torch.cat((columns.transpose(1, 2), rows), -1).softmax(-1)  # (B, H, W, H + W)
        by_column = weights[..., :height].transpose(1, 2).flatten(0, 1)
        by_row = weights[..., height:].flatten(0, 1)
        down = torch.bmm(v_columns, by_column.mT).unflatten(0, (-1, width)).permute(0, 2, 3, 1)
        across = torch.bmm(v_rows, by_row.mT).unflatten(0, (-1, height)).permute(0, 2, 1, 3)
        return self.gamma * (down + across) + x


def sasa(dim: int, height: int, width: int) -> MapPair:
    """Windows of 7 x 7."""
    config: dict[str, Any] = {
        "in_channels": dim,
        "out_channels": dim,
        "kernel_size": 7,
        "heads": HEADS,
        "edge": "zeros",
    }
    return paired("sasa", "equations", PlainSASA(dim), config, '7 x 7, edge="zeros"')


def position(dim: int, height: int, width: int) -> MapPair:
    """DANet's module."""
    source = "junfu1115/DANet:encoding/nn/da_att.py:PAM_Module"
    return paired("dual_attention", source, PlainPosition(dim), {"in_dim": dim}, "keys of C / 8")


def non_local(dim: int, height: int, width: int) -> MapPair:
    """The embedded Gaussian form."""
    config: dict[str, Any] = {"in_channels": dim, "sub_sample": False, "bn_layer": False}
    source = "AlexHex7/Non-local_pytorch:lib/non_local_embedded_gaussian.py:NONLocalBlock2D"
    return paired("non_local", source, PlainNonLocal(dim), config, "keys and values of C / 2")


def criss_cross(dim: int, height: int, width: int) -> MapPair:
    """Two applications."""
    config: dict[str, Any] = {"in_dim": dim, "recurrence": 2}
    source = "speedinghzl/CCNet:cc_attention/functions.py:CrissCrossAttention"
    return paired("criss_cross", source, PlainCrissCross(dim), config, "keys of C / 8, twice")


MAP_PAIRS: dict[str, Callable[[int, int, int], MapPair]] = {
    "halonet-pytorch": halonet_pytorch,
    "lambda-networks, local": partial(lambda_networks, local=True),
    "lambda-networks, global": partial(lambda_networks, local=False),
    "axial-attention": axial_attention,
    "natten": natten,
    "SASA, unfolded": sasa,
    "CCNet, published form": criss_cross,
    "DANet's position attention, published form": position,
    "non-local, published form": non_local,
}
MOST_PIXELS = {
    ("lambda-networks, global", False): 1024,
    ("lambda-networks, global", True): 1024,
    ("DANet's position attention, published form", True): 4096,
    ("non-local, published form", True): 4096,
    ("SASA, unfolded", True): 4096,
}
"""Beyond these, forward or with backward, a peer needs gigabytes: copies of all windows, or maps of all pairs."""
