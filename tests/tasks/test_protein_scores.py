import math

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models.structure_losses import distogram_bins
from regard.tasks.protein_baselines import BySeparation, FamilyMean, mutual_information
from regard.tasks.protein_families import read_families
from regard.tasks.protein_scores import contact_precision, contact_probabilities, expected_lddt, mass_below
from regard.tasks.protein_split import Member, split_families
from tests.tasks.protein_samples import write_family


def test_mass_below_is_spread_evenly_within_a_bin():
    logits = torch.randn(64).log_softmax(-1)
    p = logits.exp()
    for distance in (0.5, 2.0, 2.3125, 5.1, 8.0, 21.6, 25.0):
        expected = 0.0
        for k in range(64):
            low, high = 2.0 + 0.3125 * k, 2.3125 + 0.3125 * k
            expected += float(p[k]) * min(1.0, max(0.0, (distance - low) / (high - low)))
        expected = 1.0 if distance > 22.0 else expected
        assert math.isclose(float(mass_below(logits, torch.tensor(distance))), expected, abs_tol=1e-5)


def test_contact_probabilities_of_certain_distances():
    points = torch.tensor([[0.0, 0, 0], [7.5, 0, 0], [0, 8.5, 0]])
    certain = 50.0 * F.one_hot(distogram_bins(points), 64)
    assert_close(contact_probabilities(certain)[0], torch.tensor([1.0, 1.0, 0.0]))


def test_contact_precision_counts_pairs_by_loops():
    generator = torch.Generator().manual_seed(3)
    size = 40
    points = 6 * torch.randn(size, 3, generator=generator)
    mask = torch.rand(size, generator=generator) < 0.8
    places = torch.arange(size) + 5 * (torch.arange(size) > 20)
    probabilities = torch.rand(size, size, generator=generator)
    pairs = [
        (float(probabilities[i, j]), bool((points[i] - points[j]).norm() < 8))
        for i in range(size)
        for j in range(i + 1, size)
        if mask[i] and mask[j] and places[j] - places[i] >= 24
    ]
    pairs.sort(reverse=True)
    found = contact_precision(probabilities, points, mask, places)
    for name, part in (("L", 1), ("L/2", 2), ("L/5", 5)):
        top = [true for _, true in pairs[: int(mask.sum()) // part]]
        assert math.isclose(found[name], sum(top) / len(top), rel_tol=1e-6)
    assert math.isnan(contact_precision(probabilities[:9, :9], points[:9], mask[:9], places[:9])["L"])


def test_expected_lddt_by_loops_and_at_certainty():
    points = 8 * torch.rand(9, 3)
    logits = torch.randn(9, 9, 64)
    found = expected_lddt(logits, points)
    total, count = 0.0, 0
    for j in range(1, 9):
        d = (points[0] - points[j]).norm()
        if d < 15:
            count += 1
            total += sum(
                float(mass_below(logits[0, j], d + t) - mass_below(logits[0, j], d - t)) for t in (0.5, 1, 2, 4)
            )
    assert math.isclose(float(found[0]), total / 4 / count, rel_tol=1e-4)
    certain = 50.0 * F.one_hot(distogram_bins(points), 64)
    assert bool((expected_lddt(certain, points) > 0.9).all())


def test_by_separation_is_the_training_frequency(tmp_path):
    write_family(tmp_path, clusters=3, each=1, length=26)
    (family,) = read_families(tmp_path)
    chain = family.chains[0]
    logits = BySeparation([chain]).logits(chain.places)
    assert_close(logits.exp().sum(-1), torch.ones(26, 26))
    assert torch.equal(logits, logits.transpose(0, 1))
    assert torch.equal(logits[0, 3], logits[7, 10])
    apart = (chain.places[:, None] - chain.places).abs() == 3  # one more count is spread over all bins
    bins = distogram_bins(chain.atoms[:, 3].where(chain.atom_mask[:, 3, None], chain.atoms[:, 1]))
    seen = torch.bincount(bins[apart], minlength=64)
    assert_close(logits[0, 3].exp(), (seen + 1 / 64) / (seen.sum() + 1), rtol=1e-4, atol=1e-6)


def test_family_mean_meets_columns_and_leaves_the_target_out(tmp_path):
    write_family(tmp_path, clusters=4, each=2, length=26)
    (family,) = read_families(tmp_path)
    split = split_families([family])
    prior = BySeparation(split.chain(m) for m in split.train)
    mean = FamilyMean(split, prior)
    target = split.test[0]
    logits = mean.logits(target)
    assert_close(logits.exp().sum(-1), torch.ones(26, 26))
    counts = prior.logits(split.chain(target).places).exp().clone()
    for member in split.train:  # all have the same columns here
        chain = split.chain(member)
        points = chain.atoms[:, 3].where(chain.atom_mask[:, 3, None], chain.atoms[:, 1])
        counts += F.one_hot(distogram_bins(points), 64)
    assert_close(logits.exp(), counts / (1 + len(split.train)), rtol=1e-4, atol=1e-6)
    own = Member(split.train[0].family, split.train[0].row)
    assert not torch.equal(mean.logits(own), logits)


def test_mutual_information_by_loops():
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(22, (30, 5), generator=generator)
    letters[:, 3] = (letters[:, 0] + 1) % 22
    found = mutual_information(letters)
    total, plain = 30.5, torch.zeros(5, 5)  # random rows are not alike: each has a vote
    for i in range(5):
        for j in range(5):
            joint, left, right = (torch.zeros(22, 22).double(), torch.zeros(22).double(), torch.zeros(22).double())
            for row in letters.tolist():
                joint[row[i], row[j]] += 1
                left[row[i]] += 1
                right[row[j]] += 1
            joint, left, right = (joint + 0.5 / 484) / total, (left + 0.5 / 22) / total, (right + 0.5 / 22) / total
            plain[i, j] = (joint * (joint / (left[:, None] * right)).log()).sum() if i != j else 0.0
    mean = plain.sum(1) / 4
    assert_close(found, plain - mean[:, None] * mean / mean.mean(), rtol=1e-3, atol=1e-4)
    assert found[0].argmax() == 3
