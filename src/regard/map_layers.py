"""What all layers on maps (B, C, n_1, ..., n_A) share: the door, the masks and the memory format.

A map has one to three axes: a line, an image, a volume. A pixel is one of its places, whatever the number of axes.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from regard.ops.masks import check_values, hide_rows
from regard.patterns import Pattern
from regard.registry import Layer, UnsupportedError

__all__ = [
    "MapLayer",
    "WeighingLayer",
    "fixed_pattern",
    "hide_pixels",
    "like_format",
    "pixels_of",
]


class MapLayer(Layer):
    """A layer on maps: a subclass sets ``dim``, perhaps ``num_axes``, and says in ``respond`` what it makes of a map.

    Attributes:
        dim: C of what comes in.
        num_axes: A, the number of axes; None: any from one to three.
    """

    dim: int
    num_axes: int | None = 2

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """What the layer makes of an admitted map; every mechanism has its own.

        Args:
            x: what asks, (B, C, n_1, ..., n_A); pixels that neither ask nor are asked are exactly 0.
            source: what is asked: x itself, or a context, whose masked pixels are exactly 0.
            key_mask: Bool (B, m_1, ..., m_A) of the source, or None where all pixels take part.
            query_mask: Bool (B, n_1, ..., n_A) of x, or None.
            generator: the source of everything random.

        Returns:
            y, or (y, aux) where there is something to tell. What stands at masked queries does not matter.
        """
        raise NotImplementedError(f"{type(self).__name__} has no respond")

    def pattern_on(self, sides: Sequence[int]) -> Pattern | None:
        """Who may look at whom among the pixels of a map of these sides; None: everybody, or no pairs are formed."""
        return None

    def answered(self, query_mask: Tensor) -> Tensor | None:
        """The mask of y's pixels; a layer whose output has another size says here which of them are real."""
        return query_mask

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Attend within a map, or from it to a context where the card says so.

        Args:
            x: (B, C, n_1, ..., n_A), in any memory format, which the output has as well.
            context: (B, C, m_1, ..., m_A), another map that is asked.
            key_mask: Bool, True for pixels of what is asked that take part, (B, m_1, ..., m_A).
            query_mask: Bool (B, n_1, ..., n_A), True for pixels that ask; without a context each mask is the default
                for the other.
            segments: refused: a map is no row of documents.
            generator: the source of everything random.
            return_aux: also return what else there is to tell.

        Returns:
            y, 0 for masked queries; with ``return_aux`` (y, dict of tensors).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: segments, a context or a mask that this mechanism cannot have.
        """
        x, source, key_mask, query_mask = self.admit(x, context, key_mask, query_mask, segments)
        out = self.respond(x, source, key_mask=key_mask, query_mask=query_mask, generator=generator)
        y, aux = out if isinstance(out, tuple) else (out, {})
        y = like_format(hide_pixels(y, None if query_mask is None else self.answered(query_mask)), x)
        return (y, aux) if return_aux else y

    def admit(
        self,
        x: Tensor,
        context: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What asks and what is asked, with masked pixels set to 0, and the mask of each; the rest is refused."""
        name = self.mechanism or type(self).__name__
        if segments is not None:
            raise UnsupportedError(f"{name} attends within maps: it takes no segments")
        if context is not None and not self.card.cross:
            raise UnsupportedError(f"{name} attends within one map: it takes no context")
        reason = self.card.refuses.get("key_mask", "")
        if reason and (key_mask is not None or query_mask is not None):
            raise UnsupportedError(f"{name} takes no masks: {reason}")
        source = x if context is None else context
        _check_map(x, self.dim, self.num_axes, "x")
        if context is not None:
            _check_map(context, self.dim, x.ndim - 2, "context")
        if source.shape[0] != x.shape[0]:
            raise ValueError(f"x and context hold {len(x)} and {len(source)} maps, the numbers must be equal")
        _check_pixels(key_mask, source, "key_mask")
        _check_pixels(query_mask, x, "query_mask")
        if context is not None:
            return hide_pixels(x, query_mask), hide_pixels(source, key_mask), key_mask, query_mask
        key_mask, query_mask = (a if b is None else b for a, b in ((query_mask, key_mask), (key_mask, query_mask)))
        x = hide_pixels(x, None if key_mask is None or query_mask is None else key_mask | query_mask)
        return x, x, key_mask, query_mask


