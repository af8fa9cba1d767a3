"""The atoms of the twenty residues, in rigid groups: what AlphaFold takes from the literature.

Jumper et al. 2021, supplement 1.8.4 and algorithm 24: each residue has eight frames (backbone, omega, phi, psi and chi
1 to 4), each of which turns about its first axis in the frame before it, and heavy atoms that are fixed in one of them.
The backbone and C-beta come from the bond lengths and angles of Engh & Huber (1991, Acta Crystallographica A47, 392),
the side chains from the ideal coordinates of the wwPDB's Chemical Component Dictionary (CC0). The constants of the
released AlphaFold differ from these by less than 0.2 Angstrom for every atom. All lengths are in Angstrom.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.frames import from_three_points

LETTERS = "ARNDCQEGHILKMFPSTWYV"
"""The residues in AlphaFold's order; its further letters are X (20, unknown), the gap (21) and the mask (22)."""

_NAMES = (
    "N CA C CB O CG CG1 CG2 OG OG1 SG CD CD1 CD2 ND1 ND2 OD1 OD2 SD CE CE1 CE2 CE3 NE NE1 NE2 OE1 OE2 "
    "CH2 NH1 NH2 OH CZ CZ2 CZ3 NZ OXT"
)
ATOMS = tuple(_NAMES.split())
"""The 37 names of heavy atoms in AlphaFold's order."""

GROUPS, SLOTS = 8, 14
"""Frames of a residue, and the most heavy atoms that one has."""

_SIDE_CHAINS = """
R: CG 1 0.638 1.398 0.000, CD 2 0.582 1.412 0.000, NE 3 0.518 1.348 0.000, CZ 4 0.766 1.179 0.000,
   NH1 4 0.130 2.416 0.000, NH2 4 2.155 1.130 0.000
N: CG 1 0.503 1.420 0.000, OD1 2 0.606 1.051 0.000, ND2 2 0.674 -1.167 -0.002
D: CG 1 0.502 1.421 0.000, OD1 2 0.603 1.047 0.000, OD2 2 0.671 -1.162 -0.001
C: SG 1 0.606 1.710 0.000
Q: CG 1 0.511 1.440 0.000, CD 2 0.504 1.420 0.000, OE1 3 0.605 1.050 0.000, NE2 3 0.675 -1.166 -0.001
E: CG 1 0.508 1.444 0.000, CD 2 0.502 1.422 0.000, OE1 3 0.604 1.046 0.000, OE2 3 0.671 -1.163 -0.001
H: CG 1 0.589 1.390 0.000, ND1 2 0.682 1.166 0.000, CD2 2 0.858 -1.026 0.003, CE1 2 1.988 0.878 0.002,
   NE2 2 2.108 -0.454 0.004
I: CG1 1 0.512 1.441 0.000, CG2 1 0.510 -0.721 -1.250, CD1 2 0.512 1.441 0.000
L: CG 1 0.511 1.443 0.000, CD1 2 0.511 1.442 0.000, CD2 2 0.510 -0.722 1.247
K: CG 1 0.509 1.444 0.000, CD 2 0.509 1.444 0.000, CE 3 0.510 1.442 0.000, NZ 4 0.491 1.385 0.000
M: CG 1 0.511 1.440 0.000, SD 2 0.606 1.710 0.000, CE 3 0.316 1.786 0.000
F: CG 1 0.503 1.419 0.000, CD1 2 0.692 1.196 0.000, CD2 2 0.692 -1.198 0.005, CE1 2 2.074 1.195 0.000,
   CE2 2 2.074 -1.197 0.002, CZ 2 2.765 0.000 0.001
P: CG 1 0.401 1.490 0.000, CD 2 0.401 1.491 0.000
S: OG 1 0.477 1.346 0.000
T: OG1 1 0.477 1.346 0.000, CG2 1 0.511 -0.722 -1.249
W: CG 1 0.502 1.421 0.000, CD1 2 0.799 1.079 0.000, CD2 2 0.871 -1.177 0.008, NE1 2 2.110 0.689 0.001,
   CE2 2 2.189 -0.685 0.004, CE3 2 0.642 -2.554 0.003, CZ2 2 3.251 -1.583 0.006, CZ3 2 1.700 -3.418 0.006,
   CH2 2 3.002 -2.938 0.007
Y: CG 1 0.503 1.420 0.000, CD1 2 0.690 1.198 0.000, CD2 2 0.690 -1.198 0.006, CE1 2 2.071 1.201 0.000,
   CE2 2 2.071 -1.200 0.002, CZ 2 2.767 0.001 0.001, OH 2 4.125 0.001 0.001
V: CG1 1 0.511 1.442 0.000, CG2 1 0.510 -0.721 1.248
"""
"""Atom, the chi that moves it, its place in that group. The first atom of a group defines its angle and ends the axis
of the next group."""

_TWINS = {"D": "OD1 OD2", "E": "OE1 OE2", "F": "CD1 CD2 CE1 CE2", "Y": "CD1 CD2 CE1 CE2"}
"""Atoms that cannot be told apart, in pairs: half a turn of the last chi swaps them."""

_NITROGEN, _CARBON, _BETA, _OXYGEN = 1.458, 1.525, 1.530, 1.231
_ANGLES = {"G": (112.5, 110.5, 110.1), "P": (111.8, 103.0, 110.1)}
"""N-CA-C, N-CA-CB and C-CA-CB in degrees, where they are not those of the other residues."""


