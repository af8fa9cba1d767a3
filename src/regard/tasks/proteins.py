"""Folding: from an alignment to the distances between residues, and to their places.

A step shows crops of chains: their alignment, of which a few rows are drawn anew and some letters are hidden, as in
Jumper et al. 2021 (supplement 1.2.7 and 1.2.8). The model tells the distance of every pair of C-betas in 64 bins; what
else it learns by (places, hidden letters, its own confidence) are losses that it tells itself. Quality is the
cross-entropy of the bins in nats a pair, the mean over whole chains of clusters that training has not seen.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.models.alphafold import AlphaFold, LossWeights
from regard.models.structure_losses import distogram_loss
from regard.models.structure_truth import pseudo_beta
from regard.registry import UnsupportedError
from regard.tasks.protein_batches import Example, ProteinBatch, draw, draw_crop, make_example, together
from regard.tasks.protein_families import identities, linkage
from regard.tasks.protein_files import MASKED, spread
from regard.tasks.protein_scores import contact_precision, contact_probabilities
from regard.tasks.protein_split import SAME, FamilySplit, Member
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

HIDDEN = 0.15
"""Of the letters; see :func:`regard.tasks.protein_batches.hide`."""

JUDGED_CROP = 128
"""Residues from the middle of each validation chain; test chains are judged whole."""


class Proteins(Task):
    """Distances of held-out chains from their alignments.

    Args:
        split: families with their parts.
        crop: the most residues of a training example: one piece of a chain, or several.
        rows: of the alignment, the target among them.
        batch: crops a step.
        seed: of everything.
        judged: the most chains of each held-out part that are judged, spread evenly; None: all.
    """

    metric = Metric("nats per pair", lower_is_better=True, digits=3, items="chains")
    unit = "residues"
    vocab_size = MASKED + 1
    num_classes = 64

    def __init__(
        self,
        split: FamilySplit,
        *,
        crop: int = 64,
        rows: int = 16,
        batch: int = 1,
        seed: int = 0,
        judged: int | None = None,
    ) -> None:
        if min(crop, rows, batch) < 1:
            raise ValueError(f"crop={crop}, rows={rows}, batch={batch}: all must be positive")
        self.split, self.length, self.rows, self.batch_size, self.seed = split, crop, rows, batch, seed
        self._most = judged
        self._alike = _groups(split)
        self._seen = {number: split.trained_rows(number) for number in {member.family for member in split.train}}

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str = "alphafold2", **options: Any) -> nn.Module:
        """AlphaFold with ``depth`` blocks; ``options`` are its own.

        Raises:
            UnsupportedError: another mechanism.
        """
        if mechanism != "alphafold2":
            raise UnsupportedError(f"{mechanism} holds no pair map: this task is for alphafold2")
        return self.network(dim, depth, num_heads, **options)

    @staticmethod
    def network(dim: int, depth: int, num_heads: int, *, letters: float = 2.0, **options: Any) -> AlphaFold:
        """The same without any data: as wide in the pair map as in the alignment, with as many heads.

        ``letters`` is the weight of guessing hidden letters; the paper's 2 outweighs all else where families are few.
        """
        weights = LossWeights(masked_msa=letters)
        heads = {"msa_heads": num_heads, "pair_heads": num_heads}
        return AlphaFold(dim, dim, dim, depth, loss_weights=weights, **heads, **options)

    def batch(self, step: int) -> ProteinBatch:
        """Crops; a chain of many that are nearly the same is drawn as often as one without such."""
        generator = step_generator(self.seed, step)
        examples: list[Example] = []
        for _ in range(self.batch_size):
            alike = self._alike[draw(len(self._alike), generator)]
            member = alike[draw(len(alike), generator)]
            kept = draw_crop(len(self.split.chain(member)), self.length, generator)
            examples.append(self._example(member, self._seen[member.family], kept, generator, HIDDEN))
        return together(examples, learning=True)

    def held_out(self, part: Part) -> Iterator[ProteinBatch]:
        """A chain a batch, with rows of its whole family that are drawn once."""
        for number, member in enumerate(self.judged(part)):
            length = len(self.split.chain(member))
            width = min(length, JUDGED_CROP) if part == "validation" else length
            kept = torch.arange(width) + (length - width) // 2
            rows = range(len(self.split.families[member.family].alignment))
            generator = step_generator(number, part)  # the same for every seed
            yield together([self._example(member, rows, kept, generator, 0.0)], learning=False)

    def judged(self, part: Part) -> list[Member]:
        """The chains that a part is judged by."""
        members = self.split.validation if part == "validation" else self.split.test
        return [members[place] for place in spread(len(members), self._most or len(members))]

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy of the distances of a pair."""
        return self.scores(prediction, batch).mean()

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """The same for each chain."""
        assert isinstance(batch, ProteinBatch)
        return distogram_loss(prediction, *pseudo_beta(batch.truth.atoms, batch.truth.atom_mask))

    def further(self, prediction: Tensor, batch: Batch) -> dict[str, Float[Tensor, " B"]]:
        """Precision of long-range contacts; 0 for a chain too short to have any."""
        assert isinstance(batch, ProteinBatch)
        points, mask = pseudo_beta(batch.truth.atoms, batch.truth.atom_mask)
        pairs = zip(contact_probabilities(prediction), points, mask, batch.residue_index, strict=True)
        found = [contact_precision(*one) for one in pairs]
        names = {f"contact precision, top {top}": top for top in found[0]}
        return {name: torch.tensor([one[top] for one in found]).nan_to_num(0.0) for name, top in names.items()}

    def _example(
        self, member: Member, rows: Sequence[int], kept: Tensor, generator: Generator, hidden: float
    ) -> Example:
        chain, family = self.split.chain(member), self.split.families[member.family]
        others = [row for row in rows if row != member.row]
        order = torch.randperm(len(others), generator=generator)[: self.rows - 1].tolist()
        alignment = family.target(member.row, [others[place] for place in order])
        name = f"{family.name}/{chain.name}"
        return make_example(name, alignment, chain, kept, generator, hidden)


def _groups(split: FamilySplit) -> list[list[Member]]:
    """Training chains, those that are nearly the same together."""
    found: list[list[Member]] = []
    for number, family in enumerate(split.families):
        label = linkage(identities(family.alignment) >= SAME)
        groups: dict[int, list[Member]] = {}
        for member in split.train:
            if member.family == number:
                groups.setdefault(label[member.row], []).append(member)
        found += groups.values()
    return found
