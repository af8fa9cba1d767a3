import copy

import pytest
import torch
from torch.testing import assert_close

from regard.models.alphafold import AlphaFold, LossWeights, ProteinTruth
from regard.models.alphafold_inputs import InputEmbedder, RecyclingEmbedder, letter_features
from regard.models.structure_losses import distogram_bins, distogram_loss


def model(structure=True, seed=0, recycles=1, **options):
    torch.manual_seed(seed)
    made = AlphaFold(
        *(8, 6, 10, 1),
        msa_heads=2,
        pair_heads=2,
        structure=structure,
        structure_depth=2,
        structure_options={"num_heads": 2, "head_dim": 4, "torsion_dim": 8} if structure else None,
        recycles=recycles,
        **options,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def protein(length=9, rows=4, batch=2, seed=0):
    make = torch.Generator().manual_seed(seed)
    tokens = torch.randint(23, (batch, rows, length), generator=make)
    sequence = torch.randint(20, (batch, length), generator=make)
    deletions = torch.randint(4, (batch, rows, length), generator=make).float()
    return {"tokens": tokens, "sequence": sequence, "deletions": deletions}


def truth(given, atoms=5, seed=1):
    make = torch.Generator().manual_seed(seed)
    batch, rows, length = given["tokens"].shape
    return ProteinTruth(
        8 * torch.randn(batch, length, atoms, 3, generator=make),
        torch.rand(batch, length, atoms, generator=make) < 0.9,
        torch.randint(23, (batch, rows, length), generator=make),
        torch.rand(batch, rows, length, generator=make) < 0.3,
    )


def test_logits_are_symmetric_float32_and_masked_pairs_are_0():
    made, given = model(), protein()
    mask = torch.arange(9).expand(2, 9) < torch.tensor([[9], [6]])
    logits = made(**given, key_mask=mask)
    assert logits.shape == (2, 9, 9, 64)
    assert logits.dtype == torch.float32
    assert_close(logits, logits.transpose(1, 2))
    assert (logits[1, 6:] == 0).all()
    assert logits[1, :6, :6].abs().min() > 0


@pytest.mark.parametrize("structure", [True, False])
def test_padding_changes_nothing_whatever_stands_there(structure):
    made, given = model(structure).double(), protein()
    short = made.predict(**given)
    left, right, rows = 2, 1, 1
    tokens = torch.full((2, 4 + rows, 9 + left + right), 22)
    tokens[:, :4, left : left + 9] = given["tokens"]
    deletions = torch.full(tokens.shape, torch.nan)
    deletions[:, :4, left : left + 9] = given["deletions"]
    sequence = torch.full((2, 12), 7)
    sequence[:, left : left + 9] = given["sequence"]
    mask = (torch.arange(12) >= left) & (torch.arange(12) < left + 9)
    msa_mask = torch.ones_like(tokens, dtype=torch.bool)
    msa_mask[:, 4:] = False
    long = made.predict(tokens, sequence=sequence, deletions=deletions, key_mask=mask.expand(2, -1), msa_mask=msa_mask)
    assert_close(long.distogram[:, left : left + 9, left : left + 9], short.distogram, rtol=0, atol=1e-6)
    if structure:
        assert_close(long.atoms[:, left : left + 9], short.atoms, rtol=0, atol=1e-6)
        assert_close(long.plddt[:, left : left + 9], short.plddt, rtol=0, atol=1e-6)
        assert (long.plddt[:, :left] == 0).all()
        assert not long.all_atom_mask[:, :left].any()


def test_a_cycle_is_another_pass_with_what_the_first_found():
    made, given = model(), protein()
    once, twice = made(**given, cycles=0), made(**given, cycles=1)
    assert (once - twice).abs().max() > 1e-4
    assert_close(made(**given), twice)  # in evaluation all of them
    assert_close(made.predict(**given, cycles=0).distogram, once)


def test_without_cycles_it_is_the_plain_network():
    """Embeddings, nothing found before, Evoformer, distogram."""
    made, given = model(structure=False), protein()
    msa, pair = made.embed(
        letter_features(given["tokens"], given["deletions"]), given["sequence"], torch.arange(9).expand(2, 9)
    )
    msa = torch.cat((msa[:, :1] + made.recycle.row_norm.bias, msa[:, 1:]), 1)
    _, pair = made.evoformer(msa, pair + made.recycle.pair_norm.bias)
    assert_close(made(**given, cycles=0), made.distogram(pair))


def test_only_the_last_pass_has_gradients(monkeypatch):
    made, given, passes = model(), protein(), []
    original = made.evoformer.forward

    def noted(*arguments, **options):
        passes.append(torch.is_grad_enabled())
        return original(*arguments, **options)

    monkeypatch.setattr(made.evoformer, "forward", noted)
    made(**given, cycles=2)
    assert passes == [False, False, True]


def test_training_draws_the_number_of_cycles(monkeypatch):
    made, given, passes = model(structure=False, recycles=2, msa_drop=0.0, pair_drop=0.0).train(), protein(), []
    original = made.evoformer.forward

    def noted(*arguments, **options):
        passes.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(made.evoformer, "forward", noted)
    counts = set()
    for seed in range(12):
        passes.clear()
        made(**given, generator=torch.Generator().manual_seed(seed))
        counts.add(len(passes))
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("atoms", [5, 37])
def test_every_parameter_is_taught_and_losses_are_weighted(atoms):
    given = protein(length=8)
    made = model().train()
    known = truth(given, atoms)
    logits, told = made(**given, truth=known, return_aux=True, cycles=1, generator=torch.Generator().manual_seed(0))
    assert sorted(told) == ["loss/auxiliary", "loss/confidence", "loss/fape", "loss/masked_msa"]
    bins = torch.nn.functional.one_hot(distogram_bins(known.atoms[:, :, 1]), 64)
    (sum(told.values()) - (logits.log_softmax(-1) * bins).mean()).backward()
    untaught = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untaught == []
    double = copy.deepcopy(made)
    double.loss_weights = LossWeights(fape=1.0, auxiliary=1.0, masked_msa=4.0, confidence=0.02)
    _, heavier = double(**given, truth=known, return_aux=True, cycles=1, generator=torch.Generator().manual_seed(0))
    for name, loss in told.items():
        assert_close(heavier[name], 2 * loss)


def test_what_stands_in_padding_reaches_no_gradient():
    given, made = protein(), model(structure=False)
    mask = torch.arange(9).expand(2, 9) < torch.tensor([[9], [6]])
    deletions = given["deletions"].masked_fill(~mask[:, None], torch.nan)
    made(given["tokens"], deletions=deletions, key_mask=mask, cycles=0).sum().backward()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)


