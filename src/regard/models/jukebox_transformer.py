"""Jukebox's sparse transformer: layers of row, column and previous-row attention that take turns.

Dhariwal et al. 2020, arXiv:2005.00341, appendix A. The blocks are those of :mod:`regard.models.jukebox_block`; nothing
is normed at the end.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from regard.mechanisms.patterned.jukebox import KINDS, FactoredAttention, Kind, kind_of
from regard.memory import LayerMemory, ModelMemory, check_memory
from regard.models.jukebox_block import ACTIVATIONS, Activation, JukeboxBlock, StreamingAttention
from regard.ops.masks import check_mask, check_tokens, hide

_THREE = (1, 2, 3)


def _now_and_then(other: int) -> tuple[int, ...]:
    """Row, column, previous row; every 16th layer is of another kind, which takes turns with dense attention."""
    return tuple((other, other, 0)[d % 3] if d % 16 == 15 else _THREE[d % 3] for d in range(48))


ORDERS: tuple[tuple[int, ...], ...] = (
    (0,),
    (1, 2),
    _THREE,
    (1, 4),
    (1, 5),
    (1, 4, 1, 1),
    (*_THREE, 6),
    (*_THREE * 5, 6),
    (*_THREE * 3, 6),
    (*_THREE, 0),
    (*_THREE * 3, *(*_THREE * 3, 6) * 7),
    _now_and_then(6),
    _now_and_then(7),
)
"""The authors' ``attn_order``: the kinds of the layers, over and over. 2: no lyrics; 10: lyrics apart; 12: in front."""


def kinds_of(order: int | Sequence[Kind | int], depth: int) -> list[Kind]:
    """The kind of each layer.

    Args:
        order: one of the authors' numbers, or kinds that are repeated.
        depth: how many layers.

    Raises:
        ValueError: an order that there is not.

    Example:
        >>> kinds_of(2, 4)
        ['row', 'column', 'previous_row', 'row']
    """
    if isinstance(order, int) and not 0 <= order < len(ORDERS):
        raise ValueError(f"order={order}: the authors' numbers go from 0 to {len(ORDERS) - 1}; or list kinds")
    cycle = ORDERS[order] if isinstance(order, int) else order
    if not cycle:
        raise ValueError(f"order={order!r} lists no kind: one of {', '.join(KINDS)} at least")
    return [kind_of(cycle[number % len(cycle)]) for number in range(depth)]


