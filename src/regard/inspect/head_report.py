"""What is known of the heads of a model: a record a head, the table, and the file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

__all__ = ["Arc", "Example", "Head", "HeadsReport"]

DIRECTIONS = ("dependent to head", "head to dependent")


@dataclass(frozen=True)
class Arc:
    """How well a head follows one relation in one direction.

    Attributes:
        relation: such as "nsubj".
        direction: "dependent to head" or "head to dependent".
        accuracy: share of the relation's arcs whose one end looks at the other.
        baseline: share of the most frequent offset among them.
        arcs: their number.
    """

    relation: str
    direction: str
    accuracy: float
    baseline: float
    arcs: int

    @property
    def gain(self) -> float:
        """Accuracy above the baseline."""
        return self.accuracy - self.baseline

    def __str__(self) -> str:
        return f"{self.relation}, {self.direction}"


@dataclass(frozen=True)
class Head:
    """One head.

    Attributes:
        layer: path in the model.
        number: from 0.
        confidence: mean of the largest weight of each word.
        offset, offset_share: the relative place that is looked at most often, and by which share of words.
        best: the arc of the largest gain over its baseline, None without trees.
        syntactic: the arcs with a gain of at least the margin.
        rarest, two_rarest: shares of words that look at the rarest word of the sentence, or at one of the two rarest;
            None where no word is rare.
        importance: as :func:`regard.inspect.head_importance` measures it, None where there was no loss.
        gate: the value of its gate, None where it has none.
        roles: what it was found to be; several, one or nothing.
    """

    layer: str
    number: int
    confidence: float
    offset: int
    offset_share: float
    best: Arc | None
    syntactic: tuple[Arc, ...]
    rarest: float | None
    two_rarest: float | None
    importance: float | None
    gate: float | None
    roles: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The roles as kinds: "positional", "syntactic", "rare words"."""
        return tuple(dict.fromkeys(role.partition(":")[0] for role in self.roles))


@dataclass(frozen=True, eq=False)
class Example:
    """A sentence and the maps of all heads on it, between words."""

    words: tuple[str, ...]
    maps: dict[str, Float[Tensor, "H W W"]]


@dataclass(frozen=True)
class HeadsReport:
    """What :func:`regard.inspect.heads` found.

    Attributes:
        heads: all of them, layer by layer.
        thresholds: the numbers by which roles were given.
        sentences, words: how many were looked at.
        remarks: what was left out and why.
        examples: sentences with the maps of all heads.
    """

    heads: tuple[Head, ...]
    thresholds: dict[str, Any]
    sentences: int
    words: int
    remarks: tuple[str, ...] = ()
    examples: Sequence[Example] = field(default=(), repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """Their paths, in order."""
        return tuple(dict.fromkeys(head.layer for head in self.heads))

    def head(self, layer: str | int, number: int) -> Head:
        """One head by its layer's path or number, and its own number.

        Raises:
            ValueError: there is no such layer or head.
        """
        layers = self.layers
        if isinstance(layer, int):
            if not 0 <= layer < len(layers):
                raise ValueError(f"layer {layer} does not exist: there are {len(layers)}, from 0")
            layer = layers[layer]
        if layer not in layers:
            raise ValueError(f"layer {layer!r} does not exist: there are {', '.join(layers)}")
        of_layer = [head for head in self.heads if head.layer == layer]
        if not 0 <= number < len(of_layer):
            raise ValueError(f"head {number} of {layer} does not exist: it has {len(of_layer)}, from 0")
        return of_layer[number]

    def of_kind(self, kind: str) -> tuple[Head, ...]:
        """The heads of one kind of role: "positional", "syntactic" or "rare words"."""
        return tuple(head for head in self.heads if kind in head.kinds)

    def table(self) -> str:
        """All heads in lines of text; what is no role is a number all the same."""
        titles = ["layer", "head", "confidence", "offset", "best arc", "rare words", "importance", "gate", "role"]
        rows = [titles, *map(_cells, self.heads)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.remarks])

    def save(self, folder: str | Path) -> Path:
        """Write ``heads.json`` into the folder, whole or not at all: everything but the pictures.

        Returns:
            The file.
        """
        path = Path(folder) / "heads.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {
            "heads": [asdict(head) for head in self.heads],
            "thresholds": self.thresholds,
            "sentences": self.sentences,
            "words": self.words,
            "remarks": list(self.remarks),
            "examples": [
                {"words": example.words, "maps": {path: _rounded(maps) for path, maps in example.maps.items()}}
                for example in self.examples
            ],
        }
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False), "utf-8")
        return temporary.replace(path)

    def __str__(self) -> str:
        return self.table()


def _cells(head: Head) -> list[str]:
    best = head.best
    return [
        head.layer,
        str(head.number),
        f"{head.confidence:.2f}",
        f"{head.offset_share:.0%} at {head.offset:+d}",
        "-" if best is None else f"{best.accuracy:.0%} of {best} (any offset: {best.baseline:.0%})",
        "-" if head.rarest is None else f"{head.rarest:.0%}, {head.two_rarest:.0%} of two",
        "-" if head.importance is None else f"{head.importance:.3g}",
        "-" if head.gate is None else f"{head.gate:.2f}",
        "; ".join(head.roles) or "-",
    ]


def _rounded(maps: Tensor) -> list[Any]:
    return [[[round(weight, 3) for weight in row] for row in rows] for rows in maps.tolist()]
