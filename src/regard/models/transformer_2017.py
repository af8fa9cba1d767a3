"""The Transformer of "Attention Is All You Need", as published.

Vaswani et al. 2017, arXiv:1706.03762, section 3. Tokens are embedded, scaled by sqrt(C) and given sinusoids::

    PE[p, 2i] = sin(p / 10000^(2i / C))        PE[p, 2i + 1] = cos(p / 10000^(2i / C))

and pass through stacks of layers: self-attention, in the decoder attention to the encoder's output, and
W_2 relu(W_1 x + b_1) + b_2, each as LayerNorm(x + Dropout(sublayer(x))). One matrix E serves as both embeddings and as
the output, logits = y E^T. Published checkpoints differ, hence the options: ``placement="pre"`` is
x + Dropout(sublayer(LayerNorm(x))) with a last norm on each stack (tensor2tensor soon after the paper, the annotated
Transformer), ``norm="annotated"`` that repository's own normalisation.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.models.transformer_2017_layers import (
    AnnotatedNorm,
    Block,
    BlockMemory,
    Norm,
    Placement,
    Stack,
    make_norm,
    masked_attention,
)

__all__ = ["AnnotatedNorm", "Block", "DecoderMemory", "Stack", "Transformer", "masked_attention", "sinusoids"]


def sinusoids(positions: Int[Tensor, "*B N"], dim: int) -> Float[Tensor, "*B N C"]:
    """PE of the positions, sines and cosines interleaved, in float32.

    Example:
        >>> sinusoids(torch.arange(2), 4)[0].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    even = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float64)
    angle = positions[..., None] / 10000 ** (even / dim)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :dim].float()


class DecoderMemory(NamedTuple):
    """What :meth:`Transformer.step` carries from token to token.

    Attributes:
        layers: of each layer of the decoder.
        real: (B, S), True for real source tokens.
        position: (B,), of the next target token.
    """

    layers: tuple[BlockMemory, ...]
    real: Bool[Tensor, "B S"]
    position: Int[Tensor, " B"]


