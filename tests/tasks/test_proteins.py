import pytest
import torch
from torch.testing import assert_close

from regard.models.structure_losses import distogram_loss
from regard.models.structure_truth import pseudo_beta
from regard.registry import UnsupportedError
from regard.tasks.folding import check_same, fold, judge
from regard.tasks.protein_batches import draw_crop, hide
from regard.tasks.protein_families import read_families
from regard.tasks.protein_files import GAP, MASKED, numbers, parse_alignment, spell
from regard.tasks.protein_split import split_families
from regard.tasks.proteins import Proteins
from regard.train.budget import Budget
from regard.train.trainer import Trainer
from tests.tasks.protein_samples import write_family

pytest.importorskip("gemmi")
SMALL = {"structure_depth": 1, "recycles": 0}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proteins")
    write_family(folder, clusters=4, each=2, length=30)
    return split_families(read_families(folder))


def test_batches_repeat_and_are_padded(split):
    task = Proteins(split, crop=16, rows=4, batch=3, seed=1)
    batch, again = task.batch(5), task.batch(5)
    assert batch.tokens.shape == (3, 4, 16)
    for name in ("tokens", "targets", "sequence", "residue_index", "deletions"):
        assert torch.equal(getattr(batch, name), getattr(again, name))
    assert not torch.equal(batch.sequence, task.batch(6).sequence)
    assert batch.options["truth"] is batch.truth
    assert (batch.residue_index.diff() > 0).all()
    moved = batch.to("cpu")
    assert torch.equal(moved.truth.atoms, batch.truth.atoms)
    assert batch.first(2).tokens.shape[0] == 2


def test_an_example_is_the_chain_it_is_named_after(split):
    task = Proteins(split, crop=12, rows=3, batch=1, seed=0)
    chains = {f"kinds/{split.chain(m).name}": split.chain(m) for m in split.train}
    for step in range(8):
        batch = task.batch(step)
        chain = chains[batch.units[0]]
        kept = [chain.places.tolist().index(place) for place in batch.residue_index[0].tolist()]
        assert spell(batch.sequence[0]) == "".join(chain.sequence[place] for place in kept)
        assert torch.equal(batch.truth.atoms[0], chain.atoms[kept, :5])
        assert torch.equal(batch.truth.msa[0, 0], batch.sequence[0])
        assert torch.equal(batch.tokens != batch.truth.msa, (batch.tokens != batch.truth.msa) & batch.truth.corrupted)


def test_training_sees_no_row_that_is_held_out(split):
    task = Proteins(split, crop=64, rows=99, batch=1, seed=0)
    family = split.families[0]
    held = {spell(family.alignment.letters[m.row]) for m in (*split.validation, *split.test)}
    seen = {spell(row) for step in range(6) for row in task.batch(step).truth.msa[0]}
    assert seen
    assert not seen & held


def test_held_out_chains_are_whole_and_tell_no_truth(split):
    task = Proteins(split, crop=8, rows=4, seed=0)
    batches = list(task.held_out("test"))
    assert [batch.tokens.shape[2] for batch in batches] == [30] * len(split.test)
    assert all(batch.options["truth"] is None for batch in batches)
    assert not any((batch.tokens == MASKED).any() for batch in batches)
    other = list(Proteins(split, crop=8, rows=4, seed=7).held_out("test"))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(batches, other, strict=True))
    assert len(Proteins(split, judged=1).judged("test")) == 1


def test_scores_are_the_cross_entropy_and_contacts_those_of_the_truth(split):
    task = Proteins(split, rows=4)
    batch = next(iter(task.held_out("test")))
    logits = torch.randn(1, 30, 30, 64)
    expected = distogram_loss(logits, *pseudo_beta(batch.truth.atoms, batch.truth.atom_mask))
    assert_close(task.scores(logits, batch), expected)
    assert_close(task.loss(logits, batch), expected.mean())
    assert set(task.further(logits, batch)) == {f"contact precision, top {top}" for top in ("L", "L/2", "L/5")}


