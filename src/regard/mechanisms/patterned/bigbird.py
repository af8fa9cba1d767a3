"""BigBird: exact softmax over a window of blocks, a few global ones, and random blocks of its own for each head.

Zaheer et al. 2020, arXiv:2007.14062, sections 2 and 3. The tokens are cut into blocks of b; a query of block i sees

======= ============================ ===========================================================================
set     form "itc"                   form "etc"
======= ============================ ===========================================================================
window  blocks i - 1, i, i + 1       the same; blocks begin behind the global tokens
random  R_h(i), r blocks a head      the same
global  the first and the last block the first g tokens: extra ones that the user puts in front
======= ============================ ===========================================================================

in one softmax with scale 1/sqrt(D). Global blocks and tokens see everything. A random block is none of the window and
no global one, and a block counts once; they are drawn with the layer, the same for training and evaluation, and lie in
its state dict. Causal (DeepSpeed's "unidirectional"): of all these only keys at or before the query, random blocks are
earlier ones, and the global blocks are the first ones. Blocks count from the first real token, and the last block is
the last with a real token, so padding changes nothing.

Time and memory O(N (window + r + globals) b D) a head.
"""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from regard.attention import attend
from regard.memory import StaticCache
from regard.ops.caches import Cache, continue_from, empty_cache
from regard.ops.positions import from_first_real, take_rows
from regard.patterns import BigBird as BigBirdPattern
from regard.patterns import Blocks, Causal, Global, ListedBlocks, Pattern
from regard.patterns.bigbird import draw_blocks
from regard.registry import Card, Core, Sample, UnsupportedError, register

Form = Literal["itc", "etc"]


