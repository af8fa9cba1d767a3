"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28 pixels, in 10 classes of equal size.

Xiao et al. 2017, arXiv:1708.07747. The four files of the authors (MIT licence), as Debian's package
``dataset-fashion-mnist`` has them; any other data in the same format, such as MNIST, is read as well.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from regard.tasks.documents import InputError, read_file

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian puts them."""

CLASSES = (
    *("t-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "trainer", "bag", "ankle boot"),
)

DIGEST = "b0d41118f81573740b4beb06d764d870263f17195dc79a12ff73a5e90a22861f"
"""sha256 of the published images and labels, see :attr:`Pictures.digest`."""

_UNSIGNED_BYTES = 8  # the only type of number that these files hold


class Pictures(NamedTuple):
    """Grey images (S, H, W) with a class each, to learn from and to be judged on."""

    train_images: UInt8[Tensor, "S H W"]
    train_labels: UInt8[Tensor, " S"]
    test_images: UInt8[Tensor, "T H W"]
    test_labels: UInt8[Tensor, " T"]

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        total = hashlib.sha256()
        for part in self:
            total.update(f"{tuple(part.shape)}\0".encode())
            total.update(part.numpy().tobytes())
        return total.hexdigest()


def holds_digits(files: Sequence[str]) -> bool:
    """Whether one folder was named that holds files in the format of MNIST instead of images."""
    return len(files) == 1 and any((Path(files[0]) / f"train-images-idx3-ubyte{end}").exists() for end in ("", ".gz"))


def fashion_mnist(folder: str | Path | None = None) -> Pictures:
    """Read the four files, packed (.gz) or not.

    Args:
        folder: that holds them; None: where Debian's package puts them.

    Raises:
        InputError: a file is missing or damaged; the message says how to get them.
    """
    place = FOLDER if folder is None else Path(folder)
    parts: list[Tensor] = []
    for part in ("train", "t10k"):
        images = _read(place, f"{part}-images-idx3-ubyte", axes=3)
        labels = _read(place, f"{part}-labels-idx1-ubyte", axes=1)
        if len(images) != len(labels):
            raise InputError(f"{place} has {len(images):,} {part} images, but {len(labels):,} labels")
        parts += [images, labels]
    return Pictures(*parts)


def _read(folder: Path, name: str, axes: int) -> UInt8[Tensor, "*S"]:
    """One file: two zero bytes, the type of number, how many axes, four bytes with the length of each, the numbers."""
    packed, plain = folder / f"{name}.gz", folder / name
    if not packed.exists() and not plain.exists():
        raise InputError(
            f"Fashion-MNIST is missing: there is no {packed}; apt-get install dataset-fashion-mnist, or without root "
            "apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fm, and name the folder "
            "fm/usr/share/datasets/fashion-mnist"
        )
    path = packed if packed.exists() else plain
    try:
        data = gzip.decompress(read_file(path)) if path == packed else read_file(path)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    start = 4 + 4 * axes
    shape = [int.from_bytes(data[place : place + 4], "big") for place in range(4, start, 4)]
    if data[:4] != bytes((0, 0, _UNSIGNED_BYTES, axes)) or len(data) != start + math.prod(shape) or 0 in shape:
        raise InputError(f"{path} is damaged: it does not hold {axes} axes of bytes, as its name says")
    return torch.frombuffer(bytearray(data[start:]), dtype=torch.uint8).view(shape)
