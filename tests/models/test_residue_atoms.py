import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.all_atoms import (
    ALPHA,
    CARBON,
    NITROGEN,
    OXYGEN,
    group_frames,
    slot_positions,
    to_atoms,
    torsion_angles,
)
from regard.models.residue_atoms import ATOMS, LETTERS, residue_atoms, residue_tables
from regard.ops.frames import Frames, quaternion_to_rotation


def folded(sequence, seed=0):
    """Atoms of residues with random frames and torsions, as if joined."""
    make = torch.Generator().manual_seed(seed)
    length, tables = len(sequence), residue_tables()
    kinds = torch.tensor([[(LETTERS + "X").index(letter) for letter in sequence]])
    angles = torch.nn.functional.normalize(torch.randn(1, length, 7, 2, generator=make), dim=-1)
    backbone = Frames(
        quaternion_to_rotation(torch.randn(1, length, 4, generator=make)), torch.randn(1, length, 3, generator=make)
    )
    groups = group_frames(backbone, angles, kinds, tables)
    atoms, mask = to_atoms(slot_positions(groups, kinds, tables), kinds, tables)
    return kinds, angles, backbone, groups, atoms, mask


def dihedral(a, b, c, d):
    """The textbook formula, in radians."""
    first, second, third = b - a, c - b, d - c
    left, right = torch.linalg.cross(first, second), torch.linalg.cross(second, third)
    return torch.atan2((torch.linalg.cross(left, right) * second / second.norm()).sum(), (left * right).sum())


def test_every_residue_has_its_atoms_once():
    counts = dict(
        zip("ARNDCQEGHILKMFPSTWYV", (5, 11, 8, 8, 6, 9, 9, 4, 10, 8, 8, 9, 8, 11, 7, 6, 7, 14, 12, 7), strict=True)
    )
    for letter in LETTERS:
        names = [atom.name for atom in residue_atoms(letter)]
        assert len(names) == len(set(names)) == counts[letter]
        assert set(names) <= set(ATOMS)
    tables = residue_tables()
    assert tables.exists.sum(1).tolist() == [*counts.values(), 5]


def test_side_chains_hang_together_by_bonds_of_the_right_length():
    *_, atoms, mask = folded(LETTERS)
    for place, letter in enumerate(LETTERS):
        points = atoms[0, place][mask[0, place]]
        names = [name for name, there in zip(ATOMS, mask[0, place].tolist(), strict=True) if there]
        apart = torch.cdist(points, points)
        for row, name in enumerate(names):
            nearest = apart[row][torch.arange(len(names)) != row].min()
            assert 1.2 < float(nearest) < 1.85, (letter, name)
        assert float(apart[apart > 0].min()) > 1.2


def test_the_backbone_has_engh_and_hubers_lengths_and_angles_and_is_left_handed():
    *_, atoms, _ = folded("A")
    n, ca, c, o, cb = (atoms[0, 0, ATOMS.index(name)].double() for name in ("N", "CA", "C", "O", "CB"))
    lengths = [(n, ca, 1.458), (ca, c, 1.525), (ca, cb, 1.530), (c, o, 1.231)]
    for left, right, expected in lengths:
        assert abs(float((left - right).norm()) - expected) < 1e-4

    def angle(a, b, d):
        return math.degrees(math.acos(float(torch.nn.functional.cosine_similarity(a - b, d - b, dim=0))))

    assert_close((angle(n, ca, c), angle(n, ca, cb), angle(c, ca, cb)), (111.2, 110.5, 110.1), atol=1e-2, rtol=0)
    assert float(torch.dot(torch.linalg.cross(n - ca, c - ca), cb - ca)) > 0  # an L amino acid


def test_torsions_come_back_as_they_were_given():
    kinds, angles, _, _, atoms, mask = folded(LETTERS)
    index = torch.arange(len(LETTERS))[None]
    found, known = torsion_angles(atoms, mask, kinds, index, residue_tables())
    chi = residue_tables().chi_exists[kinds]
    assert (known[..., 3:] == chi).all()
    assert known[..., 2].all()
    assert_close(found[..., 3:, :][chi], angles[..., 3:, :][chi], atol=1e-5, rtol=1e-5)
    assert_close(found[..., 2, :], angles[..., 2, :], atol=1e-5, rtol=1e-5)


def test_backbone_torsions_are_those_of_the_textbook():
    kinds, _, _, _, atoms, mask = folded("AGK")
    found, known = torsion_angles(atoms, mask, kinds, torch.tensor([[4, 5, 7]]), residue_tables())
    before, here = atoms[0, 0], atoms[0, 1]
    omega = dihedral(before[ALPHA], before[CARBON], here[NITROGEN], here[ALPHA])
    phi = dihedral(before[CARBON], here[NITROGEN], here[ALPHA], here[CARBON])
    opposite = dihedral(here[NITROGEN], here[ALPHA], here[CARBON], here[OXYGEN]) + math.pi
    for place, angle in enumerate((omega, phi, opposite)):
        assert_close(found[0, 1, place], torch.stack((angle.sin(), angle.cos())), atol=1e-4, rtol=1e-4)
    assert known[0, :, 0].tolist() == [False, True, False]  # the third does not follow the second
    mask[0, 0, CARBON] = False
    assert not torsion_angles(atoms, mask, kinds, torch.tensor([[4, 5, 7]]), residue_tables())[1][0, 1, :2].any()


def test_half_a_turn_of_a_symmetric_angle_swaps_the_twins():
    tables = residue_tables()
    for letter in "DEFY":
        kinds, angles, backbone, _, atoms, _ = folded(letter)
        turned = torch.where(_symmetric(tables, kinds), -angles, angles)
        groups = group_frames(backbone, turned, kinds, tables)
        other, _ = to_atoms(slot_positions(groups, kinds, tables), kinds, tables)
        twins = other.take_along_dim(tables.twin[kinds][..., None], -2)
        assert (atoms - other).abs().max() > 1.0
        assert (atoms - twins).abs().max() < 0.2  # the ideal coordinates are not exactly symmetric
    assert int(tables.chi_symmetric.sum()) == 4


def _symmetric(tables, kinds):
    return torch.nn.functional.pad(tables.chi_symmetric[kinds], (3, 0))[..., None]


def test_an_unknown_residue_has_the_atoms_of_alanine():
    *_, mask = folded("XA")
    assert (mask[0, 0] == mask[0, 1]).all()


def test_close_to_the_constants_of_the_released_network():
    constants = pytest.importorskip("transformers.models.esm.openfold_utils").residue_constants
    tables = residue_tables()
    theirs = torch.tensor(constants.restype_atom14_rigid_group_positions)[:20]
    for kind in range(20):
        names = constants.restype_name_to_atom14_names[constants.restype_1to3[LETTERS[kind]]]
        for slot in range(int(tables.exists[kind].sum())):
            name = ATOMS[int(tables.atom[kind, slot])]
            other = names.index(name)
            assert int(tables.group[kind, slot]) == int(constants.restype_atom14_to_rigid_group[kind, other])
            assert float((tables.position[kind, slot] - theirs[kind, other]).norm()) < 0.2, (LETTERS[kind], name)
