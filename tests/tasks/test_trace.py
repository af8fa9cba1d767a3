import pytest
import torch
import torch.nn.functional as F

from regard.models.all_atoms import ALPHA, BETA
from regard.models.structure_losses import distogram_bins, lddt_ca
from regard.tasks.trace import trace, virtual_beta
from tests.tasks.protein_samples import bent, helix


def superposed(left, right):
    """Root mean square distance after the best rotation (Kabsch)."""
    left, right = left - left.mean(0), right - right.mean(0)
    u, _, v = torch.linalg.svd(left.T @ right)
    turn = u @ torch.diag(torch.tensor([1.0, 1.0, float(torch.sign(torch.det(u @ v)))])) @ v
    return float((left @ turn - right).square().sum(-1).mean().sqrt())


def test_virtual_betas_stand_where_those_of_a_helix_do():
    atoms = helix(12)
    found = virtual_beta(atoms[:, ALPHA])
    assert float((found - atoms[:, BETA])[1:-1].norm(dim=-1).max()) < 0.8
    mirrored = virtual_beta(atoms[:, ALPHA] * torch.tensor([1.0, 1.0, -1.0])) * torch.tensor([1.0, 1.0, -1.0])
    assert float((mirrored - atoms[:, BETA])[1:-1].norm(dim=-1).min()) > 1.2  # a mirror image is told apart


def test_a_certain_map_gives_the_structure_and_its_hand():
    atoms = bent(36)
    places = torch.arange(36) + 4 * (torch.arange(36) // 12)  # pieces are not bonded
    logits = 30.0 * F.one_hot(distogram_bins(atoms[:, BETA]), 64)
    found = trace(logits, places)
    true = atoms[:, ALPHA]
    assert float(lddt_ca(found, true, torch.ones(36, dtype=torch.bool)).mean()) > 0.9
    assert superposed(found, true) < 0.7
    assert superposed(found * torch.tensor([1.0, 1.0, -1.0]), true) > 2.0
    assert torch.equal(trace(logits, places), found)


def test_bonds_have_their_length_where_nothing_is_known():
    found = trace(torch.zeros(12, 12, 64), torch.arange(12))
    assert float(((found[1:] - found[:-1]).norm(dim=-1) - 3.8).abs().max()) < 0.5


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_proteins(length):
    assert trace(torch.zeros(length, length, 64), torch.arange(length), steps=3).isfinite().all()


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        trace(torch.full((3, 3, 64), torch.nan), torch.arange(3))
