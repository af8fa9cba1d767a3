"""The block of Jukebox's transformer, and its attention with the memory that sampling needs.

Dhariwal et al. 2020, arXiv:2005.00341, appendix A. A block adds what attention and network make of it in one go::

    a = attention(norm(x))     m = mlp(norm(x + a))     h = x + r (a + m)        mlp(x) = W_2 quick_gelu(W_1 x)

with quick_gelu(u) = u sigmoid(1.702 u), and r = 1, or 1 / depth. By default attention is a quarter as wide as the
stream, and the network as wide, not four times.
"""

from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.layers import MultiHead
from regard.memory import LayerMemory
from regard.ops.masks import hide

Activation = Literal["quick_gelu", "gelu", "relu", "swish"]


def quick_gelu(u: Tensor) -> Tensor:
    """u sigmoid(1.702 u).

    Example:
        >>> round(float(quick_gelu(torch.tensor(1.0))), 4)
        0.8458
    """
    return F.silu(1.702 * u) / 1.702  # the same, in one pass forwards and one backwards


def _tanh_gelu(u: Tensor) -> Tensor:
    return F.gelu(u, approximate="tanh")


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": _tanh_gelu, "relu": F.relu, "swish": F.silu}
"""Those of the authors' network, by name."""


class ContextKeys(NamedTuple):
    """Keys and values of another sequence, made once.

    Attributes:
        key, value: (B, H, M, D).
        real: Bool (B, M).
    """

    key: Tensor
    value: Tensor
    real: Tensor


class StreamingAttention(MultiHead):
    """Any kind of factored attention that streams: of another sequence it keeps the keys and values."""

    @property
    def across(self) -> bool:
        """It attends to another sequence."""
        return self.card.cross

    def start(self, batch: int, context: Tensor | None, context_mask: Tensor | None, **options: Any) -> LayerMemory:
        """The memory of ``batch`` sequences of which nothing has been seen but the context (B, M, C)."""
        if not self.across:
            return self.memory(batch, **options)
        if context is None:  # room for any number of keys
            weight = self.q_proj.weight
            place: dict[str, Any] = {"device": options["device"] or weight.device, "dtype": weight.dtype}
            key = value = torch.zeros(batch, self.num_heads, 0, self.head_dim, **place)
        else:
            source = hide(context, context_mask)
            key, value = (self._in_heads(linear(source)) for linear in (self.k_proj, self.v_proj))
        real = torch.ones(batch, key.shape[2], dtype=torch.bool, device=key.device)
        core = ContextKeys(key, value, real if context_mask is None else context_mask)
        return LayerMemory(core, torch.zeros(batch, dtype=torch.long, device=key.device))

    def resume(self, x: Tensor, memory: LayerMemory) -> tuple[Tensor, LayerMemory]:
        """As ``stream``, without checks: the model has looked at the memories of all its layers."""
        if isinstance(memory.core, ContextKeys):
            core = memory.core
            out = self.core(self._in_heads(self.q_proj(x)), core.key, core.value, key_mask=core.real)
        else:
            out, core = self.core.stream(*self._project(x, x, None), memory.core)
        return self._join(out), LayerMemory(core, memory.position + x.shape[1])

    def _in_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class JukeboxBlock(nn.Module):
    """x + r (a + m); see the head of this file.

    Args:
        attention: between the norm and the sum.
        dim, hidden: C and the width of the network.
        activation: of the network.
        scale: r.
        init_scale: all matrices start from N(0, (0.02 init_scale)^2).
        zero_out: both output projections start at 0.
        dropout: after the network; the attention has its own.
    """

    def __init__(
        self,
        attention: StreamingAttention,
        dim: int,
        hidden: int,
        *,
        activation: Activation = "quick_gelu",
        scale: float = 1.0,
        init_scale: float = 1.0,
        zero_out: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1, self.norm2 = nn.LayerNorm(dim, **factory), nn.LayerNorm(dim, **factory)
        self.attention, self.activation = attention, ACTIVATIONS[activation]
        self.first, self.second = nn.Linear(dim, hidden, **factory), nn.Linear(hidden, dim, **factory)
        self.drop, self.scale = nn.Dropout(dropout), scale
        self.init_scale, self.zero_out = init_scale, zero_out
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices from N(0, (0.02 init_scale)^2), output projections at 0 where that was asked; biases 0."""
        for norm in (self.norm1, self.norm2):
            norm.reset_parameters()
        attention = self.attention
        inner = (attention.q_proj, attention.k_proj, attention.v_proj, self.first)
        for linear in (*inner, attention.out_proj, self.second):
            nn.init.zeros_(linear.bias)
            std = 0.0 if self.zero_out and linear in (attention.out_proj, self.second) else 0.02 * self.init_scale
            nn.init.normal_(linear.weight, std=std)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """x (B, N, C); layers of kind "encoder_decoder" attend to the context (B, M, C), the others to x."""
        options: dict[str, Any] = {"query_mask": key_mask, "generator": generator}
        if self.attention.across:
            a = self.attention(self.norm1(x), context, key_mask=context_mask, **options)
        else:
            a = self.attention(self.norm1(x), key_mask=key_mask, **options)
        return self._join(x, cast(Tensor, a))

    def stream(self, x: Tensor, memory: LayerMemory) -> tuple[Tensor, LayerMemory]:
        """The next tokens x (B, N, C), given the memory of those before: -> (y, the new memory)."""
        a, memory = self.attention.resume(self.norm1(x), memory)
        return self._join(x, a), memory

    def _join(self, x: Tensor, a: Tensor) -> Tensor:
        m = self.drop(self.second(self.activation(self.first(self.norm2(x + a)))))
        return x + a + m if self.scale == 1.0 else x + self.scale * (a + m)
