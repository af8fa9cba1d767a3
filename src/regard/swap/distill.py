"""A swapped model learns to attend as the model that it was made from, attention by attention."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Generator as Yields
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Generator, Tensor, nn

from regard.inspect.tensors import first_tensor
from regard.inspect.tensors import slopes as slopes_of
from regard.registry import UnsupportedError
from regard.swap.interface import EXACT, interface_sites, remember, roots
from regard.swap.pairs import Pair, pairs
from regard.swap.recording import Asked, Batch, at_rest, record
from regard.swap.surgery import Surgery
from regard.train.budget import rate_factor

Which = Literal["attention", "new"]


@dataclass(frozen=True, kw_only=True)
class DistilledRow:
    """One attention.

    Attributes:
        name: its path.
        before, after: mean squared difference from the teacher's output at real tokens of the batches kept aside,
            divided by the variance of that output: 0 is equal, 1 is as good as its mean.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class DistillReport:
    """What distilling has changed.

    Attributes:
        rows: one :class:`DistilledRow` for each attention that was fitted.
        steps: how many were made.
        batches, held_out: how many batches were learnt from, and how many measured on.
        parameters: how many numbers were fitted.
        student: the model.
    """

    rows: tuple[DistilledRow, ...]
    steps: int
    batches: int
    held_out: int
    parameters: int
    student: nn.Module

    @property
    def ok(self) -> bool:
        """True when every attention came nearer to its teacher."""
        return all(row.after < row.before for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """All but the model, of numbers and text only."""
        numbers = {name: getattr(self, name) for name in ("steps", "batches", "held_out", "parameters")}
        return numbers | {"ok": self.ok, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        lines = [("attention", "before", "after")]
        lines += [(row.name or "itself", f"{row.before:.3g}", f"{row.after:.3g}") for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        head = (
            f"{self.parameters:,} parameters, {self.steps} steps on {self.batches} batches; squared error by variance "
            f"on {self.held_out} others"
        )
        return "\n".join([head, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])


def distill_attention(
    teacher: nn.Module,
    student: nn.Module,
    data: Iterable[Batch],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    lr: float = 1e-3,
    held_out: int = 1,
    parameters: Which = "attention",
    callback: Callable[[int, float], None] | None = None,
    generator: Generator | None = None,
) -> DistillReport:
    """Fit the attentions of a swapped model to those of the model from before, before it is fine-tuned as a whole.

    Each attention of the student is given what the teacher's attention at the same place is given, and fitted to what
    that answers: mean squared error by variance, at real tokens. So layers are learnt side by side, none waits for
    another, and positions do not matter. Adam on float32 copies of the parameters, without dropout; the rate rises
    for a tenth of the time and then falls as half a cosine. The teacher and all else of the student stay as they are,
    and so does an attention that came no nearer on the batches kept aside.

    Args:
        teacher: the model from before: ``copy.deepcopy(model)``, taken ahead of ``swap_attention(model, ...)``.
        student: the swapped model; it is changed, unless something raises.
        data: batches as in :func:`regard.swap_attention`, no longer than the teacher can take.
        steps, seconds: how long; one of the two.
        lr: the highest rate.
        held_out: how many of the last batches are kept aside, to measure on.
        parameters: "attention": all of each swapped attention; "new": only what its mechanism brought along.
        callback: called with each step, from 1, and its error.
        generator: draws the order of the batches; by default one with seed 0.

    Returns:
        The report; print it.

    Raises:
        ValueError: too few batches, no budget or two, or a teacher that shares parameters with the student.
        UnsupportedError: models that do not correspond, or nothing to fit.

    Example:
        >>> import copy, regard
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
        >>> teacher = copy.deepcopy(model)
        >>> _ = regard.swap_attention(model, "local", window=1)
        >>> distill_attention(teacher, model, list(torch.randn(4, 8, 12, 16)), steps=20).ok
        True
    """
    if (steps is None) == (seconds is None) or min(steps or 1, seconds or 1) <= 0:
        raise ValueError(f"steps={steps} and seconds={seconds}: give one of the two, above 0")
    if parameters not in get_args(Which):
        raise ValueError(f'parameters={parameters!r} is neither "attention" nor "new"')
    batches = list(data)
    if held_out < 1 or len(batches) <= held_out:
        raise ValueError(f"{len(batches)} batches and held_out={held_out}: at least one must be left to learn from")
    learnt, kept = batches[:-held_out], batches[-held_out:]
    found = pairs(teacher, student)
    fitted = _parameters(found, parameters, teacher)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with _as_masks_should_be(teacher), at_rest(student), _restored_on_error(fitted) as numbers:
        before = _errors(teacher, found, kept)
        made = _fit(teacher, found, fitted, learnt, steps, seconds, lr, callback, generator)
        after = _errors(teacher, found, kept)
        for pair in found:
            if not after[pair.name] < before[pair.name]:
                _put_back(pair.student, numbers)
                after[pair.name] = before[pair.name]
    return DistillReport(
        rows=tuple(DistilledRow(name=name, before=error, after=after[name]) for name, error in before.items()),
        steps=made,
        batches=len(learnt),
        held_out=held_out,
        parameters=sum(value.numel() for value in fitted),
        student=student,
    )


def _parameters(found: Sequence[Pair], which: Which, teacher: nn.Module) -> list[nn.Parameter]:
    """Those to fit, each once."""
    named = (pair.student.named_parameters() if which == "attention" else pair.new_parameters() for pair in found)
    fitted = list({id(value): value for values in named for _, value in values}.values())
    if not fitted:
        raise UnsupportedError('the new attentions have no parameters of their own: pass parameters="attention"')
    theirs = {id(value) for value in teacher.parameters()}
    if any(id(value) in theirs for value in fitted):
        raise ValueError("teacher and student share parameters: take copy.deepcopy(model) before the swap")
    return fitted


def _fit(
    teacher: nn.Module,
    found: Sequence[Pair],
    fitted: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    steps: int | None,
    seconds: float | None,
    lr: float,
    callback: Callable[[int, float], None] | None,
    generator: Generator,
) -> int:
    """Take steps until the budget is spent; returns how many."""
    copies = [nn.Parameter(value.detach().float()) for value in fitted]  # small steps vanish in bfloat16
    optimizer = torch.optim.Adam(copies, lr=lr)
    order: list[int] = []
    start, step, spent = time.monotonic(), 0, 0.0
    while spent < 1.0:
        order = order or torch.randperm(len(batches), generator=generator).tolist()
        error = _backward(teacher, found, fitted, batches[order.pop()])
        for copy, value in zip(copies, fitted, strict=True):
            copy.grad = None if value.grad is None else value.grad.float()
            value.grad = None
        step += 1
        spent = step / steps if steps is not None else (time.monotonic() - start) / cast(float, seconds)
        optimizer.param_groups[0]["lr"] = lr * rate_factor(min(spent, 1.0))
        nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step()
        with torch.no_grad():
            for copy, value in zip(copies, fitted, strict=True):
                value.copy_(copy)
        if callback is not None:
            callback(step, error)
    return step


def _backward(teacher: nn.Module, found: Sequence[Pair], fitted: Sequence[nn.Parameter], batch: Batch) -> float:
    """Gradients of one batch, attention by attention, so that one graph is held at a time; returns the mean error."""
    calls, _ = record(teacher, {pair.name: pair.teacher for pair in found}, batch)
    total, count = 0.0, 0
    with torch.enable_grad():
        for pair in found:
            for asked in calls[pair.name]:
                squares, variance = _difference(pair, asked)
                error = squares / variance
                slopes = slopes_of(error, fitted)
                for value, slope in zip(fitted, slopes, strict=True):
                    if slope is not None:
                        value.grad = slope if value.grad is None else value.grad + slope
                total, count = total + float(error.detach()), count + 1
    if not count:
        raise ValueError("a batch reached none of the attentions that were swapped")
    return total / count


def _errors(teacher: nn.Module, found: Sequence[Pair], batches: Sequence[Batch]) -> dict[str, float]:
    """Squared error by variance of each attention over all these batches."""
    sums = {pair.name: torch.zeros(2, dtype=torch.float64) for pair in found}
    for batch in batches:
        calls, _ = record(teacher, {pair.name: pair.teacher for pair in found}, batch)
        with torch.no_grad():
            for pair in found:
                for asked in calls[pair.name]:
                    sums[pair.name] += torch.stack(_difference(pair, asked)).double().cpu()
    return {name: float(both[0] / both[1]) for name, both in sums.items()}


def _difference(pair: Pair, asked: Asked) -> tuple[Tensor, Tensor]:
    """Sum of squared differences, and of squared deviations of the teacher's output from its mean, at real tokens."""
    new, old, real = first_tensor(pair.student(*asked.args, **asked.kwargs)), asked.output, pair.real(asked)
    new, old = (t.float().flatten(0, -2) if real is None else t.float()[real] for t in (new, old))
    variance = (old - old.mean(0)).square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return (new - old).square().sum(), variance


@contextmanager
def _as_masks_should_be(teacher: nn.Module) -> Yields[None]:
    """Inside, a teacher of transformers makes the masks that cores of ours can read."""
    surgery = Surgery()
    try:
        for root in roots(teacher).values() if interface_sites(teacher) else ():
            if not root.config._attn_implementation.startswith("regard"):  # pyright: ignore
                remember(root, surgery)
                cast(Any, root).set_attn_implementation(EXACT)
        yield
    finally:
        surgery.undo()


@contextmanager
def _restored_on_error(fitted: Sequence[nn.Parameter]) -> Yields[dict[nn.Parameter, Tensor]]:
    """Parameters get gradients inside, and their old numbers, which are given, back if something raises."""
    numbers = {value: value.detach().clone() for value in fitted}
    before = [(value, value.requires_grad, value.grad) for value in fitted]
    try:
        for value in fitted:
            value.requires_grad_()
            value.grad = None
        yield numbers
    except BaseException:
        for value in fitted:
            value.data.copy_(numbers[value])
        raise
    finally:
        for value, trained, slope in before:
            value.requires_grad_(trained)
            value.grad = slope


def _put_back(module: nn.Module, numbers: Mapping[nn.Parameter, Tensor]) -> None:
    """The old numbers, of those parameters of the module that have some."""
    for value in module.parameters():
        if value in numbers:
            value.data.copy_(numbers[value])
