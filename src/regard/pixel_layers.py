"""Layers on sequences at the pixels of maps (B, C, n_1, ..., n_A), row by row."""

from collections.abc import Sequence
from typing import Any

from torch import Generator, Tensor

from regard.layers import MultiHead
from regard.map_layers import MapLayer, fixed_pattern, pixels_of
from regard.patterns import Pattern
from regard.registry import Core, Layer, UnsupportedError

__all__ = ["MapAttention", "OnPixels"]


class OnPixels(MapLayer):
    """A layer on sequences at the pixels of a map, in row-major order; of any number of axes.

    Args:
        layer: (B, N, C) -> (B, N, C).
        dim: C.
    """

    num_axes = None

    def __init__(self, layer: Layer, dim: int) -> None:
        super().__init__()
        self.layer, self.dim = layer, dim
        self.card, self.mechanism = layer.card, layer.mechanism

    def reset_parameters(self) -> None:
        """As the layer does."""
        if reset := getattr(self.layer, "reset_parameters", None):
            reset()

    def pattern_on(self, sides: Sequence[int]) -> Pattern | None:
        """That of the layer, along the row of all pixels."""
        return fixed_pattern(self.layer, sides)

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flatten, attend, and put every pixel back."""
        context = None if source is x else pixels_of(source)
        masks = _flat(key_mask=key_mask, query_mask=query_mask)
        y, aux = self.layer(pixels_of(x), context, **masks, generator=generator, return_aux=True)
        return y.mT.unflatten(-1, x.shape[2:]), aux

    def weigh(
        self,
        x: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """The layer's weights on any values, pixels in row-major order, as :meth:`regard.layers.MultiHead.weigh`.

        Raises:
            UnsupportedError: a layer without weights.
        """
        weigh = getattr(self.layer, "weigh", None)
        if weigh is None:
            raise UnsupportedError(f"{self.mechanism} has no weights to show")
        x, source, key_mask, query_mask = self.admit(x, context, key_mask, query_mask, segments)
        masks = _flat(key_mask=key_mask, query_mask=query_mask)
        return weigh(pixels_of(x), values, None if context is None else pixels_of(source), **masks, generator=generator)


class MapAttention(OnPixels):
    """Any core between four projections, on the pixels of a map.

    Args:
        dim: C.
        num_heads: H.
        core: what happens between the projections.
        options: those of :class:`regard.layers.MultiHead`.

    Example:
        >>> import regard, torch
        >>> layer = MapAttention(12, 3, regard.core("linear_transformer", head_dim=4))
        >>> layer(torch.randn(2, 12, 5, 7)).shape
        torch.Size([2, 12, 5, 7])
    """

    def __init__(self, dim: int, num_heads: int, core: Core, **options: Any) -> None:
        super().__init__(MultiHead(dim, num_heads, core, **options), dim)


def _flat(**masks: Tensor | None) -> dict[str, Tensor | None]:
    return {name: None if mask is None else mask.flatten(1) for name, mask in masks.items()}
