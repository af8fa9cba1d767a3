"""BP-Transformer: near tokens are seen one by one, far text as ever larger spans of a binary tree.

Ye et al. 2019, arXiv:1911.04070, section 3. Token i attends to itself and, to either side (causal: to the left only),
to ``step`` nodes on each level of the tree of spans over the text, in one softmax::

    out_i = sum_u softmax_u(q_i . (k_u + a[label(i, u)]) / sqrt(D)) v_u

The nodes that it reads cover every other token exactly once, see :mod:`regard.ops.binary_tree`. The labels tell level,
side and place, those of level ``clip`` and above share theirs; a is one table for all heads.

In the published network spans are nodes with states of their own, which every layer updates from their tokens:
:class:`regard.models.BPT`. Here, between the projections of any network, the key and the value of a span are the means
over its real tokens. A span is read only by tokens outside of it, so causality is exact.

The authors' graph adds stray edges to the first node of a level where a text does not end with a span (bidirectional
only): ``authors_graph=True``. Time O(N step log2(N / step) D) a head; memory O(N D), and that of the scores of one
level.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.ops.binary_tree import labels_of, slots
from regard.ops.positions import put_back, real_first, take_rows
from regard.ops.tree_attention import Tree, read_tree
from regard.registry import Card, Core, Sample, UnsupportedError, register

MOST_TOKENS = 2**20
"""The longest stream: its memory has room for as many levels as that many tokens need."""
RUN = 64
"""Tokens that are streamed at a time."""


def bpt_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    step: int,
    *,
    table: Float[Tensor, "R D"] | None = None,
    causal: bool = False,
    authors_graph: bool = False,
    key_mask: Bool[Tensor, "B N"] | None = None,
    query_mask: Bool[Tensor, "B N"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """Attend to near tokens and to the means of far spans; see the head of this file.

    Args:
        q, k, v: queries, keys and values, heads first.
        step: nodes on each level and side.
        table: a, (2 step + 1)(clip + 1) rows for any ``clip``; None: no labels.
        causal: only to the left.
        authors_graph: with their stray edges.
        key_mask: True for real keys; the text begins and ends with the tokens that ask or are asked.
        query_mask: True for real queries; as the keys by default.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row per query, 0 where it sees nobody.

    Example:
        >>> q = k = v = torch.randn(1, 2, 11, 4)
        >>> bpt_attention(q, k, v, 2, causal=True).shape
        torch.Size([1, 2, 11, 4])
    """
    part, lengths = key_mask, None
    if key_mask is not None:
        part = key_mask if query_mask is None else key_mask | query_mask
        q, k, v, asked = real_first(part, q, k, v, key_mask.to(v.dtype)[:, None, :, None])
        key_mask = asked[:, 0, :, 0] > 0
    if authors_graph:
        n = torch.full((len(q),), q.shape[2], device=q.device)
        lengths = n if part is None else part.sum(-1)
    tree = Tree(step, 0 if table is None else len(table) // (2 * step + 1) - 1, causal, lengths)
    out = read_tree(q, k, v, tree, mask=key_mask, table=table, attn_drop=attn_drop, generator=generator)
    return out if part is None else put_back(part, out)


class SpanMemory(NamedTuple):
    """The last W = 2 step + 1 finished nodes of each of L levels, the newest in the last slot.

    Attributes:
        key: (B, H, L, W, D).
        value: (B, H, L, W, Dv).
        length: (B,), all tokens seen so far.
    """

    key: Float[Tensor, "B H L W D"]
    value: Float[Tensor, "B H L W Dv"]
    length: Int[Tensor, " B"]


def continue_tree(
    q: Float[Tensor, "B H n D"],
    k: Float[Tensor, "B H n D"],
    v: Float[Tensor, "B H n Dv"],
    memory: SpanMemory,
    step: int,
    table: Float[Tensor, "R D"] | None = None,
    attn_drop: float = 0.0,
) -> tuple[Float[Tensor, "B H n Dv"], SpanMemory]:
    """The next few tokens: what they read, and the memory with the spans that they finished.

    Args:
        q, k, v: of the new tokens.
        memory: what came before.
        step, table, attn_drop: as for :func:`bpt_attention`, causal.

    Returns:
        out (B, H, n, Dv) and the new memory.
    """
    levels, width, n = *memory.key.shape[2:4], q.shape[2]
    clip = 0 if table is None else len(table) // (2 * step + 1) - 1
    q = q * q.shape[-1] ** -0.5
    i = memory.length[:, None] + torch.arange(n, device=q.device)
    below: tuple[Tensor, Tensor] = (k[:, :, :0], v[:, :, :0])
    scores, values, kept = list[Tensor](), list[Tensor](), list[list[Tensor]]()
    for level in range(levels):
        done = memory.length >> level  # finished nodes before these tokens
        old = memory.key[:, :, level].to(k.dtype), memory.value[:, :, level].to(v.dtype)
        new = (k, v) if level == 0 else _parents(below, done, memory.length >> (level - 1), width, (n >> level) + 1)
        below = (torch.cat((old[0], new[0]), 2), torch.cat((old[1], new[1]), 2))
        node = done[:, None] - width + torch.arange(below[0].shape[2], device=q.device)
        slot, seen = slots(i[..., None], node[:, None], level, step, False)
        score = q @ below[0].mT
        if table is not None:
            labels = torch.tensor(labels_of(level, step, clip, False), device=q.device)
            index = slot.clamp(0, len(labels) - 1)[:, None].expand_as(score)
            score = score + (q @ table[labels].to(q.dtype).mT).gather(-1, index)
        scores.append(score.masked_fill(~(seen & (node >= 0)[:, None])[:, None], -torch.inf))
        values.append(below[1])
        rows = ((memory.length + n) >> level)[:, None] - done[:, None] + torch.arange(width, device=q.device)
        kept.append([take_rows(t, rows) for t in below])
    weights = torch.cat(scores, -1).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
    if attn_drop:
        weights = nn.functional.dropout(weights, attn_drop)
    key, value = (torch.stack(level, 2) for level in zip(*kept, strict=True))
    grown = SpanMemory(key.to(memory.key.dtype), value.to(memory.value.dtype), memory.length + n)
    return weights @ torch.cat(values, 2), grown


def _parents(
    below: tuple[Tensor, Tensor], done: Tensor, done_below: Tensor, width: int, count: int
) -> tuple[Tensor, Tensor]:
    """The next ``count`` nodes of a level, means of two below; those that are not finished mean nothing."""
    first = 2 * (done[:, None] + torch.arange(count, device=done.device)) - (done_below[:, None] - width)
    last = below[0].shape[2] - 1
    left, right = (tuple(take_rows(t, (first + side).clamp(max=last)) for t in below) for side in (0, 1))
    return (left[0] + right[0]) / 2, (left[1] + right[1]) / 2


@register(
    "bpt",
    samples=[
        Sample(dim=12, num_heads=3, step=2, clip=2, attn_drop=0.1),
        Sample(dim=12, num_heads=3, step=1, clip=1, causal=True),
        Sample(dim=12, num_heads=2, step=3, relative=False, authors_graph=True),
    ],
)
class BPT(Core):
    """Near tokens and far spans; see the head of this file.

    Args:
        head_dim: D, the width of the table of labels.
        step: nodes on each level and side, the paper's k: 64 for characters, 4 for words.
        clip: levels from this one on share their labels.
        causal: no token sees a later one.
        relative: with labels; False: none.
        authors_graph: with the stray edges of the authors' graph builder; causal graphs have none.
        attn_drop: dropout on the weights.

    Raises:
        ValueError: sizes that make no sense.
        UnsupportedError: streaming without ``causal``, or the authors' graph with it.
    """

    card = Card(
        title="BP-Transformer",
        paper="arXiv:1911.04070",
        year=2019,
        family="patterned",
        data="sequence",
        causal="strict",
        streaming=True,
        smooth=True,
        onnx=False,  # with fixed sizes only: a graph has as many looks as the tree of a text has levels
        stochastic=("dropout",),
        cost="N k log N",
        summary="Near tokens one by one, far text as spans of a binary tree: long documents, exactly causal.",
        formula="softmax over tokens and spans of q (k + a)^T / sqrt(D)",
    )

    def __init__(
        self,
        head_dim: int,
        step: int = 64,
        clip: int = 6,
        causal: bool = False,
        *,
        relative: bool = True,
        authors_graph: bool = False,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if step < 1 or clip < 0:
            raise ValueError(f"step={step} is at least 1, and clip={clip} not negative")
        if causal and authors_graph:
            raise UnsupportedError("authors_graph=True changes nothing in causal graphs, which are exact: leave it out")
        self.step, self.clip, self.causal = step, clip, causal
        self.authors_graph, self.attn_drop = authors_graph, attn_drop
        self.table = None
        if relative:
            self.table = nn.Parameter(torch.empty((2 * step + 1) * (clip + 1), head_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform, as every matrix of the paper's layers."""
        if self.table is not None:
            nn.init.xavier_uniform_(self.table)

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
        """Attend; shapes as in :func:`bpt_attention`."""
        return bpt_attention(
            q,
            k,
            v,
            self.step,
            table=self.table,
            causal=self.causal,
            authors_graph=self.authors_graph,
            key_mask=key_mask,
            query_mask=query_mask,
            attn_drop=self.attn_drop * self.training,
            generator=generator,
        )

    def memory(
        self,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        value_dim: int,
        *,
        device: Any = None,
        dtype: Any = None,
        static: int | None = None,
    ) -> SpanMemory:
        """The nodes that later tokens may read; their number is constant, so ``static`` reserves nothing.

        Raises:
            UnsupportedError: not causal.
            ValueError: a stream that would be longer than ``MOST_TOKENS``.
        """
        if not self.causal:
            raise UnsupportedError("bpt streams only with causal=True: here queries see later keys")
        if static is not None and static > MOST_TOKENS:
            raise ValueError(f"static={static}, but a stream has at most {MOST_TOKENS} tokens")
        levels = next(level for level in range(64) if (MOST_TOKENS + self.step) >> level < self.step)
        shape = (batch, num_kv_heads, levels, 2 * self.step + 1)
        key, value = (torch.zeros(*shape, width, device=device, dtype=dtype) for width in (head_dim, value_dim))
        return SpanMemory(key, value, torch.zeros(batch, device=device, dtype=torch.long))

    def stream(self, q: Tensor, k: Tensor, v: Tensor, memory: SpanMemory) -> tuple[Tensor, SpanMemory]:
        """Continue with one token or many: -> (out, the new memory).

        Raises:
            ValueError: more than ``MOST_TOKENS``.
        """
        outs: list[Tensor] = []
        for queries, keys, values in zip(*(t.split(RUN, 2) for t in (q, k, v)), strict=True):
            drop = self.attn_drop * self.training
            out, memory = continue_tree(queries, keys, values, memory, self.step, self.table, drop)
            outs.append(out)
        # the check reads a value, for which a device would have to wait
        length = memory.length
        if not torch.compiler.is_compiling() and length.device.type == "cpu" and int(length.max()) > MOST_TOKENS:
            raise ValueError(f"{int(length.max())} tokens are more than {MOST_TOKENS}, the longest stream")
        return torch.cat(outs, 2), memory

    def extra_repr(self) -> str:
        return f"step={self.step}, clip={self.clip}, causal={self.causal}, relative={self.table is not None}"
