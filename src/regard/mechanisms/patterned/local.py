"""Local attention: exact softmax over the keys near the query.

Luong et al. 2015, arXiv:1508.04025, section 3.2 (local-m, here with the scaled dot product as its score). For query i
the keys j are

- ``form="window"``: i - w <= j <= i + w; causal: i - w <= j <= i;
- ``form="blocks"`` (of the local-attention package): those of i's block of w keys, of the ``look_backward`` blocks
  before it and the ``look_forward`` blocks after it; ``exact=True`` also keeps |i - j| within as many whole blocks;
- ``form="luong"``: p - w <= j <= p + w around p = min(i, L - 1), where L is the number of real keys: a decoder of any
  length walks along its source and stays at its end. Only this form is for two sequences.

Blocks, and both positions of ``luong``, count from the first real token. Time and memory O(N w D) a head.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from regard.attention import attend
from regard.memory import KeyValueCache, RollingWindow, StaticCache
from regard.ops.caches import continue_from, empty_cache
from regard.ops.positions import from_first_real, put_back, real_first
from regard.patterns import Blocks, Causal, Pattern, Window
from regard.registry import Card, Core, Sample, UnsupportedError, register

Form = Literal["window", "blocks", "luong"]


def local_pattern(
    window: int,
    form: Literal["window", "blocks"] = "window",
    *,
    causal: bool = False,
    look_backward: int = 1,
    look_forward: int | None = None,
    exact: bool = False,
) -> Pattern:
    """The pairs of the first two forms.

    Raises:
        UnsupportedError: causal and looking forward.

    Example:
        >>> local_pattern(2, "blocks", causal=True).dense(5)[4].int().tolist()
        [0, 0, 1, 1, 1]
    """
    if form == "window":
        return Window(window, 0 if causal else window)
    forward = (0 if causal else 1) if look_forward is None else look_forward
    if causal and forward:
        raise UnsupportedError(f"local cannot be causal with look_forward={forward}: later blocks are the future")
    pattern: Pattern = Blocks(window, look_backward, forward)
    if causal:
        pattern = Causal() & pattern
    return pattern & Window(window * look_backward, window * forward) if exact else pattern


def luong_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G M D"],
    v: Float[Tensor, "B G M Dv"],
    window: int,
    *,
    key_mask: Bool[Tensor, "B M"] | None = None,
    query_mask: Bool[Tensor, "B N"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """softmax(q k^T / sqrt(D)) v over the keys within ``window`` of min(t, L - 1).

    Args:
        q, k, v: queries, keys and values, heads first; G divides H.
        window: keys to each side of the centre.
        key_mask: True for the L real keys of a sequence.
        query_mask: True for the real queries; t counts only those.
        attn_drop: dropout on the weights.
        generator: draws the dropout.
    """
    n, m = q.shape[-2], k.shape[-2]
    length = torch.full((len(k),), m, device=k.device)
    options: dict[str, Any] = {"dropout_p": attn_drop, "generator": generator, "enable_gqa": True}
    if key_mask is not None:
        length, (k, v) = key_mask.sum(-1), real_first(key_mask, k, v)
        key_mask = torch.arange(m, device=k.device) < length[:, None]
    if query_mask is not None:
        (q,) = real_first(query_mask, q)
    out = attend(q, k, v, Window(window), q_offset=0, key_mask=key_mask, **options)
    if key_mask is not None or n > m:  # later queries stay at the end, whose few keys they share
        last = length[:, None] - 1 - torch.arange(window, -1, -1, device=k.device)
        index = last.clamp(min=0)[:, None, :, None]
        k, v = (t.gather(-2, index.expand(-1, t.shape[1], -1, t.shape[-1])) for t in (k, v))
        stay = attend(q, k, v, key_mask=last >= 0, **options)
        beyond = torch.arange(n, device=q.device) >= length[:, None]
        out = torch.where(beyond[:, None, :, None], stay, out)
    return out if query_mask is None else put_back(query_mask, out)


_LUONG: dict[str, Any] = {"cross": True, "causal": None, "streaming": False}  # what its card says differently


class LastBlocks(NamedTuple):
    """Keys and values in the blocks that the next token may see; those before have been let go.

    Attributes:
        key: (B, G, M, D).
        value: (B, G, M, Dv).
    """

    key: Tensor
    value: Tensor


@register(
    "local",
    samples=[
        Sample(dim=12, num_heads=3, window=3),
        Sample(dim=12, num_heads=3, window=4, causal=True, attn_drop=0.1),
        Sample(dim=12, num_heads=3, window=4, form="blocks"),
        Sample(dim=16, num_heads=4, num_kv_heads=2, window=4, form="blocks", causal=True, exact=True),
        Sample(dim=12, num_heads=3, window=2, form="luong", claims=_LUONG),
    ],
)
class Local(Core):
    """A window that moves along with the query; see the head of this file for its three forms.

    Args:
        window: keys to each side of the query; of ``form="blocks"``: keys in a block.
        form: "window", "blocks" or "luong".
        causal: no query sees a later key.
        look_backward, look_forward: whole blocks before and after (None: 1, causal 0), for ``form="blocks"``.
        exact: of ``form="blocks"``: nobody sees further than as many whole blocks.
        attn_drop: dropout on the weights, in training.

    Raises:
        UnsupportedError: ``causal`` together with ``look_forward`` or ``form="luong"``; streaming without ``causal``.
    """

    card = Card(
        title="Local window",
        paper="arXiv:1508.04025",
        year=2015,
        family="patterned",
        data="sequence",
        causal="strict",
        gqa=True,
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N w",
        summary="Every token weighs its neighbours only: the simplest way to linear cost, hard to beat on local data.",
        formula="softmax over |i - j| <= w of q k^T / sqrt(D)",
    )

    def __init__(
        self,
        window: int = 256,
        form: Form = "window",
        causal: bool = False,
        *,
        look_backward: int = 1,
        look_forward: int | None = None,
        exact: bool = False,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if form not in ("window", "blocks", "luong"):
            raise ValueError(f'form={form!r} is none of "window", "blocks" and "luong"')
        if causal and form == "luong":
            raise UnsupportedError('local cannot be causal with form="luong": its window reads the source ahead')
        self.window, self.form, self.causal, self.attn_drop = window, form, causal, attn_drop
        self.look_backward = look_backward
        if form == "luong":
            self.pattern, self.card = Window(window), replace(self.card, **_LUONG)
        else:
            options: dict[str, Any] = {"look_backward": look_backward, "look_forward": look_forward, "exact": exact}
            self.pattern = local_pattern(window, form, causal=causal, **options)

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
        """Attend from q (B, H, N, D) to k (B, G, M, D) and v (B, G, M, Dv), G a divisor of H.

        Args:
            key_mask: Bool (B, M), True for real keys.
            query_mask: Bool (B, N), True for real queries; blocks and the steps of ``luong`` count only those.
            generator: draws the dropout.

        Returns:
            (B, H, N, Dv).
        """
        if self.form == "luong":
            drop = self.attn_drop * self.training
            masks = {"key_mask": key_mask, "query_mask": query_mask}
            return luong_attention(q, k, v, self.window, **masks, attn_drop=drop, generator=generator)
        if self.form == "blocks" and key_mask is not None and q.shape[-2] == k.shape[-2]:
            return from_first_real(partial(self._attend, generator=generator), q, k, v, key_mask, query_mask)
        return self._attend(q, k, v, key_mask, generator=generator)

    def memory(
        self, batch: int, num_kv_heads: int, *widths: int, static: int | None = None, **factory: Any
    ) -> RollingWindow | LastBlocks | StaticCache:
        """The last ``window`` keys and values, of constant size; whole blocks of them for ``form="blocks"``."""
        if not self.causal:
            raise UnsupportedError("local streams only with causal=True: here queries see later keys")
        if self.form == "window":
            return RollingWindow.start(batch, num_kv_heads, self.window, *widths, **factory)
        cache = empty_cache(batch, num_kv_heads, *widths, static=static, **factory)
        return cache if isinstance(cache, StaticCache) else LastBlocks(*cache)

    def stream(
        self, q: Tensor, k: Tensor, v: Tensor, memory: RollingWindow | LastBlocks | StaticCache
    ) -> tuple[Tensor, RollingWindow | LastBlocks | StaticCache]:
        """Continue with one token or many: -> (out, the new memory)."""
        if isinstance(memory, RollingWindow):
            keys, values, real, rolled = memory.append(k, v)
            return self._attend(q, keys.to(q.dtype), values.to(q.dtype), real), rolled
        cache = KeyValueCache(*memory) if isinstance(memory, LastBlocks) else memory
        out, grown = continue_from(cache, q, k, v, self.pattern, self.attn_drop * self.training)
        if isinstance(grown, StaticCache):
            return out, grown
        # without some of its first blocks every later token stays in its block
        passed = max(0, grown.key.shape[-2] // self.window - self.look_backward) * self.window
        return out, LastBlocks(*(t[..., passed:, :].clone() if passed else t for t in grown))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        drop = self.attn_drop * self.training
        return attend(q, k, v, self.pattern, key_mask=key_mask, dropout_p=drop, enable_gqa=True, generator=generator)

    def extra_repr(self) -> str:
        return f"{self.pattern!r}, attn_drop={self.attn_drop}"
