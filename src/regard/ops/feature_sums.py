"""Attention by features in differentiable torch operations, a chunk of tokens at a time.

With phi(x) = a e^b (:mod:`regard.ops.random_features`), y_i = sum_j w_ij v_j / sum_j w_ij and w_ij = a_i . a_j e^(b_j),
for b_i cancels. The e^(b_j) are kept relative to their maximum over the keys so far, as in an online softmax: the
running sums are rescaled when it grows. So no later key changes what an earlier query sees, not even by rounding.
Values carry one more column, of ones: its sum is the denominator.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regard.ops.random_features import Features, Kind, random_features

CHUNK = 128
"""Tokens at a time, so that their features stay in the cache; the temporaries are B H CHUNK m numbers."""
CAUSAL_CHUNK = 64
"""The same where pairs of tokens are formed within a chunk."""


class FeatureSums(NamedTuple):
    """The running sums of attention by m features, ``state * exp(exponent)``.

    Attributes:
        state: (B, H, m, Dv + 1), the sum of phi(k_j) [v_j, 1]^T; the last column is the normaliser.
        exponent: (B, H), the largest exponent of a key so far.
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
        top = torch.maximum(self.exponent, keys.exponent.detach().amax(-1))
        kept = ((self.exponent - top).exp()[..., None, None] * self.state).flatten(0, 1)
        values = decay(keys, top) * values
        state = torch.baddbmm(kept, keys.value.flatten(0, 1).mT, values.flatten(0, 1))
        return FeatureSums(state.view_as(self.state), top)

    def decays(self, keys: Features) -> tuple[Float[Tensor, "B H T T"], Float[Tensor, "B H T 1"]]:
        """What the exponents do to the pairs within a causal chunk, and to these sums over what precedes it.

        Row i is relative to the largest exponent up to key i, whatever comes later.
        """
        top = torch.maximum(self.exponent[..., None], keys.exponent.detach().cummax(-1).values)[..., None]
        size = keys.exponent.shape[-1]
        later = torch.ones(size, size, dtype=torch.bool, device=top.device).triu(1)
        among = (keys.exponent[..., None, :] - top).masked_fill_(later, -torch.inf).exp_()
        return among, (self.exponent[..., None, None] - top).exp()


class Inputs(NamedTuple):
    """What attention by features is computed from; the arguments of :func:`attend` up to the sums."""

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B H M D"]
    v: Float[Tensor, "B H M Dv"]
    projection: Float[Tensor, "#H W D"]
    key_mask: Bool[Tensor, "B M"] | None
    kind: Kind
    causal: bool

    def query_chunks(self) -> list[slice]:
        """The queries, at least one chunk, be it empty."""
        return _chunks(max(self.q.shape[-2], 1), CAUSAL_CHUNK if self.causal else CHUNK)

    def seen_by_all(self) -> int:
        """How many keys every query sees: those before the first query if causal, for the last ones stand together."""
        return self.k.shape[-2] - self.q.shape[-2] * self.causal

    def seen_chunks(self) -> list[slice]:
        """These keys."""
        return _chunks(self.seen_by_all(), CHUNK)

    def own_keys(self, rows: slice) -> slice:
        """The keys that stand where these queries stand."""
        return slice(rows.start + self.seen_by_all(), rows.stop + self.seen_by_all())

    def queries(self, rows: slice) -> Features:
        """Features of some queries."""
        return random_features(self.q[:, :, rows], self.projection, self.kind)

    def keys(self, rows: slice) -> tuple[Features, Float[Tensor, "B H T C"]]:
        """Features of some keys, and their values with a column of ones; masked keys weigh e^-inf."""
        k, v = self.k[:, :, rows], self.v[:, :, rows]
        hidden = None if self.key_mask is None else ~self.key_mask[:, None, rows]
        if hidden is not None:
            k, v = k.masked_fill(hidden[..., None], 0.0), v.masked_fill(hidden[..., None], 0.0)
        phi = random_features(k, self.projection, self.kind)
        if hidden is not None:
            phi = phi._replace(exponent=phi.exponent.masked_fill(hidden, -torch.inf))
        return phi, F.pad(v.to(phi.value.dtype), (0, 1), value=1.0)


def attend(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention by features.

    Args:
        inputs: those of :class:`Inputs`, then those of :class:`FeatureSums` over earlier keys.

    Returns:
        out (B, H, N, Dv), the denominators (B, H, N, 1) with 1 for 0, and the sums over all keys so far.
    """
    given, sums = Inputs(*inputs[:7]), FeatureSums(*inputs[7:])
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
                among, past = sums.decays(keys)
                found = (phi @ keys.value.mT * among) @ values + past * found
                sums = sums.add(keys, values)
            total = torch.where(found[..., -1:] > 0, found[..., -1:], 1.0)
            outs.append((found[..., :-1] / total).to(given.v.dtype).transpose(1, 2))
            totals.append(total)
    # tokens before heads in memory: the layer joins the heads without a copy
    return torch.cat(outs, 1).transpose(1, 2), torch.cat(totals, 2), sums.state, sums.exponent


def decay(keys: Features, top: Float[Tensor, "B H"]) -> Float[Tensor, "B H T 1"]:
    """The weights of keys relative to the exponent ``top``."""
    return (keys.exponent - top[..., None]).exp()[..., None]


def _chunks(stop: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, stop)) for start in range(0, stop, size)]
