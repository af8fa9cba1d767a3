"""Memory-compressed attention: a strided convolution makes one key and value of every few tokens.

Liu et al. 2018, "Generating Wikipedia by Summarizing Long Sequences", arXiv:1801.10198, section 4.2.3. A convolution
of width and stride f = 3 over keys and values; queries are not compressed. Two published forms::

    compress="projected"   k' = [null_k ; conv(k)], v' = [null_v ; conv(v)], one conv, a group of channels a head
    compress="input"       k' = W_k m, v' = W_v m   with m = [x_0 ; conv(x)], all channels mixed
    y = W_o softmax(q k'^T / sqrt(D)) v'

The first is that of the paper's text and of lucidrains/memory-compressed-attention, the second that of the authors'
tensor2tensor. Slot 0 is the null or the first token, slot j is made of the tokens (j - 1) f .. j f - 1. Causal means
that query i sees slot j if j f <= i + 1 in the first form (a token sees the block that it completes), and if j f <= i
in the second. No token sees its own unfinished block: pair it with local attention, as the paper does, in turns.

Blocks count from the first real token; a padded key is 0 in the convolution, and a slot takes part if one of its tokens
does. Without ``causal`` an unfinished block at the end is filled up with zeros; tensor2tensor drops it.

Time O(N^2 D / f) a head and O(N C^2 / groups) for the convolution.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.memory import KeyValueCache, StaticCache, check_memory
from regard.ops.block_slots import attend_to_finished, convolve_blocks
from regard.ops.caches import empty_cache
from regard.ops.masks import admit_one_sequence, check_mask, check_tokens, hide
from regard.ops.packing import Documents
from regard.ops.positions import put_back, real_first
from regard.registry import Card, Layer, Sample, UnsupportedError, register

Compress = Literal["projected", "input"]


class SlotMemory(NamedTuple):
    """The slots so far, and the tokens that wait for their block to be complete.

    Attributes:
        slots: keys and values of slot 0 and of all complete blocks; of a fixed size also those of the next block.
        tokens: (B, fewer than f, C); of a fixed size the last f - 1, the newest in the last place.
        length: (B,), all tokens seen so far.
    """

    slots: KeyValueCache | StaticCache
    tokens: Float[Tensor, "B r C"]
    length: Int[Tensor, " B"]


@register(
    "memory_compressed",
    samples=[
        Sample(dim=12, num_heads=3, attn_drop=0.1),
        Sample(dim=12, num_heads=3, causal=True, claims={"cross": False}),
        Sample(dim=12, num_heads=2, factor=4, compress="input", causal=True, qkv_bias=True, claims={"cross": False}),
        Sample(dim=12, num_heads=2, head_dim=4, factor=2, groups=1),
    ],
)
class MemoryCompressed(Layer):
    """Attention to keys and values of which every f tokens share one slot; see the head of this file.

    Args:
        dim, num_heads: C and H.
        head_dim: D, the default is C / H.
        factor: f, how many tokens become one slot.
        compress: "projected" keys and values, or the "input" before it is projected.
        groups: of channels that the convolution does not mix; by default one for each head, and 1 for "input".
        causal: no token sees a later one.
        scale: of the scores; 1/sqrt(D) by default.
        qkv_bias: biases on the projections of queries, keys and values.
        attn_drop, proj_drop: dropout on the weights over slots and on the output.

    Raises:
        ValueError: sizes that do not fit.
        UnsupportedError: a context in a causal layer, or streaming without ``causal=True``.
    """

    card = Card(
        title="Memory-compressed attention",
        paper="arXiv:1801.10198",
        year=2018,
        family="lowrank",
        data="sequence",
        causal="strict",
        cross=True,
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N^2 / f",
        summary="A strided convolution shortens keys and values: a third of the cost, causal too; pair it with local.",
        formula="softmax(q [null_k ; conv(k)]^T / sqrt(D)) [null_v ; conv(v)], conv of stride f",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        factor: int = 3,
        compress: Compress = "projected",
        groups: int | None = None,
        causal: bool = False,
        *,
        scale: float | None = None,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if compress not in ("projected", "input"):
            raise ValueError(f'compress={compress!r} is neither "projected" nor "input"')
        head_dim = head_width(dim, num_heads, head_dim)
        inner = num_heads * head_dim
        width = inner if compress == "projected" else dim
        if groups is None:
            groups = num_heads if compress == "projected" else 1
        if factor < 1 or groups < 1 or width % groups:
            raise ValueError(
                f"factor={factor}, groups={groups}: both positive, and groups a divisor of {width} channels"
            )
        self.dim, self.num_heads, self.head_dim, self.factor = dim, num_heads, head_dim, factor
        self.compress: Compress = compress
        self.causal, self.scale, self.attn_drop = causal, scale, attn_drop
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner, bias=qkv_bias, **factory) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim, **factory)
        self.conv = nn.Conv1d(width, width, factor, stride=factor, groups=groups, **factory)
        self.null_k = self.null_v = None
        if compress == "projected":
            self.null_k, self.null_v = (nn.Parameter(torch.empty(num_heads, 1, head_dim, **factory)) for _ in range(2))
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform projections, the convolution as in torch, biases of projections and the null slot 0."""
        self.conv.reset_parameters()
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            for parameter in linear.parameters():
                _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)
        for null in (self.null_k, self.null_v):
            if null is not None:
                nn.init.zeros_(null)

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
        """Attend from x to itself, or to a context.

        Args:
            x: what asks, (B, N, C).
            context: what is asked, (B, M, C), where it is another sequence.
            key_mask: Bool (B, M), True for real tokens of what is asked.
            query_mask: Bool (B, N), True for real tokens of x; in self-attention each mask is the other's default.
            segments: Int (B, N), one id a packed document, which then sees only itself.
            generator: draws the dropout.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context in a causal layer, or with segments.
        """
        if context is not None:
            y = hide(self._across(x, context, key_mask, query_mask, segments, generator), query_mask)
            return (y, {}) if return_aux else y
        x, key_mask, query_mask = admit_one_sequence(
            "memory_compressed", x, self.dim, None, key_mask, query_mask, segments
        )
        if segments is None:
            y = self._within(x, key_mask, query_mask, generator)
        else:
            documents = Documents.of(segments)
            rows, keys, queries = (
                documents.unpack(x[:, None])[:, 0],
                documents.mask(key_mask),
                documents.mask(query_mask),
            )
            y = documents.pack(self._within(rows, keys, queries, generator)[:, None])[:, 0]
        y = hide(y, query_mask)
        return (y, {}) if return_aux else y

    def memory(self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None) -> SlotMemory:
        """The memory of ``batch`` sequences of which nothing has been seen; with ``static`` it has its final size."""
        if not self.causal:
            raise UnsupportedError("memory_compressed streams only with causal=True: here every query sees all slots")
        weight = self.q_proj.weight
        place: dict[str, Any] = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        # of a fixed size: slot 0, and one to write the unfinished block into
        size = None if static is None else static // self.factor + 2
        slots = empty_cache(batch, self.num_heads, self.head_dim, self.head_dim, static=size, **place)
        if isinstance(slots, StaticCache):
            slots = slots._replace(length=slots.length + 1)
        tokens = torch.zeros(batch, 0 if static is None else self.factor - 1, self.dim, **place)
        return SlotMemory(slots, tokens, torch.zeros(batch, device=place["device"], dtype=torch.long))

    def stream(self, x: Tensor, memory: SlotMemory) -> tuple[Tensor, SlotMemory]:
        """Continue with one token or many: -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        q, slots, length = self._heads(self.q_proj(x)), memory.slots, memory.length
        tokens = torch.cat((memory.tokens.to(x.dtype), x), 1)
        if isinstance(slots, StaticCache):
            slots, tokens = self._fill(slots, tokens, x, length)
            steps = torch.arange(x.shape[1], device=x.device)
            last = (length[:, None] + steps + self._ahead) // self.factor
            seen = torch.arange(slots.key.shape[2], device=x.device) <= last[..., None]
            out = attend(q, *self._read(slots, q), attn_mask=seen[:, None], scale=self.scale)
        else:
            if slots.key.shape[2] == 0:
                slots = slots.append(*self._slot_zero(x))
            start = (slots.key.shape[2] - 1) * self.factor + memory.tokens.shape[1]
            whole = tokens.shape[1] // self.factor * self.factor
            slots = slots.append(*self._blocks(tokens[:, :whole]))
            tokens = tokens[:, whole:].clone()  # a view would keep a long prompt alive
            options: dict[str, Any] = {"ahead": self._ahead, "start": start, "scale": self.scale}
            out = attend_to_finished(q, *self._read(slots, q), self.factor, **options)
        return self._join(out), SlotMemory(slots, tokens.to(memory.tokens.dtype), length + x.shape[1])

    def _fill(self, slots: StaticCache, tokens: Tensor, x: Tensor, length: Tensor) -> tuple[StaticCache, Tensor]:
        """The slots with those of all blocks that the new tokens are in, and the last f - 1 tokens.

        The last of them is unfinished or of nothing at all; it is not seen before it has been written again.
        """
        width, n = self.factor, x.shape[1]
        place = length[:, None] // width * width + torch.arange((n // width + 1) * width, device=x.device)
        place = (place - length[:, None] + width - 1).clamp(max=tokens.shape[1] - 1)
        blocks = self._blocks(tokens.gather(1, place[..., None].expand(-1, -1, x.shape[-1])))
        grown = slots.append(*blocks)
        begins = (length == 0)[:, None, None, None]
        for room, zero in zip((grown.key, grown.value), self._slot_zero(x), strict=True):
            room[:, :, :1].copy_(torch.where(begins, zero.to(room.dtype), room[:, :, :1]))
        return grown._replace(length=(length + n) // width + 1), tokens[:, n:].clone()

    def _read(self, slots: KeyValueCache | StaticCache, q: Tensor) -> tuple[Tensor, Tensor]:
        return slots.key.to(q.dtype), slots.value.to(q.dtype)

    @property
    def _ahead(self) -> int:
        """1 where the last token of a block sees the slot that the block becomes."""
        return int(self.compress == "projected")

    def _within(
        self, x: Tensor, key_mask: Tensor | None, query_mask: Tensor | None, generator: Generator | None
    ) -> Tensor:
        """Self-attention (B, N, C); blocks count from the first token that asks or is asked."""
        if key_mask is None or query_mask is None:
            return self._attend(x, x, None, generator)
        part = key_mask | query_mask
        x4, keys = real_first(part, x[:, None], key_mask[:, None, :, None].to(x.dtype))
        return put_back(part, self._attend(x4[:, 0], x4[:, 0], keys[:, 0, :, 0] > 0, generator)[:, None])[:, 0]

    def _across(
        self,
        x: Tensor,
        context: Tensor,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attention to another sequence (B, N, C)."""
        for tokens, mask, name in ((x, query_mask, "query_mask"), (context, key_mask, "key_mask")):
            check_tokens(tokens, self.dim, "x" if tokens is x else "context")
            check_mask(mask, *tokens.shape[:2], name=name)
        if len(x) != len(context):
            raise ValueError(f"x and context hold {len(x)} and {len(context)} sequences, the numbers must be equal")
        if self.causal or segments is not None:
            raise UnsupportedError("memory_compressed takes a context only without causal=True and without segments")
        x, context = hide(x, query_mask), hide(context, key_mask)
        if key_mask is not None:
            context = real_first(key_mask, context[:, None])[0][:, 0]
            key_mask = torch.arange(context.shape[1], device=x.device) < key_mask.sum(-1, keepdim=True)
        return self._attend(x, context, key_mask, generator)

    def _attend(self, x: Tensor, source: Tensor, key_mask: Tensor | None, generator: Generator | None) -> Tensor:
        """From x to the slots of the source (B, N, C); blocks count from its first token."""
        q, zero = self._heads(self.q_proj(x)), self._slot_zero(source)
        blocks = self._blocks(source, key_mask)
        k, v = (torch.cat(parts, 2) for parts in zip(zero, blocks, strict=True))
        options: dict[str, Any] = {"scale": self.scale, "dropout_p": self.attn_drop * self.training}
        if key_mask is not None:
            first = torch.ones_like(key_mask[:, :1]) if self.compress == "projected" else key_mask[:, :1]
            key_mask = F.pad(key_mask, (0, -key_mask.shape[1] % self.factor))
            real = key_mask.unflatten(1, (blocks[0].shape[2], self.factor)).any(-1)
            options["key_mask"] = torch.cat((first, real), 1)
        if self.causal:
            out = attend_to_finished(q, k, v, self.factor, ahead=self._ahead, generator=generator, **options)
        else:
            out = attend(q, k, v, generator=generator, **options)
        return self._join(out)

    def _slot_zero(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, 1, D) of the null, or of the first token."""
        if self.null_k is not None and self.null_v is not None:
            return self.null_k.expand(len(x), -1, -1, -1), self.null_v.expand(len(x), -1, -1, -1)
        return self._heads(self.k_proj(x[:, :1])), self._heads(self.v_proj(x[:, :1]))

    def _blocks(self, x: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) of the blocks; masked tokens are 0 where they are convolved."""
        groups, weight, bias = self.conv.groups, self.conv.weight, self.conv.bias
        if self.compress == "input":
            slots = convolve_blocks(hide(x, key_mask), weight, bias, groups)
            return self._heads(self.k_proj(slots)), self._heads(self.v_proj(slots))
        k, v = (hide(linear(x), key_mask) for linear in (self.k_proj, self.v_proj))
        return self._heads(convolve_blocks(k, weight, bias, groups)), self._heads(
            convolve_blocks(v, weight, bias, groups)
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_heads={self.num_heads}, factor={self.factor}"
        return f"{sizes}, compress={self.compress!r}, causal={self.causal}"
