"""The layers of "Attention Is All You Need": post-norm residual branches, whole or a token at a time.

Vaswani et al. 2017, arXiv:1706.03762, section 3.1. A layer of the encoder is self-attention and a feed-forward network,
one of the decoder has attention to the encoder's output between them; each branch is LayerNorm(x + Dropout(branch(x))).
The network that they make: :mod:`regard.models.transformer_2017`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention import attend
from regard.layers import MultiHead
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.memory import KeyValueCache

Placement = Literal["post", "pre"]
Norm = Literal["layer", "annotated"]
Activation = Callable[[Tensor], Tensor]


class BlockMemory(NamedTuple):
    """What a layer of the decoder carries from token to token.

    Attributes:
        own: keys and values of the target tokens so far.
        cross: keys and values of the source.
    """

    own: KeyValueCache
    cross: KeyValueCache


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
    places = torch.arange(x.shape[1], device=x.device)[None]
    return attended(layer, *layer._project(x, context, places), mask, causal=causal)


def attended(
    layer: MultiHead, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Float[Tensor, "B N C"]:
    """The same from the projections on: queries (B, H, N, D), keys and values (B, H, M, D)."""
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
        x = self._look_back(x, mask, causal)
        if self.cross_attention is not None:
            cross = self.cross_attention
            if memory is None:
                raise ValueError("a layer with cross attention needs the encoder's output: pass memory")
            x = self._branch(1, x, lambda y: masked_attention(cross, y, memory, memory_mask))
        return self._think(x)

    def weights(
        self,
        x: Float[Tensor, "B N C"],
        memory: Float[Tensor, "B M C"],
        *,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B H N M"]:
        """Those of the cross attention, head by head; arguments as in :meth:`forward`."""
        cross = self._crossing()
        x = self._look_back(x, mask, causal)
        q, k, _ = cross._project(self._entering(1, x), memory, None)
        return attend(
            q,
            k,
            torch.eye(k.shape[2], device=k.device, dtype=k.dtype).expand(*k.shape[:2], -1, -1),
            attn_mask=memory_mask,
        )

    def begin(self, memory: Float[Tensor, "B M C"]) -> BlockMemory:
        """What :meth:`step` carries along: no token so far, and the encoder's output as keys and values, once."""
        cross = self._crossing()
        _, key, value = cross._project(memory[:, :0], memory, None)
        batch, heads, _, width = key.shape
        own = KeyValueCache.start(batch, heads, width, width, device=key.device, dtype=key.dtype)
        return BlockMemory(own, KeyValueCache(key, value))

    def step(
        self, x: Float[Tensor, "B 1 C"], carried: BlockMemory, memory_mask: Tensor | None = None
    ) -> tuple[Float[Tensor, "B 1 C"], BlockMemory]:
        """The next token: what :meth:`forward` with ``causal`` would give for it at the end of all so far."""
        attention, cross, own = self.self_attention, self._crossing(), carried.own

        def look_back(y: Tensor) -> Tensor:
            nonlocal own
            q, key, value = attention._project(y, y, None)
            own = own.append(key, value)
            return attended(attention, q, own.key, own.value)

        def look_over(y: Tensor) -> Tensor:
            q, _, _ = cross._project(y, y[:, :0], None)
            return attended(cross, q, *carried.cross, memory_mask)

        x = self._branch(1, self._branch(0, x, look_back), look_over)
        return self._think(x), BlockMemory(own, carried.cross)

    def _look_back(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        attention = self.self_attention
        return self._branch(0, x, lambda y: masked_attention(attention, y, y, mask, causal=causal))

    def _think(self, x: Tensor) -> Tensor:
        return self._branch(-1, x, lambda y: self.second(self.drop(self.activation(self.first(y)))))

    def _crossing(self) -> MultiHead:
        if self.cross_attention is None:
            raise ValueError("this layer has no cross attention: build it with cross=True")
        return self.cross_attention

    def _entering(self, number: int, x: Tensor) -> Tensor:
        return self.norms[number](x) if self.placement == "pre" else x

    def _branch(self, number: int, x: Tensor, branch: Activation) -> Tensor:
        y = x + self.drop(branch(self._entering(number, x)))
        return y if self.placement == "pre" else self.norms[number](y)


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


def make_norm(norm: Norm, dim: int, eps: float, **factory: Any) -> nn.Module:
    """A norm by its name."""
    if norm not in ("layer", "annotated"):
        raise ValueError(f'norm={norm!r} is neither "layer" nor "annotated"')
    return (nn.LayerNorm if norm == "layer" else AnnotatedNorm)(dim, eps, **factory)