class WeighingLayer(MapLayer):
    """A layer on maps whose attention is A v, with an A that does not depend on v: a subclass says it in ``mix``.

    Attributes:
        num_heads: H.
        weighs_values: False where the options of an instance leave it without weights of pixels.
    """

    num_heads: int = 1
    weighs_values: bool = True

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
        """A v for other values, before the output projection and the residual; every mechanism has its own.

        Args:
            x, source, key_mask, query_mask, generator: as in ``respond``.
            values: (B, H, M, Dv), one for each pixel that is asked, in row-major order.

        Returns:
            (B, H, N, Dv). What stands at masked queries does not matter.
        """
        raise NotImplementedError(f"{type(self).__name__} has no mix")

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
        """What the weights make of other values, as :meth:`regard.layers.MultiHead.weigh`; exact maps come from it.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H or 1, M, Dv), one for each pixel that is asked, in row-major order.

        Returns:
            (B, H, N, Dv), 0 for masked queries.

        Raises:
            ValueError, TypeError, UnsupportedError: what ``forward`` refuses, or values that do not fit.
        """
        if not self.weighs_values:
            name = self.mechanism or type(self).__name__
            raise UnsupportedError(f"{name} has no weights of pixels with these options: {self.extra_repr()}")
        x, source, key_mask, query_mask = self.admit(x, context, key_mask, query_mask, segments)
        check_values(values, x.shape[0], self.num_heads, source.shape[2:].numel())
        values = values.to(x.dtype).expand(x.shape[0], self.num_heads, -1, -1)
        out = self.mix(x, source, values, key_mask=key_mask, query_mask=query_mask, generator=generator)
        answered = None if query_mask is None else self.answered(query_mask)
        return hide_rows(out, None if answered is None else answered.flatten(1))


def fixed_pattern(layer: Layer, sides: Sequence[int]) -> Pattern | None:
    """The pattern of a layer on maps of these sides, or of one on sequences; None: it has none that is fixed.

    Example:
        >>> import regard
        >>> fixed_pattern(regard.create("criss_cross", dim=8), (4, 5))
        CrissCross((4, 5))
    """
    if isinstance(layer, MapLayer):
        return layer.pattern_on(sides)
    found = getattr(getattr(layer, "core", layer), "pattern", None)
    return found if isinstance(found, Pattern) else None


def pixels_of(x: Tensor) -> Tensor:
    """x (B, C, *grid) as rows (B, N, C), one for each pixel, in one piece of memory.

    With ``x.flatten(2).mT`` the gradient of a single map would come back with a stride of its batch axis that the batch
    norm of torch 2.13 misreads on the CPU.

    Example:
        >>> pixels_of(torch.arange(6.0).view(1, 2, 3)).tolist()
        [[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]]
    """
    return x.movedim(1, -1).flatten(1, -2).contiguous()


def hide_pixels(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, C, *grid) with the pixels that a mask Bool (B, *grid) leaves out set to exactly 0, NaN too.

    Example:
        >>> hide_pixels(torch.ones(1, 1, 2), torch.tensor([[True, False]])).tolist()
        [[[1.0, 0.0]]]
    """
    return x if mask is None else x.masked_fill(~mask[:, None], 0.0)


def like_format(y: Tensor, x: Tensor) -> Tensor:
    """y in the memory format of x: channels last where x is so, else contiguous.

    Example:
        >>> x = torch.ones(1, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        >>> like_format(torch.ones(1, 3, 2, 2), x).stride()
        (12, 1, 6, 3)
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(y.ndim)
    if last is None or x.ndim != y.ndim or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return y.contiguous()
    return y.contiguous(memory_format=last)


def _check_map(x: Tensor, dim: int, axes: int | None, name: str) -> None:
    """Refuse what is no (batch, dim, sides)."""
    fits = x.ndim in (3, 4, 5) if axes is None else x.ndim == axes + 2
    if not fits or x.shape[1] != dim:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected (batch, {dim}, {_sides(axes)})")
    if 0 in x.shape[2:]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: a map without pixels")


def _sides(axes: int | None) -> str:
    return "one to three sides" if axes is None else ", ".join(f"n_{axis + 1}" for axis in range(axes))


def _check_pixels(mask: Tensor | None, x: Tensor, name: str) -> None:
    """Refuse what is no Bool of the map's pixels."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} is {mask.dtype}: pass Bool, True for pixels that take part, e.g. {name}.bool()")
    expected: Sequence[int] = (x.shape[0], *x.shape[2:])
    if mask.shape != expected:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, but the pixels are {tuple(expected)}: (batch, *sides)")
