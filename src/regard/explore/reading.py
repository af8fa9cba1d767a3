"""What the user gives: text and sequences as bytes, images as pixels; what does not fit is said in words."""

import base64
import binascii
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from jaxtyping import UInt8
from torch import Tensor

from regard.race.page.looks import one_sign_a_byte
from regard.tasks.documents import InputError
from regard.tasks.pictures import open_picture, pixels, square

LENGTH = 256
"""Bytes that a model here reads."""

JACOBIAN_LENGTH = 96
"""Where a map has to be found by gradients."""

SIDE, PATCH = 32, 2
MOST_PIXELS = 50_000_000


@dataclass(frozen=True)
class Passage:
    """Text as the models read it.

    Attributes:
        data: bytes; at most as many as the model reads.
        remark: what was cut off, or why there is more than meets the eye; may be empty.
    """

    data: bytes
    remark: str = ""

    @property
    def tokens(self) -> Tensor:
        """(1, N)."""
        return torch.tensor([list(self.data)])

    @property
    def signs(self) -> list[str]:
        """One for each byte, as it is shown."""
        return list(one_sign_a_byte(self.data))


def read_text(text: str, most: int = LENGTH, total: int = 0) -> Passage:
    """At most ``most`` bytes of the text, cut between characters.

    Args:
        text: from its beginning.
        most: that the model reads.
        total: bytes of the whole text, where only its beginning is given.

    Raises:
        InputError: there is nothing to read.

    Example:
        >>> read_text("naïve", 3)
        Passage(data=b'na', remark='Cut after 2 of 6 bytes, behind "na": this map takes at most 3.')
    """
    if not text:
        raise InputError("There is nothing to look at yet: type or paste something, or take one of the examples.")
    data = text.encode("utf-8", "replace").replace(b"\0", b" ")
    total = max(total, len(data))
    if len(data) <= most:
        characters = len(data.decode("utf-8", "replace"))
        more = f"{len(data)} bytes for {characters} characters: the models read bytes, and · is a further byte."
        return Passage(data, more if characters != len(data) else "")
    kept = data[:most].decode("utf-8", "ignore").encode()
    end = kept.decode()[-24:].replace("\n", " ")
    return Passage(kept, f'Cut after {len(kept)} of {total:,} bytes, behind "{end}": this map takes at most {most}.')


def read_image(encoded: str) -> tuple[UInt8[Tensor, "1 32 32"], str]:
    """A file's bytes in base 64 as grey pixels, and what was done to them in words.

    Raises:
        InputError: nothing, no image, or one too large to open.
    """
    if not encoded:
        raise InputError("There is no image yet: choose a file, or take one of the examples.")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("The image did not arrive whole: choose it again.") from None
    if find_spec("PIL") is None:
        raise InputError("Images are opened by Pillow, which is not here: pip install 'regard[explore]'.")
    found = open_picture(data)
    if found is None:
        raise InputError("This file is no image that can be opened here: take a PNG, JPEG, WebP, GIF, BMP or TIFF.")
    width, height = found.size
    if width * height > MOST_PIXELS:
        raise InputError(f"{width:,} x {height:,} pixels are more than the {MOST_PIXELS:,} that this page takes.")
    grey = pixels(square(found, SIDE), "L")
    change = "enlarged" if min(width, height) < SIDE else "scaled"
    parts = f"the middle of {width:,} x {height:,} pixels" if width != height else f"{width:,} x {height:,} pixels"
    return grey, f"The model sees {parts} in grey, {change} to {SIDE} x {SIDE}, in patches of {PATCH} x {PATCH}."


def pixels_as_text(image: UInt8[Tensor, "1 S S"]) -> str:
    """Grey bytes, row by row, in base 64."""
    return base64.b64encode(image.numpy().tobytes()).decode()
