"""Folding one protein with a trained model: atoms, confidence and contacts; and what they are worth beside the truth.

The places come from the model's structure module, or from its distogram by :mod:`regard.tasks.trace`. The confidence is
the lDDT that is expected of each residue, 0 to 100: the model's own head tells it for its structure, the distogram for
a trace.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from regard.models.all_atoms import ALPHA
from regard.models.alphafold import AlphaFold
from regard.models.residue_atoms import ATOMS
from regard.models.structure_losses import lddt_ca
from regard.models.structure_truth import pseudo_beta
from regard.tasks.documents import InputError
from regard.tasks.protein_files import Alignment, spell, spread
from regard.tasks.protein_scores import contact_precision, contact_probabilities, expected_lddt
from regard.tasks.protein_structures import Chain
from regard.tasks.trace import trace, virtual_beta

By = Literal["structure", "trace"]


@dataclass(frozen=True)
class Folded:
    """A protein as a model sees it.

    Attributes:
        sequence: R letters.
        atoms: Angstrom, by :data:`regard.models.residue_atoms.ATOMS`.
        atom_mask: which of them there are: the backbone and C-beta, or C-alpha alone.
        confidence: expected lDDT, 0 to 100.
        contacts: the probability of each pair to be closer than 8 Angstrom.
        by: what the places were made by.
    """

    sequence: str
    atoms: Float[Tensor, "R 37 3"]
    atom_mask: Bool[Tensor, "R 37"]
    confidence: Float[Tensor, " R"]
    contacts: Float[Tensor, "R R"]
    by: By


def fold(
    model: AlphaFold,
    alignment: Alignment,
    *,
    rows: int,
    by: By = "structure",
) -> Folded:
    """Fold the first row of an alignment.

    Args:
        model: asked in eval mode, and left as it was.
        alignment: on the target, as :func:`regard.tasks.protein_files.read_sequences` gives it.
        rows: how many of its rows the model sees, spread evenly over the file.
        by: what the places are made by.

    Raises:
        InputError: the model has no structure module, or makes no numbers of this protein.
    """
    if by == "structure" and model.structure is None:
        raise InputError("this model was trained without a structure module: ask for a trace")
    seen = alignment.rows(spread(len(alignment), rows))
    places = torch.arange(seen.letters.shape[1])
    training = model.training
    model.eval()
    try:
        found = model.predict(seen.letters[None], deletions=seen.deletions[None].float())
    finally:
        model.train(training)
    logits = found.distogram[0]
    if not logits.isfinite().all():
        raise InputError("the model's distances are not finite: it is broken, train another")
    if by == "trace" or found.atoms is None or found.plddt is None or found.all_atom_mask is None:
        alphas = trace(logits, places)
        atoms = F.pad(alphas[:, None], (0, 0, ALPHA, len(ATOMS) - ALPHA - 1))
        mask = torch.zeros(atoms.shape[:2], dtype=torch.bool)
        mask[:, ALPHA] = True
        confidence = 100 * expected_lddt(logits, virtual_beta(alphas))
    else:
        count = found.atoms.shape[2]
        atoms = F.pad(found.atoms[0], (0, 0, 0, len(ATOMS) - count)).float()
        mask = F.pad(found.all_atom_mask[0, :, :count], (0, len(ATOMS) - count))
        atoms, confidence = atoms - atoms[:, ALPHA].mean(0), found.plddt[0].float()
    if not (atoms[mask].isfinite().all() and confidence.isfinite().all()):
        raise InputError("the model's places are not finite: it is broken, train another")
    sequence = spell(seen.letters[0])
    return Folded(sequence, atoms, mask, confidence, contact_probabilities(logits), by)


def judge(folded: Folded, truth: Chain) -> dict[str, float]:
    """lDDT of the C-alphas, and the precision of the top L, L / 2 and L / 5 long-range contacts.

    Raises:
        InputError: the truth is another protein.
    """
    check_same(folded.sequence, truth)
    known = truth.atom_mask[:, ALPHA]
    lddt = lddt_ca(folded.atoms[:, ALPHA], truth.atoms[:, ALPHA], known)
    points, mask = pseudo_beta(truth.atoms[None], truth.atom_mask[None])
    found = contact_precision(folded.contacts, points[0], mask[0], truth.places)
    named = {f"contact precision, top {top}": value for top, value in found.items()}
    return {"lDDT-CA": float(lddt[known].mean()), **named}


def check_same(sequence: str, truth: Chain) -> None:
    """Refuse a truth that is no structure of this sequence; X stands for any residue.

    Raises:
        InputError: it is another protein.
    """
    if len(sequence) != len(truth):
        raise InputError(
            f"{truth.name} has {len(truth)} residues, the sequence {len(sequence)}: it is no structure of it"
        )
    for number, pair in enumerate(zip(sequence, truth.sequence, strict=True), start=1):
        if pair[0] != pair[1] and "X" not in pair:
            raise InputError(
                f"{truth.name} is another protein: residue {number} is {pair[1]}, and {pair[0]} in the sequence"
            )
