"""One ResNet in which any mechanism on maps can stand: for the 3 x 3 convolutions, on the branches, between blocks.

He et al. 2016, arXiv:1512.03385, in torchvision's form (the stride of a bottleneck is that of its 3 x 3 convolution):
the plain network loads the published weights of torchvision and timm strictly by name, and one with mechanisms takes
what fits by :func:`regard.models.load_by_name`. ``output_stride=8`` or 16 keeps the maps of the last stages large:
their convolutions are dilated instead of strided (Yu et al. 2017, arXiv:1705.09914), with the same weights. What stands
where is a list of :class:`Plug`; the published combinations are made by :func:`regard.models.resnet`.
"""

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.models.plugs import Plug, under
from regard.models.residual_blocks import BasicBlock, Block, Bottleneck
from regard.models.stems import Stem, stem_parts
from regard.registry import Layer

__all__ = ["Plug", "ResNet"]


class ResNet(nn.Module):
    """Images in, class logits out; or the maps of the four stages.

    Args:
        depths: the number of blocks of each stage.
        block: "basic" or "bottleneck".
        plugs: which mechanisms stand where; none: the plain network.
        num_classes: of the last layer; None: without it, the mean over pixels comes out.
        stem: "imagenet" (7 x 7 of stride 2, then a 3 x 3 maximum of stride 2), "deep" (three 3 x 3 for the 7 x 7),
            "sasa" (spatially aware attention, then a 4 x 4 maximum) or "small" (one 3 x 3, for small images).
        widths: the channels at the 3 x 3 convolutions of each stage; the stem has those of the first.
        expansion: the channels of a stage, in multiples of its width; the default is 1 for basic blocks, else 4.
        mixed: the channels behind the 3 x 3 of a bottleneck, or what stands there, in multiples of its width.
        head_width: the channels of a last 1 x 1 convolution; None: there is none.
        output_stride: the side of an image in multiples of that of the last map; the default is the largest.
        in_channels: of the images.
        zero_init: the last normalisation of each block starts at 0, so that blocks start as their shortcuts.

    Attributes:
        widths, strides: of the four stages, the strides in pixels of the image.

    Raises:
        ValueError: sizes or names that do not fit.
        UnsupportedError: a mechanism for pairs.

    Example:
        >>> plug = Plug(mechanism="axial", stages=(4,), options={"num_heads": 2})
        >>> model = ResNet((1, 1, 1, 1), plugs=[plug], num_classes=10, widths=(4, 4, 8, 8))
        >>> model(torch.randn(2, 3, 45, 33)).shape
        torch.Size([2, 10])
        >>> [tuple(stage.shape[1:]) for stage in model.stages(torch.randn(2, 3, 45, 33))[0]]
        [(16, 12, 9), (16, 6, 5), (32, 3, 3), (32, 2, 2)]
    """

    def __init__(
        self,
        depths: Sequence[int],
        block: Literal["basic", "bottleneck"] = "bottleneck",
        plugs: Sequence[Plug] = (),
        *,
        num_classes: int | None = 1000,
        stem: Stem = "imagenet",
        widths: Sequence[int] = (64, 128, 256, 512),
        expansion: float | None = None,
        mixed: float = 1,
        head_width: int | None = None,
        output_stride: int | None = None,
        in_channels: int = 3,
        zero_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(block, depths, widths, mixed, plugs)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_channels, self.zero_init = in_channels, zero_init
        self.conv1, self.bn1, self.maxpool, stem_stride = stem_parts(stem, in_channels, widths[0], **factory)
        strides, dilations = _strides(stem_stride, output_stride)
        ratio = expansion or (1 if block == "basic" else 4)
        outs = [widths[0], *(int(width * ratio) for width in widths)]
        for stage, width in enumerate(widths):
            blocks = nn.ModuleList()
            for number in range(depths[stage]):
                # as in torchvision: the block that would have had the stride has the dilation of those before it
                before, here = dilations[stage : stage + 2]
                options: dict[str, Any] = {
                    "stride": 1 if number else strides[stage],
                    "dilations": (here if number else before, here),
                    "plugs": [plug for plug in plugs if plug.stands(stage + 1, number, depths[stage])],
                }
                sizes = outs[stage + 1 if number else stage], width, outs[stage + 1]
                if block == "basic":
                    blocks.append(BasicBlock(*sizes, **options, **factory))
                else:
                    blocks.append(Bottleneck(*sizes, width_mixed=int(width * mixed), **options, **factory))
            self.add_module(f"layer{stage + 1}", blocks)
        self.widths = tuple(outs[1:])
        self.strides = tuple(itertools.accumulate(strides, operator.mul, initial=stem_stride))[1:]
        self.head = None
        if head_width is not None:
            last = nn.Conv2d(outs[-1], head_width, 1, bias=False, **factory)
            self.head = nn.Sequential(last, nn.BatchNorm2d(head_width, **factory), nn.ReLU(inplace=True))
        out = head_width or outs[-1]
        self.fc = nn.Identity() if num_classes is None else nn.Linear(out, num_classes, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions as He et al. 2015 by what goes out, norms at 1; the mechanisms start by themselves."""
        for module in _own(self):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
        for block in self.modules():
            if self.zero_init and isinstance(block, BasicBlock | Bottleneck):
                nn.init.zeros_(block.last_norm.weight)

    def forward(
        self, images: Tensor, *, generator: Generator | None = None, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits of the mean over the pixels of the last stage.

        Args:
            images: (B, channels, H, W) of any size, in any memory format.
            generator: the source of everything random in the mechanisms.
            return_aux: also return what the mechanisms have to tell, as "loss/layer3.0/conv2/..." and so on.

        Returns:
            (B, num_classes), or (B, width of the last stage) without classes; with ``return_aux`` a pair of it and a
            dict of tensors.
        """
        maps, told = self.stages(images, generator=generator)
        x = maps[-1] if self.head is None else self.head(maps[-1])
        y = self.fc(x.mean((2, 3)))
        return (y, told) if return_aux else y

    def stages(self, images: Tensor, *, generator: Generator | None = None) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The maps of the four stages, (B, ``widths[s]``, H_s, W_s), and what the mechanisms have to tell.

        Raises:
            ValueError: no images, or of another number of channels.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels or 0 in images.shape[2:]:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (batch, {self.in_channels}, H, W)")
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        maps, told = list[Tensor](), dict[str, Tensor]()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for number, block in enumerate(cast(nn.ModuleList, self.get_submodule(name))):
                x, aux = cast(Block, block)(x, generator)
                told |= under(f"{name}.{number}", aux)
            maps.append(x)
        return maps, told


def _strides(stem: int, output: int | None) -> tuple[list[int], list[int]]:
    """The stride of each stage, and the dilation before the first and behind each of them."""
    full = 8 * stem
    if output not in (None, full, full // 2, full // 4):
        raise ValueError(f"output_stride={output}: with this stem it is {full}, {full // 2} or {full // 4}")
    strides, dilations, reached = [1], [1, 1], stem
    for _ in range(3):
        strided = reached < (output or full)
        strides.append(2 if strided else 1)
        dilations.append(dilations[-1] * (1 if strided else 2))
        reached *= strides[-1]
    return strides, dilations


def _check(block: str, depths: Sequence[int], widths: Sequence[int], mixed: float, plugs: Sequence[Plug]) -> None:
    """Refuse sizes that are no network, and a plug that stands nowhere in one of its stages."""
    if block not in ("basic", "bottleneck"):
        raise ValueError(f'block={block!r} is neither "basic" nor "bottleneck"')
    if len(depths) != 4 or len(widths) != 4 or min(*depths, *widths) < 1:
        raise ValueError(f"depths={tuple(depths)} and widths={tuple(widths)}: each stage of the four needs both")
    if block == "basic" and mixed != 1:
        raise ValueError(f'mixed={mixed} is for block="bottleneck": a basic block has nothing between')
    for plug in plugs:
        for stage in plug.stages:
            depth = depths[stage - 1]
            if not any(plug.stands(stage, number, depth) for number in range(depth)):
                raise ValueError(
                    f"{plug.mechanism} stands nowhere in stage {stage}: blocks={plug.blocks}, and it has {depth}"
                )


def _own(module: nn.Module) -> Iterator[nn.Module]:
    """A network's modules, down to its mechanisms, which start by themselves."""
    for child in module.children():
        if not isinstance(child, Layer):
            yield child
            yield from _own(child)
