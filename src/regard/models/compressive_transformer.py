"""Compressive Transformer: a language model that reads a book segment by segment; without slots, Transformer-XL.

Rae et al. 2019, arXiv:1911.05507, and Dai et al. 2019, arXiv:1901.02860. Tokens are embedded and scaled by sqrt(C);
each layer is LayerNorm(a + W_2 relu(W_1 a + b_1) + b_2) of a = LayerNorm(h + attention(h)); the output matrix is the
embedding. What a layer remembers are its own inputs, so all positions are distances and no length is the longest.

The paper's sizes, as (depth, n_s, n_m, n_cm, c): enwik8 (24, 768, 768, 1152, 3), WikiText-103 (18, 512, 512, 512, 4),
PG-19 (36, 512, 512, 512, 2).
"""

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Generator, Tensor, nn

from regard.mechanisms.memory.compressive import Compressive, Objective
from regard.memory import ModelMemory, check_memory
from regard.ops.compression import Function
from regard.ops.masks import check_mask, check_segments

Placement = Literal["post", "pre"]


class Block(nn.Module):
    """Attention and network, each added to what it reads.

    Args:
        attention: the layer.
        dim, hidden: C and the width of the network.
        placement: the norm after the sum ("post", both papers) or before the branch ("pre"), where normed states are
            what is remembered.
        dropout: inside and after the network.
    """

    def __init__(
        self,
        attention: Compressive,
        dim: int,
        hidden: int,
        placement: Placement,
        dropout: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.attention, self.placement = attention, placement
        self.first, self.second = nn.Linear(dim, hidden, **factory), nn.Linear(hidden, dim, **factory)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, **factory) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def read(self, h: Tensor) -> Tensor:
        """What the attention sees, and therefore remembers, of h."""
        return self.norms[0](h) if self.placement == "pre" else h

    def join(self, h: Tensor, out: Tensor) -> Tensor:
        """h (B, N, C) and the attention's output, then the network."""
        if self.placement == "pre":
            a = h + out
            return a + self._network(self.norms[1](a))
        a = self.norms[0](h + out)
        return self.norms[1](a + self._network(a))

    def _network(self, x: Tensor) -> Tensor:
        return self.drop(self.second(self.drop(F.relu(self.first(x)))))


