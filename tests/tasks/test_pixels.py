"""Density modelling of images: order, bits, and what needs no network."""

import math
import zlib

import pytest
import torch
from torch.testing import assert_close

from regard.models import AxialTransformer
from regard.tasks.pixels import GreyImages, Pixels
from regard.tasks.shapes import draw_shapes
from regard.train.budget import Budget
from regard.train.trainer import Trainer


def images(count=12, side=6, shades=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shades, (count, side, side), generator=generator).to(torch.uint8)


def made(found=None, **options):
    found = images() if found is None else found
    return Pixels(GreyImages(*found.split([len(found) - 6, 3, 3])), **({"batch": 2, "seed": 0} | options))


def test_each_pixel_is_predicted_from_those_before_it():
    found = images()
    task = made(found)
    batch = task.batch(5)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert not batch.tokens[:, 0].any()
    assert task.length == 36
    assert all(any(torch.equal(row, image.flatten().long()) for image in found[:6]) for row in batch.targets)
    held = list(task.held_out("test"))
    assert torch.equal(torch.cat([some.targets for some in held]).view(3, 6, 6), found[9:].long())
    assert [len(task.judged["test"]), len(made(test_images=2).judged["test"])] == [3, 2]


def test_bits_per_dimension():
    task = made()
    batch = next(task.held_out("test"))
    uniform = torch.zeros(3, 36, 256)
    assert_close(task.scores(uniform, batch), torch.full((3,), 8.0 * 36).double())
    assert float(task.loss(uniform, batch)) * task.loss_scale == pytest.approx(8)
    judgement = Trainer(task.model(8, 1, 2, "full"), task, Budget(steps=1), rate=1e-3, device="cpu").judge("test")
    assert 7.5 < judgement.quality < 9
    assert all(amount == 36 for _, _, amount in judgement.units)


def test_baselines_by_counting():
    """Two shades by place: a model of each place takes next to nothing, one of all places a bit."""
    striped = torch.zeros(406, 4, 4, dtype=torch.uint8)
    striped[:, ::2] = 255
    found = made(striped).baselines()
    assert found["uniform"] == 8
    assert found["shades"] == pytest.approx(1, abs=0.1)
    assert found["shades of each pixel"] < 0.5
    assert 0.5 < found["after the pixel before"] < 1.2
    test = striped[-3:]
    assert found["zlib"] == 8 * len(zlib.compress(test.numpy().tobytes(), 9)) / test.numel()


def test_counts_are_of_the_training_part():
    two = torch.zeros(7, 2, 2, dtype=torch.uint8)
    two[0] = torch.tensor([[1, 2], [1, 2]], dtype=torch.uint8)
    found = made(two).baselines()  # trained on the one image, judged on black ones
    half = 0.5 / (4 + 128)
    assert found["shades"] == pytest.approx(-math.log2(half))
    assert found["shades of each pixel"] == pytest.approx(-math.log2(0.5 / (1 + 128)))


def test_the_axial_transformer_learns_from_the_same_batches():
    torch.manual_seed(0)
    drawn = draw_shapes(30, 8, seed=0)[0][:, 0] // 64
    task = made(drawn, batch=8)
    model = AxialTransformer(8, 8, num_values=256, dim=16, num_heads=2, outer_layers=2, inner_layers=1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for step in range(15):
        batch = task.batch(step)
        logits = model(batch.targets.view(-1, 8, 8)).flatten(1, 2)
        loss = task.loss(logits, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() * task.loss_scale)
    assert losses[0] == pytest.approx(8, abs=0.5)
    assert losses[-1] < 3
