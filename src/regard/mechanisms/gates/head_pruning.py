"""Head pruning: every head has a gate that learns to close, so that training finds out which heads are needed.

Voita et al. 2019, arXiv:1905.09418, section 6; the gates are those of Louizos et al. 2017, arXiv:1712.01312::

    out_h = g_h softmax(q_h k_h^T / sqrt(D)) v_h        before the output projection: sum_h g_h head_h W_o,h + b_o
    loss  = cross-entropy + weight sum_h P(g_h != 0)

g_h is a hard concrete number in [0, 1], the same for all inputs: drawn at each pass in training, one draw for the whole
batch, and without noise in evaluation (``ops/hard_concrete.py``). With ``return_aux`` the layer tells "loss/l0", the
penalty with its weight, and "metric/open_heads", how many gates are not 0 in evaluation.

The penalty is the paper's sum over all heads of all layers, where every layer adds its own; the authors' code takes
the mean over layers, so its coefficient is ours times the number of gated layers. The paper starts from a model that
has converged and fine-tunes it: ``regard.inspect.gate_heads`` puts such gates on any trained model, and
``prune_heads`` takes the closed heads out. ``log_alpha`` needs an optimiser without weight decay, which would pull each
gate towards one half; it is used in float32 at least. A query that may look at nothing gives 0; so do all where every
gate is closed, and the layer then gives its output bias.

Time O(N M D) a head, closed or not, and memory O((N + M) D).
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from regard.attention import attend
from regard.memory import KeyValueCache, StaticCache
from regard.ops.caches import continue_from, empty_cache
from regard.ops.hard_concrete import STRETCH, HardConcrete
from regard.patterns import Causal, Full, Pattern, Segments
from regard.registry import Card, Core, Sample, UnsupportedError, register


def gated_heads(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G M D"],
    v: Float[Tensor, "B G M Dv"],
    gate: Float[Tensor, " H"],
    pattern: Pattern | None = None,
    *,
    key_mask: Bool[Tensor, "B M"] | None = None,
    attn_mask: Tensor | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """g_h softmax(q_h k_h^T / sqrt(D)) v_h.

    Args:
        q, k, v: queries, keys and values, heads first; G divides H.
        gate: g, one number a head.
        pattern: who may look at whom; None: all at all.
        key_mask: True for real keys.
        attn_mask: a mask of pairs, as :func:`regard.attend` takes it.
        attn_drop, generator: dropout on the weights, and what draws it.

    Example:
        >>> q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
        >>> gated_heads(q, k, v, torch.tensor([1.0, 0.0]))[:, 1].abs().max().item()
        0.0
    """
    options: dict[str, Any] = {"key_mask": key_mask, "attn_mask": attn_mask, "generator": generator}
    out = attend(q, k, v, pattern or Full(), dropout_p=attn_drop, enable_gqa=True, **options)
    return out * gate.to(out.dtype)[:, None, None]


@register(
    "head_pruning",
    samples=[
        Sample(dim=12, num_heads=3, causal=True, attn_drop=0.1),
        Sample(dim=16, num_heads=4, num_kv_heads=2, head_dim=3, start="glorot"),
        Sample(dim=12, num_heads=2, hard=True, claims={"smooth": False}),
    ],
)
class HeadPruning(Core):
    """Owns a gate for each head; see the head of this file.

    Args:
        num_heads: H.
        causal: no query sees a later key; with N != M the last query stands at the last key.
        weight: of the penalty; 0.01 to 0.3, the more data the less.
        start: log alpha of every gate at first: 2 is open with probability 0.94. "glorot": uniform in +-sqrt(3 / H),
            the authors' start, with gates near one half.
        temperature: of the noise.
        stretch: the limits of a gate before it is clipped to [0, 1].
        hard: gates are 0 or 1, with the gradient of those in between.
        attn_drop: dropout on the weights, in training.
        device, dtype: of the parameter.

    Raises:
        ValueError: no heads, other heads than it was made for, or numbers of which no gate can be made.
        UnsupportedError: streaming without ``causal=True``.
    """

    card = Card(
        title="Head pruning by gates",
        paper="arXiv:1905.09418",
        year=2019,
        family="gates",
        data="sequence",
        causal="strict",
        cross=True,
        gqa=True,
        streaming=True,
        segments=True,
        smooth=True,
        stochastic=("dropout", "noise"),
        cost="N^2",
        summary="Exact softmax with a gate on each head that learns to close: finds the heads that can be removed.",
        formula="g_h softmax(q_h k_h^T / sqrt(D)) v_h, g = clip(1.2 sigmoid(log alpha) - 0.1, 0, 1)",
    )

    def __init__(
        self,
        num_heads: int,
        causal: bool = False,
        *,
        weight: float = 0.1,
        start: float | Literal["glorot"] = 2.0,
        temperature: float = 0.33,
        stretch: tuple[float, float] = STRETCH,
        hard: bool = False,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.causal, self.weight, self.attn_drop = causal, weight, attn_drop
        self.pattern = Causal() if causal else Full()
        gating: dict[str, Any] = {"start": start, "temperature": temperature, "stretch": stretch, "hard": hard}
        self.gate = HardConcrete(num_heads, **gating, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Log alpha as ``start`` says."""
        self.gate.reset_parameters()

    def aux(self) -> dict[str, Tensor]:
        """The penalty with its weight, and how many heads are open in evaluation."""
        settled = self.gate.settled().detach()
        opened = (settled != 0).sum().to(settled.dtype)
        return {"loss/l0": self.weight * self.gate.expected_open(), "metric/open_heads": opened}

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]: with return_aux there is a loss to tell
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Attend from q (B, H, N, D) to k (B, G, M, D) and v (B, G, M, Dv), G a divisor of H.

        Args:
            key_mask: Bool (B, M), True for real keys.
            query_mask: queries enter no statistic, so it has nothing to hide.
            segments: Int (B, N), one id a packed document; nobody looks into another document.
            generator: draws the gates, then the dropout.
            return_aux: also return the penalty and the number of open heads.

        Returns:
            (B, H, N, Dv); with ``return_aux`` a pair of it and a dict.
        """
        pattern = self.pattern if segments is None else self.pattern & Segments(segments)
        gate, drop = self._gate(q, generator), self.attn_drop * self.training
        out = gated_heads(q, k, v, gate, pattern, key_mask=key_mask, attn_drop=drop, generator=generator)
        return (out, self.aux()) if return_aux else out

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
    ) -> KeyValueCache | StaticCache:
        """An empty cache of keys and values that grows, or one of ``static`` slots that is overwritten."""
        if not self.causal:
            raise UnsupportedError("head_pruning streams only with causal=True: here every query sees all keys")
        return empty_cache(batch, num_kv_heads, head_dim, value_dim, static=static, device=device, dtype=dtype)

    def stream(
        self, q: Tensor, k: Tensor, v: Tensor, memory: KeyValueCache | StaticCache
    ) -> tuple[Tensor, KeyValueCache | StaticCache]:
        """Continue with one token or many: -> (out, the new memory)."""
        gate = self._gate(q)
        out, grown = continue_from(memory, q, k, v, self.pattern, self.attn_drop * self.training)
        return out * gate.to(out.dtype)[:, None, None], grown

    def _gate(self, q: Tensor, generator: Generator | None = None) -> Float[Tensor, " H"]:
        """g, for queries of as many heads."""
        num_heads = len(self.gate.log_alpha)
        if q.shape[1] != num_heads:
            raise ValueError(f"q has {q.shape[1]} heads, but this HeadPruning was built for num_heads={num_heads}")
        return self.gate(generator)

    def extra_repr(self) -> str:
        return f"causal={self.causal}, weight={self.weight}, attn_drop={self.attn_drop}"
