"""Small made-up proteins in files, for tests of tasks and commands."""

import random

import torch

from regard.models.residue_atoms import ATOMS, LETTERS
from regard.tasks.protein_writing import write_structure


def sequence(length, seed=0):
    return "".join(random.Random(seed).choices(LETTERS, k=length))


def mutated(letters, share, seed):
    """The same with a share of other letters."""
    draw = random.Random(seed)
    return "".join(draw.choice(LETTERS) if draw.random() < share else letter for letter in letters)


def helix(length):
    """Backbone and C-beta of a right-handed alpha helix: 3.6 residues a turn, 1.5 Angstrom a residue."""
    turn = torch.arange(length)[:, None] * torch.tensor(100.0).deg2rad()
    # radius, angle in degrees and height beside the C-alpha of N, CA, C, CB and O: medians of 48 real helices
    radius = torch.tensor([1.55, 2.29, 1.71, 3.37, 2.01])
    angle = turn + torch.tensor([-26.6, 0.0, 28.2, 15.6, 23.7]).deg2rad()
    height = 1.5 * torch.arange(length)[:, None] + torch.tensor([-0.91, 0.0, 1.03, -0.77, 2.21])
    found = torch.zeros(length, len(ATOMS), 3)
    found[:, :5] = torch.stack((radius * angle.cos(), radius * angle.sin(), height), -1)
    return found


def bent(length, every=12):
    """Pieces of helix beside each other, every other one upside down, with contacts of long range."""
    found = torch.zeros(length, len(ATOMS), 3)
    straight = helix(every)
    for first in range(0, length, every):
        number, size = first // every, min(every, length - first)
        piece = straight[:size].clone()
        if number % 2:
            piece = piece * torch.tensor([1.0, -1.0, -1.0]) + torch.tensor([0.0, 0.0, 1.5 * (every - 1)])
        found[first : first + size] = piece + torch.tensor([10.0 * number, 0.0, 0.0])
    return found


def known_atoms(letters):
    """N, CA, C, CB and O; glycine has no CB."""
    mask = torch.zeros(len(letters), len(ATOMS), dtype=torch.bool)
    mask[:, :5] = True
    mask[:, 3] = torch.tensor([letter != "G" for letter in letters])
    return mask


def write_chain(path, letters, atoms=None, **options):
    """A PDB or mmCIF file."""
    atoms = bent(len(letters)) if atoms is None else atoms
    confidence = torch.full((len(letters),), 50.0)
    cif = path.suffix == ".cif"
    path.write_text(write_structure(letters, atoms, known_atoms(letters), confidence, cif=cif, **options))
    return path


def write_family(folder, name="kinds", clusters=4, each=2, length=30):
    """An alignment with the structure of every row: clusters far apart, rows of one cluster nearly the same."""
    rows = []
    for cluster in range(clusters):
        first = sequence(length, seed=100 + cluster)
        rows += [(f"c{cluster}_{k}", mutated(first, 0.2 * bool(k), seed=k)) for k in range(each)]
    for title, letters in rows:
        write_chain(folder / f"{title}.pdb", letters)
    (folder / f"{name}.a3m").write_text("".join(f">{title}\n{letters}\n" for title, letters in rows))
    return rows
