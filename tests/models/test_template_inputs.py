"""Templates in a fold: what joins the pairs and the alignment, and that absent ones change nothing."""

import pytest
import torch
from torch.testing import assert_close

from regard.models.alphafold import AlphaFold
from regard.models.residue_atoms import residue_tables
from regard.models.structure_losses import distogram_loss
from regard.models.template_features import template_features, template_row_features
from regard.models.template_inputs import TemplateInputs, Templates
from tests.models.test_alphafold import truth
from tests.models.test_template_features import templates


def model(structure=True, seed=0, template_depth=1, **options):
    torch.manual_seed(seed)
    made = AlphaFold(
        *(8, 8, 10, 1),
        msa_heads=2,
        pair_heads=2,
        template_depth=template_depth,
        structure=structure,
        structure_depth=1,
        structure_options={"num_heads": 2, "head_dim": 4, "torsion_dim": 8} if structure else None,
        recycles=1,
        **options,
    ).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def protein(length=6, rows=3, batch=2, seed=0):
    make = torch.Generator().manual_seed(seed)
    tokens = torch.randint(23, (batch, rows, length), generator=make)
    return {"tokens": tokens, "sequence": torch.randint(20, (batch, length), generator=make)}


def test_the_module_is_its_parts():
    torch.manual_seed(0)
    module, given, mask = (
        TemplateInputs(10, 8, 1, 2, 4, directions=True).double().eval(),
        templates(),
        torch.rand(2, 6, 6) < 0.8,
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    pair = torch.randn(2, 6, 6, 8).double()
    features = template_features(given, directions=True)
    assert_close(module(pair, given, mask), module.pairs(pair, features, given.mask, mask))
    module.directions = False
    assert_close(module(pair, given, mask), module.pairs(pair, template_features(given), given.mask, mask))
    places = torch.arange(6).expand(2, -1)
    features, told = template_row_features(given, places, residue_tables())
    hidden = (features @ module.row.weight.T + module.row.bias).clamp(min=0)
    rows, known = module.rows(given, places)
    assert_close(rows, hidden @ module.row_out.weight.T + module.row_out.bias)
    assert torch.equal(known, told)


def test_they_join_after_recycling_and_before_the_extra_alignment(monkeypatch):
    made, given, known = model(structure=False, extra_depth=1), protein(), templates()
    seen = {}

    def noted(name, module):
        original = module.forward

        def forward(*arguments, **options):
            seen[name] = (arguments, original(*arguments, **options))
            return seen[name][1]

        monkeypatch.setattr(module, "forward", forward)

    for name in ("recycle", "embed", "templates", "extra_stack", "evoformer"):
        noted(name, getattr(made, name))
    extra = torch.randint(22, (2, 4, 6), generator=torch.Generator().manual_seed(3))
    made(**given, templates=known, extra_msa=extra, cycles=0)
    pair = seen["embed"][1][1] + seen["recycle"][1][1]
    assert_close(seen["templates"][0][0], pair)
    assert_close(seen["extra_stack"][0][1], pair + seen["templates"][1])
    msa, pair, msa_mask, _ = seen["evoformer"][0]
    assert_close(pair, seen["extra_stack"][1][1])
    rows, told = made.templates.rows(known, torch.arange(6).expand(2, -1))
    assert_close(msa[:, 3:][told], rows[told])
    assert torch.equal(msa_mask[:, 3:], told)
    assert msa_mask[:, :3].all()


def test_absent_templates_change_nothing():
    made, given, known = model(), protein(), templates()
    without = made.predict(**given)
    none = Templates(*(part[:, :0] for part in known))
    absent = known._replace(mask=torch.zeros_like(known.mask))
    for left_out in (none, absent):
        found = made.predict(**given, templates=left_out)
        for one, other in zip(found, without, strict=True):
            assert_close(one, other, rtol=0, atol=1e-12)
    two = Templates(*(part[:, :2] for part in known))
    both = known._replace(
        sequence=known.sequence.masked_fill(~known.mask[..., None], -7),
        atoms=known.atoms.masked_fill(~(known.atom_mask & known.mask[..., None, None])[..., None], torch.nan),
    )
    assert_close(made(**given, templates=both)[1], made(**given, templates=two)[1], rtol=0, atol=1e-12)
    assert (made(**given, templates=both) - without.distogram).abs().amax((1, 2, 3)).min() > 1e-4
    assert_close(made(**given), model(template_depth=1)(**given))


def test_padded_residues_change_nothing_whatever_stands_there():
    made, given, known = model(), protein(), templates()
    short = made.predict(**given, templates=known)
    left, total = 2, 9
    real = (torch.arange(total) >= left) & (torch.arange(total) < left + 6)

    def padded(x, dim, fill):
        out = x.new_full((*x.shape[:dim], total, *x.shape[dim + 1 :]), fill)
        return out.index_copy(dim, torch.arange(left, left + 6), x)

    long = made.predict(
        padded(given["tokens"], 2, 22),
        sequence=padded(given["sequence"], 1, 3),
        key_mask=real.expand(2, -1),
        templates=Templates(
            padded(known.sequence, 2, 99),
            padded(known.atoms, 2, torch.nan),
            padded(known.atom_mask, 2, True),
            known.mask,
        ),
    )
    assert_close(long.distogram[:, real][:, :, real], short.distogram, rtol=0, atol=1e-6)
    assert_close(long.atoms[:, real], short.atoms, rtol=0, atol=1e-6)


@pytest.mark.parametrize("structure", [True, False])
def test_every_parameter_of_theirs_is_taught(structure):
    made, given, known = model(structure, template_directions=True).train(), protein(), templates()
    spoilt = known._replace(atoms=known.atoms.masked_fill(~known.atom_mask[..., None], torch.nan))
    made(**given, templates=spoilt, generator=torch.Generator().manual_seed(0)).square().sum().backward()
    for name, parameter in made.templates.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    untaught = [name for name, p in made.evoformer.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert untaught == []


def test_losses_do_not_count_their_rows():
    made, given, known = model(), protein(), templates()
    told = truth(given)._replace(atoms=truth(given).atoms.double())
    _, losses = made(**given, templates=known, truth=told, return_aux=True, cycles=1)
    assert sorted(losses) == ["loss/auxiliary", "loss/confidence", "loss/fape", "loss/masked_msa"]
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.slow  # about 5 s
def test_a_template_that_is_the_truth_is_learned_from():
    """Letters that tell nothing, new proteins in each step: only the template shows the distances."""
    torch.manual_seed(0)
    made = AlphaFold(*(8, 16, 8, 1), msa_heads=2, pair_heads=2, structure=False, template_depth=1, recycles=0)
    made.train()
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    tokens, everyone = torch.zeros(4, 1, 8, dtype=torch.long), torch.ones(4, 8, dtype=torch.bool)
    history = []
    for _ in range(60):
        trace = torch.cumsum(torch.nn.functional.normalize(torch.randn(4, 8, 3), dim=-1) * 3.8, 1)
        atoms = trace[:, None, :, None] + torch.eye(5, 3)
        known = torch.ones(4, 1, 8, 5, dtype=torch.bool)
        given = Templates(tokens, atoms, known, known[:, :, 0, 0])
        losses = [
            distogram_loss(made(tokens, templates=shown), atoms[:, 0, :, 3], everyone).mean() for shown in (given, None)
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        history.append([float(loss.detach()) for loss in losses])
    shown, hidden = torch.tensor(history[-10:]).mean(0).tolist()
    assert shown < 0.9 * hidden, history[-1]


def test_recomputation_and_chunks_change_nothing():
    given, known, gradients = protein(), templates(), []
    for made in (model(structure=False), model(structure=False, checkpoint=True, chunk_size=2)):
        made.train()
        made(**given, templates=known, cycles=0, generator=torch.Generator().manual_seed(0)).square().mean().backward()
        gradients.append([p.grad for p in made.parameters() if p.grad is not None])
    assert_close(gradients[0], gradients[1], atol=1e-10, rtol=1e-8)


def test_tables_are_no_weights():
    made = model(structure=False)
    assert not any("table" in name for name in made.state_dict())
    assert sorted({name.split(".")[0] for name in made.templates.state_dict()}) == ["pairs", "row", "row_out"]


def test_refusals():
    made, given, known = model(structure=False), protein(), templates()
    with pytest.raises(ValueError, match="template_depth=2"):
        model(structure=False, template_depth=0)(**given, templates=known)
    with pytest.raises(ValueError, match=r"letters \(2, 3, 5\), expected \(2, any number, 6\)"):
        made(**given, templates=known._replace(sequence=known.sequence[..., :5]))
    with pytest.raises(ValueError, match=r"atoms \(2, 3, 6, 4, 3\), expected \(2, 3, 6\) and then \(5 to 37, 3\)"):
        made(**given, templates=known._replace(atoms=known.atoms[..., :4, :]))
    with pytest.raises(TypeError, match=r"letters of torch.float32"):
        made(**given, templates=known._replace(sequence=known.sequence.float()))
    with pytest.raises(TypeError, match=r"mask of templates is torch.int64"):
        made(**given, templates=known._replace(mask=known.mask.long()))
    with pytest.raises(ValueError, match=r"atom_mask of templates has shape \(2, 3, 6, 5\), expected \(2, 3, 6, 37\)"):
        made(**given, templates=known._replace(atom_mask=known.atom_mask[..., :5]))
