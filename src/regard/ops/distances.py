"""L1 distances of all pairs, of which the differences are never stored.

``torch.cdist`` is an order of magnitude faster than ``(a[:, None] - b[None]).abs().sum(-1)`` and needs N M numbers, not
N M D. Three things are in its way: its gradients are wrong where several are asked for at once (``torch.func.vmap``, in
torch 2.13 all become the first), on a GPU its backward pass holds N M D numbers, and it ties a graph to one length.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.ops.row_runs import by_rows


def manhattan(a: Float[Tensor, "*B N D"], b: Float[Tensor, "*B M D"]) -> Float[Tensor, "*B N M"]:
    """||a_i - b_j||_1; the gradient of equal numbers is 0. On a GPU in runs of rows.

    In a graph that is compiled or exported it is the plain formula, which a compiler fuses; if it is not compiled, that
    forms N M D numbers.

    Args:
        a, b: of the same leading sizes, float32 or float64.

    Example:
        >>> manhattan(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
        tensor([[3.0000, 0.5000]])
    """
    if torch.compiler.is_compiling():
        return (a[..., :, None, :] - b[..., None, :, :]).abs().sum(-1)
    if a.is_cuda:
        return by_rows(_Manhattan.apply, (a,), (b,), b.numel(), again=False)
    return _Manhattan.apply(a, b)  # pyright: ignore[reportReturnType]


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
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Any, int]:
        """Every tensor with the new size in front."""
        placed = (
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims, strict=True)
        )
        return _Slope.apply(*placed), 0
