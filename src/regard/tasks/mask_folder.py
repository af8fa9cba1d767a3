"""The user's own segmentation: a folder ``images`` and a folder ``masks``, with equal file names but for the ending.

A mask is a picture of the same size whose pixels are class numbers from 0, as grey levels or as places in a palette;
255 says that nobody knows.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from regard.tasks.cache import cached
from regard.tasks.documents import LARGEST, Document, InputError, fingerprint, read_documents, read_file
from regard.tasks.labelled import Labelled, split_labelled
from regard.tasks.pictures import GREY, open_picture, pixels
from regard.tasks.segmentation import IGNORED, Tiles

if TYPE_CHECKING:
    from PIL.Image import Image

Pair = tuple[Document, Document]


def read_mask_folder(folder: str | Path, side: int) -> tuple[Tiles, str, list[str]]:
    """Every picture cut into tiles of ``side`` x ``side`` pixels, from its upper left corner.

    Where a picture ends within a tile the rest is black and has no class. Pictures are dealt whole: all tiles of one
    are in the same part. If all are grey they stay so, else all have three colours.

    Args:
        folder: with ``images`` and ``masks``.
        side: of a tile, in pixels.

    Returns:
        The tiles, the rule of their split, and remarks.

    Raises:
        InputError: a folder, an image or its mask is missing or cannot be read, they differ in size, or a mask holds no
            class numbers.
    """
    pairs, remarks = _pairs(Path(folder))
    documents = [document for pair in pairs for document in pair]
    found = cached(f"masks-1-{fingerprint(documents)[:32]}-{side}", lambda: _cut(pairs, side))
    known = found["masks"][found["masks"] != IGNORED]
    count = 1 + int(known.max()) if len(known) else 0
    if count < 2:
        raise InputError(f"the masks in {folder} name {count} class: there must be at least two, numbered from 0")
    split = split_labelled(Labelled(tuple(image for image, _ in pairs), ("images",) * len(pairs)))
    parts = {
        part: torch.isin(found["numbers"], torch.tensor(getattr(split, part))).nonzero()[:, 0]
        for part in ("train", "validation", "test")
    }
    names = tuple(pairs[number][0].name for number in found["numbers"].tolist())
    classes = [f"class {number}" for number in range(count)]
    rule = "by image, in the order of their sha256: a tenth for test and a tenth for validation"
    return Tiles(found["images"], found["masks"], names, classes, parts), rule, remarks


def _pairs(folder: Path) -> tuple[list[Pair], list[str]]:
    """Each image and its mask, by the names without endings."""
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise InputError(f"{folder} has no folder {part}: --task segmentation takes one with images/ and masks/")
    images, remarks = read_documents([folder / "images"])
    masks = {
        path.relative_to(folder / "masks").with_suffix(""): path
        for path in sorted((folder / "masks").rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    pairs: list[Pair] = []
    for image in images:
        path = masks.get(Path(image.name).with_suffix(""))
        if path is None:
            raise InputError(f"images/{image.name} has no mask: there must be a masks/{Path(image.name).stem}.png")
        pairs.append((image, Document(path.name, read_file(path))))
    return pairs, remarks


def _cut(pairs: list[Pair], side: int) -> dict[str, Tensor]:
    """The tiles of all pictures, and the number of the picture that each was cut from."""
    opened = [(_opened("images", image), _opened("masks", mask)) for image, mask in pairs]
    mode = "L" if all(picture.mode in GREY for picture, _ in opened) else "RGB"
    tiles = sum(-(-picture.width // side) * -(-picture.height // side) for picture, _ in opened)
    if tiles * 4 * side**2 > LARGEST:
        raise InputError(f"{tiles:,} tiles of {side} x {side} pixels are more than the {LARGEST:,} bytes of a race")
    images, masks, numbers = list[Tensor](), list[Tensor](), list[int]()
    for number, ((image, _), (picture, mask)) in enumerate(zip(pairs, opened, strict=True)):
        if picture.size != mask.size:
            sizes = " x ".join(map(str, picture.size)), " x ".join(map(str, mask.size))
            raise InputError(f"images/{image.name} has {sizes[0]} pixels, but its mask has {sizes[1]}")
        images.append(_tiles(pixels(picture, mode), side, 0))
        masks.append(_tiles(_class_numbers(mask, image.name)[None], side, IGNORED)[:, 0])
        numbers += [number] * len(images[-1])
    return {"images": torch.cat(images), "masks": torch.cat(masks), "numbers": torch.tensor(numbers)}


def _opened(part: str, document: Document) -> "Image":
    picture = open_picture(document.data)
    if picture is None:
        raise InputError(f"{part}/{document.name} is no image that Pillow can read")
    return picture


def _class_numbers(mask: "Image", name: str) -> UInt8[Tensor, "H W"]:
    """The class of each pixel of a mask."""
    if mask.mode == "1":
        return (pixels(mask, "L")[0] > 0).to(torch.uint8)
    if mask.mode in ("L", "P"):
        return pixels(mask)[0]
    if mask.mode not in ("I", "I;16"):
        raise InputError(f"the mask of images/{name} has colours ({mask.mode}): it must hold one class number a pixel")
    wide = torch.frombuffer(bytearray(mask.convert("I").tobytes()), dtype=torch.int32).view(mask.height, mask.width)
    if wide.min() < 0 or wide.max() > IGNORED:
        raise InputError(f"the mask of images/{name} holds {int(wide.max())}: classes are 0 to 254, and 255 is none")
    return wide.to(torch.uint8)


def _tiles(picture: UInt8[Tensor, "C H W"], side: int, beyond: int) -> UInt8[Tensor, "S C side side"]:
    """Row by row, filled up with ``beyond`` on the right and below."""
    bottom, right = (-length % side for length in picture.shape[1:])
    whole = F.pad(picture, (0, right, 0, bottom), value=beyond)
    return whole.unfold(1, side, side).unfold(2, side, side).flatten(1, 2).movedim(1, 0).contiguous()
