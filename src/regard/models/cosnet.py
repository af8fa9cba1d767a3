"""COSNet: find what two frames of a video have in common, by co-attention between them.

Lu et al. 2019, arXiv:2001.06810, section 3. A Siamese encoder (a ResNet of output stride 8 and DeepLabv3's pyramid of
dilated convolutions), co-attention, and a small head for each side whose logits are brought back to the size of its
images, bilinearly with edges on edges. A sigmoid makes masks of them.

At test time a frame is compared with several others: ``references`` of (B, R, 3, H, W), whose gated summaries are
averaged before the head, as in section 3.4 of the paper; the authors' released script averages predictions instead,
which is a mean over R calls.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.mechanisms.pairs.co_attention import Affinity, CoAttention
from regard.models.residual_network import ResNet


class DilatedPyramid(nn.Module):
    """DeepLabv3's atrous spatial pyramid pooling (arXiv:1706.05587): the mean of all pixels, and dilated convolutions.

    Args:
        width_in: channels of the map.
        width: those that come out.
        branch_width: those of each of the five branches.
        dilations: of the 3 x 3 convolutions.

    Example:
        >>> DilatedPyramid(8, 4, branch_width=6)(torch.randn(2, 8, 9, 7)).shape
        torch.Size([2, 4, 9, 7])
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        branch_width: int = 512,
        dilations: tuple[int, ...] = (6, 12, 18),
        **factory: Any,
    ) -> None:
        super().__init__()
        kernels = [(1, 1), (1, 1), *((3, dilation) for dilation in dilations)]
        self.branches = nn.ModuleList(
            _convolution(width_in, branch_width, kernel, dilation, bias=True, **factory) for kernel, dilation in kernels
        )
        self.join = nn.Conv2d(branch_width * len(kernels), width, 3, padding=1, **factory)
        self.norm, self.slope = nn.BatchNorm2d(width, **factory), nn.PReLU(**factory)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B width H W"]:
        """The branches of one map beside each other, joined by a convolution."""
        pooled, *local = self.branches
        mean = pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.slope(self.norm(self.join(torch.cat([mean, *(branch(x) for branch in local)], 1))))


class CoSegmentationHead(nn.Module):
    """Co-attention between two maps of features, and the logits of both sides.

    Args:
        dim: C.
        num_classes: of the pixels; 1: a mask.
        kind, gate_bias: of :class:`regard.mechanisms.pairs.co_attention.CoAttention`.

    Example:
        >>> head = CoSegmentationHead(8)
        >>> a, b = head(torch.randn(2, 8, 5, 6), torch.randn(2, 8, 7, 4))
        >>> a.shape, b.shape
        (torch.Size([2, 1, 5, 6]), torch.Size([2, 1, 7, 4]))
    """

    def __init__(
        self, dim: int, num_classes: int = 1, kind: Affinity = "vanilla", *, gate_bias: bool = True, **factory: Any
    ) -> None:
        super().__init__()
        self.attention = CoAttention(dim, kind, gate_bias=gate_bias, **factory)
        self.heads = nn.ModuleList(
            nn.Sequential(
                *_convolution(2 * dim, dim, 3, 1, bias=False, **factory), nn.Conv2d(dim, num_classes, 1, **factory)
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of x (B, C, H, W) and of the context (B, C, H', W'), or of R contexts (B, R, C, H', W')."""
        if context.ndim == 4:
            return self.classify(*self.attention(x, context))
        joined, others = self.attention.fuse(x, context)
        y, z = self.classify(joined, others.flatten(0, 1))
        return y, z.unflatten(0, context.shape[:2])

    def classify(self, joined: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Logits from what the co-attention answers, (B, 2C, H, W) and (B', 2C, H', W')."""
        first, second = self.heads
        return first(joined), second(others)


class COSNet(nn.Module):
    """Two images in, the logits of both out; see the head of this file.

    Args:
        backbone: a :class:`regard.models.ResNet`; its classes, if it has any, are taken away. The paper's is
            ``resnet("resnet101", output_stride=8)``.
        num_classes: of the pixels; 1: a mask.
        dim: the channels between which the co-attention stands.
        kind, gate_bias: of :class:`regard.mechanisms.pairs.co_attention.CoAttention`.
        branch_width: the channels of each branch of the pyramid.

    Example:
        >>> from regard.models import ResNet
        >>> backbone = ResNet((1, 1, 1, 1), widths=(4, 4, 8, 8), output_stride=8)
        >>> model = COSNet(backbone, dim=8, branch_width=4)
        >>> frame, other = model(torch.randn(2, 3, 45, 33), torch.randn(2, 3, 45, 33))
        >>> frame.shape
        torch.Size([2, 1, 45, 33])
        >>> model(torch.randn(2, 3, 45, 33), torch.randn(2, 5, 3, 40, 40))[1].shape
        torch.Size([2, 5, 1, 40, 40])
    """

    def __init__(
        self,
        backbone: ResNet,
        num_classes: int = 1,
        dim: int = 256,
        kind: Affinity = "vanilla",
        *,
        gate_bias: bool = True,
        branch_width: int = 512,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.backbone = backbone
        self.backbone.fc = nn.Identity()
        self.pyramid = DilatedPyramid(backbone.widths[-1], dim, branch_width=branch_width, **factory)
        self.head = CoSegmentationHead(dim, num_classes, kind, gate_bias=gate_bias, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions of pyramid and head normal with deviation 0.01; the backbone starts by itself."""
        for part in (*self.pyramid.modules(), *self.head.heads.modules()):
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)
        self.head.attention.reset_parameters()

    def forward(self, images: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the images and of the references.

        Args:
            images: (B, channels, H, W).
            references: (B, channels, H', W'), or R for each image, (B, R, channels, H', W').

        Returns:
            (B, num_classes, H, W) and (B, num_classes, H', W') or (B, R, num_classes, H', W').

        Raises:
            ValueError: other shapes.
        """
        if references.ndim not in (4, 5) or references.shape[0] != images.shape[0]:
            raise ValueError(
                f"references have shape {tuple(references.shape)} beside {images.shape[0]} images: expected "
                "(batch, channels, H, W), or (batch, R, channels, H, W)"
            )
        several = references.shape[:-3]
        frames = references.flatten(0, -4)
        if frames.shape[1:] == images.shape[1:]:  # one call of the encoder for all
            own, others = self._encode(torch.cat((images, frames))).tensor_split([images.shape[0]])
        else:
            own, others = self._encode(images), self._encode(frames)
        y, z = self.head(own, others.unflatten(0, several))
        return _upsample(y, images), _upsample(z.flatten(0, -4), frames).unflatten(0, several)

    def _encode(self, images: Tensor) -> Tensor:
        return self.pyramid(self.backbone.stages(images)[0][-1])


def _convolution(width_in: int, width: int, kernel: int, dilation: int, *, bias: bool, **factory: Any) -> nn.Sequential:
    """A convolution that keeps the sides, its norm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(width_in, width, kernel, padding=padding, dilation=dilation, bias=bias, **factory),
        nn.BatchNorm2d(width, **factory),
        nn.ReLU(inplace=True),
    )


def _upsample(logits: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
