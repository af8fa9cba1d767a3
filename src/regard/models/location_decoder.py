"""The decoder of hybrid recognisers: an LSTM that listens, by location-aware attention, before each of its steps.

Chorowski et al. 2015, arXiv:1506.07503, and Kim, Hori and Watanabe 2016, arXiv:1609.06773. With the state s_(l-1) of
the LSTM and the weights w_(l-1), at first zeros and uniform weights::

    c_l, w_l = attention(s_(l-1), frames, w_(l-1))          see regard.mechanisms.pairs.ctc
    s_l = LSTM([embedding of y_(l-1); c_l], s_(l-1))
    logits of y_l = W s_l + b
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.mechanisms.pairs.ctc import LocationAware
from regard.ops.masks import check_mask, check_tokens, hide

__all__ = ["LocationDecoder", "LocationMemory"]


class LocationMemory(NamedTuple):
    """What goes from step to step: state and cell of the LSTM and the weights; and the frames, which stay."""

    hidden: Float[Tensor, "B C"]
    cell: Float[Tensor, "B C"]
    weights: Float[Tensor, "B S"]
    context: Float[Tensor, "B S E"]
    keys: Float[Tensor, "B S A"]
    key_mask: Bool[Tensor, "B S"]


class LocationDecoder(nn.Module):
    """From encoder frames (B, S, E) and the tokens so far to logits of the next token.

    Args:
        num_tokens: V, the end among them.
        context_dim: E, width of the frames.
        dim: C, width of the LSTM.
        embed_dim: width of the embeddings; None: ``dim``.
        hidden_dim, channels, radius, scaling, smoothed, window: of the attention; see
            :class:`regard.mechanisms.pairs.ctc.LocationAware`.
        drop: dropout on embeddings and on the states before the logits.

    Raises:
        ValueError: sizes that mean nothing.

    Example:
        >>> decoder = LocationDecoder(30, 24, dim=16, radius=5)
        >>> logits, weights = decoder(torch.randn(2, 40, 24), torch.randint(30, (2, 7)))
        >>> logits.shape, weights.shape
        (torch.Size([2, 7, 30]), torch.Size([2, 7, 40]))
    """

    def __init__(
        self,
        num_tokens: int,
        context_dim: int,
        *,
        dim: int = 320,
        embed_dim: int | None = None,
        hidden_dim: int | None = None,
        channels: int = 10,
        radius: int = 100,
        scaling: float = 2.0,
        smoothed: bool = False,
        window: int | None = None,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        embed_dim = dim if embed_dim is None else embed_dim
        self.context_dim = context_dim
        self.embed = nn.Embedding(num_tokens, embed_dim, **factory)
        self.attention = LocationAware(
            dim,
            context_dim,
            hidden_dim=hidden_dim,
            channels=channels,
            radius=radius,
            scaling=scaling,
            smoothed=smoothed,
            window=window,
            **factory,
        )
        self.cell = nn.LSTMCell(embed_dim + context_dim, dim, **factory)
        self.out_proj = nn.Linear(dim, num_tokens, **factory)
        self.drop = nn.Dropout(drop)

    def reset_parameters(self) -> None:
        """As torch draws each of the parts."""
        for part in (self.embed, self.attention, self.cell, self.out_proj):
            part.reset_parameters()

    def forward(
        self,
        context: Float[Tensor, "B S E"],
        tokens: Int[Tensor, "B L"],
        *,
        key_mask: Bool[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B L V"], Float[Tensor, "B L S"]]:
        """Logits of the token after each token, and where the decoder listened for it.

        Args:
            context: the encoder's frames.
            tokens: the start, then the tokens before each prediction; padding stands behind the last.
            key_mask: True for real frames.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
        """
        memory = self.begin(context, key_mask)
        states: list[Tensor] = []
        weights: list[Tensor] = []
        for embedding in self.drop(self.embed(tokens)).unbind(1):
            memory = self._moved(embedding, memory)
            states.append(memory.hidden)
            weights.append(memory.weights)
        return self.out_proj(self.drop(torch.stack(states, 1))), torch.stack(weights, 1)

    def begin(self, context: Float[Tensor, "B S E"], key_mask: Bool[Tensor, "B S"] | None = None) -> LocationMemory:
        """The memory before the first step."""
        check_tokens(context, self.context_dim, "context")
        check_mask(key_mask, context.shape[0], context.shape[1])
        context = hide(context, key_mask)
        real = context.new_ones(context.shape[:2], dtype=torch.bool) if key_mask is None else key_mask
        keys = self.attention.key_proj(context)
        nothing = context.new_zeros(context.shape[0], self.cell.hidden_size)
        return LocationMemory(nothing, nothing, self.attention.start(keys, key_mask), context, keys, real)

    def step(self, tokens: Int[Tensor, " B"], memory: LocationMemory) -> tuple[Float[Tensor, "B V"], LocationMemory]:
        """Logits of the token after the next tokens, and the memory after them."""
        memory = self._moved(self.drop(self.embed(tokens)), memory)
        return self.out_proj(self.drop(memory.hidden)), memory

    def _moved(self, embedding: Float[Tensor, "B D"], memory: LocationMemory) -> LocationMemory:
        heard, weights = self.attention.step(
            memory.hidden, memory.context, memory.keys, memory.weights, key_mask=memory.key_mask
        )
        hidden, cell = self.cell(torch.cat((embedding, heard), -1), (memory.hidden, memory.cell))
        return memory._replace(hidden=hidden, cell=cell, weights=weights)
