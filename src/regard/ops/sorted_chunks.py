"""Tokens in an order of the content's choosing, cut into chunks: where each stands, and whom it may see from there.

Each of R lists orders the tokens of a sequence in its own way. Cut into chunks of L tokens and laid end to end the
lists form a ring; a token sees, in each list, its own chunk and the chunks around it. The softmax over all that it sees
is :func:`regard.ops.chunk_attention.chunk_attention`.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

BARRED = -(2.0**40)
"""Added to the scores of pairs that may not meet; a power of two, so that no position is rounded on the way."""
MOST_TOKENS = 2**24
"""Positions are compared in float32."""
Rule = Literal["all", "causal", "bucket"]


class Reach(NamedTuple):
    """How far a token sees.

    Attributes:
        chunk: L, tokens in a chunk.
        before, after: chunks that are seen around one's own.
    """

    chunk: int
    before: int
    after: int

    @property
    def width(self) -> int:
        """Chunks in sight."""
        return self.before + 1 + self.after


class Slots(NamedTuple):
    """The ring of every head, cut open: S slots hold the index of a token each; the ends repeat the other end.

    Positions are counted in steps of -``BARRED``, so that a difference of them can be added to a score.

    Attributes:
        row: the token in each slot, as a row of (B N H).
        asks: the last position that the query in the slot may see; with the rule "all" the one that it may not.
        asked: the position of the key in the slot; far behind everything if it may not be seen.
        live: whether the slot is the token's own place rather than a repetition or a gap.
        sees_itself: whether the token falls back on its own value.
        place: the slot of each token in each list.
        lowest: rule "bucket": the first position that the query may see.
        hidden: rule "all": ``BARRED`` for a key that may not be seen, else 0.
        chunks: (B N H, R) the chunk of each token in each list, where meetings are counted.
        period: (S,) chunks in the ring, where meetings are counted.
    """

    row: Int[Tensor, " S"]
    asks: Float[Tensor, " S"]
    asked: Float[Tensor, " S"]
    live: Bool[Tensor, " S"]
    sees_itself: Bool[Tensor, " S"]
    place: Int[Tensor, "R BNH"]
    lowest: Float[Tensor, " S"] | None
    hidden: Float[Tensor, " S"] | None
    chunks: Int[Tensor, "BNH R"] | None
    period: Int[Tensor, " S"] | None


def arrange(
    buckets: Int[Tensor, "B H R N"],
    reach: Reach,
    rule: Rule,
    asks: Bool[Tensor, "B N"] | None = None,
    asked: Bool[Tensor, "B N"] | None = None,
    *,
    count_meetings: bool = False,
) -> Slots:
    """Sort the tokens by bucket, then by position, and lay the lists of each head out in slots.

    Args:
        buckets: of each token, in each list.
        reach: how far a token sees.
        rule: whom it sees there: "all", "causal" (no later token), or "bucket" (the last ``before`` L tokens ahead of
            it in the list, if they share its bucket: which they are is settled by earlier tokens alone).
        asks, asked: which tokens do. Those that only ask come after all others; those that do neither take no slot, so
            that nothing depends on how many there are.
        count_meetings: pairs that meet in several lists shall count once.
    """
    B, H, R, N = buckets.shape
    L, device = reach.chunk, buckets.device
    everyone = torch.ones(B, N, dtype=torch.bool, device=device)
    asked = everyone if asked is None else asked
    part = asked if asks is None else asks | asked
    last = buckets.amax() + 1
    buckets = torch.where(asked[:, None, None], buckets, torch.where(part[:, None, None], last, last + 1))
    buckets, order = buckets.sort(dim=-1, stable=True)

    real = part.sum(-1)[:, None]  # (B, 1) like all sizes below
    length = (real.add(L - 1) // L).clamp(min=1) * L  # of one list
    slot = torch.arange((reach.before + R * (-(-N // L)) + reach.after) * L, device=device) - reach.before * L
    inside = slot % (R * length)
    rank = inside % length
    filled = (rank < real)[:, None]
    rank = rank.minimum(real - 1).clamp(min=0)  # a gap repeats a real token, so that nothing odd is ever read
    index = ((inside // length) * N + rank)[:, None].expand(-1, H, -1)
    token = order.flatten(2).gather(-1, index)

    visible = filled & asked[:, None].expand(-1, H, -1).gather(-1, token)
    at = index if rule == "bucket" else token
    lowest = None
    if rule == "bucket":
        lowest = _first_of_bucket(buckets).flatten(2).gather(-1, index).maximum(index - reach.before * L)
    batch, head = (torch.arange(size, device=device) for size in (B, H))
    own = _own_slots(order, real, length, reach)
    ring = (batch[:, None] * H + head)[..., None, None] * slot.shape[0]
    return Slots(
        row=(((batch[:, None, None] * N + token) * H) + head[:, None]).flatten(),
        asks=_steps(at - int(rule != "all")),
        asked=_steps(torch.where(visible, at, 2 * MOST_TOKENS)),
        lowest=None if lowest is None else _steps(lowest),
        hidden=torch.where(visible, 0.0, BARRED).flatten() if rule == "all" else None,
        live=(filled & ((slot >= 0) & (slot < R * length))[:, None]).expand(-1, H, -1).flatten(),
        sees_itself=visible.flatten(),
        place=(ring + own).permute(2, 0, 3, 1).flatten(1),
        chunks=own.permute(0, 3, 1, 2).reshape(B * N * H, R) // L if count_meetings else None,
        period=(R * length // L)[:, None].expand(-1, H, slot.shape[0]).flatten() if count_meetings else None,
    )


def _own_slots(
    order: Int[Tensor, "B H R N"], real: Int[Tensor, "B 1"], length: Int[Tensor, "B 1"], reach: Reach
) -> Int[Tensor, "B H R N"]:
    """The slot of each token in each list, in its own ring; any for those that have none."""
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    rank = rank.minimum(real[..., None, None] - 1).clamp(min=0)
    start = torch.arange(order.shape[2], device=order.device)[:, None] * length[..., None, None]
    return reach.before * reach.chunk + start + rank


def _steps(positions: Int[Tensor, "B H S"]) -> Float[Tensor, " BHS"]:
    return positions.flatten().float() * -BARRED


def _first_of_bucket(buckets: Int[Tensor, "B H R N"]) -> Int[Tensor, "B H R N"]:
    """For each place of the sorted lists the first place with the same bucket, counted through all lists."""
    R, N = buckets.shape[2:]
    at = torch.arange(R * N, device=buckets.device).view(R, N)
    starts = F.pad(buckets[..., 1:] != buckets[..., :-1], (1, 0), value=True)
    return torch.where(starts, at, 0).cummax(-1).values