class ResidueTables(NamedTuple):
    """Of 21 kinds, the letters of :data:`LETTERS` and X, which has the atoms of alanine.

    Attributes:
        rotation, translation: each group's frame in the frame before it, at angle 0.
        group, position, exists: of each of the 14 slots.
        atom: the place of each slot among the 37 atoms.
        chi_atoms: the four atoms of each chi, by their places among the 37.
        chi_exists, chi_symmetric: which angles there are, and which look the same after half a turn.
        twin: which of the 37 atoms each one may be confused with; itself for most.
    """

    rotation: Float[Tensor, "21 8 3 3"]
    translation: Float[Tensor, "21 8 3"]
    group: Int[Tensor, "21 14"]
    position: Float[Tensor, "21 14 3"]
    exists: Bool[Tensor, "21 14"]
    atom: Int[Tensor, "21 14"]
    chi_atoms: Int[Tensor, "21 4 4"]
    chi_exists: Bool[Tensor, "21 4"]
    chi_symmetric: Bool[Tensor, "21 4"]
    twin: Int[Tensor, "21 37"]


class _Atom(NamedTuple):
    name: str
    group: int
    position: tuple[float, float, float]


@cache
def residue_atoms(letter: str) -> tuple[_Atom, ...]:
    """The heavy atoms of a residue: name, group and place in the group.

    Example:
        >>> [atom.name for atom in residue_atoms("V")]
        ['N', 'CA', 'C', 'O', 'CB', 'CG1', 'CG2']
    """
    nitrogen_carbon, nitrogen_beta, carbon_beta = (
        math.cos(math.radians(angle)) for angle in _ANGLES.get(letter, (111.2, 110.5, 110.1))
    )
    sine = math.sqrt(1 - nitrogen_carbon**2)
    across = (nitrogen_beta - nitrogen_carbon * carbon_beta) / sine
    down = -math.sqrt(1 - carbon_beta**2 - across**2)
    tilt = math.radians(180 - 120.1)  # CA-C-O
    beta = (_BETA * carbon_beta, _BETA * across, _BETA * down)
    backbone = [
        _Atom("N", 0, (_NITROGEN * nitrogen_carbon, _NITROGEN * sine, 0.0)),
        _Atom("CA", 0, (0.0, 0.0, 0.0)),
        _Atom("C", 0, (_CARBON, 0.0, 0.0)),
        _Atom("O", 3, (_OXYGEN * math.cos(tilt), _OXYGEN * math.sin(tilt), 0.0)),
    ]
    return tuple(backbone + [_Atom("CB", 0, beta)] * (letter != "G") + _side_chains().get(letter, []))


@cache
def _side_chains() -> dict[str, list[_Atom]]:
    found: dict[str, list[_Atom]] = {}
    for block in _SIDE_CHAINS.replace(",\n", ",").strip().splitlines():
        letter, atoms = block.split(":")
        for words in map(str.split, atoms.split(",")):
            x, y, z = map(float, words[2:])
            found.setdefault(letter, []).append(_Atom(words[0], 3 + int(words[1]), (x, y, z)))
    return found


@cache
def residue_tables() -> ResidueTables:
    """All of it as tensors on the CPU, float32.

    Example:
        >>> int(residue_tables().exists[:20].sum())
        167
    """
    kinds = [_kind(letter) for letter in LETTERS] + [_kind("A")]
    return ResidueTables(*(torch.stack(column) for column in zip(*kinds, strict=True)))


def _kind(letter: str) -> tuple[Tensor, ...]:
    """The row of one residue in every table."""
    atoms = residue_atoms(letter)
    place = {atom.name: torch.tensor(atom.position) for atom in atoms}
    first = {group: next((a.name for a in atoms if a.group == group), None) for group in range(4, GROUPS)}
    axis = ["N", "CA", "CB", *(name for name in first.values() if name is not None)]
    chis = len(axis) - 3
    rotation, translation = torch.eye(3).repeat(GROUPS, 1, 1), torch.zeros(GROUPS, 3)
    backward = torch.tensor([-1.0, 0.0, 0.0])  # where the axis of the group before comes from

    def turn(group: int, along: Tensor, toward: Tensor, origin: Tensor) -> None:
        frame = from_three_points(along, torch.zeros(3), toward)
        rotation[group], translation[group] = frame.rotation, origin

    turn(2, place["N"], -backward, place["N"])
    turn(3, place["C"], -place["N"], place["C"])
    for number in range(chis):
        end = place[axis[number + 2]]
        turn(4 + number, end, backward if number else place["N"], end)

    slots = SLOTS - len(atoms)
    group = torch.tensor([atom.group for atom in atoms] + [0] * slots)
    position = torch.tensor([*(atom.position for atom in atoms), *[(0.0, 0.0, 0.0)] * slots])
    exists = torch.arange(SLOTS) < len(atoms)
    names = torch.tensor([ATOMS.index(atom.name) for atom in atoms] + [len(ATOMS) - 1] * slots)
    chi_atoms = torch.zeros(4, 4, dtype=torch.long)
    for number in range(chis):
        chi_atoms[number] = torch.tensor([ATOMS.index(name) for name in axis[number : number + 4]])
    twin, twins = torch.arange(len(ATOMS)), [ATOMS.index(name) for name in _TWINS.get(letter, "").split()]
    for one, other in zip(twins[::2], twins[1::2], strict=True):
        twin[one], twin[other] = other, one
    chi = torch.arange(4)
    symmetric = (chi == chis - 1) & (len(twins) > 0)
    return rotation, translation, group, position, exists, names, chi_atoms, chi < chis, symmetric, twin
