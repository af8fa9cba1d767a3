"""What all layers on two sequences share: the door and the masks."""

from typing import TypeAlias

from torch import Generator, Tensor

from regard.ops.masks import check_mask, check_tokens, check_values, hide, hide_rows
from regard.registry import Layer, UnsupportedError

__all__ = ["Met", "PairLayer", "WeighingPairLayer"]

Met: TypeAlias = Tensor | tuple[Tensor, Tensor] | tuple[Tensor, dict[str, Tensor]]
"""What becomes of two sequences: y; or (y, z) where both are answered; or (y, aux) where there is something to tell."""


class PairLayer(Layer):
    """A layer on two sequences: a subclass sets ``dim``, perhaps ``context_dim``, and says in ``meet`` what it does.

    Attributes:
        dim: C of the sequence that asks.
        context_dim: C' of the one that is asked.
    """

    dim: int
    context_dim: int

    def meet(
        self,
        x: Tensor,
        context: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Met:
        """What the layer makes of two admitted sequences; every mechanism has its own.

        Args:
            x: what asks, (B, N, C); masked tokens are exactly 0.
            context: what is asked, (B, M, C'); masked tokens are exactly 0.
            key_mask: Bool (B, M) of the context, or None where all its tokens take part.
            query_mask: Bool (B, N) of x, or None.
            generator: the source of everything random.

        Returns:
            See :data:`Met`. What stands at masked tokens does not matter.
        """
        raise NotImplementedError(f"{type(self).__name__} has no meet")

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
    ) -> Met | tuple[Met, dict[str, Tensor]]:
        """Let x look at the context; some mechanisms also let the context look at x.

        Args:
            x: what asks, (B, N, C).
            context: what is asked, (B, M, C').
            key_mask: Bool (B, M), True for tokens of the context that take part.
            query_mask: Bool (B, N), True for tokens of x that ask.
            segments: refused: two sequences are no row of documents.
            generator: the source of everything random.
            return_aux: also return what else there is to tell.

        Returns:
            y (B, N, ...), or y and z (B, M, ...), 0 for masked tokens; with ``return_aux`` (that, dict of tensors).

        Raises:
            ValueError, TypeError: no context, or shapes or masks that do not fit.
            UnsupportedError: segments, or a mask that this mechanism cannot have.
        """
        x, context = self.admit(x, context, key_mask, query_mask, segments)
        out = self.meet(x, context, key_mask=key_mask, query_mask=query_mask, generator=generator)
        aux: dict[str, Tensor] = {}
        if isinstance(out, tuple) and isinstance(out[1], dict):
            out, aux = out[0], out[1]
        if isinstance(out, tuple):
            assert isinstance(out[1], Tensor)
            out = hide(out[0], query_mask), hide(out[1], key_mask)
        else:
            out = hide(out, query_mask)
        return (out, aux) if return_aux else out

    def admit(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both sequences with masked tokens set to 0; what does not fit is refused."""
        name = self.mechanism or type(self).__name__
        if segments is not None:
            raise UnsupportedError(f"{name} attends between two sequences: it takes no segments")
        if context is None:
            raise ValueError(f"{name} attends from one sequence to another: pass the other as context")
        check_tokens(x, self.dim)
        check_tokens(context, self.context_dim, "context")
        if x.shape[0] != context.shape[0]:
            raise ValueError(f"x and context hold {len(x)} and {len(context)} sequences, the numbers must be equal")
        reason = self.card.refuses.get("key_mask", "")
        if reason and (key_mask is not None or query_mask is not None):
            raise UnsupportedError(f"{name} takes no masks: {reason}")
        check_mask(key_mask, *context.shape[:2], name="key_mask")
        check_mask(query_mask, *x.shape[:2], name="query_mask")
        return hide(x, query_mask), hide(context, key_mask)


class WeighingPairLayer(PairLayer):
    """A layer on two sequences whose attention is A v, with an A that does not depend on v: ``mix`` says it.

    Attributes:
        num_heads: H.
    """

    num_heads: int = 1

    def mix(
        self,
        x: Tensor,
        context: Tensor,
        values: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """A v for other values, before the output projection and the residual; every mechanism has its own.

        Args:
            x, context, key_mask, query_mask, generator: as in ``meet``.
            values: (B, H, M, Dv), one for each token of the context.

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
            values: (B or 1, H or 1, M, Dv), one for each token of the context.

        Returns:
            (B, H, N, Dv), 0 for masked queries.

        Raises:
            ValueError, TypeError, UnsupportedError: what ``forward`` refuses, or values that do not fit.
        """
        x, context = self.admit(x, context, key_mask, query_mask, segments)
        check_values(values, x.shape[0], self.num_heads, context.shape[1])
        values = values.to(x.dtype).expand(x.shape[0], self.num_heads, -1, -1)
        out = self.mix(x, context, values, key_mask=key_mask, query_mask=query_mask, generator=generator)
        return hide_rows(out, query_mask)
