"""Memformer: a few slots carry what matters from one segment to the next, at constant size.

Wu et al. 2022, arXiv:2010.06891, section 3. The sequence is cut into segments of n tokens, counted from the first real
one. The tokens of segment t attend to each other and read the K slots; when the segment is complete, the slots are
written::

    y = W_o attention(x_t, x_t) + R_o attention(x_t, M_t)                M_{t+1} = write(M_t, x_t)

``write`` is :func:`regard.ops.memory_slots.write_slots`, or with ``update="gru"`` that of the paper's first version. In
the paper both attentions are sublayers of their own and the slots are written once for the whole encoder, from its
last layer: that network is :class:`regard.models.Memformer`. Here one layer does it all, so that it can stand where any
attention stands. With ``causal=True`` a token sees only earlier ones of its segment, and earlier segments by the slots.

Time O(N (n + K) D) a head; the slots are written one segment after the other. Gradients go back through all of them:
:func:`regard.train.memory_replay.memory_replay` does that in the memory of one segment.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.memory import check_memory
from regard.ops.masks import admit_one_sequence, check_tokens, hide
from regard.ops.memory_slots import SlotMemory, Update
from regard.ops.rows import Rows
from regard.registry import Card, Layer, Sample, UnsupportedError, register


class MemformerMemory(NamedTuple):
    """What a layer carries along.

    Attributes:
        slots: (B, K, C).
        slot_key, slot_value: (B, H, K, D), what the tokens of the running segment read.
        segment: (B, s, C), its tokens so far, s < n.
        key, value: (B, H, s, D), of the same.
    """

    slots: Float[Tensor, "B K C"]
    slot_key: Float[Tensor, "B H K D"]
    slot_value: Float[Tensor, "B H K D"]
    segment: Float[Tensor, "B s C"]
    key: Float[Tensor, "B H s D"]
    value: Float[Tensor, "B H s D"]


@register(
    "memformer",
    samples=[
        Sample(dim=12, num_heads=3, num_slots=3, segment_length=4),
        Sample(dim=12, num_heads=3, num_slots=4, segment_length=3, causal=True, attn_drop=0.1),
        Sample(dim=12, num_heads=2, num_slots=3, segment_length=5, causal=True, update="gru", num_updates=2),
    ],
)
class Memformer(Layer):
    """Attention within a segment, a look at the slots, and writing them; see the head of this file.

    Args:
        dim, num_heads: C and H.
        num_slots: K.
        segment_length: n.
        causal: no token sees a later one; otherwise those of its segment all see each other.
        update, temperature, num_updates: how slots are written, see :class:`regard.ops.memory_slots.SlotMemory`.
        attn_drop, proj_drop: dropout on the weights of both attentions and on the output.

    Raises:
        ValueError: sizes that do not fit.
        UnsupportedError: a context; streaming without ``causal``.
    """

    card = Card(
        title="Memformer",
        paper="arXiv:2010.06891",
        year=2020,
        family="memory",
        data="sequence",
        causal="strict",
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        dynamic=False,  # one segment is written after the other: a loop over the length
        cost="N (n + K)",
        summary="A constant number of slots remembers a stream of any length; trained through time.",
        formula="attention(x, x) + attention(x, M) within a segment; M' = normalise(attention(M, [M; x]) + f)",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_slots: int = 32,
        segment_length: int = 128,
        causal: bool = False,
        update: Update = "normalised",
        *,
        temperature: float | None = None,
        num_updates: int = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_width(dim, num_heads)
        if segment_length < 1:
            raise ValueError(f"segment_length={segment_length}: a segment needs a token")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.num_heads, self.segment_length = dim, num_heads, segment_length
        self.causal, self.attn_drop = causal, attn_drop
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim, **factory) for _ in range(4))
        self.read_q, self.read_k, self.read_v, self.read_out = (
            nn.Linear(dim, dim, bias=False, **factory) for _ in range(4)
        )
        options: dict[str, Any] = {"temperature": temperature, "num_updates": num_updates}
        self.slots = SlotMemory(dim, num_heads, num_slots, update, **options, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices Xavier-uniform and biases 0, as in other layers; slots by their own module."""
        for name, linear in self.named_children():
            if name.endswith("_proj") or name.startswith("read_"):
                for parameter in linear.parameters():
                    _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)
        self.slots.reset_parameters()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """All segments of x, from the first slots.

        Args:
            x: (B, N, C).
            context: refused.
            key_mask: Bool (B, N), True for real tokens; the segments count only these.
            query_mask: Bool (B, N), True for real queries; each mask is the default for the other.
            segments: Int (B, N), one id a packed document, which then sees only itself.
            generator: draws the dropout.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context.
        """
        x, key_mask, query_mask = admit_one_sequence("memformer", x, self.dim, context, key_mask, query_mask, segments)
        rows = Rows.of(x, key_mask, query_mask, segments)
        y = hide(rows.back(self._all_segments(rows.x, rows.real, generator)), query_mask)
        return (y, {}) if return_aux else y

    def memory(
        self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None
    ) -> MemformerMemory:
        """The first slots for ``batch`` sequences; of bounded size with or without static.

        Args:
            batch: B.
            device, dtype: the default is where and what the weights are.
            static: the longest sequence, which needs no room here.

        Raises:
            UnsupportedError: tokens see later ones of their segment.
        """
        if not self.causal:
            raise UnsupportedError("memformer streams only with causal=True: here tokens see later ones of a segment")
        weight = self.q_proj.weight
        place: dict[str, Any] = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        slots = self.slots.initial(batch)
        key, value = self._heads(self.read_k(slots)), self._heads(self.read_v(slots))
        slots, key, value = (t.to(**place) for t in (slots, key, value))
        segment = torch.zeros(batch, 0, self.dim, **place)
        return MemformerMemory(slots, key, value, segment, key[:, :, :0].clone(), value[:, :, :0].clone())

    def stream(self, x: Tensor, memory: MemformerMemory) -> tuple[Tensor, MemformerMemory]:
        """Continue with the next N tokens x (B, N, C), one or many: -> (y, the new memory), with gradients in both."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        outs: list[Tensor] = []
        start = 0
        while start < x.shape[1]:
            stop = min(x.shape[1], start + self.segment_length - memory.segment.shape[1])
            y, memory = self._grown(x[:, start:stop], memory)
            outs.append(y)
            start = stop
        return torch.cat(outs, 1), memory

    def _all_segments(self, x: Tensor, real: Tensor | None, generator: Generator | None) -> Tensor:
        """From the first slots: (B, N, C)."""
        batch, length, _ = x.shape
        n = min(self.segment_length, length)
        number = -(-length // n)
        real = torch.ones(batch, length, dtype=torch.bool, device=x.device) if real is None else real
        fill = number * n - length
        h = F.pad(x, (0, 0, 0, fill)).unflatten(1, (number, n))
        real = F.pad(real, (0, fill)).unflatten(1, (number, n))
        held = [self.slots.initial(batch)]
        for s in range(number - 1):
            held.append(self.slots(held[-1], h[:, s], real[:, s]))
        slots, tokens = torch.stack(held, 1).flatten(0, 1), h.flatten(0, 1)
        q, k, v = (self._heads(linear(tokens)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        slot_key, slot_value = self._heads(self.read_k(slots)), self._heads(self.read_v(slots))
        near = self._attend(q, k, v, generator, key_mask=real.flatten(0, 1), is_causal=self.causal)
        far = self._attend(self._heads(self.read_q(tokens)), slot_key, slot_value, generator)
        return self._join(near, far).unflatten(0, (batch, number)).flatten(1, 2)[:, :length]

    def _grown(self, x: Tensor, memory: MemformerMemory) -> tuple[Tensor, MemformerMemory]:
        """Tokens within the running segment: (B, N, C), and the memory with them."""
        q, k, v = (self._heads(linear(x)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        key, value = torch.cat((memory.key, k), 2), torch.cat((memory.value, v), 2)
        near = self._attend(q, key, value, None, is_causal=True)
        far = self._attend(self._heads(self.read_q(x)), memory.slot_key, memory.slot_value, None)
        segment = torch.cat((memory.segment, x), 1)
        if segment.shape[1] < self.segment_length:
            return self._join(near, far), memory._replace(segment=segment, key=key, value=value)
        slots = self.slots(memory.slots, segment)
        slot_key, slot_value = self._heads(self.read_k(slots)), self._heads(self.read_v(slots))
        segment, key, value = (t.clone() for t in (segment[:, :0], key[:, :, :0], value[:, :, :0]))  # nothing is kept
        return self._join(near, far), MemformerMemory(slots, slot_key, slot_value, segment, key, value)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, generator: Generator | None, **options: Any) -> Tensor:
        return attend(q, k, v, dropout_p=self.attn_drop * self.training, generator=generator, **options)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.dim // self.num_heads)).transpose(1, 2)

    def _join(self, near: Tensor, far: Tensor) -> Tensor:
        near, far = (t.transpose(1, 2).flatten(2) for t in (near, far))
        return self.proj_drop(self.out_proj(near) + self.read_out(far))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, segment_length={self.segment_length}, causal={self.causal}"
