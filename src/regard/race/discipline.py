"""What a race is about: one discipline for each value of ``--task``, in a file of its own below ``disciplines/``.

A discipline brings everything that depends on the task: its words, its default sizes and field, and the function that
makes the data. Nothing else in the race asks which task it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regard.registry import Data
from regard.tasks.task import Task

if TYPE_CHECKING:
    from regard.race.settings import Settings

CAUSAL_FIELD = (
    *("full", "local", "sparse_transformer", "longformer", "bigbird"),
    *("linear_transformer", "performer", "reformer"),
)
"""Who runs where nobody was named: one for each idea that has a causal form. Every pair; a window; strides; a window
with global tokens; random blocks; a kernel; random features; hashing. With the control these are nine runs, and a race
stays below four minutes however many mechanisms there are."""

ENCODER_FIELD = (
    *("full", "local", "longformer", "bigbird"),
    *("linear_transformer", "performer", "linformer", "reformer"),
)
"""The same where everything may be seen at once; for strides a low-rank mixture of the keys, which cannot be causal."""

MAP_FIELD = (
    *("full", "neighborhood", "halonet", "criss_cross", "axial"),
    *("efficient_attention", "lambda_networks", "kronecker"),
)
"""The same on images. Every pair; a window around each place; blocks with a halo; the row and column of each place;
rows, then columns; a kernel; weights by position; the means of rows and columns."""


_SIZES = {
    "local": {"window": 8},
    "sparse_transformer": {"stride": 8, "columns": 32},
    "longformer": {"window": 8},
    "bigbird": {"block": 32},
    "linformer": {"rank": 8},
    "reformer": {"chunk_length": 8},
}
"""What each looks at, as a part of the length: an eighth, and so on."""


def fitted(field: Sequence[str], length: int) -> tuple[str, ...]:
    """A field whose windows, strides, blocks, ranks and chunks suit a short sequence.

    Their defaults are made for thousands of tokens: beside a few dozen all of these would be full attention.

    Example:
        >>> fitted(("full", "sparse_transformer"), 64)
        ('full', 'sparse_transformer:stride=8,columns=2')
    """
    options = {
        name: ",".join(f"{option}={max(1, length // part)}" for option, part in sizes.items())
        for name, sizes in _SIZES.items()
    }
    return tuple(f"{name}:{options[name]}" if name in options else name for name in field)


_PARTS_OF_SIDE = {
    "neighborhood": {"kernel": 3},
    "sasa": {"kernel": 3},
    "lambda_networks": {"kernel": 3},
    "halonet": {"block": 4, "halo": 8},
}
"""What each looks at, as a part of the side of a map: a third, and so on."""


def fitted_to_map(field: Sequence[str], length: int, patch: int) -> tuple[str, ...]:
    """A field whose windows and blocks suit the map that an image of ``length`` x ``length`` pixels becomes.

    Example:
        >>> fitted_to_map(("axial", "neighborhood", "halonet"), 28, 2)
        ('axial', 'neighborhood:kernel=5', 'halonet:block=4,halo=2')
    """
    side = -(-length // patch)
    return tuple(
        ":".join((name, *([_words(_PARTS_OF_SIDE[name], side)] if name in _PARTS_OF_SIDE else ()))) for name in field
    )


def _words(parts: Mapping[str, int], side: int) -> str:
    """Options as they are written; a kernel has a middle, so it is odd."""
    sizes = {option: -(-side // part) | (option == "kernel") for option, part in parts.items()}
    return ",".join(f"{option}={size}" for option, size in sizes.items())


@dataclass(frozen=True)
class Published:
    """Figures of others, to stand beside ours: ``rows`` are (model, quality) in the metric of the task."""

    source: str
    rows: tuple[tuple[str, float], ...]
    remark: str


@dataclass(frozen=True)
class Prepared:
    """A task and what the report says about its data.

    Attributes:
        task: batches and scores.
        name: the data, in words.
        fingerprint: sha256 of the content; a resumed race and every worker compare it.
        rule: how the held-out part was chosen.
        sizes: (items, positions) of each part.
        baselines: measures what needs no attention, on the held-out examples of the test part.
        bar: the baseline that must be beaten before anything counts as learned; empty: there is no such thing.
        published: what others reached.
        remarks: what was left out or cut, or has to be known.
    """

    task: Task
    name: str
    fingerprint: str
    rule: str
    sizes: dict[str, tuple[int, int]]
    baselines: Callable[[], dict[str, float | None]]
    bar: str = ""
    published: Published | None = None
    remarks: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, kw_only=True)
class Discipline:
    """One value of ``--task``.

    Attributes:
        name: the value.
        question: the heading of the page.
        goal: what a model is to do, in words.
        causal: no output may depend on what comes later.
        field: who runs where nobody was named, for sequences of this length.
        control: whether the model without attention then runs too.
        takes: of the settings ``files``, ``scale`` and ``horizon``, those that mean something here.
        defaults: settings that differ from the defaults of :class:`regard.race.settings.Settings`.
        full: what ``--scale full`` changes of them: the sizes of the published benchmark.
        smoke: what ``--smoke`` changes: seconds instead of minutes, numbers that mean nothing.
        prepare: makes the data.
        data: what those who race may work on; the first is what the task itself has.
        patch: of a task on images: the side of the squares of pixels that are one place for the attention.
        trial: makes the task's model with a mechanism and its options, and asks it once; raises ValueError where the
            mechanism cannot do what its card does not deny.
        make: the function that makes an entrant's attention, as a user would call it.
    """

    name: str
    question: str
    goal: str
    causal: bool
    field: Callable[[int], tuple[str, ...]]
    control: bool
    takes: frozenset[str]
    defaults: Mapping[str, Any]
    full: Mapping[str, Any]
    smoke: Mapping[str, Any]
    prepare: Callable[["Settings"], Prepared]
    data: tuple[Data, ...] = ("sequence",)
    patch: int | None = None
    trial: Callable[[str, Mapping[str, Any], "Settings"], object] | None = None
    make: str = "regard.create"
