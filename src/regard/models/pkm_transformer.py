"""A Transformer in which some feed-forward networks are product-key memories.

Lample et al. 2019, arXiv:1907.05242, sections 3.5 and 4: x + memory(norm(x)) takes the place of x + mlp(norm(x)) in one
to three of the layers; the authors' 12 layers with one memory have a lower perplexity than 24 without. The body is that
of :class:`regard.models.TransformerLM`, pre-norm where theirs has its norms after the sum. ``placement="beside"`` keeps
the network too, x + mlp(norm(x)) + memory(norm(x)), for models that a memory alone makes worse.

Give the tables an optimiser or a learning rate of their own, see :func:`parameter_groups`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from regard.mechanisms.chosen.product_key_memory import ProductKeyMemory, parameter_groups
from regard.models.transformer import Block, TransformerLM

__all__ = ["MemoryBlock", "PKMTransformer", "parameter_groups"]

Placement = Literal["instead", "beside"]


class MemoryBlock(Block):
    """One attention and one product-key memory, each added to what it reads.

    Args:
        attention: a layer of ours, (B, N, C) -> (B, N, C).
        memory: the memory.
        dim: C.
        placement: "instead" of the MLP or "beside" it.
        options: those of :class:`regard.models.transformer.Block`.
    """

    def __init__(
        self, attention: nn.Module, memory: ProductKeyMemory, dim: int, *, placement: Placement, **options: Any
    ) -> None:
        super().__init__(attention, dim, **options)
        self.memory, self.placement = memory, placement
        if placement == "instead":
            self.mlp = nn.Sequential()

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, N, C) and what attention and memory have to tell; only real tokens enter the memory's statistics."""
        out = self.attention(self.norm1(x), **options, **({"return_aux": True} if self._has_aux else {}))
        out, aux = out if self._has_aux else (out, {})
        x, told = self._remember(x + self.dropout(out), options.get("key_mask"))
        return x, {**aux, **{name.replace("/", "/memory/", 1): value for name, value in told.items()}}

    def _think(self, x: Tensor) -> Tensor:
        return self._remember(x)[0]

    def _remember(self, x: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        read = self.norm2(x)
        y, told = self.memory(read, key_mask=key_mask, return_aux=True)
        return x + self.dropout(y + self.mlp(read) if self.placement == "beside" else y), told


class PKMTransformer(TransformerLM):
    """A language model with product-key memories: logits (B, N, vocab_size), of the next or of masked tokens.

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes.
        mechanism: the registry name of the attention.
        memory_layers: which layers have a memory, from 0; None: the middle one.
        memory: options of :class:`regard.mechanisms.chosen.product_key_memory.ProductKeyMemory`, e.g. ``num_keys``.
        placement: "instead" of the MLP, as in the paper, or "beside" it.
        causal: False for masked language modelling; all tokens then see each other.
        mlp_ratio: the hidden width of the MLPs, in multiples of ``dim``.
        dropout: on the embeddings and on both branches of each block.
        mechanism_options: what else :func:`regard.create` shall pass on.

    Raises:
        ValueError: layers that are not there, or twice, or an unknown placement.
        UnsupportedError: something that the mechanism cannot do.

    Example:
        >>> model = PKMTransformer(256, 16, 2, 2, 64, memory={"key_dim": 8, "num_keys": 16, "topk": 4})
        >>> model(torch.randint(256, (3, 10))).shape
        torch.Size([3, 10, 256])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        mechanism: str = "full",
        *,
        memory_layers: Sequence[int] | None = None,
        memory: Mapping[str, Any] | None = None,
        placement: Placement = "instead",
        causal: bool = True,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mechanism_options: Any,
    ) -> None:
        chosen = (depth // 2,) if memory_layers is None else tuple(memory_layers)
        if len(set(chosen)) < len(chosen) or any(number not in range(depth) for number in chosen):
            raise ValueError(f"memory_layers={chosen}: each must be one of the depth={depth} layers from 0, and once")
        if placement not in ("instead", "beside"):
            raise ValueError(f'placement={placement!r} is neither "instead" nor "beside"')
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"mlp_ratio": mlp_ratio, "dropout": dropout, **factory}
        sizes = (vocab_size, dim, depth, num_heads, max_length, mechanism)
        super().__init__(*sizes, causal=causal, **options, **mechanism_options)
        for number in chosen:
            attention = cast(Block, self.blocks[number]).attention
            table = ProductKeyMemory(dim, **(memory or {}), **factory)
            self.blocks[number] = MemoryBlock(attention, table, dim, placement=placement, **options)

    def forward(
        self, tokens: Tensor, *, return_aux: bool = False, **options: Any
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits; arguments as in :class:`regard.models.TransformerEncoder`.

        Returns:
            Logits (B, N, vocab_size); with ``return_aux`` also what the layers tell, "metric/blocks.3.memory/usage" and
            "metric/blocks.3.memory/kl" among it.
        """
        found = super().forward(tokens, return_aux=True, **options)
        y, aux = cast(tuple[Tensor, dict[str, Tensor]], found)
        aux = {name.replace(".attention/memory/", ".memory/"): value for name, value in aux.items()}
        return (y, aux) if return_aux else y
