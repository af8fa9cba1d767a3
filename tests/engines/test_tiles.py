"""The tiles engine where only it can go wrong: layouts, bands, split rows, padding, and what it keeps in memory."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.engines import dense, tile_lanes, tile_layout, tile_schedule, tiles
from regard.engines.problem import Problem, Shared
from regard.patterns import (
    BigBird,
    Blocks,
    Causal,
    Columns,
    Full,
    Global,
    PerHead,
    Segments,
    Strided,
    Window,
    from_mask,
)
from regard.scores import Bias, Dot, Relative, Slope, SoftCap
from tests.patterns.expressions import random_pattern
from tests.samples import some_daily


def problem(pattern, n=150, m=None, heads=4, groups=2, batch=2, width=8, value_width=6, **rest):
    m = n if m is None else m
    shapes = (batch, heads, n, width), (batch, groups, m, width), (batch, groups, m, value_width)
    query, key, value = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    offset = rest.pop("q_offset", m - n)
    return Problem(query=query, key=key, value=value, pattern=pattern, q_offset=offset, scale=width**-0.5, **rest)


def agree(given):
    """Forward, lse, composite and every gradient against the oracle."""
    expected_out, expected_lse = dense.forward(given)
    for out, lse in (tiles.forward(given), tiles.composite(given)):
        assert_close(out, expected_out, rtol=0, atol=1e-12)
        assert_close(lse, expected_lse, rtol=0, atol=1e-12)
    grad_out = torch.randn_like(expected_out)
    grad_lse = torch.randn_like(expected_lse).masked_fill(expected_lse == -torch.inf, 0.0)
    float_mask = given.attn_mask is not None and given.attn_mask.tensor.is_floating_point()
    needs = (True, True, True, float_mask, *(True for _ in given.term_tensors()))
    rest = (expected_out, expected_lse, grad_out, grad_lse, needs)
    found, expected = tiles.backward(given, *rest), dense.backward(given, *rest)
    for own, wanted in zip((*found[:4], *found.terms), (*expected[:4], *expected.terms), strict=True):
        if wanted is not None:
            assert_close(own, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", [*some_daily(range(40), 20)])
def test_random_patterns(seed):
    agree(problem(random_pattern(seed, 80, heads=4), n=80, groups=(1, 2, 4)[seed % 3]))


@pytest.mark.parametrize(
    ("n", "m", "offset"), [(70, 200, 130), (200, 70, -130), (70, 200, 5), (1, 130, 129), (64, 64, 0)]
)
@pytest.mark.parametrize("pattern", [Causal(), Window(40, 3) | Global(2), Strided(5)], ids=repr)
def test_rectangles(pattern, n, m, offset):
    agree(problem(pattern, n, m, q_offset=offset))


@pytest.mark.parametrize("pattern", [Causal() & Window(50), BigBird(16, 3, 2, 2), Columns((10, 15))], ids=repr)
def test_masks_and_terms_together(pattern):
    keys = Shared(torch.rand(2, 150) < 0.6, torch.arange(2))
    terms = (
        Bias(torch.randn(4, 41, dtype=torch.float64), Relative(20)),
        Dot(torch.randn(1, 4, 150, 5, dtype=torch.float64), torch.randn(1, 301, 5, dtype=torch.float64), Relative(150)),
        SoftCap(3.0),
        Slope(torch.rand(4, dtype=torch.float64)),
    )
    masks = [
        Shared(torch.randn(2, 4, 150, 150, dtype=torch.float64), torch.arange(2)),
        Shared(torch.randn(1, 1, 1, 150, dtype=torch.float64), None),
        Shared(torch.rand(1, 4, 150, 150) < 0.5, None),
    ]
    for mask in masks:
        agree(problem(pattern, key_mask=keys, attn_mask=mask, terms=terms))


@pytest.mark.parametrize("pattern", [Full(), Causal() & Window(90), PerHead(*[Causal(), Full()] * 2)], ids=repr)
def test_rows_too_long_for_one_lane_are_joined(pattern, monkeypatch):
    monkeypatch.setattr(tile_lanes, "WIDEST", 2 * tiles.TILE**2)
    tile_lanes.lanes.cache_clear()
    tile_schedule._schedule.cache_clear()
    agree(problem(pattern, n=400))
    tile_lanes.lanes.cache_clear()
    tile_schedule._schedule.cache_clear()


@pytest.mark.parametrize("at_once", [1, 1 << 30])
def test_results_do_not_depend_on_the_size_of_chunks(at_once, monkeypatch):
    monkeypatch.setitem(tile_schedule._AT_ONCE, "cpu", at_once)
    agree(problem(Window(70) | Global(1), n=300))
    agree(problem(Segments(torch.tensor([[0] * 100 + [1] * 200, [0] * 300])), n=300))


def test_padded_classes_count_no_query_twice():
    """Each residue class of 150 is padded to 192, so full tiles hold queries that do not exist."""
    given = problem(Strided(2), n=300)
    assert (tiles.plan_of(given).parts[0].query_rows < 0).sum() == 2 * 42
    agree(given)


def test_bands_are_read_as_views():
    part = (Causal() & Window(256)).plan(2048).parts[0]
    bands = [lane for lane in tile_lanes.lanes(part) if lane.band]
    assert sum(len(lane.row) * lane.width for lane in bands) == len(part.column)
    layout = tile_layout.Layout(problem(Causal() & Window(256), n=2048, heads=2, groups=2, batch=1), part)
    keys = layout.cut_keys(layout.problem.key)
    chunk = next(chunk for chunk in layout.schedule.chunks if len(chunk.lane.row) > 1)
    assert chunk.keys(keys).untyped_storage().data_ptr() == keys.untyped_storage().data_ptr()


def test_empty_rows_are_zero_and_nan_stays_nan():
    given = problem(Causal(), n=90, m=60, q_offset=-30)
    out, lse = tiles.forward(given)
    assert (out[:, :, :30] == 0).all()
    assert (lse[:, :, :30] == -torch.inf).all()
    given.query[0, 0, 80] = torch.nan
    out, lse = tiles.forward(given)
    assert out[0, 0, 80].isnan().all()
    assert not out[0, 1].isnan().any()


def test_dropout_is_the_same_in_every_pass_and_keeps_the_mean():
    given = problem(Full(), n=130, seed=torch.tensor(5), dropout_p=0.25)
    out, lse = tiles.forward(given)
    assert torch.equal(tiles.forward(given)[0], out)
    assert_close(tiles.composite(given)[0], out, rtol=0, atol=1e-12)
    assert_close(lse, dense.forward(problem_without_dropout(given))[1], rtol=0, atol=1e-12)
    leaves = [t.clone().requires_grad_() for t in (given.query, given.key, given.value)]
    alive = problem_with(given, *leaves)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(tiles.composite(alive)[0], leaves, grad)
    found = tiles.backward(given, out, lse, grad, None, (True, True, True, False))
    for own, wanted in zip(found[:3], expected, strict=True):
        assert_close(own, wanted, rtol=0, atol=1e-11)
    ones = torch.ones_like(given.value)
    weights = tiles.forward(problem_with(given, given.query, given.key, ones))[0]
    assert abs(weights.mean().item() - 1) < 0.02


def test_chunks_draw_different_dropout(monkeypatch):
    monkeypatch.setitem(tile_schedule._AT_ONCE, "cpu", 1)
    given = problem(Full(), n=128, heads=1, groups=1, batch=1, seed=torch.tensor(5), dropout_p=0.5)
    one_hot = torch.eye(128, dtype=torch.float64)[None, None]
    weights = tiles.forward(problem_with(given, torch.zeros_like(given.query), given.key, one_hot))[0][0, 0]
    assert not torch.equal(weights[:64], weights[64:])


def problem_with(given, query, key, value):
    rest = {name: getattr(given, name) for name in ("pattern", "q_offset", "scale", "dropout_p", "seed")}
    return Problem(query=query, key=key, value=value, **rest)


def problem_without_dropout(given):
    return Problem(
        query=given.query, key=given.key, value=given.value, pattern=given.pattern, q_offset=0, scale=given.scale
    )


def test_half_precision_is_summed_in_float32():
    given = problem(Window(60), n=300)
    half = problem_with(given, *(t.bfloat16() for t in (given.query, given.key, given.value)))
    exact = problem_with(given, *(t.bfloat16().double() for t in (given.query, given.key, given.value)))
    out, lse = tiles.forward(half)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert_close(lse.double(), tiles.forward(exact)[1], rtol=0, atol=1e-5)
    assert_close(out, tiles.forward(exact)[0].bfloat16(), rtol=0, atol=0.008)


def test_memory_follows_the_tiles():
    """65,536 positions: one float32 matrix of all pairs would take 17 GB."""
    script = (
        "import resource, torch; from regard.engines import tiles; from regard.engines.problem import Problem\n"
        "from regard.patterns import Causal, Window\n"
        "torch.set_num_threads(1); q, k, v, g = torch.randn(4, 1, 1, 1 << 16, 16)\n"
        "given = Problem(query=q, key=k, value=v, pattern=Causal() & Window(64), q_offset=0)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); out, lse = tiles.forward(given)\n"
        "tiles.backward(given, out, lse, g, None, (True,) * 4); print(peak() - before)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert float(found) < 300


@pytest.mark.parametrize("pattern", [Window(70), Window(70) | Global(3), BigBird(64, 1, 2, 1)])
def test_heads_cut_from_a_projection(pattern):
    """A layer's heads are no contiguous tensors, and where the length is a multiple of a tile nothing makes them so."""
    x = torch.randn(1, 320, 2 * 3, dtype=torch.float64)
    heads = [x.unflatten(-1, (2, 3)).transpose(1, 2).detach().requires_grad_() for _ in range(3)]
    outs = [regard.attend(*heads, pattern, engine=name) for name in ("tiles", "dense")]
    slopes = [torch.autograd.grad(out.square().sum(), heads) for out in outs]
    assert_close(outs[0], outs[1])
    assert_close(*slopes)


