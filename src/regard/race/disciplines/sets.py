"""``--task sets``: questions about sets of points, as Set Transformer was measured; a word says which one."""

from functools import partial
from typing import TYPE_CHECKING, get_args

from regard.models.deep_sets import Pool
from regard.race.discipline import Discipline, Prepared, fitted
from regard.race.rivals import trained
from regard.tasks.documents import InputError, printable
from regard.tasks.fashion_mnist import DIGEST, fashion_mnist
from regard.tasks.mixtures import Mixtures
from regard.tasks.point_sets import PointSets
from regard.tasks.sets import DrawnSets, Maximum, Sets

if TYPE_CHECKING:
    from regard.race.settings import Settings

OBJECTIVES = ("clusters", "max", "fashion")
"""The words; the first is the default."""

FIELD = (
    *("full", "set_transformer:num_inducing=16", "linear_transformer", "performer"),
    *("linformer", "nystrom", "clustered", "reformer"),
)
"""Every pair; a few learned points between; a kernel; random features; mixtures and means of points in the order in
which they come; clusters; hashing."""

DRAWN = "drawn from a seed of its own; the sets of training are new at every step"
ORDER = "the points come in random order: who mixes or averages points by their place (linformer, nystrom) mixes any"
RIVALS = (
    "beside the entrants, networks that look at each point alone and pool (deep sets) train as long as each of them"
)

TEST_SETS = {"small": 1_000, "full": None}


def prepare(settings: "Settings") -> Prepared:
    """Draw the sets of a race, or read the pictures that become sets.

    Raises:
        InputError: an unknown objective, or data that is missing.
    """
    if settings.ngram != 1:
        raise InputError(f"--ngram {settings.ngram}: a point of a set is read by itself; leave it out")
    objective, *rest = settings.files or OBJECTIVES[:1]
    if objective not in OBJECTIVES:
        raise InputError(f"--task sets is about one of {', '.join(OBJECTIVES)}, not {printable(objective)!r}")
    if len(rest) > (objective == "fashion"):
        takes = "at most one folder" if objective == "fashion" else "nothing"
        raise InputError(f"{objective} of --task sets takes {takes} behind it, got {printable(', '.join(rest))}")
    if objective == "fashion":
        return _pictures(settings, rest[0] if rest else None)
    sizes = {"length": settings.length, "batch": settings.batch, "seed": settings.seed}
    if objective == "max":
        most = f"1 to {Maximum.largest_set} integers of 1 to {Maximum.largest_number}"
        name = f"the largest of {most}, seed {settings.seed}"
        return _drawn(settings, Maximum(**sizes), name, f"as many sets a step as hold {settings.portion('points')}")
    name = f"mixtures of {Mixtures.num_outputs} Gaussians, {settings.length // 2:,} to {settings.length - 1:,} points"
    return _drawn(settings, Mixtures(**sizes), f"{name}, seed {settings.seed}", "the sets of a batch are of one size")


def _drawn(settings: "Settings", task: DrawnSets, name: str, remark: str) -> Prepared:
    baselines = partial(_baselines, settings, task)
    return Prepared(
        task, name, task.digest(), DRAWN, task.sizes(), baselines=baselines, remarks=[remark, ORDER, RIVALS]
    )


def _pictures(settings: "Settings", folder: str | None) -> Prepared:
    found, judged = fashion_mnist(folder), TEST_SETS[settings.scale]
    sizes = {"length": settings.length, "batch": settings.batch, "seed": settings.seed}
    if int(max(found.train_labels.max(), found.test_labels.max())) >= PointSets.dim_output:
        raise InputError(f"--task sets knows {PointSets.dim_output} classes, but there are more in {folder}")
    task = PointSets(found, **sizes, test_sets=judged)
    name = "Fashion-MNIST" if found.digest == DIGEST else f"{printable(folder or '')}, in the format of MNIST"
    first = "" if judged is None else f", of which the first {judged:,} are judged; --scale full takes all"
    return Prepared(
        task,
        f"{name} as sets of pixels, at most {settings.length:,} of those that are not black",
        found.digest,
        f"test as published{first}; the last {len(task.parts['validation'][0]):,} of the others for validation",
        task.sizes(),
        baselines=partial(_baselines, settings, task),
        bar="number of points and mean grey",
        remarks=[ORDER, RIVALS],
    )


def _baselines(settings: "Settings", task: Sets) -> dict[str, float | None]:
    """What learns nothing, and what learns without any point seeing another."""
    found: dict[str, float | None] = dict(task.baselines())
    pools: tuple[Pool, ...] = get_args(Pool)
    return found | {
        f"deep sets, {pool}": trained(settings, task, partial(task.rival, settings.dim, pool)) for pool in pools
    }


SETS = Discipline(
    name="sets",
    question="Which attention understands sets?",
    goal="answer for a whole set of points",
    causal=False,
    field=partial(fitted, FIELD),
    control=True,
    takes=frozenset({"files", "scale"}),
    defaults={"length": 128, "ngram": 1, "batch": 16, "dim": 64},
    full={"length": 600, "batch": 10, "steps": 50_000, "dim": 128, "learning_rate": 1e-3},
    smoke={"length": 24, "steps": 5, "dim": 16, "depth": 1, "num_heads": 2, "batch": 4},
    prepare=prepare,
    data=("set", "sequence"),
)
