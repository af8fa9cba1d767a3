"""ResNet-12 of few-shot classification, in the form of CAN: maps of 6 x 6 pixels from images of 84 or 96.

Lee et al. 2019 and others have a network of this name that pools between its stages; this one (Hou et al. 2019,
arXiv:1910.07677) has strides, a stem in front and four blocks of three 3 x 3 convolutions. Its parameters have the
names of blue-blue272/fewshot-CAN, whose weights it loads.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class TripleBlock(nn.Module):
    """Three 3 x 3 convolutions, the second of stride 2, beside a 1 x 1 convolution of stride 2.

    Example:
        >>> TripleBlock(3, 5)(torch.randn(1, 3, 9, 8)).shape
        torch.Size([1, 5, 5, 4])
    """

    def __init__(self, width_in: int, width: int, **factory: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False, **factory)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False, **factory)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False, **factory)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(width, **factory) for _ in range(3))
        shortcut = nn.Conv2d(width_in, width, 1, stride=2, bias=False, **factory)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width, **factory))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B width h w"]:
        """Both branches added, then ReLU; sides are halved, rounded up."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x), inplace=True)


class ResNet12(nn.Module):
    """Images in, maps of a sixteenth of their sides out; see the head of this file.

    Args:
        widths: the channels of the four blocks; the stem has those of the first.
        in_channels: of the images.

    Attributes:
        width: the channels that come out.

    Example:
        >>> ResNet12((4, 4, 8, 8))(torch.randn(2, 3, 84, 84)).shape
        torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        in_channels: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(widths[0], **factory)
        self.depth, self.width = len(widths), widths[-1]
        for number, (width_in, width) in enumerate(zip((widths[0], *widths), widths, strict=False), 1):
            self.add_module(f"layer{number}", nn.Sequential(TripleBlock(width_in, width, **factory)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions normal with variance 2 / (k k channels that go out), norms at 1."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.BatchNorm2d):
                part.reset_parameters()

    def forward(self, images: Float[Tensor, "B channels H W"]) -> Float[Tensor, "B width h w"]:
        """The map of the last block."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        for number in range(1, self.depth + 1):
            x = cast(Tensor, self.get_submodule(f"layer{number}")(x))
        return x
