"""What the units of a MAC cell are made of: maps with activations, ways to meet, and pooling by scores.

Hudson & Manning 2018, arXiv:1803.03067, with the variants of the authors' code; see :mod:`regard.ops.reasoning_units`.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.weights import softmax_where

Activation = Literal["none", "tanh", "relu", "elu", "prelu"]
Product = Literal["product", "bilinear", "additive"]


def activate(x: Tensor, kind: Activation, slope: Tensor | None = None) -> Tensor:
    """The activation of this name; that of a "prelu" has a learned slope below 0, one a feature."""
    if kind == "none":
        return x
    if kind == "prelu" and slope is not None:
        return x.relu() - slope * (-x).relu()
    return {"tanh": torch.tanh, "relu": torch.relu, "elu": F.elu}[kind](x)


def slope_of(kind: Activation, width: int, factory: dict[str, Any]) -> nn.Parameter | None:
    """The slopes of a "prelu", 1/4 each; other activations learn nothing."""
    return nn.Parameter(torch.full((width,), 0.25, **factory)) if kind == "prelu" else None


def reset_maps(unit: nn.Module) -> None:
    """Xavier-uniform matrices, biases 0 and slopes 1/4."""
    for name, parameter in unit.named_parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.constant_(parameter, 0.25 if "slope" in name else 0.0)


class Affine(nn.Module):
    """L(x); with an activation L_2(act(L(x))), as the authors put a second map behind each activation.

    Args:
        inputs, outputs: widths.
        activation: "none" leaves one map.
    """

    def __init__(self, inputs: int, outputs: int, activation: Activation = "none", **factory: Any) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.inner = nn.Linear(inputs, outputs, **factory)
        self.slope = slope_of(activation, outputs, factory)
        self.outer = None if activation == "none" else nn.Linear(outputs, outputs, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Of the last axis."""
        return self.finish(self.inner(x))

    def finish(self, x: Tensor) -> Tensor:
        """What stands behind the first map."""
        return x if self.outer is None else self.outer(activate(x, self.activation, self.slope))


class Interaction(nn.Module):
    """How x and y meet: (x + b) * (y + b), "bilinear" x W * y + b with a learned matrix, or "additive" tanh(x + y).

    Args:
        dim: of both.
        kind: one of the three.
        bias: b of the plain product, a constant.
    """

    def __init__(self, dim: int, kind: Product = "product", bias: float = 0.0, **factory: Any) -> None:
        super().__init__()
        self.kind: Product = kind
        self.bias = bias
        self.linear = nn.Linear(dim, dim, **factory) if kind == "bilinear" else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Of shapes that broadcast."""
        if self.linear is not None:
            return F.linear(x, self.linear.weight) * y + self.linear.bias
        if self.kind == "additive":
            return torch.tanh(x + y)
        return (x + self.bias) * (y + self.bias) if self.bias else x * y


def pool(
    logits: Float[Tensor, "B N 1"], values: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None = None
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B N"]]:
    """sum_n softmax_n(logit_n) value_n over those that count, and the weights; where none counts both are 0.

    Example:
        >>> pool(torch.zeros(1, 2, 1), torch.tensor([[[2.0], [4.0]]]))[0]
        tensor([[3.]])
    """
    allowed = None if mask is None else mask[:, None, None]
    weights = softmax_where(logits[:, None, :, 0, None].mT, allowed)[:, 0, 0].to(values.dtype)
    return (weights[:, None] @ values)[:, 0], weights
