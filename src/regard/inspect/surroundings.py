"""Rules on what surrounds a sequence: padding, the other sequences of its batch, its length, a mask that hides it."""

import inspect
from typing import Any

import torch
from torch import Tensor

from regard.inspect.measure import compare, largest, limit_of, said, scale, skip
from regard.inspect.report import Row
from regard.inspect.subject import Side, Subject
from regard.inspect.tensors import noise, slopes
from regard.registry import Core


def padding_right(subject: Subject) -> Row:
    """Short sequences padded on the right yield what they yield alone."""
    return _padding(subject, "right")


def padding_left(subject: Subject) -> Row:
    """Short sequences padded on the left yield what they yield alone."""
    return _padding(subject, "left")


def batch_mates(subject: Subject) -> Row:
    """A sequence yields the same whoever shares its batch."""
    name, axis = "batch mates", subject.batch_axis
    out = subject()
    if subject.batch < 2:
        return skip(name, "the inputs hold one sequence; give two")
    if out.ndim <= axis or out.shape[axis] != subject.batch:
        return skip(name, "the output has no batch axis")
    others = {key: _replaced(value, subject) for key, value in subject.inputs.items()}
    got, expected = (value.select(axis, 0) for value in (subject(others), out))
    broken = "what a sequence yields depends on the other sequences of its batch"
    return compare(name, got, expected, kept="a sequence yields the same whoever is in its batch", broken=broken)


def lengths(subject: Subject) -> Row:
    """Every length up to the given one works, odd ones and 1 included."""
    name = "lengths"
    if not subject.axes:
        return skip(name, "the inputs have no time axis")
    size = max(map(subject.length, subject.axes))
    timed = subject.rows(subject()) is not None
    tried = sorted(n for n in {1, 2, 3, 5, 7, size // 2, size // 2 | 1, size - 1, size} if 0 < n <= size)
    for length in tried:
        inputs = subject.cut(size - length)
        try:
            out = subject(inputs)
        except Exception as error:
            return Row(name=name, verdict="FAIL", explanation=f"length {length} raises {said(error)}")
        rows = inputs[subject.first].shape[subject.axes[subject.first]]
        if timed and out.shape[subject.time_dim or 0] != rows:
            text = f"{rows} tokens yield an output of shape {tuple(out.shape)}"
            return Row(name=name, verdict="FAIL", explanation=text)
        if not bool(out.isfinite().all()):
            return Row(name=name, verdict="FAIL", explanation=f"length {length} yields NaN or infinity")
    return Row(name=name, verdict="pass", explanation=f"works at lengths {', '.join(map(str, tried))}")


def empty_rows(subject: Subject) -> Row:
    """A sequence without a real token yields numbers and finite gradients, 0 from a core, and harms no other one."""
    name, card = "empty rows", subject.card
    if reason := _unmaskable(subject):
        return skip(name, reason)
    size = subject.length(subject.masked[-1])
    keep = torch.ones(subject.batch, size, dtype=torch.bool, device=subject.inputs[subject.first].device)
    hidden = keep.clone()
    hidden[-1] = False
    whole, out = (subject(keep=mask).movedim(subject.batch_axis, 0) for mask in (keep, hidden))
    others = compare(name, out[:-1], whole[:-1], broken="an empty sequence changes the others of its batch")
    if others.verdict == "FAIL":
        return others
    broken = [] if bool(out[-1].isfinite().all()) else ["its output"]
    names = _broken_slopes(subject, hidden)
    broken += [f"the gradients of {', '.join(names)}"] if names else []
    if broken:
        text = f"when a whole sequence is masked, NaN or infinite: {' and '.join(broken)}"
        return Row(name=name, verdict=subject.breach, explanation=text)
    zero = isinstance(subject.module, Core) and card is not None and card.empty_rows == "zero"
    if zero and bool(out[-1].any()):
        text = "a core gives exactly 0 to a query that may look at nothing"
        return Row(name=name, verdict="FAIL", measured=largest(out[-1]), limit=0.0, explanation=text)
    text = f"a fully masked sequence yields {'0' if zero else 'finite numbers'} and finite gradients"
    return Row(name=name, verdict="pass", explanation=text)


def _padding(subject: Subject, side: Side) -> Row:
    name = f"padding {side}"
    if reason := _unmaskable(subject):
        return skip(name, reason)
    if side == "left" and subject.card is not None and subject.card.padding == "end":
        return skip(name, "padding belongs at the end, says the card")
    room = min(map(subject.length, subject.masked)) - 1
    if room < 1:
        return skip(name, "one token leaves nothing to pad")
    drops = [min(room, (row % 3 + 1) * max(1, room // 4)) for row in range(subject.batch)]
    padded, keep = subject.pad(drops, side)
    out = subject(padded, keep=keep, queries=keep if subject.first in subject.masked else None)
    axis, worst, row = subject.rows(out), 0.0, 0
    for b, drop in enumerate(drops):
        alone = subject(subject.cut(drop, subject.masked)).select(subject.batch_axis, b)
        got = out.select(subject.batch_axis, b)
        if axis is not None and subject.first in subject.masked:
            time = axis - (subject.batch_axis < axis)
            got = got.narrow(time, drop if side == "left" else 0, alone.shape[time])
        if got.shape != alone.shape:
            return skip(name, "the output has neither a row for each token nor a size of its own")
        worst, row = max((worst, row), (largest(got - alone) / scale(alone), b))
    limit = limit_of(out)
    text = f"sequences padded on the {side} yield what they yield alone"
    if worst > limit:
        text = f"sequence {row}, padded on the {side} by {drops[row]}, yields something else than alone"
    return Row(name=name, verdict="FAIL" if worst > limit else "pass", measured=worst, limit=limit, explanation=text)


def _unmaskable(subject: Subject) -> str:
    """Why masks cannot be tried; empty where they can."""
    if not subject.axes:
        return "the inputs have no time axis"
    if subject.takes_mask:
        return ""
    others = [name for name in inspect.signature(subject.module.forward).parameters if "mask" in name]
    hint = f"; name one of its own with mask_name=: {', '.join(others)}" if others else ""
    return f"takes no {subject.mask_name}{hint}"


def _replaced(value: Any, subject: Subject) -> Any:
    """An input whose sequences but the first are noise."""
    axis = subject.batch_axis
    batched = isinstance(value, Tensor) and value.ndim > axis and value.shape[axis] == subject.batch
    if not batched or value.dtype == torch.bool:
        return value
    changed = noise(value, strength=10.0)
    changed.select(axis, 0).copy_(value.select(axis, 0))
    return changed


def _broken_slopes(subject: Subject, keep: Tensor) -> list[str]:
    """The inputs and parameters whose gradient is not finite under this mask."""
    inputs = dict(subject.inputs)
    sources = {name: parameter for name, parameter in subject.module.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        for name in subject.axes:
            if inputs[name].is_floating_point():
                sources[name] = inputs[name] = inputs[name].detach().clone().requires_grad_()
        out = subject(inputs, keep=keep)
        if not out.requires_grad:
            return []
        found = slopes(out.sum(), list(sources.values()))
    return [
        name for name, slope in zip(sources, found, strict=True) if slope is not None and not slope.isfinite().all()
    ]
