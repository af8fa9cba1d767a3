import gzip
import re

import pytest
import torch
from torch.testing import assert_close

from regard.models.all_atoms import ALPHA, BETA
from regard.models.residue_atoms import ATOMS
from regard.tasks.documents import InputError
from regard.tasks.protein_structures import read_structure
from regard.tasks.protein_writing import write_structure
from tests.tasks.protein_samples import bent, known_atoms, sequence, write_chain

pytest.importorskip("gemmi")


def line(number, atom, residue, place, xyz, *, alt=" ", occupancy=1.0, chain="A", element="C", kind="ATOM"):
    x, y, z = xyz
    return (
        f"{kind:<6}{number:>5} {atom:^4}{alt}{residue:>3} {chain}{place:>4}    {x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}"
        f"{20.0:6.2f}          {element:>2}\n"
    )


def trace(residues, chain="A", first=1):
    return "".join(line(n, "CA", name, first + n, (3.8 * n, 0.0, 0.0), chain=chain) for n, name in enumerate(residues))


@pytest.mark.parametrize("ending", [".pdb", ".cif"])
def test_what_is_written_is_read_again(tmp_path, ending):
    letters = sequence(20) + "GX"
    path = write_chain(tmp_path / f"x{ending}", letters)
    found = read_structure(path)
    assert (found.name, found.sequence, len(found)) == ("x", letters, 22)
    assert torch.equal(found.atom_mask, known_atoms(letters))
    assert not found.atom_mask[20, BETA]
    expected = bent(22).where(known_atoms(letters)[..., None], torch.tensor(0.0))
    assert_close(found.atoms, expected, rtol=0, atol=6e-4)
    packed = tmp_path / f"y{ending}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert_close(read_structure(packed).atoms, found.atoms)


def test_confidence_is_the_b_factor():
    atoms = bent(3)
    text = write_structure("ACD", atoms, known_atoms("ACD"), torch.tensor([91.25, 50.0, 0.0]))
    factors = [float(row[60:66]) for row in text.splitlines() if row.startswith("ATOM") and row[12:16] == " CA "]
    assert factors == [91.25, 50.0, 0.0]


def test_writing_refuses_what_no_file_can_hold():
    atoms, mask = bent(2), known_atoms("AC")
    with pytest.raises(ValueError, match="not finite"):
        write_structure("AC", atoms * torch.nan, mask, torch.zeros(2))
    with pytest.raises(ValueError, match="write mmCIF"):
        write_structure("AC", atoms + 2000, mask, torch.zeros(2))
    assert "2000." in write_structure("AC", atoms + 2000, mask, torch.zeros(2), cif=True)


def test_alternate_places_models_and_modified_residues(tmp_path):
    rows = line(1, "CA", "ALA", 1, (0, 0, 0), alt="A", occupancy=0.4)
    rows += line(2, "CA", "ALA", 1, (1, 0, 0), alt="B", occupancy=0.6)
    rows += line(3, "CA", "MSE", 2, (4.5, 0, 0), kind="HETATM") + line(
        4, "SE", "MSE", 2, (9, 9, 9), element="SE", kind="HETATM"
    )
    rows += (
        line(5, "CA", "GLY", 3, (8, 0, 0)) + "TER\n" + line(6, "CA", " CA", 4, (0, 9, 0), element="CA", kind="HETATM")
    )
    (tmp_path / "x.pdb").write_text(f"MODEL 1\n{rows}ENDMDL\nMODEL 2\n{trace(['TRP'] * 3)}ENDMDL\nEND\n")
    found = read_structure(tmp_path / "x.pdb")
    assert found.sequence == "AMG"
    assert found.remarks == ("the first of 2 models",)
    assert found.atoms[0, ALPHA, 0] == 1.0  # occupied by more
    assert found.atoms[1, ATOMS.index("SD")].tolist() == [9, 9, 9]


def test_residues_that_were_not_seen(tmp_path):
    listed = "SEQRES   1 A    6  ALA CYS ASP GLU PHE GLY\n"
    (tmp_path / "x.pdb").write_text(listed + trace(["ALA", "CYS"]) + trace(["PHE", "GLY"], first=5))
    found = read_structure(tmp_path / "x.pdb")
    assert found.sequence == "ACDEFG"
    assert found.atom_mask[:, ALPHA].tolist() == [True, True, False, False, True, True]
    assert found.places.tolist() == list(range(6))


def test_places_jump_at_breaks_and_not_at_numbers(tmp_path):
    """A number that skips is no gap where the C-alphas are bonded: proteases count like chymotrypsin."""
    rows = (
        line(1, "CA", "ALA", 1, (0, 0, 0)) + line(2, "CA", "CYS", 7, (3.8, 0, 0)) + line(3, "CA", "ASP", 12, (30, 0, 0))
    )
    (tmp_path / "x.pdb").write_text(rows)
    assert read_structure(tmp_path / "x.pdb").places.tolist() == [0, 1, 6]


def test_files_from_before_1996_end_with_their_code(tmp_path):
    rows = "".join(row[:66].ljust(72) + "1ABC  38\n" for row in trace(["ALA", "CYS"]).splitlines())
    (tmp_path / "x.pdb").write_text(rows)
    assert read_structure(tmp_path / "x.pdb").sequence == "AC"


def test_one_of_several_chains(tmp_path):
    (tmp_path / "x.pdb").write_text(trace(["ALA", "CYS"]) + "TER\n" + trace(["TRP", "TYR", "VAL"], chain="B") + "TER\n")
    with pytest.raises(InputError, match="holds the chains A, B: choose one"):
        read_structure(tmp_path / "x.pdb")
    with pytest.raises(InputError, match="no protein chain 'C'; it has A, B"):
        read_structure(tmp_path / "x.pdb", chain="C")
    found = read_structure(tmp_path / "x.pdb", chain="B")
    assert (found.name, found.sequence) == ("x:B", "WYV")


def test_the_limit_of_length(tmp_path):
    (tmp_path / "x.pdb").write_text(trace(["ALA"] * 9))
    with pytest.raises(InputError, match="9 residues, the limit is 5; ask for a truncation"):
        read_structure(tmp_path / "x.pdb", longest=5)
    found = read_structure(tmp_path / "x.pdb", longest=5, truncate=True)
    assert (len(found), found.atoms.shape[0], found.remarks) == (5, 5, ("the first 5 of 9 residues",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hello\n", "holds no atoms"),
        ("data_x\n_a 1 2\n", "is no mmCIF file"),
        (re.sub("3.800", "x.800", trace(["ALA", "CYS"])), "line 2: 'x.800   0.000   0.000' is no place"),
        (line(1, "CA", "ALA", 1, (0, 0, 0))[:46] + "\n", "line 1: .* is no place"),
        (line(1, "N", "ALA", 1, (0, 0, 0), element="N") + line(2, "N", "ALA", 2, (3, 0, 0), element="N"), "no C-alpha"),
        ("".join(line(n, "P", " DA", n, (6 * n, 0, 0), element="P") for n in range(1, 4)), "holds no protein chain"),
    ],
)
def test_refusals(tmp_path, text, told):
    (tmp_path / "x.pdb").write_text(text)
    with pytest.raises(InputError, match=told):
        read_structure(tmp_path / "x.pdb")
