"""Does an output depend on what comes later? Inputs are changed to find out: picked keys leak without a gradient."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.inspect.measure import largest, scale, skip
from regard.inspect.report import Row
from regard.inspect.subject import Subject
from regard.inspect.tensors import slopes

PLACES = 24
"""At most so many positions are tried, the last one and the first ones always."""


@dataclass(frozen=True)
class Leak:
    """An output that changed with a later input: the earliest one found.

    Attributes:
        output, start, stop: row of the output; the input positions that were changed, ``stop`` not included.
        size: the largest change of that row; infinite where it stopped being finite.
        relative: the largest change of any earlier row, relative to max(1, largest value).
    """

    output: int
    start: int
    stop: int
    size: float
    relative: float

    def __str__(self) -> str:
        where = f"input position {self.start} was"
        if self.stop > self.start + 1:
            where = f"the input positions from {self.start} on were"
        return f"output position {self.output} changed by {self.size:.2g} when {where} replaced"


def causality(subject: Subject) -> Row:
    """No output changes when later inputs change (claim "strict"), or none has a gradient from them ("selection")."""
    name = "causality"
    out = subject()
    if subject.rows(out) is None or subject.span < 2:
        text = f"an output of shape {tuple(out.shape)} shows nothing: it needs an axis of two tokens or more"
        text = text if subject.axes else "the inputs have no time axis"
        return Row(name=name, verdict="FAIL", explanation=text) if subject.claim else skip(name, text)
    precise, limit = _in_double(subject)
    leak = find_leak(precise, limit)
    slope = find_slope(precise, limit) if leak or subject.claim == "selection" else None
    differentiable = any(subject.inputs[key].is_floating_point() for key in subject.ordered)
    if subject.claim == "selection":
        return _selective(leak, slope, limit, differentiable)
    text = str(leak) if leak else "no output changed when later inputs were replaced"
    if leak and differentiable and slope is None:
        text += "; no gradient shows it: later tokens decide which keys are picked"
    verdict = "info" if subject.claim is None else "FAIL" if leak else "pass"
    return Row(name=name, verdict=verdict, measured=leak.relative if leak else 0.0, limit=limit, explanation=text)


def _selective(leak: Leak | None, slope: tuple[int, int, float] | None, limit: float, differentiable: bool) -> Row:
    name = "causality"
    if not differentiable:
        text = "ids have no gradient: hold the layers inside to the claim instead"
        return Row(name=name, verdict="info", explanation=text + (f" ({leak})" if leak else ""))
    if slope is not None:
        text = f"output position {slope[0]} has a gradient from input position {slope[1]}: more than a selection leaks"
        return Row(name=name, verdict="FAIL", measured=slope[2], limit=limit, explanation=text)
    text = "no gradient from later inputs. MARK: which keys are picked depends on later tokens"
    text += f" ({leak})" if leak else ", though none of the changes tried showed it"
    return Row(name=name, verdict="pass", measured=0.0, limit=limit, explanation=text)


def prefix(subject: Subject) -> Row:
    """The first n tokens alone give the first n outputs: what generation relies on."""
    name = "prefix"
    if subject.claim != "strict":
        return skip(name, "not claimed to be strictly causal")
    if subject.rows(subject()) is None or subject.span != subject.length():
        return skip(name, "the output has no row for each token")
    precise, limit = _in_double(subject)
    whole = precise()
    axis, unit = _rows(precise, whole), scale(whole)
    worst, place = 0.0, 0
    for length in _places(1, subject.length()):
        alone = precise(precise.cut(subject.length() - length, subject.ordered))
        gap = largest(alone - whole.narrow(axis, 0, length)) / unit
        worst, place = max((worst, place), (gap, length))
    text = "the first n tokens alone give the first n outputs"
    if worst > limit:
        text = f"a prefix of {place} gives other outputs than at the head of the whole: they depend on the length"
    return Row(name=name, verdict="FAIL" if worst > limit else "pass", measured=worst, limit=limit, explanation=text)


def find_leak(subject: Subject, limit: float) -> Leak | None:
    """The earliest output that changes when inputs behind it are replaced, and the input that did it.

    Every position is replaced alone and together with all that follow it, by fresh values of the same spread (which
    moves hashes, clusters and sorted orders) and by values ten times as large (which moves maxima and normalisers).
    """
    whole = subject()
    axis, unit = _rows(subject, whole), scale(whole)
    lead = subject.span - subject.length()
    leaks: list[Leak] = []
    for start, stop, strength in _edits(subject.span):
        safe = min(start - lead, subject.length())  # rows before the first changed position
        if safe < 1:
            continue
        torch.manual_seed(start)
        changed = subject(subject.disturb(start, stop, strength))
        moved = (changed - whole).movedim(axis, 0)[:safe].flatten(1).abs().nan_to_num(torch.inf, torch.inf).amax(1)
        early = (moved > limit * unit).nonzero()
        if len(early):
            row = int(early[0])
            leaks.append(Leak(row, start, stop, float(moved[row]), float(moved.max()) / unit))
    if not leaks:
        return None
    return min(leaks, key=lambda leak: (leak.output, leak.stop - leak.start > 1, -leak.size))


def find_slope(subject: Subject, limit: float) -> tuple[int, int, float] | None:
    """An output row, a later input position and the size of the gradient between them; None where there is none."""
    inputs = dict(subject.inputs)
    sources = [name for name in subject.ordered if inputs[name].is_floating_point()]
    if not sources:
        return None
    with torch.enable_grad():
        for name in sources:
            inputs[name] = inputs[name].detach().clone().requires_grad_()
        out = subject(inputs)
        if not out.requires_grad:
            return None
        rows = out.movedim(_rows(subject, out), 0)
        weights = torch.randn_like(rows)
        for row in _places(0, len(rows)):
            loss = (rows[row] * weights[row]).sum()
            found = slopes(loss, [inputs[name] for name in sources], keep_graph=True)
            for name, slope in zip(sources, found, strict=True):
                if slope is None:
                    continue
                behind = row + subject.length(name) - subject.length() + 1
                later = slope.movedim(subject.axes[name], 0)[max(0, behind) :]
                if later.numel() and largest(later) > limit:
                    place = int(later.flatten(1).abs().amax(1).argmax()) + max(0, behind)
                    return row, place, largest(later)
    return None


def _in_double(subject: Subject) -> tuple[Subject, float]:
    """The same in float64, where rounding cannot be mistaken for a leak, and the limit; as it is where that fails."""
    try:
        inputs = {
            name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in subject.inputs.items()
        }
        precise = replace(subject, module=copy.deepcopy(subject.module).double(), inputs=inputs)
        precise()
    except Exception:
        return subject, 1e-5
    return precise, 1e-6


def _edits(span: int) -> Iterator[tuple[int, int, float]]:
    for start in _places(1, span):
        for stop in sorted({start + 1, span}):
            for strength in (1.0, 10.0):
                yield start, stop, strength


def _places(first: int, stop: int) -> list[int]:
    """Every position of a short sequence; of a long one the first ones, the last one and some between."""
    if stop - first <= PLACES:
        return list(range(first, stop))
    head = PLACES // 2
    spread = torch.linspace(first + head, stop - 1, PLACES - head).long().tolist()
    return [*range(first, first + head), *spread]


def _rows(subject: Subject, out: Tensor) -> int:
    axis = subject.rows(out)
    if axis is None:
        raise ValueError(f"an output of shape {tuple(out.shape)} has no axis of {subject.length()} tokens")
    return axis
