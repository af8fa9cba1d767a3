"""The user's own images: a folder with a subfolder for each class, any files that Pillow can read, of any sizes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from regard.tasks.cache import cached
from regard.tasks.documents import LARGEST, Document, InputError, fingerprint
from regard.tasks.images import LabelledImages
from regard.tasks.labelled import Labelled, read_labelled, split_labelled
from regard.tasks.pictures import GREY, open_picture, pixels, square

NAMED = 3
"""So many files that are no images are named."""


def read_image_folder(paths: Sequence[str | Path], side: int) -> tuple[LabelledImages, str, list[str]]:
    """Images of ``side`` x ``side`` pixels: the shorter side is scaled to it, of the longer one the middle is kept.

    If all are grey they stay so, else all have three colours; what is transparent is as its file says beneath. Files
    with equal content are kept once, files that are no images are left out and named.

    Args:
        paths: one folder with a subfolder for each class, or the folders of several classes.
        side: in pixels.

    Returns:
        The images, the rule of their split (:func:`regard.tasks.labelled.split_labelled`), and remarks.

    Raises:
        InputError: not such a folder, too much to hold in memory, or too few images of a class.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"{path} is not a folder: --task images takes one with a subfolder for each class")
    found = read_labelled(paths)
    if len(found.documents) * 3 * side**2 > LARGEST:
        size = f"{len(found.documents):,} images of {side} x {side} pixels"
        raise InputError(f"{size} are more than the {LARGEST:,} bytes that a race holds: choose a smaller --length")
    decoded = cached(f"images-1-{fingerprint(found.documents)[:32]}-{side}", lambda: _decode(found.documents, side))
    numbers = decoded["numbers"].tolist()
    remarks = [*found.remarks, *_left_out(found, set(numbers))]
    kept = Labelled(
        tuple(found.documents[number] for number in numbers), tuple(found.labels[number] for number in numbers)
    )
    if len(kept.classes) < 2:
        raise InputError(f"{paths[0]} holds images of {len(kept.classes)} class: a classifier needs at least two")
    split = split_labelled(kept)
    parts = {part: torch.tensor(getattr(split, part)) for part in ("train", "validation", "test")}
    labels = torch.tensor([kept.classes.index(label) for label in kept.labels])
    return LabelledImages(decoded["images"], labels, kept.classes, parts), split.rule, remarks


def _decode(documents: Sequence[Document], side: int) -> dict[str, Tensor]:
    """The images among the documents, and which ones they are."""
    found = [(number, open_picture(document.data)) for number, document in enumerate(documents)]
    squares = [(number, square(picture, side)) for number, picture in found if picture is not None]
    if not squares:
        raise InputError(f"none of {len(documents):,} files is an image that Pillow can read")
    mode = "L" if all(picture.mode in GREY for _, picture in squares) else "RGB"
    images = torch.stack([pixels(picture, mode) for _, picture in squares])
    return {"images": images, "numbers": torch.tensor([number for number, _ in squares])}


def _left_out(found: Labelled, kept: set[int]) -> list[str]:
    """The files that are no images, by name."""
    names = [document.name for number, document in enumerate(found.documents) if number not in kept]
    if not names:
        return []
    others = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return [f"left out, because they are no images that Pillow can read: {', '.join(names[:NAMED])}{others}"]
