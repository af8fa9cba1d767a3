"""Hard concrete gates: numbers in [0, 1] that are often exactly 0 or 1 and can be learned.

Louizos et al. 2017, arXiv:1712.01312, eq. 10-13; as in Voita et al. 2019, arXiv:1905.09418. Of a parameter
a = log alpha, a temperature b, limits (l, r) around [0, 1] and noise u from (0, 1)::

    in training    s = sigmoid((ln u - ln(1 - u) + a) / b)
    afterwards     s = sigmoid(a)                               neither noise nor temperature
    g              = clip(s (r - l) + l, 0, 1)
    P(g != 0)      = sigmoid(a - b ln(-l / r))

The number of open gates is expected to be the sum of P, which is what a penalty makes small. All of it is computed in
float32 at least.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

EPS = 1e-6
"""Noise and P stay this far from 0 and 1; beyond, P has no gradient."""

STRETCH = (-0.1, 1.1)
"""(l, r) of both papers."""


def gates(log_alpha: Float[Tensor, "*G"], *, stretch: tuple[float, float] = STRETCH) -> Float[Tensor, "*G"]:
    """g after training.

    Args:
        log_alpha: a.
        stretch: (l, r).

    Example:
        >>> gates(torch.tensor([-3.0, 0.0, 3.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    return _clipped(_precise(log_alpha).sigmoid(), stretch)


def sampled_gates(
    log_alpha: Float[Tensor, "*G"],
    noise: Float[Tensor, "*G"],
    *,
    temperature: float = 0.33,
    stretch: tuple[float, float] = STRETCH,
    eps: float = EPS,
) -> Float[Tensor, "*G"]:
    """g in training.

    Args:
        log_alpha: a.
        noise: u, uniform in (0, 1); brought into [eps, 1 - eps].
        temperature: b.
        stretch: (l, r).
        eps: how far the noise stays from 0 and 1, where the logarithms end.

    Example:
        >>> sampled_gates(torch.zeros(3), torch.tensor([0.0, 0.5, 1.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    a = _precise(log_alpha)
    u = noise.to(a.dtype).clamp(eps, 1 - eps)
    return _clipped(((u.log() - (1 - u).log() + a) / temperature).sigmoid(), stretch)


def hardened(g: Float[Tensor, "*G"]) -> Float[Tensor, "*G"]:
    """1 where g > 0.5, else 0, with the gradient of g.

    Example:
        >>> hardened(torch.tensor([0.2, 0.7])).tolist()
        [0.0, 1.0]
    """
    return g + ((g > 0.5).to(g.dtype) - g).detach()


def open_probability(
    log_alpha: Float[Tensor, "*G"],
    *,
    temperature: float = 0.33,
    stretch: tuple[float, float] = STRETCH,
    eps: float = EPS,
) -> Float[Tensor, "*G"]:
    """P(g != 0), within [eps, 1 - eps].

    Args:
        log_alpha: a.
        temperature, stretch: b and (l, r); l must be below 0 and r above it.
        eps: see :data:`EPS`.

    Example:
        >>> round(open_probability(torch.tensor([2.0])).item(), 3)
        0.942
    """
    low, high = stretch
    return (_precise(log_alpha) - temperature * math.log(-low / high)).sigmoid().clamp(eps, 1 - eps)


class HardConcrete(nn.Module):
    """A row of gates: owns their log alpha, draws them in training and computes them in evaluation.

    Args:
        count: G.
        start: log alpha at first: 2 is open with probability 0.94; "glorot": uniform in +-sqrt(3 / G).
        temperature, stretch: b and (l, r).
        hard: gates are 0 or 1, see :func:`hardened`.
        device, dtype: of log alpha.

    Raises:
        ValueError: numbers of which no gate can be made.

    Example:
        >>> HardConcrete(2).eval()()
        tensor([0.9570, 0.9570], grad_fn=<ClampBackward1>)
    """

    def __init__(
        self,
        count: int,
        *,
        start: float | Literal["glorot"] = 2.0,
        temperature: float = 0.33,
        stretch: tuple[float, float] = STRETCH,
        hard: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"{count} gates: there must be one at least")
        if isinstance(start, str) and start != "glorot":
            raise ValueError(f'start={start!r} is neither a number nor "glorot"')
        check_hard_concrete(temperature, stretch)
        self.start, self.temperature, self.stretch, self.hard = start, temperature, stretch, hard
        self.log_alpha = nn.Parameter(torch.empty(count, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Log alpha as ``start`` says."""
        if isinstance(self.start, str):
            bound = (3 / len(self.log_alpha)) ** 0.5
            nn.init.uniform_(self.log_alpha, -bound, bound)
        else:
            nn.init.constant_(self.log_alpha, self.start)

    def forward(self, generator: Generator | None = None) -> Float[Tensor, " G"]:
        """g: another draw at each call in training, the same always in evaluation."""
        if not self.training:
            return self.settled()
        u = torch.rand(self.log_alpha.shape, generator=generator, device=self.log_alpha.device)
        g = sampled_gates(self.log_alpha, u, temperature=self.temperature, stretch=self.stretch)
        return hardened(g) if self.hard else g

    def settled(self) -> Float[Tensor, " G"]:
        """g in evaluation, whatever the mode."""
        g = gates(self.log_alpha, stretch=self.stretch)
        return hardened(g) if self.hard else g

    def expected_open(self) -> Float[Tensor, ""]:
        """sum P: how many gates a draw leaves open, on average."""
        return open_probability(self.log_alpha, temperature=self.temperature, stretch=self.stretch).sum()

    def extra_repr(self) -> str:
        return f"{len(self.log_alpha)}, start={self.start!r}, temperature={self.temperature}, hard={self.hard}"


def check_hard_concrete(temperature: float, stretch: tuple[float, float]) -> None:
    """Refuse numbers of which no gate can be made.

    Raises:
        ValueError: a temperature that is not positive, or limits that do not enclose [0, 1].
    """
    low, high = stretch
    if temperature <= 0 or low >= 0 or high <= 1:
        raise ValueError(
            f"temperature={temperature}, stretch=({low}, {high}): the temperature must be positive, and the limits "
            "below 0 and above 1, so that gates can close and open wholly"
        )


def _clipped(s: Tensor, stretch: tuple[float, float]) -> Tensor:
    low, high = stretch
    return (s * (high - low) + low).clamp(0, 1)


def _precise(log_alpha: Tensor) -> Tensor:
    return log_alpha.to(torch.promote_types(log_alpha.dtype, torch.float32))
