"""The identity, whose gradient is contiguous: many small matrix products are slow where theirs is not.

The gradient of what has been permuted comes permuted, and that of a sum comes expanded. torch's batched product then
copies its matrices one by one.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def dense_gradient(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """x itself; what flows back through it is laid out as a contiguous tensor of its shape.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> told = x.register_hook(lambda slope: print(slope.stride()))
        >>> dense_gradient(x).sum().backward()
        (3, 1)
    """
    return x if torch.compiler.is_compiling() else _Dense.apply(x)


class _Dense(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0].contiguous()

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return grad_inputs[0].view_as(grad_inputs[0])
