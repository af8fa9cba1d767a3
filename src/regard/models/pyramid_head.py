"""The head of PAN, the pyramid attention network: stage 4 looked at in three scales gates the stages below it.

Li et al. 2018, arXiv:1805.10180, figure 2, with the widths of JaveyWang/Pyramid-Attention-Networks-pytorch: the authors
released no code. Feature pyramid attention keeps the channels of stage 4, and each global attention upsample goes down
to those of the next stage::

    z_4 = FPA(x_4)        z_s = GAU(low=x_s, high=z_(s+1)), s = 3, 2, 1        logits = conv_3x3(z_1)
"""

from collections.abc import Sequence
from typing import Any

from torch import Generator, Tensor, nn

from regard.mechanisms.gates.pyramid_attention import GlobalAttentionUpsample
from regard.models.plugs import Plug, ask, plugged


class PyramidHead(nn.Module):
    """The steps at the head of this file.

    Args:
        widths, strides: of the four stages; the strides, in pixels of the image, tell which have the same sides.
        num_classes: of the pixels.

    Example:
        >>> import torch
        >>> head = PyramidHead((4, 8, 16, 32), (4, 8, 16, 16), 5)
        >>> sides = (24, 12, 6, 6)
        >>> maps = [torch.randn(2, width, n, n) for width, n in zip((4, 8, 16, 32), sides)]
        >>> head(maps)[0][""].shape
        torch.Size([2, 5, 24, 24])
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], num_classes: int, **factory: Any) -> None:
        super().__init__()
        self.attention = plugged(Plug(mechanism="pyramid_attention"), widths[-1], **factory)
        self.upsamples = nn.ModuleList(
            GlobalAttentionUpsample(
                widths[stage], widths[stage + 1], same_size=strides[stage] == strides[stage + 1], **factory
            )
            for stage in (2, 1, 0)
        )
        self.classes = nn.Conv2d(widths[0], num_classes, 3, padding=1, **factory)

    def forward(
        self, maps: Sequence[Tensor], generator: Generator | None = None, auxiliary: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As :class:`regard.models.segmentation_heads.BranchedHead`; there are no auxiliary logits."""
        told: dict[str, Tensor] = {}
        z = ask(self, "attention", maps[-1], generator, told)
        for upsample, low in zip(self.upsamples, reversed(maps[:-1]), strict=True):
            z = upsample(low, z)
        return {"": self.classes(z)}, told
