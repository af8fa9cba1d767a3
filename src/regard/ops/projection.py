"""The linear maps of AlphaFold: each has one of six starts."""

import math
from typing import Literal, get_args

import torch
from torch import nn

from regard.ops.initialisation import fan_in_normal_

Start = Literal["linear", "relu", "glorot", "normal", "gate", "zero"]


class Projection(nn.Linear):
    """x W^T + b, started as AlphaFold starts it (Jumper et al. 2021, supplementary section 1.11.4).

    Args:
        in_features, out_features: C and C'.
        start: of the weights. "linear": normal with variance 1 / C, cut off at two deviations; "relu": twice that
            variance; "glorot": uniform by both widths; "normal": of variance 1 / C, uncut; "gate": 0 with bias 1, so
            that sigmoids start open; "zero": 0, so that a residual block starts as the identity.
        bias: with b; it starts at 0, or 1 for a "gate".

    Raises:
        ValueError: an unknown start.

    Example:
        >>> Projection(4, 3, "gate")(torch.randn(2, 4)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        start: Start = "linear",
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if start not in get_args(Start):
            raise ValueError(f"start={start!r} is none of {', '.join(get_args(Start))}")
        self.start: Start = start
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw everything as ``start`` says."""
        if self.start in ("linear", "relu"):
            fan_in_normal_(self.weight, 2.0 if self.start == "relu" else 1.0)
        elif self.start == "glorot":
            edge = math.sqrt(6 / (self.in_features + self.out_features))
            nn.init.uniform_(self.weight, -edge, edge)
        elif self.start == "normal":
            nn.init.normal_(self.weight, std=self.in_features**-0.5)
        else:
            nn.init.zeros_(self.weight)
        if self.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            nn.init.constant_(self.bias, 1.0 if self.start == "gate" else 0.0)


def reset_all(module: nn.Module) -> None:
    """Draw the parameters of all maps and norms in a module.

    Example:
        >>> gate = nn.Sequential(Projection(2, 1, "gate"))
        >>> _ = nn.init.zeros_(gate[0].bias)
        >>> reset_all(gate)
        >>> gate[0].bias.tolist()
        [1.0]
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.LayerNorm)):
            part.reset_parameters()