class JukeboxTransformer(nn.Module):
    """Blocks whose kinds of attention take turns, (B, N, C) -> (B, N, C).

    Args:
        dim, depth, num_heads: sizes.
        order: the kinds, as :func:`kinds_of` takes them.
        row_length: l of all kinds that have rows.
        max_length: the longest sequence, for "summary" and "spread".
        spread, prime_length: of the kinds of that name, see :class:`FactoredAttention`.
        attention_ratio, mlp_ratio: widths of queries and of the network, as multiples of C (rounded down).
        activation: of the network.
        scale_residuals: what a block adds is divided by ``depth``.
        zero_out, init_scale: how weights start; layers across start at 0 in any case.
        causal: only keys at or before the query.
        attn_drop, dropout: on weights, and on what attention and network add.

    Raises:
        ValueError: an unknown order or activation, widths that do not divide, or a missing option.

    Example:
        >>> model = JukeboxTransformer(16, 3, 2, row_length=4)
        >>> [block.attention.core.kind for block in model.blocks]
        ['row', 'column', 'previous_row']
        >>> model(torch.randn(1, 10, 16)).shape
        torch.Size([1, 10, 16])
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int = 1,
        *,
        order: int | Sequence[Kind | int] = 2,
        row_length: int = 64,
        max_length: int | None = None,
        spread: int | None = None,
        prime_length: int | None = None,
        attention_ratio: float = 0.25,
        mlp_ratio: float = 1.0,
        activation: Activation = "quick_gelu",
        scale_residuals: bool = False,
        zero_out: bool = False,
        init_scale: float = 1.0,
        causal: bool = True,
        attn_drop: float = 0.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width, hidden = int(attention_ratio * dim), int(mlp_ratio * dim)
        if width < 1 or width % num_heads or hidden < 1:
            raise ValueError(
                f"attention_ratio={attention_ratio} of dim={dim} makes queries {width} wide, which must be a positive "
                f"multiple of num_heads={num_heads}; mlp_ratio={mlp_ratio} makes the network {hidden} wide"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is none of {', '.join(ACTIVATIONS)}")
        own: dict[Kind, dict[str, Any]] = {
            "dense": {},
            "encoder_decoder": {"causal": False},
            "prime": {"prime_length": prime_length},
            "spread": {"row_length": row_length, "spread": spread, "max_length": max_length},
            "summary": {"row_length": row_length, "max_length": max_length},
        }
        self.dim, self.causal = dim, causal
        self.blocks = nn.ModuleList()
        for kind in kinds_of(order, depth):
            options: dict[str, Any] = {"causal": causal, "attn_drop": attn_drop}
            core = FactoredAttention(kind, **options | own.get(kind, {"row_length": row_length}))
            attention = StreamingAttention(
                dim, num_heads, core, head_dim=width // num_heads, proj_drop=dropout, **factory
            )
            block = JukeboxBlock(
                attention,
                dim,
                hidden,
                activation=activation,
                scale=1 / depth if scale_residuals else 1.0,
                init_scale=init_scale,
                zero_out=zero_out or kind == "encoder_decoder",
                dropout=dropout,
                **factory,
            )
            self.blocks.append(block)

    def reset_parameters(self) -> None:
        """As each block says."""
        for block in self._blocks:
            block.reset_parameters()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """The stream after the last block, (B, N, C).

        Args:
            x: (B, N, C).
            context: (B, M, C), what layers of kind "encoder_decoder" attend to.
            key_mask: Bool (B, N), True for real tokens.
            context_mask: Bool (B, M), True for real tokens of the context.
            generator: draws the dropout of the weights.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit, or a context that is missing or that nobody reads.
        """
        check_tokens(x, self.dim)
        check_mask(key_mask, x.shape[0], x.shape[1])
        self._check_context(context)
        x = hide(x, key_mask)
        options: dict[str, Any] = {"key_mask": key_mask, "context_mask": context_mask, "generator": generator}
        for block in self._blocks:
            x = block(x, context if block.attention.across else None, **options)
        return x

    def memory(
        self,
        batch: int,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ModelMemory:
        """The memory of ``batch`` sequences of which nothing has been seen but the context (B, M, C).

        Raises:
            ValueError: a context that is missing, or that nobody reads.
            UnsupportedError: a model that is not causal.
        """
        self._check_context(context)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        return self._memory(batch, context, context_mask, **options)

    def _memory(self, batch: int, context: Tensor | None, context_mask: Tensor | None, **options: Any) -> ModelMemory:
        layers = tuple(block.attention.start(batch, context, context_mask, **options) for block in self._blocks)
        place = options["device"] or next(self.parameters()).device
        return ModelMemory(layers, torch.zeros(batch, dtype=torch.long, device=place))

    def stream(self, x: Tensor, memory: ModelMemory) -> tuple[Tensor, ModelMemory]:
        """Continue with the next N tokens x (B, N, C).

        Returns:
            What ``forward`` would give for them at the end of all so far, and the grown memory.

        Raises:
            TypeError, ValueError: the memory of another model or of other sequences.
        """
        check_tokens(x, self.dim)
        check_memory(memory, self.empty_memory(len(x)), x)
        return self.resume(x, memory)

    def empty_memory(self, batch: int) -> ModelMemory:
        """The kind and the sizes of a memory, without numbers and without a context."""
        return self._memory(batch, None, None, device="meta", dtype=None)

    def resume(self, x: Tensor, memory: ModelMemory) -> tuple[Tensor, ModelMemory]:
        """As ``stream``, for callers who made the memory themselves: nothing is checked."""
        layers = list[LayerMemory]()
        for block, before in zip(self._blocks, memory.layers, strict=True):
            x, after = block.stream(x, before)
            layers.append(after)
        return x, ModelMemory(tuple(layers), memory.position + x.shape[1])

    @property
    def _blocks(self) -> list[JukeboxBlock]:
        return cast(list[JukeboxBlock], list(self.blocks))

    def _check_context(self, context: Tensor | None) -> None:
        reads = any(block.attention.across for block in self._blocks)
        if reads != (context is not None):
            kinds = ", ".join(dict.fromkeys(cast(FactoredAttention, b.attention.core).kind for b in self._blocks))
            wanted = "needs context=, the states of the lyrics" if reads else "takes no context"
            raise ValueError(f"this transformer {wanted}: its layers are of kinds {kinds}")
