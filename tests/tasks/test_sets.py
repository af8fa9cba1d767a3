"""Tasks on sets: what is drawn, what is judged, and what needs no attention."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.tasks.fashion_mnist import fashion_mnist
from regard.tasks.mixtures import DEVIATION, Mixtures, log_likelihood
from regard.tasks.point_sets import PointSets, points_of
from regard.tasks.sets import Maximum
from regard.train.budget import Budget
from regard.train.trainer import Trainer
from tests.tasks.pictures_here import write_pictures

SIZES = {"length": 40, "batch": 5, "seed": 0}


@pytest.fixture
def pictures(tmp_path):
    return fashion_mnist(write_pictures(tmp_path))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_largest_of_one_to_ten_numbers():
    task = Maximum(**SIZES)
    batch = task.draw(4000, seeded())
    sizes, numbers = batch.key_mask.sum(1), (100 * batch.tokens[..., 0]).round().long()
    assert set(sizes.tolist()) == set(range(1, 11))
    assert (numbers[batch.key_mask].min(), numbers.max()) == (1, 99)
    assert not numbers[~batch.key_mask].any()
    for row in range(20):
        assert round(100 * float(batch.targets[row])) == max(numbers[row, : sizes[row]].tolist())
    assert task.batch(0).tokens.shape == (20, 10, 1), "as many as hold batch x length numbers"
    guess = torch.full((4000, 1, 1), 0.5)
    assert_close(task.scores(guess, batch), (50 - 100 * batch.targets.double()).abs())
    assert_close(100 * task.loss(guess, batch), task.scores(guess, batch).mean().float())


def test_always_the_median_is_the_best_constant():
    task = Maximum(**SIZES)
    reached = task.baselines()["always the median"]
    for constant in (0.7, 0.95):
        scores = [task.scores(torch.full((len(b.targets),), constant), b) for b in task.held_out("test")]
        assert float(torch.cat(scores).mean()) > reached


def test_mixtures_are_those_of_the_authors():
    task = Mixtures(length=600, batch=10, seed=0)
    batch = task.draw(2000, seeded())
    weights, centres = batch.targets[..., 0], batch.targets[..., 1:]
    assert 300 <= batch.tokens.shape[1] < 600
    assert_close(weights.sum(1), torch.ones(2000))
    assert weights.var(0).mean() == pytest.approx(3 / 80, rel=0.1), "Dirichlet(1, 1, 1, 1)"
    assert (centres.amin(), centres.amax()) == (pytest.approx(-4, abs=0.01), pytest.approx(4, abs=0.01))
    nearest = torch.cdist(batch.tokens, centres)
    close, own = nearest.min(-1)
    assert close.square().mean() / 2 == pytest.approx(DEVIATION**2, rel=0.1)
    heavy = weights[:, 0] > 0.9
    assert (own[heavy] == 0).double().mean() > 0.85
    assert {task.batch(step).tokens.shape[1] for step in range(5)} != {task.batch(0).tokens.shape[1]}


def test_the_likelihood_is_that_of_a_mixture():
    x, centres = torch.randn(2, 5, 2).double(), torch.randn(2, 3, 2).double()
    weights, deviations = torch.rand(2, 3).double(), torch.rand(2, 3).double() + 0.2
    for b in range(2):
        total = 0.0
        for n in range(5):
            density = 0.0
            for k in range(3):
                square = float((x[b, n] - centres[b, k]).square().sum())
                d = float(deviations[b, k])
                density += float(weights[b, k]) * math.exp(-square / (2 * d * d)) / (2 * math.pi * d * d)
            total += math.log(density)
        assert float(log_likelihood(x, weights, centres, deviations)[b]) == pytest.approx(total / 5, abs=1e-8)


def test_the_oracle_is_what_a_perfect_answer_scores():
    task = Mixtures(**SIZES)
    found = task.baselines()
    raw = math.log(math.expm1(DEVIATION))
    scores = []
    for batch in task.held_out("test"):
        truth = batch.targets.double()
        deviations = torch.full_like(truth[..., :1], raw)
        answer = torch.cat((truth[..., :1].clamp(min=1e-12).log(), truth[..., 1:], deviations), -1)
        scores.append(task.scores(answer, batch))
        assert_close(task.loss(answer, batch), -task.scores(answer, batch).mean().float())
    assert float(torch.cat(scores).mean()) == pytest.approx(found["oracle"], abs=1e-6)
    assert -1.6 < found["oracle"] < -1.3, "the paper has -1.473 for larger sets"
    assert found["oracle"] - found["one Gaussian"] > 1


def test_pixels_that_are_not_black_are_points():
    image = torch.zeros(2, 4, 5, dtype=torch.uint8)
    image[0, 1, 4], image[0, 3, 0], image[1, 0, 0] = 255, 51, 102
    points, mask = points_of(image, 9, seeded())
    assert mask.tolist() == [[True, True], [True, False]]
    found = sorted(points[0].tolist(), key=lambda point: point[2])
    assert_close(torch.tensor(found), torch.tensor([[0.75, -0.8, 0.2], [-0.25, 0.8, 1.0]]))
    assert_close(points[1], torch.tensor([[-0.75, -0.8, 0.4], [0, 0, 0]]))
    crowd = torch.full((1, 4, 5), 9, dtype=torch.uint8)
    few, none = points_of(crowd, 7, seeded())
    assert (few.shape, none) == ((1, 7, 3), None)
    assert len({tuple(point) for point in few[0].tolist()}) == 7
    assert not torch.equal(few, points_of(crowd, 7, seeded(1))[0]), "another part"
    empty, nothing = points_of(torch.zeros(1, 4, 5, dtype=torch.uint8), 7, seeded())
    assert (empty.shape[1], nothing.any()) == (1, False)


def test_parts_of_pictures(pictures):
    task = PointSets(pictures, **SIZES, test_sets=15)
    assert {part: count for part, (count, _) in task.sizes().items()} == {"train": 54, "validation": 6, "test": 15}
    assert task.sizes()["test"][1] == 30
    first, again = list(task.held_out("test")), list(task.held_out("test"))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))
    assert torch.cat([batch.targets for batch in first]).tolist() == [number % 10 for number in range(15)]
    assert task.baselines()["majority class"] == pytest.approx(2 / 15)


@pytest.mark.parametrize("kind", [Maximum, Mixtures, PointSets])
def test_batches_depend_on_seed_and_step_and_train_a_model(kind, pictures):
    def made(**changes):
        given = (pictures,) if kind is PointSets else ()
        return kind(*given, **(SIZES | changes))

    task = made()
    assert torch.equal(task.batch(3).tokens, made().batch(3).tokens)
    others = [made().batch(4), made(seed=1).batch(3)]
    for other in others:
        assert other.tokens.shape != task.batch(3).tokens.shape or not torch.equal(other.tokens, task.batch(3).tokens)
    torch.manual_seed(0)
    for model in (task.model(8, 1, 2, "set_transformer", num_inducing=3), task.rival(8, "sum")):
        trainer = Trainer(model, task, Budget(steps=2), rate=1e-3, device="cpu")
        assert all(math.isfinite(trainer.step()) for _ in range(2))
        judgement = trainer.judge("validation")
        assert math.isfinite(judgement.quality)
        assert all(amount == 1 for _, _, amount in judgement.units)


def test_a_network_learns_to_cluster():
    """A few steps on one batch that is seen again and again."""
    torch.manual_seed(0)
    task = Mixtures(length=12, batch=2, seed=0)
    model, batch = task.model(8, 1, 2, "full"), task.batch(0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(40):
        loss = task.loss(model(batch.tokens), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 2