def test_losses_do_not_look_at_masked_residues():
    given, made = protein(), model()
    mask = torch.arange(9).expand(2, 9) < torch.tensor([[9], [6]])
    known = truth(given)
    _, told = made(**given, key_mask=mask, truth=known, return_aux=True)
    atoms = known.atoms.masked_fill(~mask[..., None, None], torch.nan)
    msa = known.msa.masked_fill(~mask[:, None], 99)
    _, hidden = made(**given, key_mask=mask, truth=known._replace(atoms=atoms, msa=msa), return_aux=True)
    assert_close(hidden, told)
    _, without = model(structure=False)(**given, truth=known, return_aux=True)
    assert sorted(without) == ["loss/masked_msa"]
    assert made(**given, return_aux=True)[1] == {}


def test_it_learns_a_protein():
    torch.manual_seed(0)
    made = AlphaFold(
        *(16, 8, 16, 1),
        msa_heads=2,
        pair_heads=2,
        structure_depth=2,
        structure_options={"num_heads": 2, "dropout": 0.0},
        msa_drop=0.0,
        pair_drop=0.0,
    )
    given = protein(length=8, batch=1)
    steps = torch.cumsum(torch.nn.functional.normalize(torch.randn(1, 8, 3), dim=-1) * 3.8, 1)
    offsets = torch.tensor([[-0.5, 1.4, 0.0], [0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [-0.5, -0.8, -1.2], [2.1, 1.1, 0.0]])
    known = truth(given)._replace(atoms=steps[:, :, None] + offsets, atom_mask=torch.ones(1, 8, 5).bool())
    everyone, history = torch.ones(1, 8).bool(), []
    optimizer = torch.optim.Adam(made.train().parameters(), lr=1e-2)
    for _ in range(25):
        logits, told = made(**given, truth=known, cycles=0, return_aux=True)
        loss = distogram_loss(logits, known.atoms[:, :, 3], everyone).mean() + sum(told.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((float(loss.detach()), float(told["loss/fape"].detach())))
    assert history[-1][0] < 0.6 * history[0][0], history
    assert history[-1][1] < 0.7 * history[0][1], history


def test_an_extra_alignment_is_read():
    made, given = model(extra_depth=1), protein()
    extra = torch.randint(22, (2, 6, 9), generator=torch.Generator().manual_seed(3))
    out = made(**given, extra_msa=extra)
    assert (out - made(**given)).abs().max() > 1e-5
    seen = torch.ones_like(extra, dtype=torch.bool)
    seen[:, 4:] = False
    assert_close(
        made(**given, extra_msa=extra, extra_mask=seen), made(**given, extra_msa=extra[:, :4]), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="extra_depth=4"):
        model()(**given, extra_msa=extra)


def test_relative_positions_are_cut_at_32_and_only_differences_count():
    embed = InputEmbedder(8, 6)
    sequence, letters = (
        torch.zeros(1, 3, dtype=torch.long),
        letter_features(torch.zeros(1, 1, 3, dtype=torch.long), None),
    )
    near, far = torch.tensor([[0, 5, 40]]), torch.tensor([[100, 105, 990]])
    assert_close(embed(letters, sequence, near)[1], embed(letters, sequence, far)[1])
    other = embed(letters, sequence, torch.tensor([[0, 6, 40]]))[1]
    assert (other - embed(letters, sequence, near)[1]).abs().max() > 1e-3
    weight = embed.relative.weight
    pair = embed(letters, sequence, near)[1]
    expected = embed.left.weight[:, 0] + embed.right.weight[:, 0] + weight[:, 0 - 5 + 32]
    assert_close(pair[0, 0, 1], expected)
    assert_close(pair[0, 2, 0], embed.left.weight[:, 0] + embed.right.weight[:, 0] + weight[:, 64])


def test_recycled_distances_fall_into_15_bins_and_close_ones_into_none():
    embed = RecyclingEmbedder(4, 15, structure=True)
    torch.nn.init.eye_(embed.distance.weight)
    for distance, expected in ((0.0, None), (3.0, None), (3.3, 0), (4.6, 1), (20.0, 13), (21.0, 14), (90.0, 14)):
        points = torch.tensor([[[0.0, 0, 0], [distance, 0, 0]]])
        found = embed(torch.zeros(1, 2, 4), torch.zeros(1, 2, 2, 15), points)[1][0, 0, 1]
        assert found.tolist() == [float(place == expected) for place in range(15)]


def test_recomputation_and_chunks_change_nothing():
    given = protein()
    plain, saving = model(), model(checkpoint=True, chunk_size=2)
    for made in (plain, saving):
        made.train()
        made(**given, cycles=0, generator=torch.Generator().manual_seed(0)).square().mean().backward()
    gradients = [[p.grad for p in made.parameters() if p.grad is not None] for made in (plain, saving)]
    assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_weights_round_trip_without_the_tables():
    made = model()
    assert not any("table" in name for name in made.state_dict())
    other = model(seed=5)
    other.load_state_dict(made.state_dict())
    assert_close(other(**protein()), made(**protein()))


def test_refusals():
    made, given = model(), protein()
    with pytest.raises(ValueError, match=r"tokens has shape \(4, 9\)"):
        made(given["tokens"][0])
    with pytest.raises(TypeError, match=r"tokens is torch\.float32"):
        made(given["tokens"].float())
    with pytest.raises(TypeError, match="key_mask"):
        made(**given, key_mask=torch.ones(2, 9))
    with pytest.raises(ValueError, match=r"sequence has shape \(2, 8\), expected \(2, 9\)"):
        made(given["tokens"], sequence=given["sequence"][:, 1:])
    with pytest.raises(ValueError, match=r"deletions of tokens has shape \(2, 4, 8\)"):
        made(given["tokens"], deletions=given["deletions"][..., 1:])
    with pytest.raises(ValueError, match="msa_dim=8 is no multiple of its 3 heads"):
        AlphaFold(8, 6, 10, 1, msa_heads=3, pair_heads=2)
    with pytest.raises(ValueError, match="recycles=-1"):
        AlphaFold(8, 6, 10, 1, msa_heads=2, pair_heads=2, recycles=-1)
    with pytest.raises(ValueError, match="cycles=-1"):
        made(**given, cycles=-1)
