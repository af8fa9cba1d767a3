"""Convolution of maps with a kernel of any odd sides, few channels and a result of the same sides, forwards and back.

y[n] = sum_a weight[a] x[n + a - r // 2], where x is 0 outside of the map. torch's convolution is quick forwards as long
as the kernel is small, and slow backwards, where it has few channels to gather; products of Fourier transforms cost
the same for every kernel. Along an axis a transform of n + r // 2 places is enough: what wraps around meets zeros.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

_LARGE = 600
"""Places of a kernel from which on torch's convolution is slower than the transforms, measured at 32 to 128 pixels."""


def same_convolution(x: Float[Tensor, "B I *grid"], weight: Float[Tensor, "O I *kernel"]) -> Float[Tensor, "B O *grid"]:
    """The cross-correlation of maps of one to three axes with a kernel of odd sides, zero beyond the border.

    Args:
        x: maps, in float32 or float64.
        weight: a kernel for each pair of channels; places that reach over a whole map meet nothing.

    Example:
        >>> same_convolution(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[0.0, 1.0, 10.0]]])).flatten().round()
        tensor([21., 32.,  3.])
    """
    if torch.compiler.is_compiling():
        return _direct(x, weight)
    for axis in range(2, x.ndim):
        excess = max(0, weight.shape[axis] // 2 - x.shape[axis] + 1)
        weight = weight.narrow(axis, excess, weight.shape[axis] - 2 * excess)
    return _Convolution.apply(x, weight)


class _Convolution(torch.autograd.Function):
    """x, weight -> y; bilinear, and its derivative is made of differentiable transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        if weight[0, 0].numel() < _LARGE:
            return _direct(x, weight)
        sides = _sides(x, weight)
        source, kernel = _spectrum(_shifted(x, weight), sides), _spectrum(weight, sides).conj()
        spectrum = functools.reduce(torch.add, (source[:, i, None] * kernel[:, i] for i in range(x.shape[1])))
        return _cut(_values(spectrum, sides), [slice(side) for side in x.shape[2:]])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, weight = ctx.saved_tensors
        sides, channels = _sides(x, weight), range(x.shape[1])
        slope = _spectrum(grad_outputs[0], sides)
        x_slope = weight_slope = None
        if ctx.needs_input_grad[0]:
            kernel = _spectrum(weight, sides)
            spectrum = torch.stack([(slope * kernel[:, i]).sum(1) for i in channels], 1)
            places = [slice(r // 2, r // 2 + side) for r, side in zip(weight.shape[2:], x.shape[2:], strict=True)]
            x_slope = _cut(_values(spectrum, sides), places)
        if ctx.needs_input_grad[1]:
            source, slope = _spectrum(_shifted(x, weight), sides), slope.conj()
            spectrum = torch.stack([(slope * source[:, i, None]).sum(0) for i in channels], 1)
            weight_slope = _cut(_values(spectrum, sides), [slice(r) for r in weight.shape[2:]])
        return x_slope, weight_slope

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (x, weight), (x_tangent, weight_tangent) = ctx.saved_tensors, grad_inputs
        parts = ((x_tangent, weight), (x, weight_tangent))
        return sum(same_convolution(a, b) for a, b in parts if a is not None and b is not None)


def _direct(x: Tensor, weight: Tensor) -> Tensor:
    convolution = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
    return convolution(x, weight, padding=[side // 2 for side in weight.shape[2:]])


def _sides(x: Tensor, weight: Tensor) -> list[int]:
    """The sides of the transforms: even, and of small factors, which are quick."""
    return [_smooth(side + r // 2) for side, r in zip(x.shape[2:], weight.shape[2:], strict=True)]


def _smooth(least: int) -> int:
    """The next even number with no prime factor above 5."""
    size = least + least % 2
    while pow(30, size.bit_length(), size):  # a power of 30 holds every such number
        size += 2
    return size


def _shifted(x: Tensor, weight: Tensor) -> Tensor:
    """x behind as many zeros along each axis as the kernel reaches back."""
    return F.pad(x, [pad for side in reversed(weight.shape[2:]) for pad in (side // 2, 0)])


def _spectrum(x: Float[Tensor, "B I *grid"], sides: list[int]) -> Complex[Tensor, "B I *frequencies"]:
    return torch.fft.rfftn(x, s=sides, dim=list(range(2, x.ndim)))


def _values(spectrum: Complex[Tensor, "B O *frequencies"], sides: list[int]) -> Float[Tensor, "B O *sides"]:
    return torch.fft.irfftn(spectrum, s=sides, dim=list(range(2, spectrum.ndim)))


def _cut(x: Tensor, places: list[slice]) -> Tensor:
    return x[(..., *places)].contiguous()
