"""Parts for very deep and very wide networks: residual layers that forget their inputs, feed-forward in slices.

Reversible residuals: Gomez et al. 2017, arXiv:1707.04585, as in the Reformer, Kitaev et al. 2020, arXiv:2001.04451,
section 3. Two streams take turns, so that the inputs of a layer can be computed from its outputs::

    y1 = x1 + f(x2)        x2 = y2 - g(y1)
    y2 = x2 + g(y1)        x1 = y1 - f(x2)

The backward pass does so, layer by layer: the activations that are kept do not grow with the depth, and every layer is
computed once more. It is computed with the random numbers of the first time, so that dropout drops and hashes hash the
same.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

Join = Literal["concatenate", "mean"]


class PreNorm(nn.Module):
    """branch(LayerNorm(x), ...): what usually stands in a residual layer.

    Args:
        dim: C.
        branch: takes (B, N, C); further arguments are handed on to it.
    """

    def __init__(
        self, dim: int, branch: nn.Module, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(dim, device=device, dtype=dtype), branch

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """(B, N, C)."""
        return self.branch(self.norm(x), **options)


class ReversibleBlock(nn.Module):
    """y1 = x1 + f(x2), y2 = x2 + g(y1).

    Args:
        f: mixes tokens, e.g. ``PreNorm(dim, attention)``; options such as ``key_mask`` go to it.
        g: works on each token, e.g. ``PreNorm(dim, feed_forward)``.
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x1: Tensor, x2: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """The next two streams, each (B, N, C); by itself the block keeps its activations as any other."""
        y1 = x1 + self.f(x2, **options)
        return y1, x2 + self.g(y1)

    def inverse(self, y1: Tensor, y2: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """The streams that became these, if nothing random is in the way."""
        x2 = y2 - self.g(y1)
        return y1 - self.f(x2, **options), x2


class ReversibleSequence(nn.Module):
    """Blocks one after the other, whose activations do not grow with their number.

    Both streams start as x. Compiled or exported it is the same computation with all activations kept.

    Args:
        blocks: in order.
        join: the two streams at the end, side by side (B, N, 2 C) as in trax's language model, or their mean (B, N, C)
            as in its translation model.

    Raises:
        ValueError: an unknown join, or an option with a gradient of its own, which would be lost.

    Example:
        >>> def block():
        ...     return ReversibleBlock(PreNorm(8, nn.Linear(8, 8)), PreNorm(8, nn.Linear(8, 8)))
        >>> ReversibleSequence([block(), block()])(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(self, blocks: Iterable[ReversibleBlock], join: Join = "concatenate") -> None:
        super().__init__()
        if join not in get_args(Join):
            raise ValueError(f'join={join!r} is neither "concatenate" nor "mean"')
        self.blocks, self.join = nn.ModuleList(blocks), join

    def forward(self, x: Float[Tensor, "B N C"], **options: Any) -> Float[Tensor, "B N _"]:
        """The joined streams; the options go to the first branch of every block."""
        y1, y2 = self.streams(x, x, **options)
        return torch.cat((y1, y2), -1) if self.join == "concatenate" else (y1 + y2) / 2

    def streams(self, x1: Tensor, x2: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Both streams at the end, from any two at the start."""
        for name, value in options.items():
            if isinstance(value, Tensor) and value.requires_grad:
                raise ValueError(f"{name} requires a gradient, which reversible blocks do not give: detach it")
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            for block in self.blocks:
                x1, x2 = block(x1, x2, **options)
            return x1, x2
        branches = [branch for block in self.blocks for branch in block.children()]
        named = [dict(branch.named_parameters(remove_duplicate=False)) for branch in branches]
        work = _Work(branches, [list(names) for names in named], options, _Autocast.of(x1.device.type))
        return _Reversible.apply(work, x1, x2, *(weight for names in named for weight in names.values()))

    def extra_repr(self) -> str:
        return f"join={self.join!r}"


class ChunkedFeedForward(nn.Module):
    """Any layer that treats each token by itself, a slice of the sequence at a time: the same result in less memory.

    Args:
        inner: (B, n, C) -> (B, n, C'), for every n.
        chunk: tokens in a slice.
        recompute: in training, keep only the input of each slice and compute the rest again for the backward pass.

    Example:
        >>> inner = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> x = torch.randn(2, 7, 4)
        >>> torch.allclose(ChunkedFeedForward(inner, chunk=3)(x), inner(x), atol=1e-6)
        True
    """

    def __init__(self, inner: nn.Module, chunk: int = 64, *, recompute: bool = True) -> None:
        super().__init__()
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: a slice needs a token")
        self.inner, self.chunk, self.recompute = inner, chunk, recompute

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N _"]:
        """All slices together; compiled or exported they are one."""
        if torch.compiler.is_compiling():
            return self.inner(x)
        again = self.recompute and torch.is_grad_enabled()
        return torch.cat([self._slice(part, again) for part in x.split(self.chunk, 1)], 1)

    def _slice(self, part: Tensor, again: bool) -> Tensor:
        return checkpoint(self.inner, part, use_reentrant=False) if again else self.inner(part)

    def extra_repr(self) -> str:
        return f"chunk={self.chunk}, recompute={self.recompute}"


# the backward pass


@dataclass(frozen=True)
class _Autocast:
    device: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, device: str) -> "_Autocast":
        return cls(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def again(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.enabled)


@dataclass(frozen=True)
class _Draws:
    """Where the sources of random numbers stood: torch's own, the device's, and a generator among the options."""

    cpu: Tensor
    device: Tensor | None
    generator: Tensor | None

    @classmethod
    def of(cls, device: torch.device, generator: torch.Generator | None) -> "_Draws":
        own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), own, None if generator is None else generator.get_state())

    def restore(self, device: torch.device, generator: torch.Generator | None) -> None:
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, device)
        if generator is not None and self.generator is not None:
            generator.set_state(self.generator)


