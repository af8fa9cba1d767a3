"""L1 and L2 distances of all pairs, of which the differences are never stored.

``torch.cdist`` is an order of magnitude faster than ``(a[:, None] - b[None]).abs().sum(-1)`` and needs N M numbers, not
N M D. Four things are in its way: its gradients are wrong where several are asked for at once (``torch.func.vmap``, in
torch 2.13 all become the first), it has neither forward-mode tangents nor second derivatives, on a GPU its backward
pass holds N M D numbers, and it ties a graph to one length.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from regard.engines.transforms import ordinary
from regard.ops.row_runs import by_rows


def manhattan(a: Float[Tensor, "*B N D"], b: Float[Tensor, "*B M D"]) -> Float[Tensor, "*B N M"]:
    """||a_i - b_j||_1; the gradient of equal numbers is 0. On a GPU in runs of rows.

    In a graph that is compiled or exported it is the plain formula, which a compiler fuses; if it is not compiled, that
    forms N M D numbers, as do tangents and second derivatives.

    Args:
        a, b: of the same leading sizes, float32 or float64.

    Example:
        >>> manhattan(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
        tensor([[3.0000, 0.5000]])
    """
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return (a[..., :, None, :] - b[..., None, :, :]).abs().sum(-1)
    if a.is_cuda:
        return by_rows(_Manhattan.apply, (a,), (b,), b.numel(), again=False)
    return _Manhattan.apply(a, b)  # pyright: ignore[reportReturnType]


def euclidean(a: Float[Tensor, "*B N D"], b: Float[Tensor, "*B M D"]) -> Float[Tensor, "*B N M"]:
    """||a_i - b_j||_2; the gradient of equal points is 0. Derivatives other than the plain gradient form N M D numbers.

    Args:
        a, b: of the same leading sizes, float32 or float64.

    Example:
        >>> euclidean(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
        tensor([[5., 0.]])
    """
    if torch.compiler.is_compiling():
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    if forward_ad._current_level >= 0 or not ordinary(a, b):
        return _plain_euclidean(a, b)
    return _Euclidean.apply(a, b)  # pyright: ignore[reportReturnType]


def _plain_euclidean(a: Tensor, b: Tensor) -> Tensor:
    squares = (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)
    equal = squares == 0
    return squares.masked_fill(equal, 1.0).sqrt().masked_fill(equal, 0.0)


class _Euclidean(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (slope,), (a, b, distances) = grad_outputs, ctx.saved_tensors
        wanted_a, wanted_b = ctx.needs_input_grad
        if torch.is_grad_enabled():  # for gradients of gradients
            wanted = [t for t, need in ((a, wanted_a), (b, wanted_b)) if need]
            found = iter(torch.autograd.grad(_plain_euclidean(a, b), wanted, slope, create_graph=True))
            return next(found) if wanted_a else None, next(found) if wanted_b else None
        backward = torch.ops.aten._cdist_backward
        a, b, slope, distances = (t.contiguous() for t in (a, b, slope, distances))
        of_a = backward(slope, a, b, 2.0, distances) if wanted_a else None
        return of_a, backward(slope.mT.contiguous(), b, a, 2.0, distances.mT.contiguous()) if wanted_b else None


class _Manhattan(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b, p=1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (slope,), (a, b, distances) = grad_outputs, ctx.saved_tensors
        wanted_a, wanted_b = ctx.needs_input_grad
        of_a = _Slope.apply(slope, a, b, distances) if wanted_a else None
        return of_a, _Slope.apply(slope.mT, b, a, distances.mT) if wanted_b else None


class _Slope(torch.autograd.Function):
    """sum_j slope_ij sign(a_i - b_j); several at once are one call with one more leading size."""

    @staticmethod
    def forward(slope: Tensor, a: Tensor, b: Tensor, distances: Tensor) -> Tensor:
        dense = (t.contiguous() for t in (slope, a, b))
        return torch.ops.aten._cdist_backward(*dense, 1.0, distances.contiguous())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:3])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """It is linear in the slopes; the signs do not change."""
        a, b = ctx.saved_tensors
        signs = (a[..., :, None, :] - b[..., None, :, :]).sign()
        return (signs @ grad_outputs[0][..., None]).squeeze(-1), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Any, int]:
        """Every tensor with the new size in front."""
        placed = (
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims, strict=True)
        )
        return _Slope.apply(*placed), 0
