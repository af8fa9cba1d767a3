"""Routing Transformer: a language model whose last layers let half of their heads meet tokens by content.

Roy et al. 2020, arXiv:2003.05997, section 5. The layers before have local heads only; so have, beside the routing ones,
the last layers. Their clusters are as many as it takes to hold the longest sequence, K = N / w: with w = sqrt(N) the
whole costs O(N^1.5 D). Departure: learned absolute positions at the input, as in all models here, where the authors
have relative ones in each head.
"""

from typing import Any

import torch

from regard.factory import create
from regard.models.transformer import Block, TransformerLM


class RoutingTransformer(TransformerLM):
    """Logits of the token after each (causal), or of each token itself (a masked language model).

    Add the losses of ``return_aux`` to the objective: they draw tokens to their centroids, which learn by themselves in
    training. **Causal is a selection** in the routing heads: no gradient flows back from later tokens, but they decide
    which earlier ones are met, so perplexities flatter it, and it does not stream. ``strict=True`` is causal for good.

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes.
        routing_layers: how many of the last layers route; half of all by default.
        window: w, tokens in a cluster.
        clusters: K, max_length / w by default.
        local_window: neighbours that local heads see (on each side if not causal), w by default.
        routing_heads: of a routing layer, half of all by default.
        causal: no token sees a later one.
        strict: see :class:`regard.mechanisms.chosen.routing.Routing`.
        decay, commitment: of the centroids' averages, and the weight of the loss.
        attn_drop: dropout on the weights.
        mlp_ratio, dropout: as in :class:`regard.models.TransformerLM`.

    Raises:
        ValueError: sizes that do not fit.

    Example:
        >>> model = RoutingTransformer(256, 16, 4, 2, 64, window=16)
        >>> model(torch.randint(256, (3, 50))).shape
        torch.Size([3, 50, 256])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        *,
        routing_layers: int | None = None,
        window: int = 256,
        clusters: int | None = None,
        local_window: int | None = None,
        routing_heads: int | None = None,
        causal: bool = True,
        strict: bool = False,
        decay: float = 0.999,
        commitment: float = 1e-4,
        attn_drop: float = 0.0,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        routing_layers = (depth + 1) // 2 if routing_layers is None else routing_layers
        routing_heads = (num_heads + 1) // 2 if routing_heads is None else routing_heads
        if not 0 <= routing_layers <= depth or not 1 <= routing_heads <= num_heads:
            counts = f"routing_layers={routing_layers} of {depth}, routing_heads={routing_heads} of {num_heads}"
            raise ValueError(f"{counts}: no more than there are, and at least one head")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        shared: dict[str, Any] = {"causal": causal, "attn_drop": attn_drop, **factory}
        around: dict[str, Any] = {"mlp_ratio": mlp_ratio, "dropout": dropout}
        near = window if local_window is None else local_window
        super().__init__(
            vocab_size, dim, depth - routing_layers, num_heads, max_length, "local", window=near, **shared, **around
        )
        routing: dict[str, Any] = {"local_window": near, "local_heads": num_heads - routing_heads, "strict": strict}
        routing |= {"clusters": clusters or -(-max_length // window), "window": window}
        routing |= {"decay": decay, "commitment": commitment}
        for _ in range(routing_layers):
            attention = create("routing", dim=dim, num_heads=num_heads, **routing, **shared)
            self.blocks.append(Block(attention, dim, **around, **factory))