@dataclass(frozen=True)
class _Work:
    """The branches f, g, f, g and so on, the names of their parameters, and what the first one of each block takes."""

    branches: list[nn.Module]
    names: list[list[str]]
    options: dict[str, Any]
    autocast: _Autocast

    @property
    def generator(self) -> torch.Generator | None:
        return self.options.get("generator")

    def split(self, weights: Iterable[Tensor]) -> list[dict[str, Tensor]]:
        """The parameters by branch."""
        remaining = iter(weights)
        return [{name: next(remaining) for name in names} for names in self.names]

    def run(self, index: int, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        options = {} if index % 2 else self.options
        return functional_call(self.branches[index], weights, (x,), options, tie_weights=False)

    @contextmanager
    def again(self, device: torch.device) -> Generator[None]:
        """As it was the first time; afterwards the sources of random numbers stand where they stood before."""
        now = _Draws.of(device, self.generator)
        try:
            with self.autocast.again():
                yield
        finally:
            now.restore(device, self.generator)


class _Reversible(torch.autograd.Function):
    """Keeps the last two streams, and where the random numbers stood before each branch."""

    @staticmethod
    def forward(ctx: Any, work: _Work, x1: Tensor, x2: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.work, ctx.draws = work, list[_Draws]()
        ctx.needed = [weight.requires_grad for weight in weights]
        for index, own in enumerate(work.split(weights)):
            ctx.draws.append(_Draws.of(x1.device, work.generator))
            x1, x2 = x2, x1 + work.run(index, own, x2)
        ctx.save_for_backward(x1, x2, *weights)
        return x1, x2

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x1, x2, *weights = ctx.saved_tensors
        d1, d2 = grad_outputs
        work: _Work = ctx.work
        owned = work.split(
            weight.detach().requires_grad_(need) for weight, need in zip(weights, ctx.needed, strict=True)
        )
        slopes: list[list[Tensor | None]] = [[] for _ in owned]
        with work.again(x1.device):
            for index in reversed(range(len(owned))):
                ctx.draws[index].restore(x1.device, work.generator)
                # the step was (a, b) -> (b, a + branch(b)): here x1 is b
                b = x1.detach().requires_grad_()
                with torch.enable_grad():
                    out = work.run(index, owned[index], b)
                wanted = [weight for weight in owned[index].values() if weight.requires_grad]
                db, *found = torch.autograd.grad(out, [b, *wanted], d2, allow_unused=True, materialize_grads=True)
                remaining = iter(found)
                slopes[index] = [next(remaining) if w.requires_grad else None for w in owned[index].values()]
                x1, x2 = x2 - out.detach(), x1
                d1, d2 = d2, d1 + db
        return None, d1, d2, *(slope for own in slopes for slope in own)