def bigbird_pattern(
    rand_blocks: Int[Tensor, "H rows random"],
    block: int = 64,
    window: int = 3,
    globals: int = 2,
    form: Form = "itc",
    causal: bool = False,
) -> Pattern:
    """The pairs that every head sees.

    Args:
        rand_blocks: random blocks of each block of queries, -1 for none. The first row belongs to the first block that
            is not global; blocks without a row, and blocks beyond the sequence, add nothing.
        block: b.
        window: blocks around a query's own, itself included.
        globals: of "itc" global blocks, the first and the last in turn, if causal the first ones; of "etc" tokens.
        form: "itc" or "etc".
        causal: only keys at or before the query.

    Example:
        >>> bigbird_pattern(torch.tensor([[[3]]]), block=1, globals=1).dense(5)[0].int()[1:3].tolist()
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    """
    front, back = _global_blocks(globals, form, causal)
    start = globals if form == "etc" else 0
    if back:
        pattern: Pattern = BigBirdPattern(block, window, globals, 0)
    else:
        pattern = Global(start + front * block) | Blocks(block, window // 2, window // 2, start)
    if rand_blocks.numel():
        pattern = pattern | ListedBlocks(block, rand_blocks, front, start)
    return Causal() & pattern if causal else pattern


def _global_blocks(globals: int, form: Form, causal: bool) -> tuple[int, int]:
    """How many blocks are global at both ends."""
    if form == "etc":
        return 0, 0
    return (globals, 0) if causal else (-(-globals // 2), globals // 2)


@register(
    "bigbird",
    samples=[
        Sample(dim=12, num_heads=3, max_length=24, block=2, random=2),
        Sample(dim=12, num_heads=2, max_length=24, block=3, random=1, form="etc", globals=2, attn_drop=0.1),
        Sample(dim=16, num_heads=4, num_kv_heads=2, max_length=24, block=2, random=1, causal=True),
    ],
)
class BigBird(Core):
    """Window, global and random blocks; see the head of this file.

    Args:
        num_heads: H.
        block: b, tokens a block.
        window: blocks around a query's own, itself included; odd.
        random: r, random blocks for each block of queries and each head, fewer where not as many are legal.
        globals: of "itc" global blocks, the first and the last in turn: 2 by default; if causal the first ones: 1; of
            "etc" the first so many tokens, by default ``block``.
        form: "itc" (internal global) or "etc" (external global).
        causal: only keys at or before the query.
        max_length: the longest sequence; random blocks are drawn for it. A shorter sequence goes without those that
            lie beyond its end.
        random_within: draw among the first so many blocks only, so that short sequences keep theirs; the authors do so
            with 16 of 64.
        seed: of the draw; by default torch's generator, so that no two layers have the same blocks.
        attn_drop: dropout on the weights, in training (the authors' block-sparse code has none).
        device: of the table of random blocks.

    Attributes:
        rand_blocks: Long[H, rows, r], -1 for none; the first row belongs to the first block that is not global.

    Raises:
        ValueError: sizes that make no sense, an unknown form, an even window, or a sequence longer than ``max_length``.
        UnsupportedError: streaming without ``causal=True``.
    """

    card = Card(
        title="BigBird",
        paper="arXiv:2007.14062",
        year=2020,
        family="patterned",
        data="sequence",
        causal="strict",
        gqa=True,
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N b",
        summary="Window, global and random blocks: BERT-like encoders of 4096 tokens and more, with many checkpoints.",
        formula="softmax over window, global and random blocks of q k^T / sqrt(D)",
    )
    rand_blocks: Tensor

    def __init__(
        self,
        num_heads: int,
        block: int = 64,
        window: int = 3,
        random: int = 3,
        globals: int | None = None,
        form: Form = "itc",
        causal: bool = False,
        *,
        max_length: int = 4096,
        random_within: int | None = None,
        seed: int | None = None,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if form not in ("itc", "etc"):
            raise ValueError(f'form={form!r} is neither "itc" nor "etc"')
        if min(block, max_length, 1 if random_within is None else random_within) < 1:
            raise ValueError(f"block={block}, max_length={max_length}, random_within={random_within}: must be positive")
        if min(window, random, 0 if globals is None else globals) < 0:
            raise ValueError(f"window={window}, random={random}, globals={globals}: none may be negative")
        if window % 2 == 0:
            raise ValueError(f"window={window} blocks cannot lie evenly around a query's own: choose an odd number")
        self.form: Form = form
        self.block, self.window, self.random, self.causal = block, window, random, causal
        self.globals = (block if form == "etc" else 1 if causal else 2) if globals is None else globals
        self.max_length, self.random_within, self.seed, self.attn_drop = max_length, random_within, seed, attn_drop
        self.front, self.back = _global_blocks(self.globals, form, causal)
        tokens = max_length - (self.globals if form == "etc" else 0)
        self.blocks = max(0, -(-tokens // block))
        table = torch.empty(num_heads, max(0, self.blocks - self.front - self.back), random, dtype=torch.long)
        self.register_buffer("rand_blocks", table.to(device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the random blocks again."""
        heads, rows, random = self.rand_blocks.shape
        drawn = draw_blocks(
            heads,
            self.blocks,
            random,
            self.window,
            front=self.front,
            back=self.back,
            within=self.random_within,
            causal=self.causal,
            generator=None if self.seed is None else Generator().manual_seed(self.seed),
        )
        self.rand_blocks.copy_(drawn[:, self.front : self.front + rows])

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Attend from q (B, H, N, D) to k (B, G, N, D) and v (B, G, N, Dv), G a divisor of H.

        Args:
            key_mask: Bool (B, N), True for real keys.
            query_mask: Bool (B, N), True for real queries; as the keys by default.
            generator: draws the dropout.

        Returns:
            (B, H, N, Dv).
        """
        self._check_length(k.shape[-2])
        attention = partial(self._attend, generator=generator)
        if key_mask is None:
            return attention(q, k, v)
        if not self.back:
            return from_first_real(attention, q, k, v, key_mask, query_mask)
        part = key_mask if query_mask is None else key_mask | query_mask
        slots, rows, used = lay_out(part, self.block, self.back)
        q, k, v = (take_rows(x, rows) for x in (q, k, v))
        out = attention(q, k, v, key_mask.gather(-1, rows) & used)
        return take_rows(out, slots).masked_fill(~part[:, None, :, None], 0.0)

    def memory(self, *sizes: int, static: int | None = None, **factory: Any) -> Cache:
        """An empty cache of keys and values that grows, or one of ``static`` slots that is overwritten."""
        if not self.causal:
            raise UnsupportedError("bigbird streams only with causal=True: here queries see later keys")
        self._check_length(static or 0)
        return empty_cache(*sizes, static=static, **factory)

    def stream(self, q: Tensor, k: Tensor, v: Tensor, memory: Cache) -> tuple[Tensor, Cache]:
        """Continue with one token or many: -> (out, the new memory)."""
        if not isinstance(memory, StaticCache):
            self._check_length(memory.key.shape[-2] + k.shape[-2])
        return continue_from(memory, q, k, v, self.pattern, self.attn_drop * self.training)

    @property
    def pattern(self) -> Pattern:
        """The pairs that every head sees."""
        return bigbird_pattern(self.rand_blocks, self.block, self.window, self.globals, self.form, self.causal)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        drop = self.attn_drop * self.training
        return attend(q, k, v, self.pattern, key_mask=key_mask, dropout_p=drop, enable_gqa=True, generator=generator)

    def _check_length(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(
                f"{length} tokens, but this BigBird was built with max_length={self.max_length}: its random blocks "
                f"are drawn for that"
            )

    def extra_repr(self) -> str:
        return (
            f"block={self.block}, window={self.window}, random={self.random}, globals={self.globals}, "
            f"form={self.form!r}, causal={self.causal}, max_length={self.max_length}, attn_drop={self.attn_drop}"
        )


def lay_out(
    part: Bool[Tensor, "B N"], block: int, back: int
) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """Slots for the tokens that take part: in order from slot 0, but their last blocks at the very end.

    So one pattern with the last blocks global serves sequences of every length, and its plan is remembered.

    Args:
        part: True for tokens that take part.
        block: tokens a block; S is the next multiple of it.
        back: how many blocks go to the end.

    Returns:
        The slot of each token, the token in each slot, and which slots are used; numbers for nothing are 0.

    Example:
        >>> lay_out(torch.tensor([[False, True, True, True, False, False]]), 2, 1)[1]
        tensor([[1, 2, 0, 0, 3, 0]])
    """
    n = part.shape[-1]
    size = -(-n // block) * block
    rank = part.cumsum(-1) - 1
    blocks = -(-part.sum(-1, keepdim=True) // block)
    tail = (blocks - back).clamp(min=0) * block
    slots = torch.where(rank < tail, rank, rank + (size - blocks * block)).masked_fill(~part, 0)
    tokens = torch.arange(n, device=part.device).expand_as(slots)
    rows = slots.new_zeros(len(part), size).scatter_add(-1, slots, tokens.masked_fill(~part, 0))
    used = slots.new_zeros(len(part), size).scatter_add(-1, slots, part.long()) > 0
    return slots, rows, used
