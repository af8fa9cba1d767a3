"""What became of each recorded case."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from regard.authors import normalise
from regard.registry import UnsupportedError
from regard.tasks.documents import InputError
from regard.train.device import check_device
from regard.verify.cases import Case, CaseError, find_cases, numbers, read, select
from regard.verify.comparison import LIMITS, Comparison, repeat

Status = Literal["ok", "FAIL", "cannot"]


@dataclass(frozen=True)
class Result:
    """One case on this machine.

    Attributes:
        name: "mechanism/case".
        source: whose code the numbers are from, e.g. "openai/sparse_attention attention_impl".
        status: "ok", "FAIL" for numbers beyond the limits, "cannot" for cases that could not be run.
        outputs, gradients: the largest errors relative to max(1, largest); None where there is nothing to compare.
        reason: why, unless ok.
        path: of the file.
    """

    name: str
    source: str
    status: Status
    outputs: float | None
    gradients: float | None
    reason: str
    path: str


def verify(
    names: Sequence[str] = (),
    *,
    folder: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Iterator[Result]:
    """Repeat recorded numbers, one case after the other.

    Args:
        names: mechanisms or "mechanism/case"; none: all.
        folder: where the cases are, at any depth; None: the numbers that came with regard.
        device: to compute on.
        dtype: to compute in; None: as recorded, which is float32 for nearly all.

    Raises:
        InputError: an unknown name, an empty folder, or a device or dtype that cannot be had.

    Example:
        >>> next(verify(["multi_head"])).status
        'ok'
    """
    check_arithmetic(device, dtype)
    return (result_of(case, device=device, dtype=dtype) for case in cases(names, folder))


def cases(names: Sequence[str], folder: Path | None) -> list[Case]:
    """The cases that were asked for; see :func:`verify`."""
    if folder is not None and not folder.is_dir():
        raise InputError(f"--folder {folder} is not a directory")
    return select(find_cases(folder or numbers()), names)


def check_arithmetic(device: str, dtype: torch.dtype | None) -> None:
    """Refuse a device that is not there, and a dtype that nothing is known of; see :func:`verify`."""
    if dtype is not None and dtype not in LIMITS:
        raise InputError(f"no limits are known for {dtype}: there are {', '.join(map(str, LIMITS))}")
    check_device(device)


def result_of(case: Case, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Result:
    """Repeat one case; whatever goes wrong with it becomes part of the result."""
    source, comparison, cannot = "", Comparison(None, None, ""), ""
    try:
        tensors, meta = read(case.path)
        source = short(meta["source"])
        comparison = repeat(tensors, meta, device=device, dtype=dtype)
    except (CaseError, UnsupportedError) as error:
        cannot = _line(error)
    except Exception as error:  # of a mechanism, an importer or torch: this case's affair, the others go on
        cannot = f"{type(error).__name__}: {_line(error)}"
    status = "cannot" if cannot else "FAIL" if comparison.complaint else "ok"
    reason = cannot or comparison.complaint
    return Result(case.name, source, status, comparison.outputs, comparison.gradients, reason, str(case.path))


def short(source: str) -> str:
    """The repository and the class, without the file between.

    Example:
        >>> short("openai/sparse_attention@c53f3bd:attention.py:attention_impl")
        'openai/sparse_attention attention_impl'
    """
    parts = normalise(source).split(":")
    return " ".join(dict.fromkeys((parts[0], parts[-1])))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
