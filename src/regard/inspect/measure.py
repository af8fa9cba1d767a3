"""Differences between tensors and the rows that state them."""

import torch
from torch import Tensor

from regard.inspect.report import Row, Verdict

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""What rounding may change, relative to max(1, largest value)."""


def largest(value: Tensor) -> float:
    """The largest magnitude, 0 of nothing; infinite where an entry is not finite."""
    return float(value.detach().double().abs().nan_to_num(torch.inf, torch.inf).max()) if value.numel() else 0.0


def scale(value: Tensor) -> float:
    """max(1, largest value): what differences are relative to."""
    return max(1.0, largest(value))


def limit_of(value: Tensor) -> float:
    """What rounding may change in a tensor of this dtype."""
    return LIMITS.get(value.dtype, 0.0)


def skip(name: str, reason: str) -> Row:
    """The row of a rule that does not apply."""
    return Row(name=name, verdict="skipped", explanation=f"not applicable: {reason}")


def compare(
    name: str,
    got: Tensor,
    expected: Tensor,
    *,
    kept: str = "",
    broken: str,
    limit: float | None = None,
    verdict: Verdict = "FAIL",
) -> Row:
    """The row of a rule that asks for equal tensors, up to rounding.

    Args:
        name: the rule.
        got, expected: compared entry by entry.
        kept, broken: explanations of the two outcomes.
        limit: the largest difference allowed, relative to max(1, largest value); None: by dtype.
        verdict: of the second outcome.
    """
    if got.shape != expected.shape:
        text = f"{broken}: shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
        return Row(name=name, verdict=verdict, explanation=text)
    limit = limit_of(expected) if limit is None else limit
    gap = largest(got.double() - expected.double()) / scale(expected)
    if gap <= limit:
        return Row(name=name, verdict="pass", measured=gap, limit=limit, explanation=kept)
    return Row(name=name, verdict=verdict, measured=gap, limit=limit, explanation=broken)


def said(error: BaseException) -> str:
    """An exception in one line, the head of a long one."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:200] + '...'}"


def named(dtype: torch.dtype) -> str:
    """A dtype without the name of its package."""
    return str(dtype).removeprefix("torch.")