@pytest.mark.parametrize(
    "pattern", [Window(70), Causal() & Window(90), Window(20, 5), Blocks(100), Window(70) & ~Global(3)]
)
@pytest.mark.parametrize(("n", "m"), [(320, 320), (321, 321), (200, 330), (330, 200), (40, 40), (1, 300)])
def test_bands_are_computed_where_they_lie(pattern, n, m, monkeypatch):
    """Whatever the ends of queries and keys cut off; and nothing is cut into tiles on the way."""
    q, k, v = (
        torch.randn(2, size, 3 * 4, dtype=torch.float64).unflatten(-1, (3, 4)).transpose(1, 2) for size in (n, m, m)
    )
    expected = regard.attend(q, k, v, pattern, engine="dense", return_lse=True)
    monkeypatch.setattr(tiles, "_forward", None)
    assert_close(regard.attend(q, k, v, pattern, engine="tiles", return_lse=True), expected)


def test_what_is_no_band_is_cut_into_tiles(monkeypatch):
    q = torch.randn(1, 2, 500, 4)
    monkeypatch.setattr(tiles.tile_strips, "forward", None)
    for pattern, options in ((Window(9) | Global(1), {}), (Window(9), {"key_mask": torch.rand(1, 500) < 0.5})):
        assert_close(regard.attend(q, q, q, pattern, engine="tiles", **options),
                     regard.attend(q, q, q, pattern, engine="dense", **options))  # fmt: skip


def test_one_row_with_a_gap_makes_it_no_band():
    """Rows are told apart by how many columns they have: here those with the fewest are the ones without a gap."""
    mask = torch.zeros(500, 500, dtype=torch.bool)
    mask[:, :30] = True
    mask[300:, 200:210] = True
    q = torch.randn(1, 2, 500, 4)
    assert_close(regard.attend(q, q, q, from_mask(mask), engine="tiles"), regard.attend(q, q, q, attn_mask=mask))
