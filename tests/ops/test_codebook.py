"""Codebooks: the nearest code, the step of the averages as loops, restarts, the first batch, and what is saved."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.ops import codebook
from regard.ops.codebook import Codebook, Draw, entropy, nearest_code, restored_state
from regard.registry import UnsupportedError


def started(codes=6, width=3, *, decay=0.8, threshold=1.0, tokens=None):
    book = Codebook(codes, width, decay, threshold, dtype=torch.float64)
    book.put(restored_state(torch.randn(codes, width, dtype=torch.float64), tokens))
    return book


def test_nearest_code_is_the_least_distance_whatever_the_run(monkeypatch):
    x, table = torch.randn(11, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    distances = torch.stack([torch.stack([(a - b).square().sum() for b in table]) for a in x])
    for at_once in (1, 10, 2**22):
        monkeypatch.setattr(codebook, "DISTANCES_AT_ONCE", at_once)
        codes, least = nearest_code(x, table)
        assert codes.equal(distances.argmin(-1))
        assert_close(least, distances.min(-1).values)


def test_a_step_is_the_averages_written_out():
    book, x = started(tokens=7), torch.randn(2, 7, 3, dtype=torch.float64)
    old, sums, counts = (tensor.clone() for tensor in book.state)
    order = torch.randperm(14)
    found = book(x, restart=Draw(order, None))
    flat, usage = x.flatten(0, 1), torch.zeros(6, dtype=torch.float64)
    for j in range(6):
        mine = [row for row, code in zip(flat, found.codes.flatten().tolist(), strict=True) if code == j]
        usage[j] = len(mine)
        sums[j] = 0.8 * sums[j] + 0.2 * sum(mine, torch.zeros(3, dtype=torch.float64))
        counts[j] = 0.8 * counts[j] + 0.2 * len(mine)
        expected = sums[j] / counts[j] if counts[j] >= 1 else flat[order[j]]
        assert_close(book.table[j], expected)
    assert 0 < (counts < 1).sum() < 6, "both kinds of code are wanted here"
    assert_close(book.sums, sums)  # a restart leaves them
    assert_close(book.counts, counts)
    share = usage / 14
    nats = -sum(p * math.log(p + 1e-8) for p in share.tolist())
    assert_close(found.figures["entropy"], torch.tensor(nats, dtype=torch.float64))
    assert found.figures["used"] == (usage >= 1).sum()
    assert found.figures["alive"] == (counts >= 1).sum()
    assert_close(found.figures["moved"], ((book.table - old).square().sum() / 18).sqrt())


def test_codes_and_vectors_of_a_step_are_of_the_codebook_before_it():
    book, x = started(), torch.randn(1, 9, 3, dtype=torch.float64)
    old = book.table.clone()
    found = book(x)
    assert not book.table.equal(old)
    assert found.codes.equal(nearest_code(x[0], old)[0][None])
    assert_close(found.vectors, old[found.codes])


def test_gradients_go_straight_through_and_the_commitment_pulls_x_alone():
    book, x = started().eval(), torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    found, weight = book(x), torch.randn(2, 4, 3, dtype=torch.float64)
    (straight,) = torch.autograd.grad((found.vectors * weight).sum(), x, retain_graph=True)
    assert_close(straight, weight)
    (pulled,) = torch.autograd.grad(found.commit, x)
    assert_close(found.commit, (x - book.table[found.codes]).square().mean())
    assert_close(pulled, 2 * (x - book.table[found.codes]).detach() / x.numel())


def test_the_first_batch_makes_the_first_codebook():
    book, x = Codebook(4, 3), torch.randn(1, 9, 3)
    first, restart = Draw(torch.randperm(9), None), Draw(torch.randperm(9), None)
    found = book(x, first=first, restart=restart)
    chosen = x[0, first.permutation[:4]]
    assert_close(found.vectors.detach(), chosen[found.codes])
    counts = 0.99 + 0.01 * torch.bincount(found.codes[0], minlength=4)
    assert_close(book.counts, counts)
    assert bool(book.started)


def test_fewer_vectors_than_codes_are_repeated_with_noise():
    book, x = Codebook(7, 3), torch.randn(1, 3, 3)
    noise, order = torch.randn(9, 3), torch.randperm(9)
    book(x, first=Draw(order, noise), restart=Draw(order, noise))
    tiled = torch.stack([x[0, row % 3] + 0.01 / math.sqrt(3) * noise[row] for row in range(9)])
    alive = book.counts >= 1
    assert_close(book.table[~alive], tiled[order[:7]][~alive])
    with pytest.raises(ValueError, match="3 vectors for 7 codes"):
        book(x, restart=Draw(order, None))


def test_a_generator_repeats_a_training_and_eval_moves_nothing():
    batches = torch.randn(3, 1, 8, 2)
    tables = []
    for _ in range(2):
        book, generator = Codebook(5, 2), torch.Generator().manual_seed(3)
        for x in batches:
            book(x, generator=generator)
        tables.append(book.table)
    assert tables[0].equal(tables[1])
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    book.eval()(batches[0])
    assert all(before[name].equal(tensor) for name, tensor in book.state_dict().items())


def test_what_is_saved_goes_on_alike():
    one, other = started(), Codebook(6, 3, 0.8, dtype=torch.float64)
    one(torch.randn(1, 9, 3, dtype=torch.float64))
    other.load_state_dict(one.state_dict())
    x, drawn = torch.randn(1, 9, 3, dtype=torch.float64), Draw(torch.randperm(9), None)
    one(x, restart=drawn), other(x, restart=drawn)
    assert one.table.equal(other.table)
    assert one.sums.equal(other.sums)
    assert bool(other.started)


def test_half_precision_keeps_its_codebook_in_float32():
    book = Codebook(4, 3, dtype=torch.bfloat16)
    found = book(torch.randn(1, 9, 3, dtype=torch.bfloat16))
    assert book.table.dtype == torch.float32
    assert found.vectors.dtype == torch.bfloat16
    assert found.commit.isfinite()


def test_entropy_is_that_of_jukebox():
    assert_close(entropy(torch.tensor([1.0, 1.0, 1.0, 1.0])), torch.tensor(math.log(4)), rtol=0, atol=1e-6)


def test_refusals():
    book = started()
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(B, T, 3\)"):
        book(torch.zeros(2, 3, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="0 to 5"):
        book.look_up(torch.tensor([6]))
    with pytest.raises(ValueError, match="decay=2"):
        Codebook(4, 3, 2.0)
    x = torch.randn(1, 9, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnsupportedError, match="recomputed"):
        torch.utils.checkpoint.checkpoint(lambda x: book(x).vectors.square().sum(), x, use_reentrant=False).backward()
