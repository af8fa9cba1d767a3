"""Compression of old states: c consecutive ones become one slot.

Rae et al. 2019, arXiv:1911.05507, section 3.1. From n states come floor(n / c) slots; what is left over at the end of
the n is dropped. A state that is not real takes no part in a maximum or mean, enters a convolution as 0, and is chosen
last; a slot is real if a state of its group is.

A convolution learns from a loss of its own (section 3.2), which asks what can still be told from the slots.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from regard.attention import attend

Function = Literal["conv", "dilated", "max", "mean", "most_used"]


def groups(states: Shaped[Tensor, "B n C"], ratio: int) -> Shaped[Tensor, "B g c C"]:
    """Whole groups of c consecutive states."""
    whole = states.shape[1] // ratio
    return states[:, : whole * ratio].unflatten(1, (whole, ratio))


class Compression(nn.Module):
    """One of the paper's functions: "conv" (kernel and stride c), "dilated", "max", "mean", "most_used".

    The dilated convolution has kernel c, dilation 2, stride c and c - 1 zeros before the first state. The most used
    states are those that got most attention, in their order in time; of equals the earlier.

    Args:
        function: which one.
        dim: C.
        ratio: c.

    Raises:
        ValueError: an unknown function, or no ratio.

    Example:
        >>> states = torch.tensor([[[1.0], [3.0], [5.0], [7.0], [9.0]]])
        >>> Compression("mean", 1, 2)(states, torch.ones(1, 5, dtype=torch.bool))[0].flatten().tolist()
        [2.0, 6.0]
    """

    def __init__(
        self,
        function: Function,
        dim: int,
        ratio: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if function not in get_args(Function):
            raise ValueError(f"compression={function!r} is none of {', '.join(map(repr, get_args(Function)))}")
        if ratio < 1:
            raise ValueError(f"ratio={ratio}: that many states become one")
        self.function, self.ratio = function, ratio
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        dilation = 2 if function == "dilated" else 1
        learns = function in ("conv", "dilated")
        self.conv = nn.Conv1d(dim, dim, ratio, stride=ratio, dilation=dilation, **factory) if learns else None

    def reset_parameters(self) -> None:
        """As torch starts a convolution; neither paper nor public code says otherwise."""
        if self.conv is not None:
            self.conv.reset_parameters()

    def forward(
        self, states: Float[Tensor, "B n C"], real: Bool[Tensor, "B n"], usage: Float[Tensor, "B n"] | None = None
    ) -> tuple[Float[Tensor, "B g C"], Bool[Tensor, "B g"]]:
        """The slots, and which of them are real.

        Args:
            states: oldest first.
            real: which states there are.
            usage: the attention that each state got, for "most_used".
        """
        if self.function == "most_used":
            return self._most_used(states, real, torch.zeros_like(states[..., 0]) if usage is None else usage)
        parts, present = groups(states, self.ratio), groups(real[..., None], self.ratio)
        found = present.squeeze(-1).any(-1)
        if self.function == "max":
            slots = parts.masked_fill(~present, -torch.inf).amax(2).masked_fill(~found[..., None], 0.0)
        elif self.function == "mean":
            slots = parts.masked_fill(~present, 0.0).sum(2) / present.sum(2).clamp(min=1)
        else:
            slots = self._convolved(states.masked_fill(~real[..., None], 0.0))
        return slots, found

    def _convolved(self, states: Tensor) -> Tensor:
        conv = self.conv
        if conv is None:
            raise RuntimeError(f"{self.function!r} is no convolution")
        if self.function == "dilated":
            return conv(F.pad(states.mT, (self.ratio - 1, 0))).mT
        # groups do not overlap: one matrix product
        return F.linear(groups(states, self.ratio).flatten(2), conv.weight.mT.flatten(1), conv.bias)

    def _most_used(self, states: Tensor, real: Tensor, usage: Tensor) -> tuple[Tensor, Tensor]:
        order = usage.masked_fill(~real, -1.0).argsort(dim=-1, descending=True, stable=True)
        chosen = order[:, : states.shape[1] // self.ratio].sort(-1).values
        return states.take_along_dim(chosen[..., None], 1), real.gather(1, chosen)

    def extra_repr(self) -> str:
        return f"{self.function!r}, ratio={self.ratio}"


def reconstruction_gap(
    q: Float[Tensor, "B H N D"],
    old: tuple[Float[Tensor, "B H n D"], Float[Tensor, "B H n D"]],
    new: tuple[Float[Tensor, "B H g D"], Float[Tensor, "B H g D"]],
    old_real: Bool[Tensor, "B n"],
    new_real: Bool[Tensor, "B g"],
) -> Float[Tensor, "B N"]:
    """The mean square, over heads and features, of what attention takes from keys and values before and after."""
    target = attend(q, *old, key_mask=old_real)
    return (attend(q, *new, key_mask=new_real) - target).square().mean((1, 3))
