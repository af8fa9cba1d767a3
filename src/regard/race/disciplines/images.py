"""``--task images``: name the class of an image, of clothes or of the user's own."""

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.race.discipline import MAP_FIELD, Discipline, Prepared, Published, fitted_to_map
from regard.tasks.documents import InputError
from regard.tasks.fashion_mnist import CLASSES, DIGEST, Pictures, fashion_mnist, holds_digits
from regard.tasks.image_folder import read_image_folder
from regard.tasks.images import Images, LabelledImages
from regard.tasks.shapes import KINDS, draw_shapes

if TYPE_CHECKING:
    from regard.race.settings import Settings

PATCH = 4
VALIDATION = 5_000
"""Of the images that the authors of Fashion-MNIST give to learn from: the last ones."""

TEST = {"small": 2_000, "full": None}
SMOKE = {"train": 48, "validation": 8, "test": 16}

PUBLISHED = Published(
    "README of zalandoresearch/fashion-mnist, as submitted there",
    (
        ("wide residual network, 8.9 M parameters", 0.967),
        ("residual network of 18 layers", 0.949),
        ("two convolutions, fewer than 100 K parameters", 0.925),
        ("perceptron of three layers", 0.900),
        ("people without knowledge of fashion", 0.835),
    ),
    "Measured on all 10,000 images, after training to convergence.",
)


def prepare(settings: "Settings") -> Prepared:
    """Read the images of a race, or draw those of a smoke run.

    Raises:
        InputError: see :mod:`regard.tasks`.
    """
    if settings.ngram != 1:
        raise InputError(f"--ngram {settings.ngram}: a patch of an image is read by itself; leave it out")
    if settings.smoke:
        return _drawn(settings)
    if not settings.files or holds_digits(settings.files):
        return _fashion(settings)
    found, rule, remarks = read_image_folder(settings.files, settings.length)
    return _prepared(settings, found, f"{', '.join(settings.files)} ({len(found.classes)} classes)", rule, remarks)


def _fashion(settings: "Settings") -> Prepared:
    pictures = fashion_mnist(settings.files[0] if settings.files else None)
    known = pictures.digest == DIGEST
    train, test = (_sized(images, settings.length) for images in (pictures.train_images, pictures.test_images))
    counts = _counts(pictures)
    found = LabelledImages(
        torch.cat((train, test)),
        torch.cat((pictures.train_labels, pictures.test_labels)),
        CLASSES if known else tuple(map(str, range(1 + int(pictures.train_labels.max())))),
        dict(zip(counts, torch.arange(sum(counts.values())).split(list(counts.values())), strict=True)),
    )
    name = "Fashion-MNIST" if known else f"{settings.files[0]}, in the format of MNIST"
    judged = TEST[settings.scale]
    first = "" if judged is None else f", of which the first {judged:,} are judged; --scale full takes all"
    rule = f"as published: 10,000 images for test{first}; the last 5,000 of the others for validation"
    if not known:
        rule = f"test is what its files say{first}; the last {counts['validation']:,} of the others for validation"
    remarks = [] if train.shape[-1] == pictures.train_images.shape[-1] else ["images are scaled to --length"]
    return _prepared(settings, found, name, rule, remarks, judged, PUBLISHED if known else None)


def _counts(pictures: Pictures) -> dict[str, int]:
    validation = min(VALIDATION, len(pictures.train_images) // 10)
    sizes = len(pictures.train_images) - validation, validation, len(pictures.test_images)
    return dict(zip(("train", "validation", "test"), sizes, strict=True))


def _sized(images: Tensor, side: int) -> Tensor:
    """Square images (S, 1, side, side)."""
    if images.shape[1:] == (side, side):
        return images[:, None]
    pieces = [
        F.interpolate(some[:, None].float(), (side, side), mode="bilinear", antialias=True).round().to(torch.uint8)
        for some in images.split(4096)
    ]
    return torch.cat(pieces)


def _drawn(settings: "Settings") -> Prepared:
    images, kinds, _ = draw_shapes(sum(SMOKE.values()), settings.length, settings.seed)
    numbers = torch.arange(len(images)).split(list(SMOKE.values()))
    found = LabelledImages(images, kinds, KINDS, dict(zip(SMOKE, numbers, strict=True)))
    remarks = ["a handful of drawn images: numbers that mean nothing"]
    return _prepared(settings, found, f"drawn shapes, seed {settings.seed}", "in the order of drawing", remarks)


def _prepared(
    settings: "Settings",
    found: LabelledImages,
    name: str,
    rule: str,
    remarks: list[str],
    judged: int | None = None,
    published: Published | None = None,
) -> Prepared:
    task = Images(found, patch=PATCH, batch=settings.batch, seed=settings.seed, test_images=judged)
    return Prepared(
        task,
        name,
        found.digest,
        rule,
        task.sizes(),
        baselines=task.baselines,
        bar="nearest class mean",
        published=published,
        remarks=remarks,
    )


IMAGES = Discipline(
    name="images",
    question="Which attention recognises images?",
    goal="name the class of an image",
    causal=False,
    field=partial(fitted_to_map, MAP_FIELD, patch=PATCH),
    control=True,
    takes=frozenset({"files", "scale"}),
    defaults={"length": 28, "ngram": 1, "batch": 32, "dim": 64, "learning_rate": 3e-3},
    full={"batch": 128, "steps": 20_000, "depth": 6, "dim": 128, "learning_rate": 1e-3},
    smoke={"length": 16, "steps": 5, "dim": 16, "depth": 1, "num_heads": 2, "batch": 4},
    prepare=prepare,
    data=("map", "sequence"),
    patch=PATCH,
)
