"""Batch statistics of one value: torch says "Expected more than 1 value per channel", we also say what to do."""

from torch import Tensor, nn


def refuse_single_values(x: Tensor, norm: nn.Module, way_out: str = "") -> None:
    """Refuse features (B, C, *grid) of which a batch norm in training would see one value a channel.

    Args:
        x: what is about to be normalised.
        norm: the layer that will do it; those that keep no statistics over a batch refuse nothing.
        way_out: what the caller offers besides a larger batch.

    Raises:
        ValueError: one value a channel.

    Example:
        >>> import torch
        >>> refuse_single_values(torch.ones(1, 4), nn.BatchNorm1d(4).eval())
    """
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training and x[:, 0].numel() == 1:
        raise ValueError(
            f"features of shape {tuple(x.shape)} have one value a channel, whose batch statistics mean nothing: "
            f"train with two maps or more{way_out}"
        )
