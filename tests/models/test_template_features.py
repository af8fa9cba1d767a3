"""Features of templates against the definitions in loops, and what unknown atoms hold."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.residue_atoms import ATOMS, LETTERS, residue_tables
from regard.models.template_features import Templates, template_features, template_row_features

N, CA, C, CB, OXYGEN = range(5)


def templates(batch=2, count=3, length=6, names=37, seed=0):
    make = torch.Generator().manual_seed(seed)
    sequence = torch.randint(22, (batch, count, length), generator=make)
    sequence[0, 0, 0] = sequence[1, 1, 2] = LETTERS.index("G")
    sequence[0, 1, :4] = torch.tensor([LETTERS.index(letter) for letter in "DFRE"])
    spread = torch.rand(batch, count, 1, 1, 1, generator=make, dtype=torch.float64) * 25 + 1
    atoms = spread * torch.randn(batch, count, length, names, 3, generator=make, dtype=torch.float64)
    known = torch.rand(batch, count, length, names, generator=make) < 0.9
    known[0, 1, :4] = True
    return Templates(sequence, atoms, known, torch.tensor([[True] * count, [True] * (count - 1) + [False]]))


def direction(atoms, other):
    """Of another CA, by Gram-Schmidt on the three atoms of a backbone."""
    first = (atoms[C] - atoms[CA]) / (atoms[C] - atoms[CA]).norm()
    second = atoms[N] - atoms[CA]
    second = second - (second @ first) * first
    second = second / second.norm()
    seen = torch.stack([axis @ (other - atoms[CA]) for axis in (first, second, torch.linalg.cross(first, second))])
    return seen / math.sqrt(float(seen @ seen) + 1e-6)


def of_pair(kinds, atoms, known, i, j, directions):
    if not (known[i, :3].all() and known[j, :3].all()):
        return torch.zeros(88, dtype=torch.float64)
    beta = [CA if kind == LETTERS.index("G") else CB for kind in kinds.tolist()]
    parts = torch.zeros(88, dtype=torch.float64)
    if known[i, beta[i]] and known[j, beta[j]]:
        parts[39] = 1
        distance = float((atoms[i, beta[i]] - atoms[j, beta[j]]).norm())
        for place in range(39):
            last = math.inf if place == 38 else 3.25 + 1.25 * (place + 1)
            parts[place] = float(3.25 + 1.25 * place < distance <= last)
    parts[40 + kinds[j]] = 1
    parts[62 + kinds[i]] = 1
    if directions:
        parts[84:87] = direction(atoms[i], atoms[j, CA])
    parts[87] = 1
    return parts


@pytest.mark.parametrize("directions", [False, True])
@pytest.mark.parametrize("names", [5, 37])
def test_pairs_are_the_definitions(directions, names):
    given = templates(names=names)
    found = template_features(given, directions=directions)
    assert found.shape == (2, 3, 6, 6, 88)
    for b, t, i, j in torch.cartesian_prod(*map(torch.arange, found.shape[:4])).tolist():
        known = given.atom_mask[b, t] & given.mask[b, t]
        expected = of_pair(given.sequence[b, t], given.atoms[b, t], known, i, j, directions)
        assert_close(found[b, t, i, j], expected, rtol=0, atol=1e-10)
    bins = found[..., :39].sum((0, 1, 2, 3))
    assert (bins > 0).sum() > 15  # the sample reaches many of them
    assert bins[38] > 0


def dihedral(a, b, c, d):
    across = torch.linalg.cross(b - a, c - b), torch.linalg.cross(c - b, d - c)
    sine = float((c - b).norm() * ((b - a) @ across[1]))
    cosine = float(across[0] @ across[1])
    return [sine / math.hypot(sine, cosine), cosine / math.hypot(sine, cosine)]


def of_residue(kinds, atoms, known, places, i):
    """57 numbers, with the names of atoms written out for the four residues that have symmetric or many angles."""
    names = {
        "D": "N CA CB CG OD1",
        "F": "N CA CB CG CD1",
        "R": "N CA CB CG CD NE CZ",
        "E": "N CA CB CG CD OE1",
    }
    own, before = [(i, atom) for atom in range(5)], [(i - 1, atom) for atom in range(5)]
    fours = {2: (own[N], own[CA], own[C], own[OXYGEN])}
    if i and places[i] == places[i - 1] + 1:
        fours[0] = (before[CA], before[C], own[N], own[CA])
        fours[1] = (before[C], own[N], own[CA], own[C])
    chain = [(i, ATOMS.index(name)) for name in names.get((LETTERS + "X-")[kinds[i]], "").split()]
    fours |= {3 + number: tuple(chain[number : number + 4]) for number in range(len(chain) - 3)}
    parts = torch.zeros(57, dtype=torch.float64)
    parts[kinds[i]] = 1
    backbone = {own[N], own[CA], own[C]}
    for angle, four in fours.items():
        if all(known[atom] for atom in set(four) | (backbone if angle < 3 else set())):
            symmetric = angle == len(chain) - 1 and (LETTERS + "X-")[kinds[i]] in "DFE"
            sine_cosine = torch.tensor(dihedral(*(atoms[atom] for atom in four)), dtype=torch.float64)
            sine_cosine = -sine_cosine if angle == 2 else sine_cosine  # by the next N, opposite of O
            parts[22 + 2 * angle : 24 + 2 * angle] = sine_cosine
            parts[36 + 2 * angle : 38 + 2 * angle] = -sine_cosine if symmetric else sine_cosine
            parts[50 + angle] = 1
    return parts


def test_rows_are_the_definitions():
    given = templates(count=2)
    kinds = torch.tensor([LETTERS.index(letter) for letter in "DFREAG"] + [20, 21])
    sequence = kinds[torch.randint(8, given.sequence.shape, generator=torch.Generator().manual_seed(4))]
    sequence[0, 1] = kinds[[0, 1, 2, 3, 6, 7]]
    given = given._replace(sequence=sequence)
    places = torch.tensor([[0, 1, 2, 9, 10, 11], [4, 5, 6, 7, 8, 9]])
    found, told = template_row_features(given, places, residue_tables())
    for b, t, i in torch.cartesian_prod(*map(torch.arange, told.shape)).tolist():
        known = given.atom_mask[b, t] & given.mask[b, t]
        expected = of_residue(sequence[b, t], given.atoms[b, t], known, places[b].tolist(), i)
        assert_close(found[b, t, i], expected, rtol=0, atol=1e-9)
        assert bool(told[b, t, i]) == bool(known[i, [N, CA, C, OXYGEN]].all())
    assert found[0, 1, 2, 50:].all()  # all seven of an arginine
    few = given._replace(atoms=given.atoms[..., :5, :], atom_mask=given.atom_mask[..., :5])
    backbone, same = template_row_features(few, places, residue_tables())
    assert_close(backbone[..., 22:28], found[..., 22:28])
    assert torch.equal(same, told)
    assert not backbone[..., 53:].any()


def test_unknown_atoms_and_absent_templates_hold_what_they_like():
    given = templates()
    hidden = ~(given.atom_mask & given.mask[..., None, None])
    spoilt = given._replace(atoms=given.atoms.masked_fill(hidden[..., None], torch.nan).requires_grad_())
    found = template_features(spoilt, directions=True)
    assert_close(found, template_features(given, directions=True))
    assert not found[1, 2].any()
    rows, told = template_row_features(spoilt, torch.arange(6).expand(2, -1), residue_tables())
    assert not told[1, 2].any()
    (slope,) = torch.autograd.grad(found.cos().sum() + rows.sum(), spoilt.atoms)
    assert slope.isfinite().all()
    assert not slope[hidden].any()


def test_they_do_not_change_when_a_template_is_moved():
    given = templates()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn)
    moved = given._replace(atoms=given.atoms @ turn + torch.tensor([30.0, -4, 7]).double())
    assert_close(template_features(moved, directions=True), template_features(given, directions=True))


def test_half_precision_is_measured_in_float32():
    given = templates()
    half = given._replace(atoms=given.atoms.bfloat16())
    exact = template_features(given._replace(atoms=half.atoms.float()), directions=True)
    assert exact.dtype == torch.float32
    assert torch.equal(template_features(half, directions=True), exact)


@pytest.mark.parametrize("directions", [False, True])
def test_pairs_are_those_of_openfold(directions):
    """Where every C-beta is known: its distances between others are measured from the origin."""
    feats = pytest.importorskip("transformers.models.esm.openfold_utils.feats")
    given = templates()
    known = given.atom_mask.clone()
    known[..., CB] = True
    given = given._replace(atom_mask=known, mask=torch.ones_like(given.mask))
    beta, placed = feats.pseudo_beta_fn(given.sequence, given.atoms, known.double())
    theirs = {
        "template_aatype": given.sequence,
        "template_pseudo_beta": beta,
        "template_pseudo_beta_mask": placed.masked_fill(~known[..., CA], 0.0),
        "template_all_atom_positions": given.atoms,
        "template_all_atom_mask": known.double(),
    }
    expected = feats.build_template_pair_feat(theirs, 3.25, 50.75, 39, use_unit_vector=directions, eps=1e-6)
    assert_close(template_features(given, directions=directions), expected, rtol=0, atol=1e-5)
