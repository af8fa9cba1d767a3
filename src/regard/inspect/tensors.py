"""Tensors in and out of modules: noise to put in, the tensor in what comes out, its gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, cast

import torch
from torch import Tensor


def noise(value: Tensor, *, like: Tensor | None = None, strength: float = 1.0) -> Tensor:
    """Fresh values of the same shape: ``strength`` times as spread as those of ``like``, or other ids among them."""
    source = value if like is None else like
    if not value.is_floating_point():
        ids = int(source.max()) + 1  # no id beyond those seen: a vocabulary has an end
        shift = torch.randint(1, max(ids, 2), value.shape, device=value.device)
        return ((value.long() + shift) % ids).to(value.dtype)
    spread = source.std() if source.numel() > 1 else source.abs().max()
    return source.mean() + strength * spread.clamp(min=0.1) * torch.randn_like(value)


def first_tensor(output: Any) -> Tensor:
    """The first tensor of whatever a module returns: a tensor, a tuple, a dict or a dataclass.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    parts: list[Any] = []
    if isinstance(output, Mapping):
        parts = list(cast("Mapping[str, Any]", output).values())
    elif isinstance(output, (tuple, list)):
        parts = list(cast("Sequence[Any]", output))
    elif is_dataclass(output):
        parts = list(vars(output).values())
    for part in parts:
        if part is not None:
            return first_tensor(part)
    raise TypeError(f"the module returns {type(output).__name__}, in which there is no tensor to compare")


def slopes(loss: Tensor, sources: Sequence[Tensor], *, keep_graph: bool = False) -> Sequence[Tensor | None]:
    """The gradients of a loss, None for sources that it does not depend on."""
    return torch.autograd.grad(loss, sources, retain_graph=keep_graph, allow_unused=True)
