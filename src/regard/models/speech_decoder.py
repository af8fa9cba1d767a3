"""A Transformer that spells out what an encoder has heard: labels so far and states in, the next label out.

The decoder of Vaswani et al. 2017 (arXiv:1706.03762) with norms before the branches, as hybrid CTC and attention
recognisers have it (Karita et al. 2019, arXiv:1909.06317). Embeddings are scaled by sqrt(C) and given sinusoids; the
output layer is one of its own. It is asked as :class:`regard.models.location_decoder.LocationDecoder` is.
"""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.models.transformer_2017 import sinusoids
from regard.models.transformer_2017_layers import Block, BlockMemory, Stack
from regard.ops.masks import check_mask, check_tokens, hide


class SpelledSoFar(NamedTuple):
    """What :meth:`TransformerDecoder.step` carries along.

    Attributes:
        layers: keys and values of each layer.
        real: (B, S), True for real states.
        position: (B,), of the next label.
    """

    layers: tuple[BlockMemory, ...]
    real: Bool[Tensor, "B S"]
    position: Int[Tensor, " B"]


class TransformerDecoder(nn.Module):
    """From states and labels to the logits of each label's successor.

    Args:
        num_labels: V, start and end among them.
        context_dim: E, width of the states.
        dim, depth, num_heads: C and sizes; the feed-forward networks are 4 C wide.
        drop: on the embeddings, on all branches and on the attention weights.

    Example:
        >>> decoder = TransformerDecoder(12, 16, dim=16, depth=1, num_heads=4)
        >>> decoder(torch.randn(2, 7, 16), torch.randint(12, (2, 5))).shape
        torch.Size([2, 5, 12])
    """

    def __init__(
        self,
        num_labels: int,
        context_dim: int,
        *,
        dim: int = 144,
        depth: int = 2,
        num_heads: int = 4,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.context_dim = dim, context_dim
        self.embedding = nn.Embedding(num_labels, dim, **factory)
        self.enter = nn.Identity() if dim == context_dim else nn.Linear(context_dim, dim, **factory)
        layers = (
            Block(dim, num_heads, 4 * dim, cross=True, dropout=drop, placement="pre", **factory) for _ in range(depth)
        )
        self.layers = Stack(layers, nn.LayerNorm(dim, **factory))
        self.output = nn.Linear(dim, num_labels, **factory)
        self.drop = nn.Dropout(drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Embeddings N(0, 1/C), so that they leave their scaling by sqrt(C) with variance 1; all else by its module."""
        nn.init.normal_(self.embedding.weight, std=self.dim**-0.5)

    def forward(
        self,
        context: Float[Tensor, "B S E"],
        labels: Int[Tensor, "B L"],
        *,
        key_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B L V"]:
        """Logits of the label after each label; the first one is the start, padding stands behind the last.

        Args:
            context: states of the encoder.
            labels: of each utterance.
            key_mask: True for real states.
        """
        x, context, mask = self._enter(context, labels, key_mask)
        return self.output(self.layers(x, context, memory_mask=mask, causal=True))

    def weights(
        self,
        context: Float[Tensor, "B S E"],
        labels: Int[Tensor, "B L"],
        *,
        key_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B L S"]:
        """Where the prediction of the label after each label looks: the last layer's weights, the mean over heads."""
        x, context, mask = self._enter(context, labels, key_mask)
        *below, last = (cast(Block, layer) for layer in self.layers.layers)
        for layer in below:
            x = layer(x, context, memory_mask=mask, causal=True)
        return last.weights(x, context, memory_mask=mask, causal=True).mean(1)

    def begin(self, context: Float[Tensor, "B S E"], key_mask: Bool[Tensor, "B S"] | None = None) -> SpelledSoFar:
        """What :meth:`step` continues from: nothing has been spelled."""
        check_tokens(context, self.context_dim, "context")
        check_mask(key_mask, context.shape[0], context.shape[1])
        real = torch.ones_like(context[..., 0], dtype=torch.bool) if key_mask is None else key_mask
        source = self.enter(hide(context, key_mask))
        carried = tuple(cast(Block, layer).begin(source) for layer in self.layers.layers)
        return SpelledSoFar(carried, real, torch.zeros(len(context), dtype=torch.long, device=context.device))

    def step(self, tokens: Int[Tensor, " B"], memory: SpelledSoFar) -> tuple[Float[Tensor, "B V"], SpelledSoFar]:
        """Logits of the label after the next one, and the grown memory."""
        x = self._placed(tokens[:, None], memory.position[:, None])
        carried: list[BlockMemory] = []
        for layer, before in zip(self.layers.layers, memory.layers, strict=True):
            x, after = cast(Block, layer).step(x, before, memory.real[:, None, None])
            carried.append(after)
        assert self.layers.norm is not None
        logits = self.output(self.layers.norm(x))[:, 0]
        return logits, memory._replace(layers=tuple(carried), position=memory.position + 1)

    def _enter(self, context: Tensor, labels: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embedded labels, states and the mask of all pairs."""
        check_tokens(context, self.context_dim, "context")
        check_mask(key_mask, context.shape[0], context.shape[1])
        x = self._placed(labels, torch.arange(labels.shape[1], device=labels.device))
        return x, self.enter(hide(context, key_mask)), None if key_mask is None else key_mask[:, None, None]

    def _placed(self, labels: Tensor, places: Tensor) -> Tensor:
        x = self.embedding(labels) * self.dim**0.5
        return self.drop(x + sinusoids(places, self.dim).to(x.dtype))
