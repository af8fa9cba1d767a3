"""Any mechanism by name between two inputs, both of which are answered: y from x to the context, z the other way.

Some mechanisms on pairs answer both sides by themselves; of the others one layer, with one set of weights, goes both
ways. Mechanisms on maps take two maps; those on sequences take two maps as well, pixel by pixel, row by row.
"""

from typing import Any

from torch import Generator, Tensor, nn

from regard.factory import card, create
from regard.map_layers import MapLayer, pixels_of
from regard.models.plugs import under
from regard.pair_layers import PairLayer
from regard.registry import Layer, UnsupportedError

Told = dict[str, Tensor]


def across(mechanism: str, *, dim: int, num_heads: int, max_length: int | None = None, **options: Any) -> "Across":
    """A layer between two inputs of one width for any mechanism that can go from one to another.

    Args:
        mechanism: the registry name.
        dim: C, of both inputs.
        num_heads: H; idle where a mechanism has no heads.
        max_length: the most tokens of an input, or the most pixels, for mechanisms on sequences whose parameters
            depend on it.
        options: what else :func:`regard.create` shall pass on.

    Raises:
        UnsupportedError: a mechanism that attends within one input, or that takes other inputs than these two.

    Example:
        >>> import torch
        >>> layer = across("linear_transformer", dim=12, num_heads=3)
        >>> y, z = layer(torch.randn(2, 5, 12), torch.randn(2, 7, 12))
        >>> y.shape, z.shape
        (torch.Size([2, 5, 12]), torch.Size([2, 7, 12]))
    """
    about = card(mechanism)
    if not about.cross:
        raise UnsupportedError(f"{mechanism} attends within one {about.data}: it cannot go from one to another")
    if about.data != "map":
        options |= {"causal": False, "max_length": max_length}
    layer = create(mechanism, dim=dim, num_heads=num_heads, **options)
    if about.data == "pair" and not isinstance(layer, (PairLayer, MapLayer)):
        raise UnsupportedError(f"{mechanism} takes other inputs than two sequences or two maps")
    return Across(layer)


class Across(nn.Module):
    """Both answers of a layer between two inputs; see the head of this file.

    Args:
        layer: one that takes a context.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, Tensor], Told]:
        """Let two inputs look at each other.

        Args:
            x: one, (B, N, C), or a map (B, C, n_1, n_2).
            context: the other, (B, M, C), or a map (B, C, m_1, m_2).
            key_mask: Bool, True for tokens or pixels of the context that take part.
            query_mask: the same of x.
            generator: the source of everything random.
            return_aux: also return what the layer has to tell, as "loss/x/..." for y and "loss/context/..." for z;
                without the side where it answers both at once.

        Returns:
            y, one row for each place of x, and z, one for each place of the context; 0 for masked ones.

        Raises:
            ValueError, TypeError, UnsupportedError: what the layer refuses.
        """
        found, aux = self._ask(x, context, key_mask, query_mask, generator)
        if isinstance(found, tuple):
            return (found, aux) if return_aux else found
        back, told = self._ask(context, x, query_mask, key_mask, generator)
        assert isinstance(back, Tensor)
        return ((found, back), under("x", aux) | under("context", told)) if return_aux else (found, back)

    def _ask(
        self,
        x: Tensor,
        context: Tensor,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], Told]:
        """What the layer says, of maps pixel by pixel if it is one on sequences."""
        if isinstance(self.layer, MapLayer) or x.ndim <= 3:
            return self.layer(
                x, context, key_mask=key_mask, query_mask=query_mask, generator=generator, return_aux=True
            )
        flat_key, flat_query = (None if mask is None else mask.flatten(1) for mask in (key_mask, query_mask))
        found, aux = self._ask(pixels_of(x), pixels_of(context), flat_key, flat_query, generator)
        if isinstance(found, Tensor):
            return found.mT.unflatten(-1, x.shape[2:]), aux
        return (found[0].mT.unflatten(-1, x.shape[2:]), found[1].mT.unflatten(-1, context.shape[2:])), aux
