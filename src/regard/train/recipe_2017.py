"""How the Transformer of 2017 was trained: its schedule, its loss, and the average of its last checkpoints.

Vaswani et al. 2017, arXiv:1706.03762, sections 5.3, 5.4 and 6.1::

    rate = C^-0.5 min(step^-0.5, step warmup^-1.5)                    Adam, beta = (0.9, 0.98), eps = 1e-9
    loss = -sum_k q_k log p_k,   q_k = (1 - e) [k = target] + e / V   label smoothing, e = 0.1 (Szegedy et al. 2015)
    theta = mean of the last 5 checkpoints                            ten minutes apart (the large model: 20 of them)
"""

from collections import deque
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR


def noam(step: int, dim: int, warmup: int = 4000) -> float:
    """The learning rate of a step, the first of which is 1: up in a line, then down with the square root.

    Raises:
        ValueError: numbers that are not positive.

    Example:
        >>> f"{noam(4000, 512):.2e}"
        '6.99e-04'
    """
    if min(step, dim, warmup) < 1:
        raise ValueError(f"step={step}, dim={dim}, warmup={warmup}: all count from 1")
    return dim**-0.5 * min(step**-0.5, step * warmup**-1.5)


def recipe_2017(model: nn.Module, dim: int, warmup: int = 4000, *, factor: float = 1.0) -> tuple[Adam, LambdaLR]:
    """The optimiser and its schedule: call ``step()`` of the one, then of the other.

    Args:
        model: whose parameters are learned.
        dim: C.
        warmup: steps in which the rate rises; the paper has 4,000 of 100,000, a short run needs fewer.
        factor: of the rate; 1 is the paper's.

    Example:
        >>> optimizer, schedule = recipe_2017(nn.Linear(2, 2), dim=512)
        >>> f"{optimizer.param_groups[0]['lr']:.2e}"
        '1.75e-07'
    """
    optimizer = Adam(model.parameters(), lr=factor, betas=(0.9, 0.98), eps=1e-9)
    return optimizer, LambdaLR(optimizer, lambda done: noam(done + 1, dim, warmup))


def smoothed_loss(
    logits: Float[Tensor, "*B V"],
    targets: Int[Tensor, "*B"],
    mask: Bool[Tensor, "*B"] | None = None,
    smoothing: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross-entropy with the smoothed targets q, the mean over real tokens, in nats; 0 where there is none.

    It cannot reach 0: q has an entropy of its own. Judge a model with ``smoothing=0``.

    Args:
        logits: of V kinds of tokens.
        targets: the right ones.
        mask: True for real tokens; what stands at others is not looked at.
        smoothing: e.

    Raises:
        ValueError: a smoothing that is no share.

    Example:
        >>> import torch
        >>> f"{smoothed_loss(torch.zeros(1, 3, 8), torch.zeros(1, 3, dtype=torch.long)):.3f}"  # log 8
        '2.079'
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing} is no share of 1")
    losses = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), reduction="none", label_smoothing=smoothing
    )
    if mask is None:
        return losses.mean()
    real = mask.flatten()
    return losses.where(real, 0.0).sum() / real.sum().clamp(min=1)


class LastCheckpoints:
    """The weights of a model at the last few checkpoints, and their mean; on the CPU.

    Args:
        keep: how many; the paper has 5.

    Raises:
        ValueError: ``keep`` is less than one.

    Example:
        >>> model, checkpoints = nn.Linear(1, 1, bias=False), LastCheckpoints(keep=2)
        >>> for value in (9.0, 1.0, 2.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     checkpoints.add(model)
        >>> checkpoints.average()["weight"].item()
        1.5
    """

    def __init__(self, keep: int = 5) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: one checkpoint at least is averaged")
        self._states: deque[dict[str, Tensor]] = deque(maxlen=keep)

    def __len__(self) -> int:
        return len(self._states)

    def add(self, model: nn.Module) -> None:
        """Remember the weights as they are now; the oldest are forgotten."""
        self._states.append({name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()})

    def average(self) -> dict[str, Tensor]:
        """The mean, for ``load_state_dict``, summed in float64; of what is no floating-point number the newest.

        Raises:
            ValueError: nothing was added.
        """
        if not self._states:
            raise ValueError("there is no checkpoint to average: add(model) first")
        return {name: self._mean(name, newest) for name, newest in self._states[-1].items()}

    def _mean(self, name: str, newest: Tensor) -> Tensor:
        if not newest.is_floating_point():
            return newest
        total: Any = sum(state[name].double() for state in self._states)
        return (total / len(self._states)).to(newest.dtype)
