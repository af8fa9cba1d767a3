"""Pictures as tensors: files through Pillow, and pixels as numbers of mean 0 and deviation 1."""

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = ("1", "L", "LA", "La", "I", "I;16", "F")
"""Pillow's modes without colour."""


def open_picture(data: bytes) -> "Image | None":
    """A picture as its file says that it is held upright, or None where Pillow cannot read the file."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures; those that are too large for Pillow are an error
            picture = Image.open(io.BytesIO(data))
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None


def square(picture: "Image", side: int) -> "Image":
    """The middle of a picture: the shorter side becomes ``side``, of the longer one both ends are cut off."""
    from PIL import Image, ImageOps

    if picture.mode in ("1", "P", "PA"):  # numbers of colours cannot be averaged
        picture = picture.convert("RGB" if picture.mode != "1" else "L")
    return ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR)


def pixels(picture: "Image", mode: str | None = None) -> UInt8[Tensor, "C H W"]:
    """A picture's bytes, one to three a pixel.

    Args:
        picture: any.
        mode: "L" for grey, "RGB" for colour; None: as the picture is, for bytes that are no colours.
    """
    found = picture if mode is None else _eight_bits(picture).convert(mode)
    raw = torch.frombuffer(bytearray(found.tobytes()), dtype=torch.uint8)
    return raw.view(found.height, found.width, -1).movedim(-1, 0).contiguous()


def _eight_bits(picture: "Image") -> "Image":
    """Grey in 16 or 32 bits would be cut off at 255: its darkest and lightest pixels become 0 and 255."""
    if picture.mode not in ("I", "I;16", "F"):
        return picture
    wide = picture.convert("F")
    low, high = (float(value) for value in wide.getextrema())  # pyright: ignore[reportArgumentType]
    return wide.point(lambda value: (value - low) * (255 / max(high - low, 1e-9))).convert("L")


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each channel, in the units of bytes."""

    mean: Float[Tensor, " C"]
    deviation: Float[Tensor, " C"]

    @classmethod
    def of(cls, images: UInt8[Tensor, "S C H W"]) -> "Scale":
        """Those of some images; a channel that never varies has deviation 1."""
        counts = torch.stack([image.flatten().bincount(minlength=256) for image in images.unbind(1)]).double()
        shades, total = torch.arange(256).double(), counts.sum(1)
        mean = counts @ shades / total
        deviation = (counts @ shades.square() / total - mean.square()).clamp(min=0).sqrt()
        return cls(mean.float(), torch.where(deviation > 0, deviation, 1.0).float())

    def apply(self, images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Numbers of mean 0 and deviation 1."""
        return (images - self.mean[:, None, None]) / self.deviation[:, None, None]

    def undo(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """What :meth:`apply` made of bytes as shares of 255, to look at."""
        place = images.device
        shades = images * self.deviation.to(place)[:, None, None] + self.mean.to(place)[:, None, None]
        return (shades / 255).clamp(0, 1)