class Transformer(nn.Module):
    """From source and target tokens to the logits of each target token's successor.

    Args:
        vocab_size: number of source tokens, and of target tokens without ``target_vocab_size``.
        target_vocab_size: gives the target its own embedding and an output layer of its own (nothing is shared).
        dim, num_heads, depth, hidden: C, H, layers of each stack, width of the feed-forward networks.
        dropout: on every branch, on the embeddings with their sinusoids and on the attention weights.
        placement: "post" (the paper) or "pre", which also puts a norm on top of each stack.
        norm, norm_eps: of all norms; the paper does not name an eps.

    Example:
        >>> model = Transformer(14, dim=16, num_heads=4, depth=1, hidden=24)
        >>> model(torch.randint(14, (2, 7)), torch.randint(14, (2, 5))).shape
        torch.Size([2, 5, 14])
    """

    def __init__(
        self,
        vocab_size: int,
        target_vocab_size: int | None = None,
        *,
        dim: int = 512,
        num_heads: int = 8,
        depth: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
        placement: Placement = "post",
        norm: Norm = "layer",
        norm_eps: float = 1e-6,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"dropout": dropout, "placement": placement, "norm": norm, "norm_eps": norm_eps}

        def stack(cross: bool) -> Stack:
            layers = [Block(dim, num_heads, hidden, cross=cross, **options, **factory) for _ in range(depth)]
            return Stack(layers, make_norm(norm, dim, norm_eps, **factory) if placement == "pre" else None)

        self.dim, self.drop = dim, nn.Dropout(dropout)
        self.encoder, self.decoder = stack(False), stack(True)
        self.embedding = nn.Embedding(vocab_size, dim, **factory)
        separate = target_vocab_size is not None
        self.target_embedding = nn.Embedding(target_vocab_size, dim, **factory) if separate else None
        self.output = nn.Linear(dim, target_vocab_size, **factory) if separate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Embeddings N(0, 1/C), so that they leave their scaling by sqrt(C) with variance 1; all else by its module."""
        for table in (self.embedding, self.target_embedding):
            if table is not None:
                nn.init.normal_(table.weight, std=self.dim**-0.5)

    def encode(self, src: Int[Tensor, "B S"], src_mask: Tensor | None = None) -> Float[Tensor, "B S C"]:
        """The encoder's output; masks as in :meth:`forward`."""
        return self.encoder(self._embed(self.embedding, src, src_mask), mask=_pairs(src_mask))

    def decode(
        self,
        tgt: Int[Tensor, "B T"],
        memory: Float[Tensor, "B S C"],
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
    ) -> Float[Tensor, "B T C"]:
        """The decoder's output; masks as in :meth:`forward`."""
        x, options = self._decoding(tgt, src_mask, tgt_mask)
        return self.decoder(x, memory, **options)

    def logits(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """The decoder's output as scores of the target tokens."""
        return F.linear(x, self.embedding.weight) if self.output is None else self.output(x)

    def forward(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        *,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each target token.

        Args:
            src, tgt: tokens.
            src_mask: Bool, True = takes part: (B, S) for real tokens, or (B or 1, N, S) for pairs.
            tgt_mask: Bool (B, T) for real tokens, or (B or 1, T, T) for pairs, which then replaces causality.
        """
        return self.logits(self.decode(tgt, self.encode(src, src_mask), src_mask, tgt_mask))

    def align(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        *,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        layer: int = -1,
    ) -> Float[Tensor, "B T S"]:
        """How much the prediction of the token after each target token looks at each source token.

        Args:
            src, tgt, src_mask, tgt_mask: as in :meth:`forward`.
            layer: of the decoder; its cross attention is shown, the mean over heads.
        """
        memory, layers = self.encode(src, src_mask), list(self.decoder.layers)
        x, options = self._decoding(tgt, src_mask, tgt_mask)
        if not -len(layers) <= layer < len(layers):
            raise ValueError(f"layer={layer}: the decoder has {len(layers)} layers")
        chosen = cast(Block, layers[layer])
        for below in layers[: layers.index(chosen)]:
            x = below(x, memory, **options)
        return chosen.weights(x, memory, **options).mean(1)

    def begin(self, src: Int[Tensor, "B S"], src_mask: Bool[Tensor, "B S"] | None = None) -> DecoderMemory:
        """Read the source, once: what :meth:`step` continues from."""
        memory = self.encode(src, src_mask)
        carried = tuple(cast(Block, layer).begin(memory) for layer in self.decoder.layers)
        real = torch.ones_like(src, dtype=torch.bool) if src_mask is None else src_mask
        return DecoderMemory(carried, real, torch.zeros_like(src[:, 0]))

    def step(self, tokens: Int[Tensor, " B"], memory: DecoderMemory) -> tuple[Float[Tensor, "B V"], DecoderMemory]:
        """Logits of the token after the next target token, as :meth:`forward` gives them, and the grown memory.

        Args:
            tokens: the next one of each sentence; the first is the start symbol.
            memory: from :meth:`begin` or the step before.
        """
        x = self._placed(self.target_embedding or self.embedding, tokens[:, None], memory.position[:, None])
        carried: list[BlockMemory] = []
        for layer, before in zip(self.decoder.layers, memory.layers, strict=True):
            x, after = cast(Block, layer).step(x, before, _pairs(memory.real))
            carried.append(after)
        x = x if self.decoder.norm is None else self.decoder.norm(x)
        return self.logits(x)[:, 0], DecoderMemory(tuple(carried), memory.real, memory.position + 1)

    def _decoding(self, tgt: Tensor, src_mask: Tensor | None, tgt_mask: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """What enters the decoder, and the options of its layers."""
        x = self._embed(self.target_embedding or self.embedding, tgt, tgt_mask)
        causal = tgt_mask is None or tgt_mask.ndim == 2
        return x, {"mask": _pairs(tgt_mask), "memory_mask": _pairs(src_mask), "causal": causal}

    def _embed(self, table: nn.Embedding, tokens: Tensor, mask: Tensor | None) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        if mask is not None and mask.ndim == 2:  # the first real token stands at 0; padding keeps its place
            positions = torch.where(mask, mask.cumsum(-1) - 1, positions)
        return self._placed(table, tokens, positions)

    def _placed(self, table: nn.Embedding, tokens: Tensor, positions: Tensor) -> Tensor:
        x = table(tokens) * self.dim**0.5
        return self.drop(x + sinusoids(positions, self.dim).to(x.dtype))


def _pairs(mask: Tensor | None) -> Tensor | None:
    """A mask of tokens or of pairs as one that broadcasts over heads: (B, 1, 1 or N, M)."""
    if mask is None:
        return None
    return mask[:, None, None] if mask.ndim == 2 else mask[:, None]
