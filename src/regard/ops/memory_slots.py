"""Memory slots: K vectors that tokens read, and that rewrite themselves once a segment from what they see of it.

Wu et al. 2022, arXiv:2010.06891, section 3. A slot attends to itself and to the tokens, never to another slot.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.attention import attend, merge

Update = Literal["normalised", "gru"]


def self_and_tokens(
    q: Float[Tensor, "B H K D"],
    own_key: Float[Tensor, "B H K D"],
    own_value: Float[Tensor, "B H K Dv"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    *,
    scale: float,
    key_mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H K Dv"]:
    """softmax(scale q_i . [own_key_i; k_1 ... k_N]) [own_value_i; v_1 ... v_N]: each query has one key of its own.

    Args:
        q, own_key, own_value: of the slots.
        k, v: of the tokens.
        scale: of all scores.
        key_mask: True for real tokens; the own key is always there.

    Example:
        >>> q = own = torch.randn(1, 2, 3, 4)
        >>> k = v = torch.randn(1, 2, 7, 4)
        >>> self_and_tokens(q, own, own, k, v, scale=0.5).shape
        torch.Size([1, 2, 3, 4])
    """
    out, lse = attend(q, k, v, scale=scale, key_mask=key_mask, return_lse=True)
    own = (q * own_key).sum(-1).to(lse.dtype) * scale
    return merge([own_value.to(out.dtype), out], [own, lse])[0]


def write_slots(
    slots: Float[Tensor, "B K C"],
    forget: Float[Tensor, "K C"],
    q: Float[Tensor, "B H K D"],
    own_key: Float[Tensor, "B H K D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    *,
    temperature: float = 0.25,
    key_mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B K C"]:
    """(m' + f) / ||m' + f||, where m'_i = softmax(q_i . [own_key_i; k] / (sqrt(D) tau)) [m_i; v].

    Section 3.3 and 3.4. The slot's own value is the slot itself, split by heads; the norm is over all of it. A slot
    that sees no token is pulled towards its forgetting vector f, which is where it started.

    Args:
        slots: m.
        forget: f.
        q, own_key: queries and keys made of the slots.
        k, v: keys and values of the segment's tokens.
        temperature: tau, below 1 sharpens.
        key_mask: True for real tokens.
    """
    own_value = slots.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
    scale = q.shape[-1] ** -0.5 / temperature
    found = self_and_tokens(q, own_key, own_value, k, v, scale=scale, key_mask=key_mask)
    return F.normalize(found.transpose(1, 2).flatten(2) + forget, dim=-1)


class SlotMemory(nn.Module):
    """The slots of a model or layer: how they start, and how a segment rewrites them.

    ``update="normalised"`` is :func:`write_slots`, without biases or output projection. ``"gru"`` is the paper's first
    version: a = W_o attention, all of it projected, then m = GRU(a, m) and m + FF(LayerNorm(m)).

    Args:
        dim, num_heads: C and H.
        num_slots: K.
        update: which way.
        temperature: tau; the first version has none.
        num_updates: how often a segment is written, with the same weights, for "gru".

    Raises:
        ValueError: sizes that do not fit, or options of the other update.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_slots: int,
        update: Update = "normalised",
        *,
        temperature: float | None = None,
        num_updates: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if update not in ("normalised", "gru"):
            raise ValueError(f'update={update!r} is neither "normalised" nor "gru"')
        if min(num_slots, num_updates) < 1 or dim % num_heads:
            raise ValueError(f"dim={dim}, num_heads={num_heads}, num_slots={num_slots}, num_updates={num_updates}")
        if (update == "gru" and temperature is not None) or (update == "normalised" and num_updates > 1):
            raise ValueError('temperature= belongs to update="normalised", and num_updates= to update="gru"')
        self.num_heads, self.update, self.num_updates = num_heads, update, num_updates
        self.temperature = 0.25 if temperature is None else temperature
        gru = update == "gru"
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=gru, **factory) for _ in range(3))
        self.start = nn.Parameter(torch.empty(num_slots, dim, **factory))
        self.out_proj = nn.Linear(dim, dim, **factory) if gru else None
        self.gru = nn.GRUCell(dim, dim, **factory) if gru else None
        self.feed_forward = _feed_forward(dim, **factory) if gru else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices as torch starts them; slots of "gru" from N(0, 1), forgetting vectors from N(0, 0.02^2)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.GRUCell, nn.LayerNorm)):
                module.reset_parameters()
        nn.init.normal_(self.start, std=1.0 if self.update == "gru" else 0.02)

    def initial(self, batch: int) -> Float[Tensor, "B K C"]:
        """M_0, the same for every sequence: f / ||f||, or the learned slots."""
        slots = self.start if self.update == "gru" else F.normalize(self.start, dim=-1)
        return slots.expand(batch, -1, -1)

    def forward(
        self, slots: Float[Tensor, "B K C"], x: Float[Tensor, "B N C"], key_mask: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B K C"]:
        """The slots after a segment."""
        k, v = self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        if self.update == "normalised":
            q, own_key = self._heads(self.q_proj(slots)), self._heads(self.k_proj(slots))
            options: dict[str, Any] = {"temperature": self.temperature, "key_mask": key_mask}
            return write_slots(slots, self.start, q, own_key, k, v, **options)
        for _ in range(self.num_updates):
            slots = self._gated(slots, k, v, key_mask)
        return slots

    def _gated(self, slots: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        if self.gru is None or self.out_proj is None or self.feed_forward is None:
            raise RuntimeError(f"update={self.update!r} has no gate")
        q, own_key, own_value = (self._heads(linear(slots)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        found = self_and_tokens(q, own_key, own_value, k, v, scale=q.shape[-1] ** -0.5, key_mask=key_mask)
        found = self.out_proj(found.transpose(1, 2).flatten(2))
        slots = self.gru(found.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return slots + self.feed_forward(slots)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"num_slots={len(self.start)}, update={self.update!r}"


def _feed_forward(dim: int, **factory: Any) -> nn.Sequential:
    inner = (nn.Linear(dim, 4 * dim, **factory), nn.GELU(), nn.Linear(4 * dim, dim, **factory))
    return nn.Sequential(nn.LayerNorm(dim, **factory), *inner)
