"""Attention by features in differentiable torch operations, a chunk of tokens at a time.

With phi(x) = a e^b (:mod:`regard.ops.features`), y_i = sum_j w_ij v_j / sum_j w_ij and w_ij = a_i . a_j e^(b_j), for
b_i cancels. The e^(b_j) are kept relative to their maximum over the keys so far, as in an online softmax: the
running sums are rescaled when it grows. So no later key changes what an earlier query sees, not even by rounding.
Values carry one more column, of ones: its sum is the denominator.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regard.ops.features import Features, Kind, features

CHUNK = 512
"""Tokens at a time of up to 4 heads; of B H heads fewer, at least 32, so that their features stay in the cache."""
CAUSAL_CHUNK = 128
"""The same where pairs of tokens are formed within a chunk."""


class FeatureSums(NamedTuple):
    """The running sums of attention by m features, ``state * exp(exponent)``.

    Attributes:
        state: (B, H, m, Dv + 1), the sum of phi(k_j) [v_j, 1]^T; the last column is the normaliser.
        exponent: (B, H), the largest exponent of a key so far; idle where features have none.
    """

    state: Float[Tensor, "B H m C"]
    exponent: Float[Tensor, "B H"]

    @classmethod
    def start(
        cls, batch: int, heads: int, num_features: int, value_dim: int, *, device: Any = None, dtype: Any = None
    ) -> "FeatureSums":
        """Sums over nothing, in float32 at least."""
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        state = torch.zeros(batch, heads, num_features, value_dim + 1, device=device, dtype=dtype)
        return cls(state, torch.full((batch, heads), torch.finfo(dtype).min, device=device, dtype=dtype))

    def add(self, keys: Features, values: Float[Tensor, "B H T C"]) -> "FeatureSums":
        """The sums with T more keys, whose values end in a column of ones."""
        top = self.exponent
        if keys.exponent is not None and keys.exponent.shape[-1]:
            top = torch.maximum(top, keys.exponent.detach().amax(-1))
        kept = rescaled(self.state, self.exponent, top)
        return FeatureSums(_plus(kept, keys.value.mT, weigh(values, keys, top)), top)


class Decays(NamedTuple):
    """What the exponents do within a causal chunk; where there are none, later keys are hidden and that is all.

    Row i is relative to the largest exponent up to key i, whatever comes later.

    Attributes:
        among: (B, H, T, T), the weights of the pairs, 0 for later keys.
        past: (B, H, T, 1), those of the sums over what precedes the chunk.
    """

    among: Float[Tensor, "B H T T"] | None
    past: Float[Tensor, "B H T 1"] | None

    @classmethod
    def between(cls, past: Float[Tensor, "B H"], keys: Features) -> "Decays":
        """For sums with the exponent ``past``, and the keys of the chunk."""
        if keys.exponent is None:
            return cls(None, None)
        top = torch.maximum(past[..., None], keys.exponent.detach().cummax(-1).values)[..., None]
        size = keys.exponent.shape[-1]
        later = torch.ones(size, size, dtype=torch.bool, device=top.device).triu(1)
        among = (keys.exponent[..., None, :] - top).masked_fill_(later, -torch.inf).exp_()
        return cls(among, (past[..., None, None] - top).exp())

    def on_pairs(self, products: Float[Tensor, "B H T T"]) -> Float[Tensor, "B H T T"]:
        """Products of queries and keys, weighed; they may be overwritten."""
        return products.tril_() if self.among is None else products * self.among

    def on_past(self, rows: Float[Tensor, "B H T C"]) -> Float[Tensor, "B H T C"]:
        """What the queries find in the sums, weighed."""
        return rows if self.past is None else self.past * rows


class Inputs(NamedTuple):
    """What attention by features is computed from; the arguments of :func:`attend` up to the sums."""

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B H M D"]
    v: Float[Tensor, "B H M Dv"]
    projection: Float[Tensor, "#H W D"]
    key_mask: Bool[Tensor, "B M"] | None
    kind: Kind
    causal: bool
    eps: float

    def query_chunks(self) -> list[slice]:
        """The queries, at least one chunk, be it empty."""
        return self._chunks(max(self.q.shape[-2], 1), CAUSAL_CHUNK if self.causal else CHUNK)

    def seen_by_all(self) -> int:
        """How many keys every query sees: those before the first query if causal, for the last ones stand together."""
        return self.k.shape[-2] - self.q.shape[-2] * self.causal

    def seen_chunks(self) -> list[slice]:
        """These keys."""
        return self._chunks(self.seen_by_all(), CHUNK)

    def _chunks(self, stop: int, most: int) -> list[slice]:
        if isinstance(stop, torch.SymInt):  # of a graph that must hold for every length
            return [slice(0, stop)] if stop else []
        heads = max(self.q.shape[:2].numel(), 4)
        size = max(4 * most // heads // 32 * 32, 32)  # products of matrices like round numbers
        return [slice(start, min(start + size, stop)) for start in range(0, stop, size)]

    def own_keys(self, rows: slice) -> slice:
        """The keys that stand where these queries stand."""
        return slice(rows.start + self.seen_by_all(), rows.stop + self.seen_by_all())

    def queries(self, rows: slice) -> Features:
        """Features of some queries."""
        return features(self.q[:, :, rows], self.projection, self.kind)

    def keys(self, rows: slice) -> tuple[Features, Float[Tensor, "B H T C"]]:
        """Features of some keys, and their values with a column of ones; masked keys weigh nothing."""
        k, v = self.k[:, :, rows], self.v[:, :, rows]
        if self.key_mask is None:
            phi = features(k, self.projection, self.kind)
        else:
            hidden = ~self.key_mask[:, None, rows]
            k, v = k.masked_fill(hidden[..., None], 0.0), v.masked_fill(hidden[..., None], 0.0)
            phi = features(k, self.projection, self.kind).without(hidden)
        return phi, F.pad(v.to(phi.value.dtype), (0, 1), value=1.0)


def attend(*inputs: Any, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention by features.

    Args:
        inputs: those of :class:`Inputs`, then those of :class:`FeatureSums` over earlier keys.
        out: (B, H, N, Dv), to write into; only where autograd does not follow.

    Returns:
        out (B, H, N, Dv), the denominators (B, H, N, 1) with 1 for 0, and the sums over all keys so far.
    """
    given, sums = Inputs(*inputs[:8]), FeatureSums(*inputs[8:])
    outs: list[Tensor] = []
    totals: list[Tensor] = []
    with torch.autocast(given.q.device.type, enabled=False):
        for rows in given.seen_chunks():
            sums = sums.add(*given.keys(rows))
        for rows in given.query_chunks():
            phi = given.queries(rows).value
            found = phi @ sums.state
            if given.causal:
                keys, values = given.keys(given.own_keys(rows))
                decays = Decays.between(sums.exponent, keys)
                found = _plus(decays.on_past(found), decays.on_pairs(phi @ keys.value.mT), values)
                sums = sums.add(keys, values)
            total = found[..., -1:] + given.eps
            total = total.masked_fill(total == 0, 1.0)
            if out is None:
                outs.append((found[..., :-1] / total).to(given.v.dtype))
            else:
                out[:, :, rows] = found[..., :-1].div_(total)
            totals.append(total)
    out = torch.cat(outs, 2) if out is None else out
    return out, torch.cat(totals, 2), sums.state, sums.exponent


def rescaled(
    state: Float[Tensor, "B H m C"], exponent: Float[Tensor, "B H"], top: Float[Tensor, "B H"]
) -> Float[Tensor, "B H m C"]:
    """``state * exp(exponent)`` relative to the exponent ``top``; the same tensor where that has not changed."""
    return state if top is exponent else (exponent - top).exp()[..., None, None] * state


def weigh(rows: Float[Tensor, "B H T C"], keys: Features, top: Float[Tensor, "B H"]) -> Float[Tensor, "B H T C"]:
    """A row for each key times the key's weight relative to the exponent ``top``."""
    return rows if keys.exponent is None else (keys.exponent - top[..., None]).exp()[..., None] * rows


def _plus(
    rows: Float[Tensor, "B H T C"], left: Float[Tensor, "B H T K"], right: Float[Tensor, "B H K C"]
) -> Float[Tensor, "B H T C"]:
    """rows + left right."""
    return torch.baddbmm(*(tensor.flatten(0, 1) for tensor in (rows, left, right))).view_as(rows)