def test_a_step_trains_every_loss(split):
    torch.manual_seed(0)
    task = Proteins(split, crop=12, rows=3, batch=2, seed=0)
    model = task.model(8, 1, 2, **SMALL)
    _, told = model(task.batch(0).tokens, **task.batch(0).options, return_aux=True)
    assert {name for name in told if name.startswith("loss/")} >= {"loss/fape", "loss/masked_msa", "loss/confidence"}
    trainer = Trainer(model, task, Budget(steps=2), rate=1e-3, device="cpu")
    trainer.step()
    assert trainer.judge("validation").quality > 0
    with pytest.raises(UnsupportedError, match="holds no pair map"):
        task.model(8, 1, 2, "full")


def test_the_weight_of_letters_reaches_the_model(split):
    task = Proteins(split)
    assert task.network(8, 1, 2, letters=0.25, **SMALL).loss_weights.masked_msa == 0.25


def test_crops_are_pieces_in_order():
    generator = torch.Generator().manual_seed(0)
    pieces = set()
    for _ in range(60):
        found = draw_crop(40, 12, generator)
        assert len(found) == 12
        assert (found.diff() > 0).all()
        assert 0 <= int(found[0]) <= int(found[-1]) < 40
        pieces.add(1 + int((found.diff() > 1).sum()))
    assert pieces >= {1, 2, 4}
    assert draw_crop(7, 12, generator).tolist() == list(range(7))


def test_hidden_letters_have_their_shares():
    letters = torch.full((40, 500), 7)
    letters[:, 250:] = GAP
    found, chosen = hide(letters, 0.15, torch.Generator().manual_seed(0))
    assert torch.equal(found[~chosen], letters[~chosen])
    assert abs(float(chosen.float().mean()) - 0.15) < 0.01
    assert abs(float((found[chosen] == MASKED).float().mean()) - 0.7) < 0.03
    left = found[:, :250][chosen[:, :250]]
    kept = float((left == 7).float().mean())  # as it was, of the column, and a twentieth of any
    assert abs(kept - (0.1 + 0.1 + 0.1 / 20)) < 0.03
    assert int(left.max()) == MASKED
    assert not ((left > 19) & (left != MASKED)).any()
    assert hide(letters, 0.0, torch.Generator())[1].sum() == 0


@pytest.mark.parametrize("by", ["structure", "trace"])
def test_folding_and_judging(split, by):
    torch.manual_seed(0)
    model = Proteins.network(8, 1, 2, **SMALL)
    chain = split.chain(split.test[0])
    alignment = parse_alignment(f">x\n{chain.sequence}\n>y\n{chain.sequence[::-1]}\n", "x")
    found = fold(model, alignment, rows=2, by=by)
    assert model.training
    assert found.sequence == chain.sequence
    assert found.atoms[found.atom_mask].isfinite().all()
    assert found.atom_mask[:, 1].all()
    assert bool(found.atom_mask[:, 0].all()) == (by == "structure")
    assert 0 <= float(found.confidence.min()) <= float(found.confidence.max()) <= 100
    figures = judge(found, chain)
    assert 0 <= figures["lDDT-CA"] <= 1
    assert set(figures) == {"lDDT-CA", *(f"contact precision, top {top}" for top in ("L", "L/2", "L/5"))}


def test_another_protein_is_no_truth(split):
    chain = split.chain(split.test[0])
    letters = spell(numbers(chain.sequence))
    check_same("X" + letters[1:], chain)
    with pytest.raises(ValueError, match="has 30 residues, the sequence 29"):
        check_same(letters[1:], chain)
    other = ("A" if letters[0] != "A" else "C") + letters[1:]
    with pytest.raises(ValueError, match=f"residue 1 is {letters[0]}, and {other[0]} in the sequence"):
        check_same(other, chain)
