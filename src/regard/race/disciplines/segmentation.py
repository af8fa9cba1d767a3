"""``--task segmentation``: name the class of each pixel, of the earth from above or of the user's own pictures."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from regard.race.discipline import MAP_FIELD, Discipline, Prepared, fitted_to_map
from regard.tasks.blue_marble import PICTURE, RULE, blue_marble
from regard.tasks.documents import InputError
from regard.tasks.mask_folder import read_mask_folder
from regard.tasks.segmentation import Segmentation, Tiles
from regard.tasks.shapes import KINDS, draw_shapes

if TYPE_CHECKING:
    from regard.race.settings import Settings

PATCH = 4
SMOKE = {"train": 24, "validation": 8, "test": 16}


def prepare(settings: "Settings") -> Prepared:
    """Read the tiles of a race, or draw those of a smoke run.

    Raises:
        InputError: see :mod:`regard.tasks`.
    """
    if settings.ngram != 1:
        raise InputError(f"--ngram {settings.ngram}: a patch of an image is read by itself; leave it out")
    if len(settings.files) > 1:
        raise InputError(f"--task segmentation takes one folder, got {len(settings.files)}")
    folder = settings.files[0] if settings.files else None
    side, items, remarks = settings.length, "tiles", list[str]()
    if settings.smoke:
        found, name, rule = (
            _drawn(side, settings.seed),
            f"drawn shapes, seed {settings.seed}",
            "in the order of drawing",
        )
        remarks = ["a handful of drawn images: numbers that mean nothing"]
    elif folder is None or (Path(folder) / PICTURE).exists():
        found, rule = blue_marble(folder, side), RULE
        name = f"Blue Marble, {len(found.images):,} coasts of {side} x {side} pixels in grey"
        remarks = ["a pixel is 2.5 minutes of arc: 4.6 km from north to south, and less from west to east"]
    else:
        found, rule, remarks = read_mask_folder(folder, side)
        name, items = f"{folder} ({len(found.classes)} classes)", "images"
        remarks.insert(0, f"{len(found.images):,} tiles of {side} x {side} pixels")
    task = Segmentation(found, patch=PATCH, batch=settings.batch, seed=settings.seed, items=items)
    return Prepared(task, name, found.digest, rule, task.sizes(), baselines=task.baselines, remarks=remarks)


def _drawn(side: int, seed: int) -> Tiles:
    images, _, masks = draw_shapes(sum(SMOKE.values()), side, seed)
    numbers = torch.arange(len(images)).split(list(SMOKE.values()))
    parts = dict(zip(SMOKE, numbers, strict=True))
    return Tiles(images, masks, tuple(map(str, range(len(images)))), ("ground", *KINDS), parts)


SEGMENTATION = Discipline(
    name="segmentation",
    question="Which attention finds its way in an image?",
    goal="name the class of every pixel",
    causal=False,
    field=partial(fitted_to_map, MAP_FIELD, patch=PATCH),
    control=True,
    takes=frozenset({"files"}),
    defaults={"length": 128, "ngram": 1, "batch": 4, "dim": 64, "learning_rate": 3e-3},
    full={},
    smoke={"length": 32, "steps": 5, "dim": 16, "depth": 1, "num_heads": 2, "batch": 2},
    prepare=prepare,
    data=("map", "sequence"),
    patch=PATCH,
)