class CompressiveTransformer(nn.Module):
    """A causal language model: logits (B, N, vocab_size) of the token after each.

    ``model(tokens)`` starts with empty memories. To read on where the last batch ended, in training or generation, keep
    the memory: ``logits, memory, aux = model.stream(tokens, memory, return_aux=True)``; the memory has no gradient
    (unless ``objective="bptt"``). Add every ``loss/...`` of ``aux`` to the loss: it trains the compression.

    Args:
        vocab_size, dim, depth, num_heads: sizes.
        head_dim: D, the default is C / H.
        hidden: the width of the networks; 4 C by default.
        segment_length, memory_length, compressed_length, ratio, compression, objective, start: of all layers, see
            :class:`regard.mechanisms.memory.compressive.Compressive`; ``compressed_length=0`` is Transformer-XL.
        loss_weight: of the mean loss of all compressions.
        placement: where norms stand, see :class:`Block`; with "pre" another one comes last.
        share_biases: u and w are the same in all layers, as in Transformer-XL.
        dropout, attn_drop: on embeddings and branches, and on weights.

    Raises:
        ValueError, TypeError: sizes or tokens that do not fit.

    Example:
        >>> model = CompressiveTransformer(256, dim=16, depth=2, num_heads=2, segment_length=4, ratio=2)
        >>> memory = model.memory(1)
        >>> for piece in torch.randint(256, (1, 30)).split(4, 1):
        ...     logits, memory = model.stream(piece, memory)
        >>> logits.shape
        torch.Size([1, 2, 256])
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int = 512,
        depth: int = 18,
        num_heads: int = 8,
        head_dim: int | None = None,
        hidden: int | None = None,
        segment_length: int = 512,
        memory_length: int | None = None,
        compressed_length: int | None = None,
        ratio: int = 4,
        compression: Function = "conv",
        objective: Objective | None = None,
        loss_weight: float = 1.0,
        start: Literal["empty", "zeros"] = "empty",
        placement: Placement = "post",
        share_biases: bool = True,
        dropout: float = 0.0,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if placement not in ("post", "pre"):
            raise ValueError(f'placement={placement!r} is neither "post" nor "pre"')
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        lengths: dict[str, Any] = {"memory_length": memory_length, "compressed_length": compressed_length}
        options: dict[str, Any] = {"ratio": ratio, "compression": compression, "objective": objective, "start": start}
        drops: dict[str, Any] = {"attn_drop": attn_drop, "proj_drop": dropout, "loss_weight": loss_weight / depth}
        self.dim = dim
        self.embedding, self.drop = nn.Embedding(vocab_size, dim, **factory), nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            layer = Compressive(dim, num_heads, head_dim, segment_length, **lengths, **options, **drops, **factory)
            if share_biases and len(self.blocks):
                first: Any = self.blocks[0]
                layer.content_bias, layer.position_bias = first.attention.content_bias, first.attention.position_bias
            self.blocks.append(Block(layer, dim, hidden or 4 * dim, placement, dropout, **factory))
        self.norm = nn.LayerNorm(dim, **factory) if placement == "pre" else nn.Identity()
        self.bias = nn.Parameter(torch.empty(vocab_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As Transformer-XL: matrices and embeddings N(0, 0.02^2), norm scales N(1, 0.02^2), biases 0."""
        for module in self.modules():
            own = dict(module.named_parameters(recurse=False))
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(own["weight"], std=0.02)
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(own["weight"], 1.0, 0.02)
            if isinstance(module, (nn.Linear, nn.LayerNorm)) and "bias" in own:
                nn.init.zeros_(own["bias"])
            if isinstance(module, Compressive):
                module.reset_parameters()
        nn.init.zeros_(self.bias)

    def forward(
        self,
        tokens: Int[Tensor, "B N"],
        *,
        key_mask: Bool[Tensor, "B N"] | None = None,
        segments: Int[Tensor, "B N"] | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Any:
        """Logits, from empty memories.

        Args:
            tokens: ids below ``vocab_size``.
            key_mask: True for real tokens.
            segments: one id a packed document, which then sees only itself.
            generator: draws the dropout of the weights.
            return_aux: also return the losses of the compressions.

        Returns:
            (B, N, V); with ``return_aux`` a pair of it and a dict of tensors.
        """
        check_mask(key_mask, tokens.shape[0], tokens.shape[1])
        check_segments(segments, tokens.shape[0], tokens.shape[1])
        options: dict[str, Any] = {"key_mask": key_mask, "segments": segments, "generator": generator}
        h, aux = self._embed(tokens), dict[str, Tensor]()
        for number, block in enumerate(cast(list[Block], list(self.blocks))):
            out, told = block.attention(block.read(h), **options, return_aux=True)
            h, aux = block.join(h, out), aux | _named(told, number)
        logits = self._logits(h)
        return (logits, aux) if return_aux else logits

    def memory(
        self,
        batch: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        static: int | None = None,
    ) -> ModelMemory:
        """The memories of all layers for ``batch`` sequences of which nothing has been seen.

        Args:
            batch: B.
            device, dtype: the default is where and what the weights are.
            static: the longest sequence, which needs no room here: memories are of bounded size.
        """
        blocks, place = cast(list[Block], list(self.blocks)), device or self.embedding.weight.device
        layers = tuple(block.attention.memory(batch, device=device, dtype=dtype, static=static) for block in blocks)
        return ModelMemory(layers, torch.zeros(batch, dtype=torch.long, device=place))

    def stream(
        self,
        tokens: Int[Tensor, "B N"],
        memory: ModelMemory,
        *,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Any:
        """Continue with the next tokens: a segment in training, a prompt or a single token in generation.

        Returns:
            The logits that ``forward`` would give for them at the end of all so far, and the new memory; with
            ``return_aux`` also the losses of the compressions of the segments that were completed.
        """
        check_memory(memory, self.memory(len(tokens), device="meta"), tokens)
        h, aux, layers = self._embed(tokens), dict[str, Tensor](), list[Any]()
        for number, (block, before) in enumerate(zip(self.blocks, memory.layers, strict=True)):
            block = cast(Block, block)
            out, after, told = block.attention.stream(block.read(h), before, generator=generator, return_aux=True)
            h, aux = block.join(h, out), aux | _named(told, number)
            layers.append(after)
        logits, memory = self._logits(h), ModelMemory(tuple(layers), memory.position + tokens.shape[1])
        return (logits, memory, aux) if return_aux else (logits, memory)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.drop(self.embedding(tokens) * math.sqrt(self.dim))

    def _logits(self, h: Tensor) -> Tensor:
        return F.linear(self.drop(self.norm(h)), self.embedding.weight, self.bias)


def _named(told: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """What a layer has to tell, under its path."""
    parts = ((name.partition("/"), value) for name, value in told.items())
    return {f"{kind}/blocks.{number}.attention/{rest}": value for (kind, _, rest), value in parts}
