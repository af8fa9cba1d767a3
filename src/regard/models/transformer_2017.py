"""The Transformer of "Attention Is All You Need", as published.

Vaswani et al. 2017, arXiv:1706.03762, section 3. Tokens are embedded, scaled by sqrt(C) and given sinusoids::

    PE[p, 2i] = sin(p / 10000^(2i / C))        PE[p, 2i + 1] = cos(p / 10000^(2i / C))

and pass through stacks of layers: self-attention, in the decoder attention to the encoder's output, and
W_2 relu(W_1 x + b_1) + b_2, each as LayerNorm(x + Dropout(sublayer(x))). One matrix E serves as both embeddings and as
the output, logits = y E^T. Published checkpoints differ, hence the options: ``placement="pre"`` is
x + Dropout(sublayer(LayerNorm(x))) with a last norm on each stack (tensor2tensor soon after the paper, the annotated
Transformer), ``norm="annotated"`` that repository's own normalisation.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.attention import attend
from regard.layers import MultiHead
from regard.mechanisms.multi_head import ScaledDotProduct

__all__ = ["AnnotatedNorm", "Block", "Stack", "Transformer", "masked_attention", "sinusoids"]

Placement = Literal["post", "pre"]
Norm = Literal["layer", "annotated"]
Activation = Callable[[Tensor], Tensor]


def sinusoids(positions: Int[Tensor, "*B N"], dim: int) -> Float[Tensor, "*B N C"]:
    """PE of the positions, sines and cosines interleaved, in float32.

    Example:
        >>> sinusoids(torch.arange(2), 4)[0].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    even = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float64)
    angle = positions[..., None] / 10000 ** (even / dim)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :dim].float()


def masked_attention(
    layer: MultiHead,
    x: Float[Tensor, "B N C"],
    context: Float[Tensor, "B M C"],
    mask: Tensor | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "B N C"]:
    """A multi-head layer under a mask for each pair; every query is computed, padding too.

    Args:
        layer: its projections are used, and its dropout.
        x: what asks.
        context: what is asked.
        mask: Bool (True = takes part) or float (added to the scores), (B or 1, H or 1, N or 1, M).
        causal: no query sees a later key.
    """
    q, k, v = layer._project(x, context, torch.arange(x.shape[1], device=x.device)[None])
    drop = float(getattr(layer.core, "attn_drop", 0.0)) * layer.training
    return layer._join(attend(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=drop))


class AnnotatedNorm(nn.Module):
    """a (x - mean) / (std + eps) + b with the unbiased deviation and eps outside the root: not a LayerNorm.

    Args:
        dim: C.
        eps: added to the deviation.
    """

    def __init__(
        self, dim: int, eps: float = 1e-6, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Normalise the last dimension."""
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.bias


class Block(nn.Module):
    """One layer of the encoder, or with ``cross`` of the decoder: residual branches, each with a norm.

    Args:
        dim, num_heads: C and H.
        hidden: width of the feed-forward network.
        cross: also attend to the encoder's output, between self-attention and network.
        dropout: on every branch, inside the network and on the attention weights.
        placement: the norm after the sum ("post", the paper) or before the branch ("pre").
        norm: "layer" or "annotated".
        norm_eps: of the norms.
        activation: inside the network.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        *,
        cross: bool = False,
        dropout: float = 0.1,
        placement: Placement = "post",
        norm: Norm = "layer",
        norm_eps: float = 1e-6,
        activation: Activation = F.relu,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.self_attention = MultiHead(dim, num_heads, ScaledDotProduct(), attn_drop=dropout, **factory)
        self.cross_attention = (
            MultiHead(dim, num_heads, ScaledDotProduct(), attn_drop=dropout, **factory) if cross else None
        )
        self.first = nn.Linear(dim, hidden, **factory)
        self.second = nn.Linear(hidden, dim, **factory)
        self.norms = nn.ModuleList(make_norm(norm, dim, norm_eps, **factory) for _ in range(3 if cross else 2))
        self.drop, self.placement, self.activation = nn.Dropout(dropout), placement, activation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, biases 0."""
        for linear in (self.first, self.second):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        memory: Float[Tensor, "B M C"] | None = None,
        *,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B N C"]:
        """One layer.

        Args:
            x: what comes from below.
            memory: the encoder's output, for a layer with ``cross``.
            mask, memory_mask: who may look at whom in x and in memory, as in :func:`masked_attention`.
            causal: nobody sees a later token of x.
        """
        attention, cross = self.self_attention, self.cross_attention
        x = self._branch(0, x, lambda y: masked_attention(attention, y, y, mask, causal=causal))
        if cross is not None:
            if memory is None:
                raise ValueError("a layer with cross attention needs the encoder's output: pass memory")
            x = self._branch(1, x, lambda y: masked_attention(cross, y, memory, memory_mask))
        return self._branch(-1, x, lambda y: self.second(self.drop(self.activation(self.first(y)))))

    def _branch(self, number: int, x: Tensor, branch: Activation) -> Tensor:
        norm = self.norms[number]
        if self.placement == "pre":
            return x + self.drop(branch(norm(x)))
        return norm(x + self.drop(branch(x)))


class Stack(nn.Module):
    """Layers one after the other, and a last norm or none.

    Args:
        layers: the layers.
        norm: after the last one.
    """

    def __init__(self, layers: Iterable[Block], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm

    def forward(self, x: Float[Tensor, "B N C"], *args: Any, **options: Any) -> Float[Tensor, "B N C"]:
        """All layers; arguments as in :class:`Block`."""
        for layer in self.layers:
            x = layer(x, *args, **options)
        return x if self.norm is None else self.norm(x)


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
        x = self._embed(self.target_embedding or self.embedding, tgt, tgt_mask)
        causal = tgt_mask is None or tgt_mask.ndim == 2
        return self.decoder(x, memory, mask=_pairs(tgt_mask), memory_mask=_pairs(src_mask), causal=causal)

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

    def _embed(self, table: nn.Embedding, tokens: Tensor, mask: Tensor | None) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        if mask is not None and mask.ndim == 2:  # the first real token stands at 0; padding keeps its place
            positions = torch.where(mask, mask.cumsum(-1) - 1, positions)
        x = table(tokens) * self.dim**0.5
        return self.drop(x + sinusoids(positions, self.dim).to(x.dtype))


def make_norm(norm: Norm, dim: int, eps: float, **factory: Any) -> nn.Module:
    """A norm by its name."""
    if norm not in ("layer", "annotated"):
        raise ValueError(f'norm={norm!r} is neither "layer" nor "annotated"')
    return (nn.LayerNorm if norm == "layer" else AnnotatedNorm)(dim, eps, **factory)


def _pairs(mask: Tensor | None) -> Tensor | None:
    """A mask of tokens or of pairs as one that broadcasts over heads: (B, 1, 1 or N, M)."""
    if mask is None:
        return None
    return mask[:, None, None] if mask.ndim == 2 else mask[:, None]
