"""Memformer: an encoder that reads segments one after the other and carries memory slots, and a decoder if wanted.

Wu et al. 2022, arXiv:2010.06891, section 3. Each encoder layer is x + self-attention, x + a look at the slots,
x + feed-forward network, with a norm before each; the slots are written once a segment, from what the last layer
gives. The decoder attends to itself, causally, and to the encoder's output, not to the slots. Positions are T5's bias
by distance, one table for all layers of a stack. :func:`regard.train.memory_replay.memory_replay` trains it through
time in the memory of one segment.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.memory import check_memory
from regard.ops.masks import check_mask
from regard.ops.memory_slots import SlotMemory, Update
from regard.scores import Bias, T5Buckets


class Slots(NamedTuple):
    """The memory between two segments.

    Attributes:
        slots: (B, K, C).
    """

    slots: Float[Tensor, "B K C"]


class Attention(nn.Module):
    """Multi-head attention behind a norm of what asks, added to it: x + W_o attend(LayerNorm(x), context).

    Args:
        dim, num_heads: C and H.
        causal: no query sees a later key.
    """

    def __init__(self, dim: int, num_heads: int, causal: bool = False, **factory: Any) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.norm = nn.LayerNorm(dim, **factory)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim, **factory) for _ in range(4))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, bias: Bias | None = None
    ) -> Tensor:
        """x (B, N, C), asking itself or a context (B, M, C); ``mask`` is what :func:`regard.attend` calls attn_mask."""
        normed = self.norm(x)
        source = normed if context is None else context
        q, k, v = (
            linear(t).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, t in ((self.q_proj, normed), (self.k_proj, source), (self.v_proj, source))
        )
        out = attend(q, k, v, attn_mask=mask, score=bias, is_causal=self.causal and mask is None)
        return x + self.out_proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention to itself, to something else, and a feed-forward network.

    Args:
        dim, num_heads: C and H.
        causal: of the first attention.
        dropout: inside and after the network.
    """

    def __init__(self, dim: int, num_heads: int, causal: bool, dropout: float, **factory: Any) -> None:
        super().__init__()
        self.near = Attention(dim, num_heads, causal, **factory)
        self.far = Attention(dim, num_heads, **factory)
        self.norm = nn.LayerNorm(dim, **factory)
        inner = (nn.Linear(dim, 4 * dim, **factory), nn.GELU(), nn.Linear(4 * dim, dim, **factory))
        self.feed_forward = nn.Sequential(*inner, nn.Dropout(dropout))

    def forward(
        self, x: Tensor, context: Tensor, bias: Bias, mask: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """x (B, N, C), context (B, M, C)."""
        x = self.far(self.near(x, None, mask, bias), context, context_mask)
        return x + self.feed_forward(self.norm(x))


class Stack(nn.Module):
    """Embedding, layers with one table of distances, and a last norm.

    Args:
        vocab_size, dim, num_heads, depth: sizes.
        causal: no token sees a later one.
        two_sided: buckets of distances tell keys ahead from keys behind.
        dropout: on the embedding and in the feed-forward networks.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        num_heads: int,
        depth: int,
        *,
        causal: bool,
        two_sided: bool,
        dropout: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        head_width(dim, num_heads)
        self.causal, self.index = causal, T5Buckets(32, 128, bidirectional=two_sided)
        self.embedding = nn.Embedding(vocab_size, dim, **factory)
        self.bias = nn.Embedding(self.index.size, num_heads, **factory)
        self.layers = nn.ModuleList(Layer(dim, num_heads, causal, dropout, **factory) for _ in range(depth))
        self.norm, self.drop = nn.LayerNorm(dim, **factory), nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, context: Tensor, mask: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """tokens (B, N), context (B, M, C); masks as attn_mask of :func:`regard.attend`, which replace causality."""
        x, bias = self.drop(self.embedding(tokens)), Bias(self.bias.weight.mT, self.index)
        for layer in self.layers:
            x = layer(x, context, bias, mask, context_mask)
        return self.norm(x)


class Memformer(nn.Module):
    """Segments of tokens in, one vector a token out or, with a target, logits of each target token's successor.

    Args:
        vocab_size: of the source.
        dim, num_heads, depth: C, H and the encoder's layers.
        num_slots: K.
        target_vocab_size, decoder_depth: with a decoder; None and 0: none.
        decoder_heads: heads of the decoder; H by default.
        update, temperature, num_updates, update_heads: how slots are written, see
            :class:`regard.ops.memory_slots.SlotMemory`; heads are H by default.
        two_sided: whether the encoder's and the decoder's distances have a side, see :class:`Stack`.
        dropout: on embeddings and in the feed-forward networks.

    Example:
        >>> model = Memformer(50, dim=16, num_heads=2, depth=1, num_slots=4)
        >>> memory = model.memory(3)
        >>> for segment in torch.randint(50, (3, 20)).split(8, 1):
        ...     y, memory = model.stream(segment, memory)
        >>> y.shape, memory.slots.shape
        (torch.Size([3, 4, 16]), torch.Size([3, 4, 16]))
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int = 512,
        num_heads: int = 8,
        depth: int = 6,
        num_slots: int = 32,
        target_vocab_size: int | None = None,
        decoder_depth: int = 0,
        decoder_heads: int | None = None,
        update: Update = "normalised",
        temperature: float | None = None,
        num_updates: int = 1,
        update_heads: int | None = None,
        two_sided: tuple[bool, bool] = (True, False),
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (target_vocab_size is None) != (decoder_depth == 0):
            raise ValueError(
                f"target_vocab_size={target_vocab_size}, decoder_depth={decoder_depth}: a decoder needs both"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim = dim
        options: dict[str, Any] = {"dropout": dropout, **factory}
        self.encoder = Stack(vocab_size, dim, num_heads, depth, causal=False, two_sided=two_sided[0], **options)
        self.decoder, self.output = None, None
        if target_vocab_size is not None:
            heads = decoder_heads or num_heads
            sizes = (target_vocab_size, dim, heads, decoder_depth)
            self.decoder = Stack(*sizes, causal=True, two_sided=two_sided[1], **options)
            self.output = nn.Linear(dim, target_vocab_size, **factory)
        written: dict[str, Any] = {"temperature": temperature, "num_updates": num_updates}
        self.slots = SlotMemory(dim, update_heads or num_heads, num_slots, update, **written, **factory)

    def memory(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Slots:
        """M_0 for ``batch`` streams; use it again wherever another document begins."""
        weight = self.encoder.embedding.weight
        return Slots(self.slots.initial(batch).to(device=device or weight.device, dtype=dtype or weight.dtype))

    def stream(
        self, tokens: Int[Tensor, "B N"], memory: Slots, key_mask: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], Slots]:
        """Encode the next segment and write the slots: -> (one vector a token, the new memory).

        Args:
            tokens: the whole segment; its tokens see each other.
            memory: of the segments before; its gradient reaches back through all of them.
            key_mask: True for real tokens, which alone are seen and written.
        """
        check_mask(key_mask, tokens.shape[0], tokens.shape[1])
        check_memory(memory, self.memory(len(tokens), device="meta"), tokens)
        mask = None if key_mask is None else key_mask[:, None, None]
        x = self.encoder(tokens, memory.slots, mask)
        return x, Slots(self.slots(memory.slots, x, key_mask))

    def decode(
        self,
        target: Int[Tensor, "B T"],
        encoded: Float[Tensor, "B N C"],
        key_mask: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each target token, which sees the earlier ones and the segment.

        Raises:
            ValueError: a model without a decoder.
        """
        if self.decoder is None or self.output is None:
            raise ValueError("this Memformer has no decoder: build it with target_vocab_size= and decoder_depth=")
        mask = None if key_mask is None else key_mask[:, None, None]
        return self.output(self.decoder(target, encoded, None, mask))

    def forward(
        self,
        tokens: Int[Tensor, "B N"],
        target: Int[Tensor, "B T"] | None = None,
        memory: Slots | None = None,
        *,
        key_mask: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Tensor, Slots]:
        """One segment: :meth:`stream`, then :meth:`decode` where there is a target; M_0 where there is no memory."""
        memory = self.memory(len(tokens)) if memory is None else memory
        encoded, memory = self.stream(tokens, memory, key_mask)
        return (encoded if target is None else self.decode(target, encoded, key_mask)), memory
