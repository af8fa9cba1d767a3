"""``--task fewshot``: name the class of an image by a few examples of classes that nobody has learned from."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.models.fewshot import STRIDE, FewShotNet
from regard.race.discipline import Discipline, Prepared
from regard.race.rivals import trained
from regard.tasks.documents import InputError, printable
from regard.tasks.fashion_mnist import CLASSES, DIGEST, fashion_mnist, holds_digits
from regard.tasks.fewshot import UNSEEN, ClassPool, Episodes, unseen
from regard.tasks.image_folder import read_image_folder
from regard.tasks.shapes import KINDS, draw_shapes

if TYPE_CHECKING:
    from regard.race.settings import Settings

FIELD = (
    *("full", "cross_attention_fewshot", "co_attention", "linear_transformer"),
    *("performer", "linformer:rank=8", "nystrom:num_landmarks=8", "efficient_attention"),
)

QUERIES = 5
"""Of each class in an episode to learn from, where it has as many images."""

TEST_EPISODES = {"small": 1_000, "full": 5_000}
SMOKE_EPISODES, SMOKE_IMAGES = 4, 120
VALIDATION = 1 / 5
"""Of the images of a class of the user's own that is learned from."""

NETWORK = "prototype network"
RIVAL = f"beside the entrants, a {NETWORK}, the same backbone whose maps do not meet, trains as long as each of them"
SCORE = "all entrants learn by the cross entropy of their scores alone, also those whose papers have further losses"


def prepare(settings: "Settings") -> Prepared:
    """Read the images of a race, or draw those of a smoke run.

    Raises:
        InputError: see :mod:`regard.tasks`; or too few classes, or images of a class.
    """
    if settings.ngram != 1:
        raise InputError(f"--ngram {settings.ngram}: a pixel of an image is read by itself; leave it out")
    shots, files = _shots(settings.files)
    if settings.smoke:
        return _prepared(settings, _drawn(settings), shots, f"drawn shapes, seed {settings.seed}", SMOKE_EPISODES)
    judged = TEST_EPISODES[settings.scale]
    if files and not holds_digits(files):
        found, remarks = _own(files, settings.length, shots)
        return _prepared(settings, found, shots, printable(", ".join(files)), judged, remarks)
    found, name = _fashion(files[0] if files else None, settings.length)
    return _prepared(settings, found, shots, name, judged)


