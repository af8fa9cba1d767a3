"""How far a new attention is from the old one: its output, its map, its heaviest keys."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.inspect.maps import attention_map
from regard.inspect.tensors import first_tensor
from regard.registry import Layer, UnsupportedError
from regard.swap.conventions.convention import Convention
from regard.swap.reading import Call
from regard.swap.recording import Asked

HEAVIEST = 10
"""Keys of a row whose overlap is counted."""

FLOOR = 1e-6
"""The least weight of a key in the logarithm of the divergence."""

LONGEST = 2048
"""Keys up to which maps are compared: one map of twelve heads at 2,048 tokens takes 200 MB."""


@dataclass(frozen=True)
class Distance:
    """What was measured; see :class:`regard.swap.report.LayerRow`."""

    error: float
    rms: float
    kl: float | None
    overlap: float | None
    note: str = ""


def output_errors(new: Tensor, old: Tensor, real: Tensor | None = None) -> tuple[float, float]:
    """The largest difference by the largest old value, and the root mean squares of both divided, at real tokens.

    Args:
        new, old: of equal shape.
        real: Bool over the first axes; None: everything counts.
    """
    new, old = (t.double() if real is None else t.double()[real] for t in (new, old))
    if not old.numel():
        return 0.0, 0.0
    ratios = (((new - old).abs().max(), old.abs().max()), ((new - old).norm(), old.norm()))
    largest, typical = (float(a / b) if b else float(a) for a, b in ratios)
    return largest, typical


def distance(
    convention: Convention, stand_in: torch.nn.Module, reference: torch.nn.Module, asked: Sequence[Asked]
) -> Distance:
    """Ask the new attention what the old one was asked, and compare; the worst of several calls counts.

    Args:
        convention: how both are called.
        stand_in: the new attention.
        reference: the old one in our words, for its map.
        asked: the calls of the old one.

    Raises:
        UnsupportedError: a call that the new attention cannot honour.
    """
    errors: list[tuple[float, float]] = []
    divergences: list[Tensor] = []
    overlaps: list[Tensor] = []
    note = ""
    for one in asked:
        call = convention.understand(stand_in, one.args, one.kwargs)
        new = first_tensor(stand_in(*one.args, **one.kwargs))
        errors.append(output_errors(call.rows(new), call.rows(one.output), call.real()))
        for row in range(len(call.x)):
            try:
                pair = [_map(convention.attention(part), call, row) for part in (reference, stand_in)]
            except UnsupportedError as error:
                note = f"no map: {error}"
                break
            real = call.real()[row]
            divergences.append(divergence(pair[0][:, real], pair[1][:, real]))
            overlaps.append(overlap(pair[0][:, real], pair[1][:, real]))
    return summed_up(errors, divergences, overlaps, note)


def summed_up(
    errors: Sequence[tuple[float, float]], divergences: Sequence[Tensor], overlaps: Sequence[Tensor], note: str
) -> Distance:
    """The greatest error of all calls, and the means of all rows of their maps."""
    kl, shared = (float(torch.cat(found).mean()) if found else None for found in (list(divergences), list(overlaps)))
    return Distance(max(error for error, _ in errors), max(rms for _, rms in errors), kl, shared, note)


def divergence(old: Tensor, new: Tensor) -> Tensor:
    """KL(old || new) of each row that has weights, (..., M) -> (rows,).

    New weights count as ``FLOOR`` where they are less, or as the old one where that is less still.

    Example:
        >>> divergence(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.75, 0.0]))
        tensor([0.1438], dtype=torch.float64)
    """
    old, new = (t.double().flatten(0, -2) if t.ndim > 1 else t.double()[None] for t in (old, new))
    kept = old.sum(-1) > 0
    old, new = (_normalised(rows[kept]) for rows in (old, new))
    new = torch.maximum(new, old.clamp(min=torch.finfo(old.dtype).tiny, max=FLOOR))
    return torch.xlogy(old, old / new).sum(-1)


def overlap(old: Tensor, new: Tensor, most: int = HEAVIEST) -> Tensor:
    """Share of each old row's heaviest keys that are among the new row's heaviest, (..., M) -> (rows,).

    As many keys count as the old row has weights, at most ``most``; a key without weight is never among the heaviest.

    Example:
        >>> overlap(torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.9, 0.0, 0.1, 0.0]), most=2)
        tensor([0.5000])
    """
    old, new = (t.double().flatten(0, -2) if t.ndim > 1 else t.double()[None] for t in (old, new))
    kept = old.sum(-1) > 0
    old, new = old[kept], new[kept]
    count = (old > 0).sum(-1, keepdim=True).clamp(max=most)
    return (_heaviest(old, count, most) & _heaviest(new, count, most)).sum(-1) / count.squeeze(-1)


def _normalised(rows: Tensor) -> Tensor:
    """Of sum 1; what is negative, as in Nystromformer, counts as 0."""
    rows = rows.clamp(min=0)
    return rows / rows.sum(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def _heaviest(rows: Tensor, count: Tensor, most: int) -> Tensor:
    """Bool, True for the ``count`` heaviest keys of each row that have weight."""
    top = rows.topk(min(most, rows.shape[-1])).indices
    among = torch.arange(top.shape[-1], device=rows.device) < count
    return torch.zeros_like(rows, dtype=torch.bool).scatter(-1, top, among) & (rows > 0)


def _map(attention: Layer, call: Call, row: int) -> Tensor:
    """The weights of one sequence, (H, N, M)."""
    source = call.x if call.context is None else call.context
    if source.shape[1] > LONGEST:
        raise UnsupportedError(f"{source.shape[1]} keys a row, and maps are compared up to {LONGEST}")
    one = slice(row, row + 1)
    context = None if call.context is None else call.context[one]
    masks = {name: mask[one] for name, mask in call.masks.items()}
    return attention_map(attention, call.x[one], context, kind="exact", generator=None, **masks).tensor[0]
