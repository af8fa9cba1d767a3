"""What stands before the first stage of a :class:`regard.models.ResNet`, with torchvision's and timm's names.

========== ================================================================================== ======
stem                                                                                          stride
========== ================================================================================== ======
"imagenet" 7 x 7 convolution of stride 2, maximum over 3 x 3 of stride 2                      4
"deep"     3 x 3 convolutions of 1/2, 1/2 and all of the channels, the first of stride 2,
           with norms and ReLU between (timm's resnet50c), then the same maximum              4
"sasa"     spatially aware attention (arXiv:1906.05909, section 3.3), maximum over 4 x 4      4
"small"    3 x 3 convolution, as for CIFAR (arXiv:1512.03385, section 4.2)                    1
========== ================================================================================== ======
"""

from typing import Any, Literal, get_args

from torch import nn

from regard.mechanisms.patterned.sasa import SASAStem

Stem = Literal["imagenet", "deep", "sasa", "small"]


def stem_parts(
    stem: Stem, channels: int, width: int, **factory: Any
) -> tuple[nn.Module, nn.BatchNorm2d, nn.Module, int]:
    """What is called ``conv1``, ``bn1`` and ``maxpool``, and the stride of all.

    Args:
        stem: see the head of this file.
        channels: of the images.
        width: the channels that go out.

    Example:
        >>> conv1, bn1, maxpool, stride = stem_parts("small", 3, 16)
        >>> conv1, stride
        (Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False), 1)
    """
    norm = nn.BatchNorm2d(width, **factory)
    maximum = nn.MaxPool2d(3, 2, 1)
    if stem == "small":
        return nn.Conv2d(channels, width, 3, padding=1, bias=False, **factory), norm, nn.Identity(), 1
    if stem == "sasa":
        # the last maxima are of what is left, so that no image is too small
        return SASAStem(channels, width, **factory), norm, nn.MaxPool2d(4, 4, ceil_mode=True), 4
    if stem == "imagenet":
        return nn.Conv2d(channels, width, 7, 2, padding=3, bias=False, **factory), norm, maximum, 4
    if stem == "deep":
        half = width // 2
        options: dict[str, Any] = {"padding": 1, "bias": False, **factory}
        convolutions = nn.Sequential(
            nn.Conv2d(channels, half, 3, 2, **options),
            nn.BatchNorm2d(half, **factory),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, **options),
            nn.BatchNorm2d(half, **factory),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, width, 3, **options),
        )
        return convolutions, norm, maximum, 4
    raise ValueError(f"stem={stem!r} is none of {', '.join(map(repr, get_args(Stem)))}")