def _shots(files: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """The number of examples by a first word such as "5-shot", and the rest."""
    word = re.fullmatch(r"(\d+)-shot", files[0]) if files else None
    if word is None:
        return 1, tuple(files)
    if word[1].strip("0") == "":
        raise InputError(f"{files[0]}: a class needs an example, such as 1-shot")
    return int(word[1]), tuple(files[1:])


def _fashion(folder: str | None, side: int) -> tuple[ClassPool, str]:
    """Learn from what is given to learn from; validate and test on what is given for test."""
    pictures = fashion_mnist(folder)
    known = pictures.digest == DIGEST
    if pictures.train_images.shape[1:] != (side, side):
        sides = " x ".join(map(str, pictures.train_images.shape[1:]))
        raise InputError(f"--length {side}: these images have {sides} pixels, which stay as they are")
    labels = torch.cat((pictures.train_labels, pictures.test_labels)).long()
    classes = CLASSES if known else tuple(map(str, range(1 + int(labels.max()))))
    first = torch.arange(len(labels)) < len(pictures.train_labels)
    members: dict[str, dict[int, Tensor]] = {"train": {}, "validation": {}, "test": {}}
    for number in range(len(classes)):
        shares = {"test": ~first} if number in unseen(classes) else {"train": first, "validation": ~first}
        for part, some in shares.items():
            members[part][number] = (some & (labels == number)).nonzero().flatten()
    images = torch.cat((pictures.train_images, pictures.test_images))[:, None]
    return ClassPool(images, classes, members), "Fashion-MNIST" if known else f"{folder}, in the format of MNIST"


def _own(files: Sequence[str], side: int, shots: int) -> tuple[ClassPool, list[str]]:
    """A folder with a subfolder for each class; of those learned from, a fifth by sha256 is for validation."""
    found, _, remarks = read_image_folder(files, side)
    order = torch.cat([found.parts[part] for part in ("validation", "test", "train")])
    return ClassPool(found.images, found.classes, _parts(found.labels, order, found.classes, shots)), remarks


def _drawn(settings: "Settings") -> ClassPool:
    """Shapes, and shapes in negative, as six classes."""
    images, kinds, _ = draw_shapes(SMOKE_IMAGES, settings.length, settings.seed)
    negative = torch.arange(len(images)) % 2
    images = torch.where(negative[:, None, None, None] == 1, 255 - images, images)
    classes = (*KINDS, *(f"dark {kind}" for kind in KINDS))
    labels = kinds.long() + len(KINDS) * negative
    return ClassPool(images, classes, _parts(labels, torch.arange(len(images)), classes, 1))


def _parts(labels: Tensor, order: Tensor, classes: Sequence[str], shots: int) -> dict[str, dict[int, Tensor]]:
    """The images of each part by class, in an order that is given."""
    if len(classes) < 4:
        raise InputError(f"{len(classes)} classes: --task fewshot learns from two at least and is tested on two others")
    members: dict[str, dict[int, Tensor]] = {"train": {}, "validation": {}, "test": {}}
    for number, name in enumerate(classes):
        own = order[labels[order] == number]
        held = max(shots + 1, int(VALIDATION * len(own)))
        if len(own) < 2 * (shots + 1):
            raise InputError(
                f"class {name!r} has {len(own)} different images: {2 * (shots + 1)} are the least for {shots}-shot"
            )
        if number in unseen(classes):
            members["test"][number] = own
        else:
            members["train"][number], members["validation"][number] = own[:-held], own[-held:]
    return members


def _prepared(
    settings: "Settings", found: ClassPool, shots: int, name: str, judged: int, remarks: Sequence[str] = ()
) -> Prepared:
    fewest = min(len(images) for members in found.parts.values() for images in members.values())
    if fewest <= shots:
        raise InputError(f"a class has {fewest} images of one part: {shots + 1} are the least for {shots}-shot")
    sizes = {"shots": shots, "queries": min(QUERIES, fewest - shots), "batch": settings.batch, "seed": settings.seed}
    task = Episodes(found, **sizes, test_episodes=judged)
    names = {part: ", ".join(found.classes[number] for number in members) for part, members in found.parts.items()}
    if settings.smoke:
        remarks = ["a handful of drawn images: numbers that mean nothing", *remarks]
    return Prepared(
        task,
        f"{name}, {task.ways}-way {shots}-shot",
        found.digest,
        f"by class: {names['test']}, the first {UNSEEN:.0%} in the order of the sha256 of their names, are unseen; "
        f"learned from are {names['train']}, of which other images are for validation",
        task.sizes(),
        baselines=partial(_baselines, settings, task),
        bar="nearest mean image",
        remarks=[*remarks, RIVAL, SCORE],
    )


def _baselines(settings: "Settings", task: Episodes) -> dict[str, float | None]:
    """What learns nothing, and the network in which nothing meets."""
    apart = partial(task.model, settings.dim, settings.depth, settings.num_heads, None)
    return {**task.baselines(), NETWORK: trained(settings, task, apart)}


def _trial(mechanism: str, options: Mapping[str, Any], settings: "Settings") -> None:
    """The model itself refuses what does not answer two maps of this size."""
    image = torch.zeros(1, 1, 1, settings.length, settings.length)
    model = FewShotNet(1, settings.dim, settings.num_heads, settings.length, mechanism, shots=1, **options)
    model.eval()(image, context=image)


FEWSHOT = Discipline(
    name="fewshot",
    question="Which attention compares images best?",
    goal="name the class of an image by a few examples of new classes",
    causal=False,
    field=lambda length: FIELD,
    control=False,
    takes=frozenset({"files", "scale"}),
    defaults={"length": 28, "ngram": 1, "batch": 4, "dim": 32, "learning_rate": 3e-3},
    full={"steps": 20_000, "dim": 64, "learning_rate": 1e-3},
    smoke={"length": 16, "steps": 5, "dim": 16, "depth": 1, "num_heads": 2, "batch": 2},
    prepare=prepare,
    data=("pair", "map", "sequence", "set"),
    patch=STRIDE,
    trial=_trial,
    make="regard.models.across",
)
