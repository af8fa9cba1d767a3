import pytest

from regard.tasks import protein_families
from regard.tasks.documents import InputError
from regard.tasks.protein_families import identities, linkage, read_families, theseus
from regard.tasks.protein_files import parse_alignment, spell
from regard.tasks.protein_split import split_families
from tests.tasks.protein_samples import mutated, sequence, write_chain, write_family

pytest.importorskip("gemmi")


def test_rows_meet_their_structures(tmp_path):
    letters = sequence(12)
    write_chain(tmp_path / "one.pdb", letters)
    write_chain(tmp_path / "two.pdb", letters[:-1] + "W")  # another residue than its row says
    rows = {"one.pdb": letters, "two": letters[:-1] + "F", "three": letters, "four": sequence(12, 9)}
    (tmp_path / "kinds.a3m").write_text("".join(f">{name} x\n{row}\n" for name, row in rows.items()))
    (family,) = read_families(tmp_path)
    assert family.name == "kinds"
    assert [spell(row) for row in family.alignment.letters] == [letters, letters[:-1] + "F", sequence(12, 9)]
    assert [chain.name for chain in family.chains.values()] == ["one"]
    assert family.remarks == (
        "1 rows of equal sequence left out",
        "2 rows without a structure left out",
        "1 structures that differ from their row left out",
    )


def test_structures_alone_are_families_once(tmp_path):
    first, other = sequence(40, 1), sequence(40, 2)
    for name, letters in (("a", first), ("b", mutated(first, 0.2, 3)), ("c", other)):
        write_chain(tmp_path / f"{name}.pdb", letters)
    assert [family.name for family in read_families(tmp_path)] == ["a", "c"]


def test_identity_and_clusters():
    found = identities(parse_alignment(">a\nACDE\n>b\nACDW\n>c\nA--W\n>d\nGGGG\n", "x"))
    assert found[0].tolist() == [1.0, 0.75, 0.5, 0.0]
    assert linkage(found >= 0.6) == (0, 0, 0, 3)  # a and c are linked by b alone: 1 of 2 and 2 of 2
    assert linkage(found >= 0.9) == (0, 1, 1, 3)


def test_clusters_are_never_divided(tmp_path):
    write_family(tmp_path, clusters=5, each=3)
    (family,) = read_families(tmp_path)
    split = split_families([family])
    parts = [{family.clusters[m.row] for m in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 5
    assert set(split.trained_rows(0)) == {m.row for m in split.train}
    assert (
        split.sizes()
        == "training 9 chains of 3 clusters, validation 3 chains of 1 clusters, test 3 chains of 1 clusters"
    )


def test_of_chains_that_are_nearly_the_same_one_is_judged_by(tmp_path):
    rows = write_family(tmp_path, clusters=4, each=2)
    title, letters = rows[-2]
    text = (tmp_path / "kinds.a3m").read_text() + f">twin\n{mutated(letters, 0.05, 1)}\n"
    write_chain(tmp_path / "twin.pdb", mutated(letters, 0.05, 1))
    (tmp_path / "kinds.a3m").write_text(text)
    (family,) = read_families(tmp_path)
    split = split_families([family])
    judged = {split.chain(m).name for m in (*split.validation, *split.test)}
    trained = {split.chain(m).name for m in split.train}
    assert "twin" in trained or not {"twin", title} <= judged


def test_a_whole_family_can_be_held_out(tmp_path):
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        write_family(tmp_path / name, name, clusters=4)
    families = read_families(tmp_path)
    split = split_families(families, held_out="right")
    assert {m.family for m in (*split.train, *split.validation)} == {0}
    assert {m.family for m in split.test} == {1}
    assert split.trained_rows(1) == []
    with pytest.raises(InputError, match="no family 'up'; there are left, right"):
        split_families(families, held_out="up")


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is not a folder"):
        read_families(tmp_path / "none")
    with pytest.raises(InputError, match="holds no structures"):
        read_families(tmp_path)
    write_chain(tmp_path / "a.pdb", sequence(12))
    with pytest.raises(InputError, match="three clusters below 40% identity is needed"):
        split_families(read_families(tmp_path))
    monkeypatch.setattr(protein_families, "THESEUS", tmp_path / "none")
    with pytest.raises(InputError, match="apt-get install theseus-examples"):
        theseus()
