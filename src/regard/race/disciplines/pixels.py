"""``--task pixels``: predict images pixel by pixel, Fashion-MNIST or the user's own, in bits per dimension."""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.race.discipline import CAUSAL_FIELD, Discipline, Prepared, fitted
from regard.tasks.documents import Document, InputError, printable, read_documents
from regard.tasks.fashion_mnist import DIGEST, fashion_mnist, holds_digits
from regard.tasks.pictures import open_picture, pixels, square
from regard.tasks.pixels import GreyImages, Pixels
from regard.tasks.shapes import draw_shapes

if TYPE_CHECKING:
    from regard.race.settings import Settings

FASHION_SIDE = 28
TEST_IMAGES = {"small": 64, "full": None}
SMOKE = (16, 4, 8)
LEAST = 10
"""Images of the user's own: a tenth is held out, and another."""


def prepare(settings: "Settings") -> Prepared:
    """Read the images of a race, or draw those of a smoke run.

    Raises:
        InputError: a length that is no square, or images that are missing or too few.
    """
    side = math.isqrt(settings.length)
    if side * side != settings.length:
        raise InputError(f"--length {settings.length}: the pixels of an image with equal sides, such as 784 = 28 x 28")
    remarks: list[str] = []
    if settings.smoke:
        images = draw_shapes(sum(SMOKE), side, settings.seed)[0][:, 0]
        found, name, rule = GreyImages(*images.split(SMOKE)), f"drawn shapes, seed {settings.seed}", "in their order"
        remarks.append("a handful of drawn images: numbers that mean nothing")
    elif not settings.files or holds_digits(settings.files):
        found, name, rule = _fashion(settings, side)
    else:
        found, name, rule, remarks = _own(settings, side)
    judged = TEST_IMAGES[settings.scale]
    task = Pixels(found, batch=settings.batch, seed=settings.seed, test_images=judged)
    if judged is not None and judged < len(found.test):
        rule += f"; an even selection of {judged} of the {len(found.test):,} test images is judged"
    return Prepared(
        task,
        f"{name}, {side} x {side} grey pixels",
        found.digest,
        rule,
        task.sizes(),
        baselines=lambda: dict[str, float | None](task.baselines()),
        remarks=remarks,
    )


def _fashion(settings: "Settings", side: int) -> tuple[GreyImages, str, str]:
    pictures = fashion_mnist(settings.files[0] if settings.files else None)
    height, width = pictures.train_images.shape[1:]
    if (height, width) != (side, side):
        raise InputError(f"--length {settings.length}: these images have {height} x {width} = {height * width} pixels")
    last = len(pictures.train_images) // 12
    known = pictures.digest == DIGEST
    name = "Fashion-MNIST" if known else f"{printable(settings.files[0])}, in the format of MNIST"
    found = GreyImages(pictures.train_images[:-last], pictures.train_images[-last:], pictures.test_images)
    return found, name, f"test as published; the last {last:,} of the others for validation"


def _own(settings: "Settings", side: int) -> tuple[GreyImages, str, str, list[str]]:
    """Any files that Pillow can read, in the order of their sha256, which depends on nothing but their content."""
    documents, remarks = read_documents(settings.files)
    images = [_grey(document, side) for document in sorted(documents, key=lambda document: document.digest)]
    there = [image for image in images if image is not None]
    if len(there) < len(images):
        remarks.append(f"left out {len(images) - len(there):,} files that are no images that Pillow can read")
    if len(there) < LEAST:
        raise InputError(f"{len(there)} images in {', '.join(settings.files)}: at least {LEAST} are needed")
    held = len(there) // 10
    test, validation, train = torch.stack(there).split([held, held, len(there) - 2 * held])
    rule = "in the order of their sha256: the first tenth for test, the second for validation"
    remarks.append("the shorter side is scaled to the square, of the longer one the middle is kept")
    return GreyImages(train, validation, test), printable(", ".join(settings.files)), rule, remarks


def _grey(document: Document, side: int) -> Tensor | None:
    picture = open_picture(document.data)
    return None if picture is None else pixels(square(picture, side), "L")[0]


PIXELS = Discipline(
    name="pixels",
    question="Which attention predicts images?",
    goal="predict the next pixel",
    causal=True,
    field=partial(fitted, CAUSAL_FIELD),
    control=True,
    takes=frozenset({"files", "scale"}),
    defaults={"length": FASHION_SIDE**2, "batch": 2, "dim": 64},
    full={"batch": 16, "steps": 50_000, "dim": 256, "depth": 6, "num_heads": 8, "learning_rate": 1e-3},
    smoke={"length": 64, "steps": 5, "dim": 32, "depth": 1, "num_heads": 2, "batch": 2},
    prepare=prepare,
)
