"""Semantic segmentation: a ResNet and one of the published heads, which differ in their attention.

The network of PSPNet, PAN, DANet, CCNet, EMANet, Interlaced Sparse Self-Attention and Efficient Attention alike: a
dilated ResNet, a head (:mod:`regard.models.segmentation_heads`, which says who has which steps), and the logits brought
back to the size of the images, bilinearly with corners on corners, as in the authors' code where there is one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from regard.models.plugs import under
from regard.models.pyramid_head import PyramidHead
from regard.models.residual_network import ResNet
from regard.models.segmentation_heads import HEADS, BranchedHead


class Segmenter(nn.Module):
    """Images in, logits of every pixel's classes out.

    Args:
        backbone: a :class:`regard.models.ResNet`; its classes, if it has any, are taken away. The papers' is
            ``resnet("resnet101", output_stride=8)``, for "pan" ``output_stride=16``.
        head: "fcn", "psp", "pan", "danet", "ccnet", "emanet", "interlaced" or "efficient".
        num_classes: of the pixels.

    Raises:
        ValueError: an unknown head.

    Example:
        >>> from regard.models import ResNet
        >>> backbone = ResNet((1, 1, 1, 1), widths=(4, 4, 8, 8), output_stride=8)
        >>> model = Segmenter(backbone, "fcn", num_classes=5)
        >>> logits, aux = model(torch.randn(2, 3, 45, 33), return_aux=True)
        >>> logits.shape, aux["logits/auxiliary"].shape
        (torch.Size([2, 5, 45, 33]), torch.Size([2, 5, 45, 33]))
        >>> model.loss(logits, aux, torch.randint(5, (2, 45, 33))).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: ResNet,
        head: str,
        num_classes: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if head not in (*HEADS, "pan"):
            raise ValueError(f"head={head!r} is none of {', '.join(map(repr, (*HEADS, 'pan')))}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.backbone = backbone
        self.backbone.fc = nn.Identity()
        self.head: BranchedHead | PyramidHead
        self.auxiliary_weights: dict[str, float] = {}
        if head == "pan":
            self.head = PyramidHead(backbone.widths, backbone.strides, num_classes, **factory)
        else:
            self.head = BranchedHead(backbone.widths, num_classes, HEADS[head], **factory)
            self.auxiliary_weights |= HEADS[head].weights

    def forward(
        self,
        images: Float[Tensor, "B channels H W"],
        *,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, num_classes, H, W).

        Args:
            images: of any size, in any memory format.
            generator: the source of everything random in the attention.
            return_aux: also return the auxiliary logits, as "logits/auxiliary" or, in DANet, "logits/position" and
                "logits/channel", and what the attention has to tell, as "loss/head/..." and so on.
        """
        maps, told = self.backbone.stages(images, generator=generator)
        found, of_head = self.head(maps, generator, auxiliary=return_aux)
        size = images.shape[2:]
        full = {name: F.interpolate(y, size, mode="bilinear", align_corners=True) for name, y in found.items()}
        logits = full.pop("")
        if not return_aux:
            return logits
        aux = {f"logits/{name}": value for name, value in full.items()}
        return logits, aux | under("backbone", told) | under("head", of_head)

    def loss(
        self,
        logits: Float[Tensor, "B K H W"],
        aux: dict[str, Tensor],
        labels: Int[Tensor, "B H W"],
        *,
        class_weights: Float[Tensor, " K"] | None = None,
        ignore: int = 255,
    ) -> Float[Tensor, ""]:
        """What to train with: the cross entropy, the auxiliary ones by their weights, and what the attention adds.

        Args:
            logits, aux: from ``forward(images, return_aux=True)``.
            labels: the class of each pixel, or ``ignore``.
            class_weights: one a class.
            ignore: the label of pixels that do not count.

        Raises:
            ValueError: auxiliary logits are missing.
        """
        total = segmentation_loss(logits, labels, class_weights=class_weights, ignore=ignore)
        for name, weight in self.auxiliary_weights.items():
            if f"logits/{name}" not in aux:
                raise ValueError(f"aux has no logits/{name}: call the model with return_aux=True")
            extra = segmentation_loss(aux[f"logits/{name}"], labels, class_weights=class_weights, ignore=ignore)
            total = total + weight * extra
        return sum((value for name, value in aux.items() if name.startswith("loss/")), total)


def segmentation_loss(
    logits: Float[Tensor, "B K H W"],
    labels: Int[Tensor, "B H W"],
    *,
    class_weights: Float[Tensor, " K"] | None = None,
    ignore: int = 255,
) -> Float[Tensor, ""]:
    """The mean cross entropy, in float32 at least, of the pixels that count; 0 where none does.

    Args:
        logits: of K classes.
        labels: the class of each pixel, or ``ignore``.
        class_weights: a pixel of class k counts ``class_weights[k]`` times.
        ignore: the label of pixels that do not count.

    Example:
        >>> logits = torch.tensor([0.0, 0.0]).view(1, 2, 1, 1)
        >>> segmentation_loss(logits, torch.ones(1, 1, 1, dtype=torch.long)).item()
        0.6931471824645996
        >>> segmentation_loss(logits, torch.full((1, 1, 1), 255)).item()
        0.0
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = None if class_weights is None else class_weights.to(wide)
    total = F.cross_entropy(wide, labels, weights, ignore_index=ignore, reduction="sum")
    real = labels != ignore
    counts = real if weights is None else weights[labels.masked_fill(~real, 0)].masked_fill(~real, 0.0)
    amount = counts.sum()
    return total / torch.where(amount > 0, amount, 1)
