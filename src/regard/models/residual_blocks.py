"""The residual blocks of :class:`regard.models.ResNet`, and the places in them where mechanisms on maps can stand.

He et al. 2016, arXiv:1512.03385, with the names of torchvision's and timm's weights::

    basic:       y = bn2(conv2(relu(bn1(conv1(x)))))                              conv1 and conv2 are 3 x 3
    bottleneck:  y = bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x))))))))            only conv2 is
    block:       after(relu(branch(y) + downsample(x)))

A mechanism stands in the place of a 3 x 3 convolution ("spatial"), at the end of the branch ("branch": CBAM, squeeze
and excitation, global context) or behind the whole block ("after": BAM between stages, non-local blocks within one).
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.factory import find
from regard.map_layers import MapLayer
from regard.models.plugs import Plug, ask, plugged


class Block(nn.Module):
    """What both kinds of residual blocks share; a subclass has ``mix``, the convolutions of its branch.

    Args:
        width_in, width_out: channels of what comes in and of what goes out.
        stride: of the block.
        plugs: what stands in this block.
    """

    def __init__(self, width_in: int, width_out: int, stride: int, plugs: Sequence[Plug], **factory: Any) -> None:
        super().__init__()
        self.branch = nn.ModuleList(plugged(plug, width_out, **factory) for plug in plugs if plug.place == "branch")
        self.after = nn.ModuleList(plugged(plug, width_out, **factory) for plug in plugs if plug.place == "after")
        self.downsample = None
        if stride != 1 or width_in != width_out:
            shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False, **factory)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width_out, **factory))

    def mix(self, x: Tensor, generator: Generator | None, told: dict[str, Tensor]) -> Tensor:
        """The branch up to its last normalisation; what mechanisms tell is added to ``told``."""
        raise NotImplementedError(f"{type(self).__name__} has no mix")

    def forward(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, C, H, W) -> ((B, C', H', W'), what the mechanisms have to tell, each under its name in this block)."""
        told: dict[str, Tensor] = {}
        y = self.mix(x, generator, told)
        for number in range(len(self.branch)):
            y = ask(self, f"branch.{number}", y, generator, told)
        y = F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)
        for number in range(len(self.after)):
            y = ask(self, f"after.{number}", y, generator, told)
        return y, told


class BasicBlock(Block):
    """Two 3 x 3 convolutions, as in ResNet-18 and 34; the first has the stride and its dilation, ``dilations[0]``.

    Args:
        width_in, width, width_out: channels; ``width`` between the convolutions, and ``width_out`` behind them.
        stride, dilations: of the block, and of each of its 3 x 3 convolutions.
        plugs: what stands in this block; a "spatial" one replaces both convolutions.

    Example:
        >>> import torch
        >>> block = BasicBlock(4, 8, 8, stride=2)
        >>> block(torch.randn(1, 4, 7, 5))[0].shape
        torch.Size([1, 8, 4, 3])
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        width_out: int,
        *,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        plugs: Sequence[Plug] = (),
        **factory: Any,
    ) -> None:
        super().__init__(width_in, width_out, stride, plugs, **factory)
        self.conv1, self.pool = _spatial(plugs, width_in, width, stride, dilations[0], **factory)
        self.bn1 = nn.BatchNorm2d(width, **factory)
        self.conv2, _ = _spatial(plugs, width, width_out, 1, dilations[1], **factory)
        self.bn2 = nn.BatchNorm2d(width_out, **factory)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation at the end of the branch."""
        return self.bn2

    def mix(self, x: Tensor, generator: Generator | None, told: dict[str, Tensor]) -> Tensor:
        """See :class:`Block`."""
        y = F.relu(self.bn1(self.pool(ask(self, "conv1", x, generator, told))), inplace=True)
        return self.bn2(ask(self, "conv2", y, generator, told))


class Bottleneck(Block):
    """1 x 1, 3 x 3 and 1 x 1, as in ResNet-50 and deeper ones; the 3 x 3 has the stride.

    Args:
        width_in, width, width_out: channels; ``width`` at the 3 x 3 convolution.
        stride, dilations: of the block, and of its 3 x 3 convolution, ``dilations[0]``.
        plugs: what stands in this block.
        width_mixed: the channels behind the 3 x 3 convolution, or what stands there; the default is ``width``.

    Example:
        >>> import torch
        >>> block = Bottleneck(4, 6, 8, plugs=[Plug(mechanism="axial", options={"num_heads": 2})])
        >>> block(torch.randn(1, 4, 7, 5))[0].shape
        torch.Size([1, 8, 7, 5])
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        width_out: int,
        *,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        plugs: Sequence[Plug] = (),
        width_mixed: int | None = None,
        **factory: Any,
    ) -> None:
        super().__init__(width_in, width_out, stride, plugs, **factory)
        mixed = width_mixed or width
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(width, **factory)
        self.conv2, self.pool = _spatial(plugs, width, mixed, stride, dilations[0], **factory)
        self.bn2 = nn.BatchNorm2d(mixed, **factory)
        self.conv3 = nn.Conv2d(mixed, width_out, 1, bias=False, **factory)
        self.bn3 = nn.BatchNorm2d(width_out, **factory)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation at the end of the branch."""
        return self.bn3

    def mix(self, x: Tensor, generator: Generator | None, told: dict[str, Tensor]) -> Tensor:
        """See :class:`Block`."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.pool(ask(self, "conv2", y, generator, told))), inplace=True)
        return self.bn3(self.conv3(y))


def _spatial(
    plugs: Sequence[Plug], width_in: int, width_out: int, stride: int, dilation: int, **factory: Any
) -> tuple[nn.Module, nn.Module]:
    """The 3 x 3 convolution or what stands in its place, and the pooling behind it.

    A mechanism that has no stride of its own is followed by a 3 x 3 average of stride 2, as in LambdaNetworks; one that
    has no output width must keep that of its input.
    """
    spatial = [plug for plug in plugs if plug.place == "spatial"]
    if not spatial:
        options: dict[str, Any] = {"padding": dilation, "dilation": dilation, "bias": False}
        return nn.Conv2d(width_in, width_out, 3, stride, **options, **factory), nn.Identity()
    if len(spatial) > 1:
        raise ValueError(f"{' and '.join(plug.mechanism for plug in spatial)} cannot both stand in one place")
    cls = find(spatial[0].mechanism).cls
    parameters = inspect.signature(cls).parameters
    if "dim_out" in parameters:
        factory["dim_out"] = width_out
    elif width_in != width_out:
        raise ValueError(
            f"{spatial[0].mechanism} keeps {width_in} channels where {width_out} are to go out: use bottleneck blocks, "
            "or a mechanism with the option dim_out"
        )
    # a layer with masks for an output of another size has a stride in our sense: neighborhood's, for one, is another
    strides = "stride" in parameters and issubclass(cls, MapLayer) and cls.answered is not MapLayer.answered
    if strides:
        factory["stride"] = stride
    pooled = stride != 1 and not strides
    pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False) if pooled else nn.Identity()
    return plugged(spatial[0], width_in, **factory), pool
