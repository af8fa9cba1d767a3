"""One sound module for :func:`regard.check`, and one that breaks each rule."""

import torch
import torch.nn.functional as F
from torch import nn

from regard.registry import Card


class Sound(nn.Module):
    """One causal head; True marks real tokens; rows that see nothing give 0; streams with all inputs so far."""

    def __init__(self, dim=12, causal=True):
        super().__init__()
        self.causal = causal
        self.project, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def scores(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        return q @ k.mT / q.shape[-1] ** 0.5, v

    def allowed(self, x, key_mask):
        n = x.shape[1]
        allowed = torch.ones(n, n, dtype=torch.bool, device=x.device)
        if self.causal:
            allowed = allowed.tril()
        return allowed[None] if key_mask is None else allowed & key_mask[:, None, :]

    def forward(self, x, *, key_mask=None):
        scores, v = self.scores(x)
        allowed = self.allowed(x, key_mask)
        weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1) * allowed
        return self.out(weights @ v)

    def memory(self, batch):
        return torch.zeros(batch, 0, self.out.in_features)

    def stream(self, x, memory):
        seen = torch.cat((memory, x), 1)
        return self(seen)[:, -x.shape[1] :], seen


class LeaksByOne(Sound):
    def allowed(self, x, key_mask):
        n = x.shape[1]
        return torch.ones(n, n, dtype=torch.bool).tril(1)[None]


class LeaksAtOnePlace(Sound):
    """Only output 4 looks ahead, at input 11, and only a little."""

    def forward(self, x, *, key_mask=None):
        y = super().forward(x, key_mask=key_mask)
        if x.shape[1] > 11:
            y = y + 1e-4 * F.one_hot(torch.tensor(4), x.shape[1])[:, None] * x[:, 11:12]
        return y


class LeaksBySelection(Sound):
    """Attends to the past, but only to tokens at or above the mean of the whole sequence: no gradient, yet a leak."""

    def allowed(self, x, key_mask):
        norm = x.detach().norm(dim=-1)
        picked = norm >= norm.mean(1, keepdim=True)
        return super().allowed(x, key_mask) & picked[:, None, :]


class LeaksByMaximum(Sound):
    """A stabiliser taken over all keys, which a small constant in the denominator makes visible."""

    def forward(self, x, *, key_mask=None):
        scores, v = self.scores(x)
        weights = (scores - scores.amax((1, 2), keepdim=True)).exp() * self.allowed(x, key_mask)
        return self.out(weights @ v / (weights.sum(-1, keepdim=True) + 1e-3))


class LeaksLength(Sound):
    def forward(self, x, *, key_mask=None):
        return super().forward(x, key_mask=key_mask) * (1 + x.shape[1] / 100)


class IgnoresMask(Sound):
    def forward(self, x, *, key_mask=None):
        return super().forward(x)


class MasksValuesOnly(Sound):
    """The commonest fault: padded keys keep their share of the softmax."""

    def forward(self, x, *, key_mask=None):
        scores, v = self.scores(x)
        v = v if key_mask is None else v * key_mask[..., None]
        weights = scores.masked_fill(~self.allowed(x, None), torch.finfo(scores.dtype).min).softmax(-1)
        return self.out(weights @ v)


class CountsPositionsFromTheLeft(Sound):
    """Right for padding on the right only."""

    def forward(self, x, *, key_mask=None):
        place = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None]
        return super().forward(x + place, key_mask=key_mask)


class PoisonedByEmpty(Sound):
    """An empty sequence makes the whole batch NaN."""

    def forward(self, x, *, key_mask=None):
        y = super().forward(x, key_mask=key_mask)
        return y if key_mask is None else y * (key_mask.sum(1).prod() / key_mask.sum(1).prod())


class NanOnEmpty(Sound):
    def forward(self, x, *, key_mask=None):
        scores, v = self.scores(x)
        return self.out(scores.masked_fill(~self.allowed(x, key_mask), -torch.inf).softmax(-1) @ v)


class MixesBatch(Sound):
    def forward(self, x, *, key_mask=None):
        return super().forward(x - x.mean(0, keepdim=True), key_mask=key_mask)


class WantsMultiples(Sound):
    def forward(self, x, *, key_mask=None):
        if x.shape[1] % 4:
            raise ValueError(f"{x.shape[1]} is no multiple of 4")
        return super().forward(x, key_mask=key_mask)


class NanOnOne(Sound):
    def forward(self, x, *, key_mask=None):
        y = super().forward(x, key_mask=key_mask)
        return y / x.std(1, keepdim=True)


class Rounds(Sound):
    """Pads to a multiple of 4 and forgets to cut."""

    def forward(self, x, *, key_mask=None):
        return super().forward(F.pad(x, (0, 0, 0, -x.shape[1] % 4)))


class Draws(Sound):
    def forward(self, x, *, key_mask=None):
        return super().forward(x, key_mask=key_mask) + 0.1 * torch.randn_like(x[:1, :1])


class TrainsOtherwise(Sound):
    def forward(self, x, *, key_mask=None):
        y = super().forward(x, key_mask=key_mask)
        return 2 * y if self.training else y


class ForgetsMemory(Sound):
    def stream(self, x, memory):
        y, seen = super().stream(x, memory)
        return y, seen[:, -3:]


class OverwritesMemory(Sound):
    def memory(self, batch):
        return torch.zeros(batch, 1)

    def stream(self, x, memory):
        memory += 1
        return x, memory


class Detaches(Sound):
    def forward(self, x, *, key_mask=None):
        return super().forward(x, key_mask=key_mask).detach()


class HasIdleParameter(Sound):
    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(3))


class NanGradient(Sound):
    def forward(self, x, *, key_mask=None):
        y = super().forward(x, key_mask=key_mask)
        zero = self.out.bias - self.out.bias
        return y + zero.square().sum().sqrt()


class OverflowsInHalf(Sound):
    def forward(self, x, *, key_mask=None):
        return super().forward(x * 1000 * 1000 / 1000 / 1000, key_mask=key_mask)


class BreaksGraph(Sound):
    def forward(self, x, *, key_mask=None):
        if x.sum().item() > 1e9:
            return x
        return super().forward(x, key_mask=key_mask)


class CompilesOtherwise(Sound):
    def forward(self, x, *, key_mask=None):
        y = super().forward(x, key_mask=key_mask)
        return y + 1 if torch.compiler.is_compiling() else y


class RecompilesAlways(Sound):
    def forward(self, x, *, key_mask=None):
        return super().forward(x, key_mask=key_mask) * int(str(x.shape[1])) ** 0


class RaisesInHalf(Sound):
    def forward(self, x, *, key_mask=None):
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"no kernel for {x.dtype}")
        return super().forward(x, key_mask=key_mask)


class ReturnsFloat(Sound):
    def forward(self, x, *, key_mask=None):
        y = super().forward(x, key_mask=key_mask)
        return y if y.dtype == torch.float64 else y.float()


def with_card(cls, **claims):
    """The class as if it were registered: what torch does not promise becomes a failure."""
    made = Card(title=cls.__name__, paper="none", year=2026, family="toy", data="sequence", causal="strict", **claims)
    body = {"card": made, "__init__": lambda self: (cls.__init__(self), setattr(self, "dim", 12))[0]}
    return type(f"Carded{cls.__name__}", (cls,), body)
