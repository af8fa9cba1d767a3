"""One recorded case, repeated and compared: how far our numbers are from the authors'."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.authors.replay import replay


@dataclass(frozen=True)
class Limits:
    """The largest error that is let pass, relative to max(1, the largest recorded value of the tensor)."""

    outputs: float
    gradients: float


RECORDED = Limits(1e-5, 5e-5)
"""Most numbers were recorded in float32 arithmetic: to repeat them in float64 brings nobody nearer."""

LIMITS = {
    torch.float32: RECORDED,
    torch.float64: RECORDED,
    torch.float16: Limits(8 * 2**-10, 40 * 2**-10),
    torch.bfloat16: Limits(8 * 2**-7, 40 * 2**-7),
}
"""In half precision 8 and 40 roundings of the dtype: a layer or two, whose inputs and weights were rounded as well."""


@dataclass(frozen=True)
class Comparison:
    """How far the repeated numbers are from the recorded ones.

    Attributes:
        outputs, gradients: the largest relative errors; None where nothing was recorded.
        complaint: what is wrong, empty where all is within the limits.
    """

    outputs: float | None
    gradients: float | None
    complaint: str


def repeat(
    tensors: Mapping[str, Tensor],
    meta: dict[str, str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Comparison:
    """Replay a recorded case and compare.

    Args:
        tensors, meta: the case, see :func:`regard.verify.cases.read`.
        device: to compute on.
        dtype: to compute in; None: as recorded.

    Raises:
        UnsupportedError: our modules cannot do what was recorded.
    """
    recorded = {name: t for name, t in tensors.items() if name.startswith(("out/", "grad/"))}
    given = {name: _moved(t, device, dtype) for name, t in tensors.items() if name not in recorded}
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False  # convolutions in full precision
    try:
        found = replay(given, meta)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    return compare(recorded, found, main=meta.get("main_output", ""), limits=LIMITS[dtype] if dtype else RECORDED)


def compare(recorded: Mapping[str, Tensor], found: Mapping[str, Tensor], *, main: str, limits: Limits) -> Comparison:
    """Compare tensors of the same names; the main output and every gradient must be there.

    Args:
        recorded: "out/..." and "grad/..." by the authors.
        found: ours.
        main: the name of the main output; empty: "out" if there is one, else every output is required.
        limits: what is let pass.
    """
    out = {name for name in recorded if name.startswith("out/")}
    main = main or ("out" if "out/out" in out else "")
    required = ({f"out/{main.removeprefix('out/')}"} if main else out) | (recorded.keys() - out)
    complaints = [f"{name} is missing" for name in sorted(required - found.keys())]
    errors: dict[str, float] = {}
    for name in sorted(recorded.keys() & found.keys()):
        if recorded[name].shape != found[name].shape:
            complaints.append(f"{name} is {tuple(found[name].shape)}, recorded is {tuple(recorded[name].shape)}")
            continue
        errors[name] = relative_error(found[name], recorded[name])
        limit = limits.outputs if name in out else limits.gradients
        if not errors[name] <= limit:  # not a number is beyond every limit
            complaints.append(f"{name} is off by {errors[name]:.1e}, allowed are {limit:.1e}")
    outputs = [error for name, error in errors.items() if name in out]
    gradients = [error for name, error in errors.items() if name not in out]
    return Comparison(_worst(outputs), _worst(gradients), "; ".join(complaints))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max(1, max |expected|), over finite values; infinities must be equal.

    Example:
        >>> relative_error(torch.tensor([2.0, float("inf")]), torch.tensor([4.0, float("inf")]))
        0.5
    """
    found, expected = found.detach().cpu().double(), expected.double()
    same = (found == expected) | (found.isnan() & expected.isnan())
    largest = torch.where(expected.isfinite(), expected, 0.0).abs().max() if expected.numel() else 0.0
    error = torch.where(same, 0.0, (found - expected).abs()).max() if expected.numel() else 0.0
    return float(error) / max(1.0, float(largest))


def _moved(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _worst(errors: list[float]) -> float | None:
    """The largest; one that is not a number counts as the largest of all."""
    return max(errors, key=lambda error: (error != error, error), default=None)
