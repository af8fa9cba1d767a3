"""Sparse Transformer: exact softmax over two factorised sets of about sqrt(N) keys.

Child et al. 2019, arXiv:1904.10509, section 4. With stride l, query i sees the keys j <= i of a local and of a far set:

=========== ============================ ===============================================
kind        local                        far
=========== ============================ ===============================================
"strided"   i - j <= l                   (i - j) is a multiple of l
"fixed"     j in i's block of l          j among the last c positions of its block of l
=========== ============================ ===============================================

One softmax over both ("merged"), one set for each head ("heads"), or a single set, to be alternated by layer. Strided
suits data with a period (images, audio), fixed suits text. Every block-sparse layout, such as DeepSpeed's six in
:mod:`regard.patterns.layouts`, takes their place through ``pattern=``. The paper's local set has l + 1 keys, the
authors' code has l (``window=l``). Blocks count from the first real token; a query whose set is empty gives 0.

Time and memory O(N (l + N c / l) D) a head.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import Generator, Tensor

from regard.attention import attend
from regard.ops.caches import Cache, continue_from, empty_cache
from regard.ops.positions import from_first_real
from regard.patterns import Blocks, Causal, Pattern, PerHead, Strided, Summary, Window
from regard.registry import Card, Core, Sample, UnsupportedError, register

Kind = Literal["strided", "fixed"]
Part = Literal["merged", "local", "far"]


def sparse_pattern(
    kind: Kind,
    part: Part = "merged",
    *,
    stride: int,
    columns: int = 1,
    window: int | None = None,
    group: int = 0,
    causal: bool = True,
) -> Pattern:
    """The pairs that one head sees.

    Args:
        kind: "strided" or "fixed".
        part: "local", "far", or "merged" for both.
        stride: l.
        columns: c, of "fixed".
        window: keys in the local set of "strided", the query's own included; l + 1 by default.
        group: the far columns of "fixed" lie this many groups of c before the end of their block.
        causal: only keys at or before the query; otherwise the local window reaches to both sides.

    Raises:
        ValueError: the columns of the group do not lie in the block.

    Example:
        >>> sparse_pattern("fixed", stride=3, columns=1).dense(5)[4].int().tolist()
        [0, 0, 1, 1, 1]
    """
    if kind == "strided":
        reach = stride if window is None else window - 1
        local, far = Window(reach, 0 if causal else reach), Strided(stride)
    else:
        if columns * (group + 1) > stride:
            raise ValueError(f"columns={columns} of group {group} do not fit into a block of stride={stride}")
        local, far = Blocks(stride), Summary(stride, columns * (group + 1))
        far = far & ~Summary(stride, columns * group) if group else far
    chosen = {"local": local, "far": far, "merged": local | far}[part]
    return Causal() & chosen if causal else chosen


@register(
    "sparse_transformer",
    samples=[
        Sample(dim=12, num_heads=3, causal=True, stride=4, columns=1),
        Sample(dim=12, num_heads=2, causal=True, kind="strided", stride=3, how="heads", attn_drop=0.1),
        Sample(dim=16, num_heads=4, num_kv_heads=2, causal=True, stride=6, columns=2, groups=2),
        Sample(dim=12, num_heads=3, kind="strided", stride=4),
    ],
)
class SparseTransformer(Core):
    """A local and a far set of keys; see the head of this file.

    Args:
        kind: "fixed" or "strided".
        stride: l, near the square root of the length; the paper has 128 for text.
        columns: c of "fixed": 8 to 32 for a stride of 128 or 256.
        how: "merged", "local", "far", "heads" (even heads local, odd heads far), or one of the first three per head.
        window: keys in the local set of "strided", the query's own included; l + 1 by default.
        groups: of "fixed": head h has far columns h % groups groups before the end of each block.
        pattern: any other pattern instead of all the above, e.g. ``from_blocks(fixed_layout(16), 128)``.
        num_heads: needed where heads differ.
        causal: only keys at or before the query.
        attn_drop: dropout on the weights, in training (the paper has none).

    Raises:
        ValueError: an unknown kind, heads that differ without ``num_heads``, or columns that do not fit.
        UnsupportedError: streaming without ``causal=True``.
    """

    card = Card(
        title="Sparse Transformer",
        paper="arXiv:1904.10509",
        year=2019,
        family="patterned",
        data="sequence",
        causal="strict",
        gqa=True,
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N sqrt(N)",
        summary="A window and a few far columns, any key in two layers: strided for periodic data, fixed for text.",
        formula="softmax over local and far keys of q k^T / sqrt(D)",
    )

    def __init__(
        self,
        kind: Kind = "fixed",
        stride: int = 128,
        columns: int = 32,
        how: Part | Literal["heads"] | Sequence[Part] = "merged",
        *,
        window: int | None = None,
        groups: int = 1,
        pattern: Pattern | None = None,
        num_heads: int | None = None,
        causal: bool = False,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in ("strided", "fixed"):
            raise ValueError(f'kind={kind!r} is neither "strided" nor "fixed"')
        self.causal, self.attn_drop = causal, attn_drop
        self.counts_from_start = kind == "fixed" or pattern is not None
        if pattern is not None:
            self.pattern = Causal() & pattern if causal else pattern
            return
        options: dict[str, Any] = {"stride": stride, "columns": columns, "window": window, "causal": causal}
        parts = enumerate(_parts(how, num_heads, groups))
        patterns = [sparse_pattern(kind, part, group=head % groups, **options) for head, part in parts]
        self.pattern = patterns[0] if len(set(patterns)) == 1 else PerHead(*patterns)

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
        if key_mask is not None and self.counts_from_start:
            return from_first_real(partial(self._attend, generator=generator), q, k, v, key_mask, query_mask)
        return self._attend(q, k, v, key_mask, generator=generator)

    def memory(self, *sizes: int, static: int | None = None, **factory: Any) -> Cache:
        """An empty cache of keys and values that grows, or one of ``static`` slots that is overwritten."""
        if not self.causal:
            raise UnsupportedError("sparse_transformer streams only with causal=True: here queries see later keys")
        return empty_cache(*sizes, static=static, **factory)

    def stream(self, q: Tensor, k: Tensor, v: Tensor, memory: Cache) -> tuple[Tensor, Cache]:
        """Continue with one token or many: -> (out, the new memory)."""
        return continue_from(memory, q, k, v, self.pattern, self.attn_drop * self.training)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        drop = self.attn_drop * self.training
        return attend(q, k, v, self.pattern, key_mask=key_mask, dropout_p=drop, enable_gqa=True, generator=generator)

    def extra_repr(self) -> str:
        return f"{self.pattern!r}, attn_drop={self.attn_drop}"


def _parts(how: str | Sequence[str], num_heads: int | None, groups: int) -> list[Any]:
    """The set of each head; a single entry where all heads have the same."""
    if isinstance(how, str) and how != "heads":
        how = [how] * (1 if groups == 1 else num_heads or 0)
    elif isinstance(how, str):
        how = ["far" if head % 2 else "local" for head in range(num_heads or 0)]
    if not how or len(how) not in (1, num_heads or len(how)):
        raise ValueError(f"heads differ (how={how!r}, groups={groups}), which does not fit num_heads={num_heads}")
    if unknown := set(how) - {"merged", "local", "far"}:
        raise ValueError(f'how={sorted(unknown)} is none of "merged", "local", "far" and "heads"')
    return list(how)
