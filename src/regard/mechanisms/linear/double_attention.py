"""Double attention: a map is gathered into n descriptors, and each pixel is handed its own mixture of them.

Chen et al. 2018, "A^2-Nets: Double Attention Networks", arXiv:1810.11579, eqs. 1 to 6. With A (N, m), K and V (N, n)
linear in the pixels of x::

    gather        G = softmax_N(K)^T A          n descriptors, each a mean of A over all pixels by weights of its own
    distribute    Z = softmax_n(V) G            each pixel's mixture of the descriptors
    y = x + R Z

(The paper calls K's matrix B.) That is :mod:`regard.ops.descriptors` with one head, as efficient attention has it, here
for images and videos; the two softmaxes go along different axes, over pixels and over descriptors. Masked pixels leave
the first. Neither R nor x belong to the layer that is copied most (nguyenvo09/Double-Attention-Network): options.

The authors start their block as the identity by a batch norm behind R, which the network around brings.
Time O(N (m n + C (m + n))), memory O(N (m + n) + m n).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.map_layers import WeighingLayer
from regard.ops.descriptors import distribute, gather
from regard.ops.pixelwise import pixelwise
from regard.registry import Card, Sample, register


def double_attention(
    features: Float[Tensor, "B N m"],
    places: Float[Tensor, "B N n"],
    mixture: Float[Tensor, "B N n"],
    *,
    key_mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B N m"]:
    """softmax_n(mixture) softmax_N(places)^T features; see the head of this file.

    Args:
        features: A, what is gathered.
        places: K, where each of the n descriptors is gathered.
        mixture: V, what each pixel takes of the n descriptors.
        key_mask: True for pixels that are gathered; without any the result is 0.

    Example:
        >>> features = torch.tensor([[[2.0], [4.0]]])
        >>> double_attention(features, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)).flatten().tolist()
        [3.0, 3.0]
    """
    descriptors = gather(places[:, None], features[:, None], key_mask=key_mask)
    return distribute(mixture[:, None], descriptors)[:, 0]


@register(
    "double_attention",
    samples=[
        Sample(dim=8, features=6, descriptors=4),
        Sample(dim=8, features=5, descriptors=6, reconstruct=False, residual=False),
    ],
)
class DoubleAttention(WeighingLayer):
    """The A^2 block on lines, images and volumes; see the head of this file.

    Args:
        dim: C.
        features: m, the width of a descriptor; a quarter of C by default.
        descriptors: n, their number; a quarter of C by default.
        reconstruct: R, from m to C; without it the output has m channels.
        residual: add x to the output.

    Raises:
        ValueError: sizes that are no positive numbers, or a residual of another width.
    """

    card = Card(
        title="Double attention (A2-Nets)",
        paper="arXiv:1810.11579",
        year=2018,
        family="linear",
        data="map",
        smooth=True,
        refuses={"causal": "a descriptor has seen all pixels"},
        cost="N n",
        summary="A map is gathered into a few descriptors and handed out again: global reasoning in images and videos.",
        formula="x + R softmax_n(V) (softmax_N(K)^T A)",
    )
    num_axes = None

    def __init__(
        self,
        dim: int,
        features: int | None = None,
        descriptors: int | None = None,
        *,
        reconstruct: bool = True,
        residual: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        features, descriptors = (max(1, dim // 4) if size is None else size for size in (features, descriptors))
        if min(dim, features, descriptors) < 1:
            raise ValueError(f"{dim=}, {features=}, {descriptors=}: sizes must be positive")
        if residual and not reconstruct and features != dim:
            raise ValueError(f"x has dim={dim} channels and the output {features=}: pass residual=False")
        self.dim, self.residual = dim, residual
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.features = nn.Linear(dim, features, **factory)
        self.places, self.mixture = (nn.Linear(dim, descriptors, **factory) for _ in range(2))
        self.out_proj = nn.Linear(features, dim, **factory) if reconstruct else None

    def reset_parameters(self) -> None:
        """As torch draws them."""
        for linear in self.children():
            if isinstance(linear, nn.Linear):
                linear.reset_parameters()

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Gather and distribute; see :class:`regard.map_layers.MapLayer`."""
        out = self._exchange(x, key_mask).mT
        y = (out if self.out_proj is None else pixelwise(self.out_proj, out)).unflatten(-1, x.shape[2:])
        return x + y if self.residual else y

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
        """What the same weights make of other values in the place of A, before R and the residual."""
        return self._exchange(x, key_mask, values[:, 0])[:, None]

    def _exchange(self, x: Tensor, key_mask: Tensor | None, values: Tensor | None = None) -> Tensor:
        """Z, or what becomes of other values: (B, N, m)."""
        pixels = x.flatten(2)
        features = pixelwise(self.features, pixels).mT if values is None else values
        places, mixture = pixelwise(self.places, pixels).mT, pixelwise(self.mixture, pixels).mT
        mask = None if key_mask is None else key_mask.flatten(1)
        return double_attention(features, places, mixture, key_mask=mask)
