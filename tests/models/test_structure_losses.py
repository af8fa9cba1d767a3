import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.structure_losses import (
    confidence,
    confidence_loss,
    distogram_bins,
    distogram_edges,
    distogram_loss,
    fape,
    lddt_ca,
    masked_msa_loss,
    torsion_loss,
)
from regard.ops.frames import Frames, quaternion_to_rotation


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frames(*shape, seed=0, far=5.0):
    return Frames(quaternion_to_rotation(draw(*shape, 4, seed=seed)), far * draw(*shape, 3, seed=seed + 1))


def some(*shape, seed=3):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.7


def moved(frame, points, mirror=False):
    turn, shift = quaternion_to_rotation(draw(4, seed=9)), 50 * draw(3, seed=10)
    glass = torch.diag(torch.tensor([1.0, 1, -1 if mirror else 1], dtype=torch.float64))
    turn = turn @ glass
    rotation = turn @ frame.rotation @ glass  # frames of mirrored atoms are right-handed again
    return Frames(rotation, frame.translation @ turn.T + shift), points @ turn.T + shift


@pytest.mark.parametrize("clamp", [10.0, 3.0, math.inf])
def test_fape_is_the_mean_over_frames_and_points(clamp):
    found, true = frames(2, 4), frames(2, 4, seed=20)
    points, true_points = 5 * draw(2, 6, 3, seed=4), 5 * draw(2, 6, 3, seed=5)
    frame_mask, point_mask = some(2, 4), some(2, 6)
    loss = fape(found, points, true, true_points, frame_mask, point_mask, clamp=clamp)
    for b in range(2):
        terms = []
        for i in frame_mask[b].nonzero().flatten().tolist():
            for j in point_mask[b].nonzero().flatten().tolist():
                seen = found.rotation[b, i].T @ (points[b, j] - found.translation[b, i])
                expected = true.rotation[b, i].T @ (true_points[b, j] - true.translation[b, i])
                terms.append(min(clamp, math.sqrt(float(((seen - expected) ** 2).sum()) + 1e-4)))
        assert_close(float(loss[b]), sum(terms) / len(terms) / 10, atol=1e-12, rtol=1e-12)


def test_fape_sees_no_motion_of_the_whole_but_a_mirror_image():
    found, true = frames(2, 4), frames(2, 4, seed=20)
    points, true_points = draw(2, 6, 3, seed=4), draw(2, 6, 3, seed=5)
    known = (torch.ones(2, 4).bool(), torch.ones(2, 6).bool())
    loss = fape(found, points, true, true_points, *known, clamp=math.inf)
    assert_close(fape(*moved(found, points), true, true_points, *known, clamp=math.inf), loss)
    exact = fape(*moved(true, true_points), true, true_points, *known)
    assert_close(exact, torch.full_like(exact, 1e-3))
    assert (fape(*moved(true, true_points, mirror=True), true, true_points, *known) > 0.02).all()


def test_fape_of_each_protein_may_be_clamped_or_not_and_of_nothing_is_0():
    found, points = frames(2, 4, far=30.0), 30 * draw(2, 6, 3, seed=4)
    true, true_points = frames(2, 4, seed=20, far=30.0), 30 * draw(2, 6, 3, seed=5)
    known = (torch.ones(2, 4).bool(), torch.ones(2, 6).bool())
    both = fape(found, points, true, true_points, *known, clamp=torch.tensor([10.0, torch.inf]))
    assert_close(both[0], fape(found, points, true, true_points, *known)[0])
    assert_close(both[1], fape(found, points, true, true_points, *known, clamp=math.inf)[1])
    assert both[1] > 1.0 >= both[0]
    nothing = fape(found, points, true, true_points, torch.zeros(2, 4).bool(), known[1])
    assert (nothing == 0).all()


