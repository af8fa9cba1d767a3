"""Which proteins are trained on: whole clusters of families, or all of a family.

A split never divides a cluster, and training sees no row of a cluster that is held out, not even without its structure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from regard.tasks.documents import InputError
from regard.tasks.protein_families import LINKED, Family, identities
from regard.tasks.protein_structures import Chain
from regard.tasks.task import Part

SAME = 0.9
"""The identity from which two chains are nearly the same: one of them is enough to judge by."""

PARTS: tuple[Part, Part] = ("validation", "test")

TRAINED = 0.7
"""Of each family this share of chains is trained on, its largest clusters, but two clusters are always kept back; less
than three are all trained on."""


@dataclass(frozen=True)
class Member:
    """A chain of a family by its row."""

    family: int
    row: int


@dataclass(frozen=True)
class FamilySplit:
    """Whole clusters in training, validation and test; of chains nearly the same only one is there to judge by."""

    families: tuple[Family, ...]
    train: tuple[Member, ...]
    validation: tuple[Member, ...]
    test: tuple[Member, ...]

    def chain(self, member: Member) -> Chain:
        """Its structure."""
        return self.families[member.family].chains[member.row]

    def trained_rows(self, family: int) -> list[int]:
        """The rows of a family that training may see: those of the clusters it is trained on."""
        clusters = self.families[family].clusters
        seen = {clusters[member.row] for member in self.train if member.family == family}
        return [row for row, cluster in enumerate(clusters) if cluster in seen]

    def sizes(self) -> str:
        """How many chains and clusters there are, in words."""
        told: list[str] = []
        for part, members in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            clusters = {(m.family, self.families[m.family].clusters[m.row]) for m in members}
            told.append(f"{part} {len(members)} chains of {len(clusters)} clusters")
        return ", ".join(told)


def split_families(families: Sequence[Family], *, held_out: str | None = None) -> FamilySplit:
    """Deal out whole clusters: the largest to training, the others in turn to test and validation.

    Args:
        families: what there is.
        held_out: the name of a family of which nothing is trained on, and which is all of the test; None: held-out
            clusters of families that are trained on.

    Raises:
        InputError: no such family, or nothing left to judge by.
    """
    names = [family.name for family in families]
    if held_out is not None and held_out not in names:
        raise InputError(f"there is no family {held_out!r}; there are {', '.join(names)}")
    parts: dict[Part | None, list[Member]] = {None: [], "validation": [], "test": []}
    for number, family in enumerate(families):
        if family.name == held_out:
            continue
        for part, rows in _dealt(family):
            parts[part] += [Member(number, row) for row in rows]
    if held_out is not None:
        number = names.index(held_out)
        parts["test"] = [Member(number, row) for row in sorted(families[number].chains)]
    train, validation, test = tuple(parts[None]), *(_distinct(families, parts[part]) for part in PARTS)
    if not train or not validation or not test:
        raise InputError(
            f"{len(train)} chains to train on, {len(validation)} and {len(test)} to judge by: at least one family with "
            f"three clusters below {LINKED:.0%} identity is needed"
        )
    return FamilySplit(tuple(families), train, validation, test)


def _dealt(family: Family) -> list[tuple[Part | None, list[int]]]:
    """Rows with a structure by cluster, and where each cluster goes; None is training."""
    clusters: dict[int, list[int]] = {}
    for row in sorted(family.chains):
        clusters.setdefault(family.clusters[row], []).append(row)
    dealt: list[tuple[Part | None, list[int]]] = []
    trained = held = 0
    ordered = sorted(clusters.values(), key=lambda rows: (-len(rows), rows))
    for number, rows in enumerate(ordered):
        left = len(ordered) - number
        if len(ordered) < 3 or (trained < TRAINED * len(family.chains) and left > 2):
            dealt.append((None, rows))
            trained += len(rows)
        else:
            dealt.append(("validation" if held % 2 else "test", rows))
            held += 1
    return dealt


def _distinct(families: Sequence[Family], members: Sequence[Member]) -> tuple[Member, ...]:
    """Without those that are nearly the same as one before."""
    kept: list[Member] = []
    for number in sorted({member.family for member in members}):
        same = identities(families[number].alignment) >= SAME
        rows = list[int]()
        for member in members:
            if member.family == number and not same[member.row, rows].any():
                rows.append(member.row)
        kept += [Member(number, row) for row in rows]
    return tuple(kept)
