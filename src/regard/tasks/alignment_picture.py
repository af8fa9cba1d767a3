"""An alignment as a picture: target tokens downwards, source tokens to the right, dark where one looks at the other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from regard.tasks.gallery import STRONG, WEAK

if TYPE_CHECKING:
    from PIL import Image

CELL, SIZE, GAP = 14, 11, 3
"""Pixels: the side of a cell, the height of the letters, and between words and cells."""


def alignment_picture(
    weights: Float[Tensor, "T S"], rows: Sequence[str], columns: Sequence[str]
) -> UInt8[Tensor, "H W 3"]:
    """Weights from 0 to 1 with the tokens written beside them.

    Args:
        weights: of target tokens over source tokens; what is beyond 0 and 1 is drawn as these.
        rows, columns: the tokens.

    Raises:
        ValueError: not as many tokens as weights.

    Example:
        >>> alignment_picture(torch.eye(2), ["die", "Datei"], ["the", "file"]).shape[2]
        3
    """
    from PIL import Image

    if weights.shape != (len(rows), len(columns)):
        raise ValueError(f"weights of shape {tuple(weights.shape)} for {len(rows)} and {len(columns)} tokens")
    labels, titles = [_written(token) for token in rows], [_written(token).rotate(90, expand=True) for token in columns]
    left = max((label.width for label in labels), default=0) + GAP
    top = max((title.height for title in titles), default=0) + GAP
    canvas = Image.new("RGB", (left + CELL * len(columns) + GAP, top + CELL * len(rows) + GAP), WEAK)
    for number, label in enumerate(labels):
        canvas.paste(label, (left - GAP - label.width, top + CELL * number + (CELL - label.height) // 2))
    for number, title in enumerate(titles):
        canvas.paste(title, (left + CELL * number + (CELL - title.width) // 2, top - GAP - title.height))
    picture = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(canvas.height, canvas.width, 3)
    cells = _cells(weights.float())
    picture[top : top + CELL * len(rows), left : left + CELL * len(columns)] = cells
    return picture


def _cells(weights: Float[Tensor, "T S"]) -> UInt8[Tensor, "H W 3"]:
    """A square for each weight, with a line between squares."""
    weak, strong = (torch.tensor(colour, dtype=torch.float32) for colour in (WEAK, STRONG))
    colours = (weak + weights.nan_to_num(0.0).clamp(0, 1)[..., None] * (strong - weak)).round().to(torch.uint8)
    squares = colours.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    lines = torch.tensor([225, 222, 212], dtype=torch.uint8)
    squares[CELL - 1 :: CELL] = lines
    squares[:, CELL - 1 :: CELL] = lines
    return squares


def _written(token: str) -> "Image.Image":
    """A token as a small picture of its own; a space before a word is not seen."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(SIZE)
    text = token.strip() or "·"
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (SIZE, 0)
    image = Image.new("RGB", (max(1, round(right - left)), ascent + descent), WEAK)
    ImageDraw.Draw(image).text((-left, 0), text, fill=(40, 40, 40), font=font)
    return image