def test_torsions_by_the_equation():
    raw, true = draw(2, 5, 7, 2), torch.nn.functional.normalize(draw(2, 5, 7, 2, seed=7), dim=-1)
    angles = torch.nn.functional.normalize(raw, dim=-1)
    symmetric, known, real = some(2, 5, 7, seed=1), some(2, 5, 7, seed=2), some(2, 5, seed=4)
    loss = torsion_loss(angles, raw, true, symmetric, known, real)
    for b in range(2):
        off = []
        for i, f in known[b].nonzero().tolist():
            ways = [((angles[b, i, f] - sign * true[b, i, f]) ** 2).sum() for sign in (1, -1)]
            off.append(float(min(ways) if symmetric[b, i, f] else ways[0]))
        lengths = [abs(float(raw[b, i, f].norm()) - 1) for i in real[b].nonzero().flatten().tolist() for f in range(7)]
        expected = sum(off) / len(off) + 0.02 * sum(lengths) / len(lengths)
        assert_close(float(loss[b]), expected, atol=1e-6, rtol=1e-6)


def test_bins_of_distance_count_the_edges_below():
    edges = distogram_edges()
    assert len(edges) == 63
    assert abs(float(edges[-1]) - 21.6875) < 1e-5
    points = 12 * draw(9, 3).float()
    bins = distogram_bins(points)
    for i in range(9):
        for j in range(9):
            squared = float(((points[i] - points[j]) ** 2).sum())
            assert int(bins[i, j]) == sum(float(edge) ** 2 < squared for edge in edges)
    assert bins.diagonal().max() == 0
    assert bins.max() == 63


def test_distogram_loss_is_the_mean_over_known_pairs_of_each_protein():
    logits, points, known = draw(2, 5, 5, 64), 8 * draw(2, 5, 3, seed=2), torch.arange(5) < torch.tensor([[5], [3]])
    points[1, 4] = torch.nan
    loss = distogram_loss(logits, points, known)
    log_probabilities = logits.log_softmax(-1)
    for b, size in enumerate((5, 3)):
        bins = distogram_bins(points[b, :size])
        terms = [-float(log_probabilities[b, i, j, bins[i, j]]) for i in range(size) for j in range(size)]
        assert_close(float(loss[b]), sum(terms) / size**2)


def test_masked_letters_alone_count():
    logits, letters, corrupted = draw(1, 3, 4, 23), torch.randint(23, (1, 3, 4)), torch.zeros(1, 3, 4).bool()
    assert masked_msa_loss(logits, letters, corrupted).tolist() == [0.0]
    corrupted[0, 1, 2] = True
    expected = -logits[0, 1, 2].log_softmax(-1)[letters[0, 1, 2]]
    assert_close(masked_msa_loss(logits, letters, corrupted)[0], expected)


def test_lddt_by_its_definition():
    true, found, known = 6 * draw(12, 3), 6 * draw(12, 3, seed=1), some(12)
    found[:6] = true[:6] + 0.4 * draw(6, 3, seed=2)
    score = lddt_ca(found, true, known)
    for i in range(12):
        kept = []
        for j in range(12):
            expected = float((true[i] - true[j]).norm())
            if i != j and known[i] and known[j] and expected < 15:
                off = abs(float((found[i] - found[j]).norm()) - expected)
                kept.append(sum(off < threshold for threshold in (0.5, 1, 2, 4)) / 4)
        assert_close(float(score[i]), sum(kept) / len(kept) if kept else 0.0)
    assert 0.05 < float(score.mean()) < 0.95


def test_lddt_does_not_see_motions_masked_residues_and_neighbours_beyond_15():
    true = torch.tensor([[0.0, 0, 0], [14.9, 0, 0], [40.0, 0, 0], [torch.nan, 0, 0]])
    known = torch.tensor([True, True, True, False])
    assert lddt_ca(true + 7.0, true, known).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert lddt_ca(true * 1.1, true, known).tolist() == [0.5, 0.5, 0.0, 0.0]  # 1.49 off: within 2 and 4


def test_confidence_is_the_mean_of_its_bins_and_is_taught_the_bin_of_the_lddt():
    sharp = torch.full((1, 3, 50), -1e9)
    for place, bin_ in enumerate((0, 20, 49)):
        sharp[0, place, bin_] = 0.0
    assert_close(confidence(sharp), torch.tensor([[1.0, 41.0, 99.0]]))
    lddt, known = torch.tensor([[0.0199, 0.40001, 1.0]]), torch.ones(1, 3).bool()
    assert float(confidence_loss(sharp, lddt, known)) == 0.0
    assert float(confidence_loss(sharp, lddt + 0.03, known)) > 1e8
    assert float(confidence_loss(sharp, lddt + 0.03, ~known)) == 0.0
