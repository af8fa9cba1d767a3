"""Plans hold every allowed pair exactly once, count them exactly, and never look at N x M."""

import subprocess
import sys

import pytest
import torch

from regard.patterns import (
    BigBird,
    Causal,
    Columns,
    CrissCross,
    Fixed,
    Full,
    Halo,
    Neighborhood,
    Segments,
    Strided,
    Window,
    from_mask_mod,
)
from regard.patterns.plan import FULL, PlanCache
from tests.patterns.expressions import random_pattern
from tests.samples import some_daily


def pairs_of(plan, heads):
    """How often the plan holds each pair, [B, H, n, m]."""
    batches = max((part.batch for part in plan.parts), default=1)
    times = torch.zeros(batches, heads, plan.n, plan.m, dtype=torch.long)
    for part in plan.parts:
        served = part.heads or tuple(range(heads))
        for row, column, number in zip(part.row.tolist(), part.column.tolist(), part.mask.tolist(), strict=True):
            plane, row = divmod(row, part.rows)
            queries = part.query_rows[row * part.tile : (row + 1) * part.tile]
            keys = part.key_rows[column * part.tile : (column + 1) * part.tile]
            inside = torch.ones(part.tile, part.tile, dtype=torch.bool) if number == FULL else part.masks[number]
            inside = inside[queries >= 0]
            assert not inside[:, keys < 0].any(), "a pair with a key that does not exist"
            chosen = [served[plane % len(served)]] if part.by_head else list(served)
            sequence = plane // len(served) if part.by_head else plane
            for b in [sequence] if part.batch > 1 else range(batches):
                for h in chosen:
                    real_queries, real_keys = queries[queries >= 0], keys[keys >= 0]
                    times[b, h, real_queries[:, None], real_keys] += inside[:, keys >= 0]
    return times


def check(pattern, n, m=None, heads=3, q_offset=None, tile=8):
    plan = pattern.plan(n, m, heads, q_offset, tile)
    dense = pattern.dense(n, m, heads, q_offset)
    times = pairs_of(plan, heads)
    assert (times == dense).all()
    assert plan.density == pytest.approx(dense.double().mean().item(), abs=1e-12)
    return plan


@pytest.mark.parametrize("seed", [*some_daily(range(120), 40)])
def test_every_allowed_pair_is_in_one_tile(seed):
    check(random_pattern(seed, 8 * (3 + seed % 4), heads=3), 8 * (3 + seed % 4), tile=(4, 8, 16)[seed % 3])


@pytest.mark.parametrize(
    ("n", "m", "offset"), [(10, 33, None), (33, 10, None), (10, 33, 3), (1, 40, None), (17, 17, -4)]
)
@pytest.mark.parametrize("pattern", [Full(), Causal(), Window(5) | Strided(6), Causal() & Fixed(8, 2)], ids=repr)
def test_rectangles_and_offsets(pattern, n, m, offset):
    check(pattern, n, m, q_offset=offset)


def test_strided_halos_and_empty_sizes():
    check(Halo((12, 10), 4, 1, stride=2), 30, 120)
    assert Causal().plan(0, 5).parts == Causal().plan(5, 0).parts == ()
    assert (Causal() & ~Causal()).plan(50).pairs == 0


@pytest.mark.parametrize(
    ("pattern", "n", "orders"),
    [
        (Causal() & Strided(64), 4096, ["residue 64"]),
        (Causal() & (Window(64, 0) | Strided(64)), 4096, ["natural", "residue 64"]),
        (Columns((64, 64)), 4096, ["axis (64, 64) 0"]),
        (CrissCross((64, 64)), 4096, ["axis (64, 64) 0", "natural"]),
        (Causal() & Fixed(128, 8), 4096, ["natural", "summary 128 8"]),
        (Window(256), 4096, ["natural"]),
    ],
    ids=repr,
)
def test_sparse_patterns_become_dense_in_their_order(pattern, n, orders):
    plan = pattern.plan(n)
    assert sorted(part.order for part in plan.parts) == orders
    assert plan.tiles * 64 * 64 <= 2.6 * plan.pairs, "more than 2.6 computed pairs for each allowed one"


def test_neighbourhoods_are_cut_in_squares_when_that_pays():
    pattern = Neighborhood((256, 256), 9)
    assert pattern.plan(65536).tiles < pattern.plan(65536, reorder=False).tiles / 2


def test_a_mask_function_is_asked_once_per_pair():
    asked = torch.zeros(70, 50, dtype=torch.long)

    def mask_mod(b, h, q, k):
        asked.index_put_((q.flatten(), k.flatten()), torch.ones(q.numel(), dtype=torch.long), accumulate=True)
        return (q * k) % 5 == 0

    from_mask_mod(mask_mod).plan(64, 48, tile=16)
    assert (asked[:64, :48] == 1).all()


def test_equal_tiles_share_one_mask():
    part = (Causal() & Window(512)).plan(1 << 14).parts[0]
    assert len(part.masks) == 2
    assert len(part.column) > 1000
    pointer, place = part.by_columns
    assert torch.equal(part.column[place], torch.repeat_interleave(torch.arange(part.columns), pointer.diff()))


def test_a_million_positions_within_a_second_and_200_megabytes():
    script = (
        "import resource, time, torch; from regard.patterns import Causal, Window\n"
        "torch.set_num_threads(1); Causal().plan(64)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, start = peak(), time.process_time(); plan = (Causal() & Window(512)).plan(1 << 20)\n"
        "print(peak() - before, plan.pairs)"
    )
    megabytes, pairs = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(megabytes) < 200
    assert int(pairs) == sum(min(i, 512) + 1 for i in range(1 << 20))


def test_plans_are_remembered_by_value_and_never_for_changed_tensors():
    cache = PlanCache(size=2)
    first = cache.get(Causal() & Window(3), 40, 40, 4, None, 8)
    assert cache.get(Causal() & Window(3), 40, 40, 8, None, 8) is first
    assert cache.get(Causal() & Window(3), 40, 40, 4, 2, 8) is not first
    ids = torch.tensor([0] * 20 + [1] * 20)
    before = cache.get(Segments(ids), 40, 40, 4, None, 8)
    assert cache.get(Segments(ids), 40, 40, 4, None, 8) is before
    ids[10:20] = 1
    after = cache.get(Segments(ids), 40, 40, 4, None, 8)
    assert after.pairs == 10 * 10 + 30 * 30 != before.pairs
    assert cache.get(Causal() & Window(3), 40, 40, 4, None, 8) is not first, "the oldest plan should have been dropped"


def test_plans_of_inference_tensors_are_not_remembered():
    cache = PlanCache()
    with torch.inference_mode():
        ids = torch.tensor([0] * 20 + [1] * 20)
        before = cache.get(Segments(ids), 40, 40, 4, None, 8).pairs
        ids[10:20] = 1
        assert cache.get(Segments(ids), 40, 40, 4, None, 8).pairs == 10 * 10 + 30 * 30 != before


def test_bigbird_counts_a_block_once():
    plan = BigBird(16, 3, 2, 3).plan(512, heads=4)
    assert plan.density == pytest.approx(BigBird(16, 3, 2, 3).dense(512, heads=4).float().mean().item())
