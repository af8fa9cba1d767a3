"""Blocks from a list, and blocks that are counted from a later position."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.patterns import Blocks, Global, ListedBlocks, from_blocks, from_spec
from regard.patterns.classify import look_into
from regard.patterns.plan import FULL
from tests.samples import heads_first


def by_loop(n, block, table, first=0, start=0):
    allowed = torch.zeros(len(table), n, n, dtype=torch.bool)
    for h, lists in enumerate(table.tolist()):
        for i in range(n):
            row = (i - start) // block - first
            for j in range(n):
                column = (j - start) // block
                allowed[h, i, j] = 0 <= row < len(lists) and column >= 0 and column in lists[row]
    return allowed


TABLE = torch.tensor([[[2, 0], [-1, 3], [9, 1]], [[-1, -1], [0, 0], [5, 2]]])


@pytest.mark.parametrize(("block", "first", "start"), [(4, 0, 0), (4, 1, 0), (3, 0, 5), (70, 0, 0), (64, 1, 10)])
def test_lists(block, first, start):
    n, pattern = 6 * block + 1, ListedBlocks(block, TABLE, first, start)
    expected = by_loop(n, block, TABLE, first, start)
    assert torch.equal(pattern.dense(n), expected)
    assert pattern.density(n) == pytest.approx(float(expected.double().mean()), abs=1e-12)
    assert torch.equal(from_spec(pattern.spec, pattern.tensors).dense(n), expected)


@pytest.mark.parametrize("start", [0, 5, 64, 100])
@pytest.mark.parametrize("block", [16, 64])
def test_engines_agree_wherever_blocks_start(block, start):
    table = torch.randint(-1, 4, (3, 4, 2), generator=torch.Generator().manual_seed(0))
    pattern = Global(start) | Blocks(block, 1, 0, start) | ListedBlocks(block, table, 0, start)
    q, k, v, _ = heads_first(start + 4 * block - 3)
    assert_close(regard.attend(q, k, v, pattern, engine="tiles"), regard.attend(q, k, v, pattern, engine="dense"),
                 rtol=0, atol=1e-12)  # fmt: skip


@pytest.mark.parametrize("start", [0, 5])
def test_blocks_count_from_the_start(start):
    i, j = torch.arange(20)[:, None], torch.arange(20)
    apart = (j - start) // 3 - (i - start) // 3
    assert torch.equal(Blocks(3, 2, 1, start).dense(20), (apart >= -2) & (apart <= 1))


def test_blocks_that_start_off_the_tiles_are_laid_out_on_them():
    plan = (Global(10) | Blocks(64, 1, 1, 10) | ListedBlocks(64, TABLE, 0, 10)).plan(10 + 64 * 8, heads=2)
    laid = {part.order: part for part in plan.parts}
    assert set(laid) == {"natural", "start 10"}  # the global tokens apart: they serve all heads
    assert (laid["start 10"].mask == FULL).all()


@pytest.mark.parametrize(
    "pattern",
    [
        ListedBlocks(64, torch.tensor([[[1]], [[-1]]])),
        from_blocks(torch.tensor([[[0, 1], [0, 0]], [[0, 0], [0, 0]]]), 64),
    ],
    ids=repr,
)
def test_a_head_without_blocks_has_none_of_anothers(pattern):
    assert pattern.plan(128, heads=2).pairs == 64 * 64


def test_beyond_the_lists_there_is_nothing():
    assert ListedBlocks(64, torch.zeros(3, 1, 1, dtype=torch.long)).plan(640, heads=3).pairs == 3 * 64 * 64


def test_nothing_listed_needs_no_look(monkeypatch):
    looked = []
    monkeypatch.setattr("regard.patterns.planner.look_into", lambda *a: looked.append(a) or look_into(*a))
    table = torch.full((2, 1, 1), -1)
    assert (ListedBlocks(64, table) | Blocks(64)).plan(64 * 30, heads=2).pairs == 2 * 30 * 64 * 64
    assert not looked


def test_refusals():
    with pytest.raises(ValueError, match=r"Long\[H, rows, count\], not torch.float32 \[1, 2, 3\]"):
        ListedBlocks(4, torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="start must be"):
        Blocks(4, start=-1)
