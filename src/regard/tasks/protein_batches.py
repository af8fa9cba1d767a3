"""Batches of proteins: crops of chains, alignments with hidden letters, and the truth beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from regard.models.structure_truth import ProteinTruth
from regard.tasks.protein_files import GAP, MASKED, UNKNOWN, Alignment
from regard.tasks.protein_structures import Chain
from regard.tasks.task import Batch

BACKBONE = 5
"""Atoms that are learned: N, CA, C, CB and O."""


@dataclass(frozen=True, kw_only=True)
class ProteinBatch(Batch):
    """Alignments as ``tokens`` (B, S, R) and atoms as ``targets`` (B, R, 5, 3), with what else a fold takes.

    Attributes:
        sequence: the target, nothing hidden.
        residue_index: places along the chain.
        msa_mask: real rows and residues.
        deletions: letters in no column, left of this one.
        truth: what is known.
        learning: the model is told the truth, for its losses.
    """

    sequence: Int[Tensor, "B R"]
    residue_index: Int[Tensor, "B R"]
    msa_mask: Bool[Tensor, "B S R"]
    deletions: Float[Tensor, "B S R"]
    truth: ProteinTruth
    learning: bool

    @property
    def options(self) -> dict[str, Any]:
        """What the model takes beside the alignment."""
        names = ("key_mask", "sequence", "residue_index", "msa_mask", "deletions")
        return {name: getattr(self, name) for name in names} | {"truth": self.truth if self.learning else None}

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ProteinBatch":
        names = ("tokens", "targets", "key_mask", "sequence", "residue_index", "msa_mask", "deletions")
        changed = {name: change(getattr(self, name)) for name in names}
        return replace(self, truth=ProteinTruth(*(change(tensor) for tensor in self.truth)), **changed)


@dataclass(frozen=True)
class Example:
    """One row of a batch, before it is padded."""

    name: str
    tokens: Tensor
    sequence: Tensor
    places: Tensor
    deletions: Tensor
    truth: ProteinTruth


def draw_crop(length: int, crop: int, generator: Generator) -> Int[Tensor, " R"]:
    """Which residues are seen: all, or one piece, two or four that do not overlap, so that far pairs are met.

    Example:
        >>> draw_crop(3, 8, torch.Generator()).tolist()
        [0, 1, 2]
    """
    if length <= crop:
        return torch.arange(length)
    pieces = min(crop, 2 ** draw(3, generator))
    sizes = [crop * (number + 1) // pieces - crop * number // pieces for number in range(pieces)]
    cuts = sorted(draw(length - crop + 1, generator) for _ in sizes)  # residues left out before each piece
    firsts = [cut + sum(sizes[:number]) for number, cut in enumerate(cuts)]
    return torch.cat([torch.arange(first, first + size) for first, size in zip(firsts, sizes, strict=True)])


def hide(
    letters: Int[Tensor, "S R"], share: float, generator: Generator
) -> tuple[Int[Tensor, "S R"], Bool[Tensor, "S R"]]:
    """Letters of which some are hidden, and which ones.

    Of these 70 % become the mask, and 10 % each any amino acid, one of the column, and what they were (Jumper et al.
    2021, supplement 1.2.7).

    Example:
        >>> hide(torch.zeros(1, 3, dtype=torch.long), 0.0, torch.Generator())[1].any().item()
        False
    """
    chosen = torch.rand(letters.shape, generator=generator) < share
    way = torch.rand(letters.shape, generator=generator)
    anyone = torch.randint(UNKNOWN, letters.shape, generator=generator)
    row = torch.randint(len(letters), letters.shape, generator=generator)
    column = letters.gather(0, row)  # a letter of the column as often as it stands there
    new = torch.full_like(letters, MASKED)
    for limit, replacement in ((0.3, letters), (0.2, column), (0.1, anyone)):
        new = torch.where(way < limit, replacement, new)
    return torch.where(chosen, new, letters), chosen


def make_example(
    name: str, alignment: Alignment, chain: Chain, kept: Tensor, generator: Generator, hidden: float
) -> Example:
    letters = alignment.letters[:, kept]
    tokens, corrupted = hide(letters, hidden, generator)
    deletions, places = alignment.deletions[:, kept].float(), chain.places[kept]
    atoms, mask = chain.atoms[kept, :BACKBONE], chain.atom_mask[kept, :BACKBONE]
    return Example(name, tokens, letters[0], places, deletions, ProteinTruth(atoms, mask, letters, corrupted))


def together(examples: Sequence[Example], *, learning: bool) -> ProteinBatch:
    """One batch, padded on the right and below."""
    sizes = [one.tokens.shape for one in examples]
    rows, residues = max(size[0] for size in sizes), max(size[1] for size in sizes)
    real = torch.zeros(len(examples), rows, residues, dtype=torch.bool)
    for number, (height, width) in enumerate(sizes):
        real[number, :height, :width] = True
    truths = [one.truth for one in examples]
    atoms = _stacked([one.atoms for one in truths], residues)
    truth = ProteinTruth(
        atoms,
        _stacked([one.atom_mask for one in truths], residues),
        _stacked([one.msa for one in truths], rows, residues, fill=GAP),
        _stacked([one.corrupted for one in truths], rows, residues),
    )
    return ProteinBatch(
        tokens=_stacked([one.tokens for one in examples], rows, residues, fill=GAP),
        targets=atoms,
        key_mask=real[:, 0],
        units=tuple(one.name for one in examples),
        amounts=(1.0,) * len(examples),
        sequence=_stacked([one.sequence for one in examples], residues, fill=UNKNOWN),
        residue_index=_stacked([one.places for one in examples], residues),
        msa_mask=real,
        deletions=_stacked([one.deletions for one in examples], rows, residues),
        truth=truth,
        learning=learning,
    )


def _stacked(tensors: Sequence[Tensor], *sizes: int, fill: int = 0) -> Tensor:
    """Tensors one above the other, their first axes padded to ``sizes``."""
    out = tensors[0].new_full((len(tensors), *sizes, *tensors[0].shape[len(sizes) :]), fill)
    for row, tensor in zip(out, tensors, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return out


def draw(count: int, generator: Generator) -> int:
    """A number below ``count``."""
    return int(torch.randint(count, (), generator=generator))
