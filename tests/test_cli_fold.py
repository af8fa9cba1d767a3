import json

import pytest
import torch

from regard.cli import fold as command
from regard.cli import protein_model
from regard.cli.fold import print_fold
from regard.tasks import protein_families
from regard.tasks.documents import InputError
from regard.tasks.protein_structures import read_structure
from tests.tasks.protein_samples import sequence, write_family

pytest.importorskip("gemmi")
OPTIONS = {
    "model": None,
    "data": None,
    "seconds": 0.2,
    "truth": None,
    "chain": None,
    "truncate": False,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a family to learn from, and a model that is small enough for a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(protein_model, "SIZES", {"dim": 8, "depth": 1, "num_heads": 2})
    monkeypatch.setattr(protein_model, "OPTIONS", {"structure": False, "recycles": 0})
    monkeypatch.setattr(protein_model, "CROP", 12)
    (tmp_path / "data").mkdir()
    rows = write_family(tmp_path / "data", clusters=3, each=1, length=28)
    (tmp_path / "x.fasta").write_text(f">{rows[0][0]}\n{rows[0][1]}\n")
    return tmp_path


def test_trains_once_folds_and_compares(here, capsys):
    print_fold(
        here / "x.fasta", here / "x.pdb", **OPTIONS | {"data": here / "data", "truth": here / "data" / "c0_0.pdb"}
    )
    told = capsys.readouterr().out
    for part in ("training into regard-protein", "trained on 1 chains of 1 families (kinds)", "held out: nats per pair",
                 "a sequence without relatives", "c0_0: 28 residues, mean confidence", "lDDT-CA 0."):  # fmt: skip
        assert part in told
    found = read_structure(here / "x.pdb")
    assert found.sequence == (here / "x.fasta").read_text().split("\n")[1]
    stored = json.loads((here / "x.json").read_text())
    assert (len(stored["confidence"]), len(stored["contacts"])) == (28, 28)
    assert 0 <= stored["beside the truth"]["lDDT-CA"] <= 1
    assert (here / "x.png").read_bytes()[:4] == b"\x89PNG"
    print_fold(here / "x.fasta", here / "y.cif", **OPTIONS)  # no data: the model is there
    assert "training into" not in capsys.readouterr().out
    traced = read_structure(here / "y.cif")
    assert traced.atom_mask.sum(0).nonzero().flatten().tolist() == [1]  # C-alphas alone


def test_what_is_wrong_is_told_before_training(here, monkeypatch):
    def never(*_):
        raise AssertionError("trained")

    monkeypatch.setattr(command, "fitted_model", never)
    good = here / "x.fasta"
    (here / "bad.fasta").write_text(">a\nAC1\n")
    (here / "long.fasta").write_text(f">a\n{sequence(1001)}\n")
    for path, out, options, told in (
        (here / "bad.fasta", "x.pdb", {}, "'1' is no amino acid"),
        (here / "long.fasta", "x.pdb", {}, "1,001 residues, the limit is 1,000"),
        (good, "x.txt", {}, "structures are written as .pdb or .cif"),
        (good, "none/x.pdb", {}, "there is no folder none"),
        (good, "x.pdb", {"truth": here / "data" / "c1_0.pdb"}, "c1_0 is another protein"),
    ):
        with pytest.raises(InputError, match=told):
            print_fold(path, here / out if "none" not in out else type(here)(out), **OPTIONS | options)


def test_long_proteins_are_cut_when_asked_for(here, monkeypatch, capsys):
    monkeypatch.setattr(command, "LONGEST", 20)
    print_fold(here / "x.fasta", here / "x.pdb", **OPTIONS | {"data": here / "data", "truncate": True})
    assert "only the first 20 are folded" in capsys.readouterr().out
    assert len(read_structure(here / "x.pdb")) == 20


def test_without_data_it_says_what_to_install(here, monkeypatch):
    monkeypatch.setattr(protein_families, "THESEUS", here / "none")
    with pytest.raises(InputError, match="apt-get install theseus-examples"):
        print_fold(here / "x.fasta", here / "x.pdb", **OPTIONS)


def test_another_model_in_the_folder(here):
    print_fold(here / "x.fasta", here / "x.pdb", **OPTIONS | {"data": here / "data"})
    path = next((here / "regard-protein").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"its sha256 is not the one"):
        print_fold(here / "x.fasta", here / "y.pdb", **OPTIONS)


def test_unknown_residues_and_empty_rows_are_told(here, capsys):
    letters = (here / "x.fasta").read_text().split("\n")[1]
    (here / "x.a3m").write_text(f">a\nX{letters[1:]}\n>b\n{'-' * 28}\n")
    torch.manual_seed(0)
    print_fold(here / "x.a3m", here / "x.pdb", **OPTIONS | {"data": here / "data"})
    told = capsys.readouterr().out
    assert "1 unknown residues (X)" in told
    assert "1 rows of the alignment have nothing but gaps" in told
