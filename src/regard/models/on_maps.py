"""Any mechanism by name as a layer on maps: those on maps as they are, those on sequences on the pixels row by row."""

from typing import Any

from regard.factory import card, create
from regard.pixel_layers import OnPixels
from regard.registry import Layer, UnsupportedError


def map_attention(mechanism: str, *, dim: int, num_heads: int, max_length: int | None = None, **options: Any) -> Layer:
    """A layer on maps (B, C, H, W) for a mechanism on maps, or on sequences: those see the pixels row by row.

    Args:
        mechanism: the registry name.
        dim: C.
        num_heads: H; idle where a mechanism has no heads.
        max_length: the most pixels, for mechanisms on sequences whose parameters depend on it.
        options: what else :func:`regard.create` shall pass on.

    Raises:
        UnsupportedError: a mechanism on other data.

    Example:
        >>> import torch
        >>> layer = map_attention("linear_transformer", dim=12, num_heads=3)
        >>> layer(torch.randn(2, 12, 5, 7)).shape
        torch.Size([2, 12, 5, 7])
    """
    data = card(mechanism).data
    if data == "map":
        return create(mechanism, dim=dim, num_heads=num_heads, **options)
    if data == "pair":
        raise UnsupportedError(f"{mechanism} works on pairs: it cannot be a layer on maps")
    return OnPixels(create(mechanism, dim=dim, num_heads=num_heads, max_length=max_length, **options), dim)
