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
        ids = source.unique()  # those seen, no others: a vocabulary has an end, and some ids a meaning, such as padding
        shift = torch.randint(1, max(len(ids), 2), value.shape, device=value.device)
        return ids[(torch.searchsorted(ids, value.contiguous()) + shift) % len(ids)]
    spread = source.std() if source.numel() > 1 else source.abs().max()
    return source.mean() + strength * spread.clamp(min=0.1) * torch.randn_like(value)


def first_tensor(output: Any) -> Tensor:
    """The first tensor of whatever a module returns: a tensor, a tuple, a dict or a dataclass.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    for part in _parts(output):
        if part is not None:
            return first_tensor(part)
    raise TypeError(f"the module returns {type(output).__name__}, in which there is no tensor to compare")


def all_tensors(output: Any) -> list[Tensor]:
    """Every tensor of whatever a module returns.

    Example:
        >>> len(all_tensors((torch.zeros(1), {"aux": torch.zeros(2), "none": None})))
        2
    """
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in _parts(output) for tensor in all_tensors(part)]


def _parts(output: Any) -> list[Any]:
    """Of a tuple, a dict or a dataclass; nothing else has any."""
    if isinstance(output, Mapping):
        return list(cast("Mapping[str, Any]", output).values())
    if isinstance(output, (tuple, list)):
        return list(cast("Sequence[Any]", output))
    return list(vars(output).values()) if is_dataclass(output) else []


def slopes(loss: Tensor, sources: Sequence[Tensor], *, keep_graph: bool = False) -> Sequence[Tensor | None]:
    """The gradients of a loss, None for sources that it does not depend on."""
    return torch.autograd.grad(loss, sources, retain_graph=keep_graph, allow_unused=True)
