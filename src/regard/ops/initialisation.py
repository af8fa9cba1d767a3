"""Starts of weights that torch.nn.init does not have."""

import math

import torch
from torch import Tensor, nn

CUT = 0.87962566103423978
"""The standard deviation of a normal distribution that is cut off at two of its own."""


def fan_in_normal_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Normal with variance scale / fan-in, cut off at two deviations: TensorFlow's ``variance_scaling``.

    Example:
        >>> weight = fan_in_normal_(torch.empty(64, 400))
        >>> round(float(weight.std()) * 20, 1)
        1.0
    """
    deviation = math.sqrt(scale / weight[0].numel()) / CUT
    with torch.no_grad():
        return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
