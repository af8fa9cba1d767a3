"""Each pattern against its sentence in the table, written as a loop over pairs that shares no code with it."""

import itertools
import math

import pytest
import torch

from regard.patterns import (
    Axis,
    BigBird,
    Blocks,
    Causal,
    Columns,
    CrissCross,
    Dilated,
    Fixed,
    Full,
    Global,
    Halo,
    Neighborhood,
    PerHead,
    Rows,
    Segments,
    Strided,
    Summary,
    Window,
    from_blocks,
    from_mask,
    from_mask_mod,
)

N = 30
IDS = torch.tensor([0] * 7 + [1] * 13 + [0] * 10)


def matrix(n, m, says, offset=None):
    offset = m - n if offset is None else offset
    return torch.tensor([[bool(says(r + offset, j)) for j in range(m)] for r in range(n)])


DEFINITIONS = [
    (Full(), lambda i, j: True),
    (Causal(), lambda i, j: j <= i),
    (Window(4), lambda i, j: -4 <= j - i <= 4),
    (Window(6, 1), lambda i, j: -6 <= j - i <= 1),
    (Dilated(3, 4), lambda i, j: (j - i) % 4 == 0 and abs(j - i) <= 12),
    (Strided(7), lambda i, j: (i - j) % 7 == 0),
    (Fixed(8, 3), lambda i, j: i // 8 == j // 8 or j % 8 >= 5),
    (Summary(8, 3), lambda i, j: j % 8 >= 5),
    (Blocks(7), lambda i, j: i // 7 == j // 7),
    (Blocks(4, 2, 1), lambda i, j: -2 <= j // 4 - i // 4 <= 1),
    (Global(3), lambda i, j: 0 <= i < 3 or 0 <= j < 3),
    (Global([2, 29]), lambda i, j: i in (2, 29) or j in (2, 29)),
    (~Causal() | Window(1), lambda i, j: not j <= i or abs(i - j) <= 1),
    (Causal() & (Window(5) | Global(2)), lambda i, j: j <= i and (abs(i - j) <= 5 or 0 <= i < 2 or j < 2)),
]


@pytest.mark.parametrize(("pattern", "says"), DEFINITIONS, ids=lambda x: repr(x) if not callable(x) else "")
@pytest.mark.parametrize(("n", "m", "offset"), [(N, N, None), (9, N, None), (9, N, 4), (N, 9, None), (1, N, None)])
def test_patterns_of_positions(pattern, says, n, m, offset):
    if isinstance(pattern, Global) and pattern.which == (2, 29) and m < 30:
        pytest.skip("the listed position does not exist")
    assert torch.equal(pattern.dense(n, m, q_offset=offset), matrix(n, m, says, offset))


def test_segments():
    assert torch.equal(Segments(IDS).dense(N), matrix(N, N, lambda i, j: IDS[i] == IDS[j]))
    both = torch.stack([IDS, IDS.flip(0)])
    found = Segments(both).dense(N)
    assert found.shape == (2, 1, N, N)
    assert torch.equal(found[1, 0], matrix(N, N, lambda i, j: both[1, i] == both[1, j]))
    assert torch.equal(
        Segments.from_lengths([7, 13, 10]).dense(N), Segments.from_cu_seqlens(torch.tensor([0, 7, 20, 30])).dense(N)
    )
    # More queries than keys: the first queries stand before the first key and belong to no document.
    assert torch.equal(Segments(IDS).dense(33, N)[3:], Segments(IDS).dense(N))
    assert not Segments(IDS).dense(33, N)[:3].any()


def test_global_marks():
    marks = torch.zeros(2, N, dtype=torch.bool)
    marks[0, 4] = marks[1, 20:22] = True
    found = Global(marks).dense(N)
    for b in range(2):
        assert torch.equal(found[b, 0], matrix(N, N, lambda i, j, b=b: marks[b, i] or marks[b, j]))


@pytest.mark.parametrize("grid", [(5, 6), (3, 2, 5), (30,)])
def test_lines_of_grids(grid):
    cells = list(itertools.product(*map(range, grid)))

    def differing(i, j):
        return [axis for axis in range(len(grid)) if cells[i][axis] != cells[j][axis]]

    for axis in range(len(grid)):
        expected = matrix(N, N, lambda i, j, axis=axis: all(d == axis for d in differing(i, j)))
        assert torch.equal(Axis(grid, axis).dense(N), expected)
    assert torch.equal(CrissCross(grid).dense(N), matrix(N, N, lambda i, j: len(differing(i, j)) <= 1))
    if len(grid) == 2:
        assert torch.equal(Rows(grid).dense(N), matrix(N, N, lambda i, j: cells[i][0] == cells[j][0]))
        assert torch.equal(Columns(grid).dense(N), matrix(N, N, lambda i, j: cells[i][1] == cells[j][1]))


def neighbours(place, side, kernel, dilation, stride, causal, edge):
    """The rule of the neighborhood card, one axis, one query: the set of keys."""
    kernel = min(kernel, side // dilation)
    stride = min(stride, kernel)
    residue, inner = place % dilation, place // dilation
    members = list(range(residue, side, dilation))
    last = len(members) - 1
    if causal:
        leader = min(inner // stride * stride + stride - 1, last)
        chosen = range(max(leader - kernel + 1, 0), inner + 1)
    else:
        leader = min(inner // stride * stride + stride // 2, last)
        start = leader - kernel // 2
        if edge == "shift":
            start = min(max(start, 0), len(members) - kernel)
            chosen = range(start, start + kernel)
        else:
            chosen = [p for p in range(start, start + kernel) if 0 <= p <= last]
    return {members[p] for p in chosen}


@pytest.mark.parametrize(
    ("grid", "kernel", "dilation", "stride", "causal", "edge"),
    [
        ((23,), 5, 1, 1, False, "shift"),
        ((23,), 4, 3, 2, False, "shift"),
        ((23,), 5, 2, 3, True, "shift"),
        ((7, 6), 3, 1, 1, False, "shift"),
        ((7, 6), 3, 1, 1, False, "clip"),
        ((7, 9), (3, 4), (2, 1), (1, 2), (True, False), "shift"),
        ((4, 5), 7, 1, 1, False, "shift"),
        ((3, 4, 5), (3, 2, 3), 1, 1, (False, False, True), "shift"),
    ],
)
def test_neighborhood(grid, kernel, dilation, stride, causal, edge):
    cells, axes = list(itertools.product(*map(range, grid))), len(grid)

    def each(value):
        return value if isinstance(value, tuple) else (value,) * axes

    rules = list(zip(grid, each(kernel), each(dilation), each(stride), each(causal), strict=True))

    def says(i, j):
        return all(
            cells[j][a] in neighbours(cells[i][a], side, k, d, s, c, edge) for a, (side, k, d, s, c) in enumerate(rules)
        )

    n = math.prod(grid)
    found = Neighborhood(grid, kernel, dilation, stride, causal, edge).dense(n)
    assert torch.equal(found, matrix(n, n, says))


@pytest.mark.parametrize(
    ("grid", "block", "halo", "stride"),
    [((10,), 4, 1, 1), ((7, 9), 4, 2, 1), ((8, 8), 4, 1, 2), ((7, 9), 4, 2, 2), ((4, 5, 3), 2, 1, 1)],
)
def test_halo(grid, block, halo, stride):
    cells = list(itertools.product(*map(range, grid)))
    queries = [cell for cell in cells if all(c % stride == 0 for c in cell)]

    def says(query, key):
        starts = [q // block * block for q in query]
        return all(start - halo <= k < start + block + halo for start, k in zip(starts, key, strict=True))

    expected = torch.tensor([[says(query, key) for key in cells] for query in queries])
    assert torch.equal(Halo(grid, block, halo, stride).dense(len(queries), len(cells)), expected)


def test_per_head_blocks_and_masks():
    found = PerHead(Causal(), Window(2)).dense(9)
    assert torch.equal(found, torch.stack([Causal().dense(9), Window(2).dense(9)]))
    layout = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = layout.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :10, :15]
    assert torch.equal(from_blocks(layout, 4).dense(10, 15), expected)
    mask = torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(from_mask(mask).dense(7, 9), mask)
    assert torch.equal(
        from_mask_mod(lambda b, h, q, k: (q + 2 * k) % 3 == 0).dense(7, 9),
        matrix(7, 9, lambda i, j: (i + 2 * j) % 3 == 0, 0),
    )


@pytest.mark.parametrize(
    ("window", "globals_", "random", "blocks"), [(3, 2, 3, 12), (1, 1, 2, 8), (5, 3, 1, 9), (3, 0, 0, 5)]
)
def test_bigbird_draws_legal_blocks(window, globals_, random, blocks):
    heads, block = 3, 4
    pattern = BigBird(block, window, globals_, random, seed=7)
    table = pattern.draw(heads, blocks)
    front, back = (globals_ + 1) // 2, globals_ // 2
    fixed = torch.zeros(heads, blocks, blocks, dtype=torch.bool)
    for h, i in itertools.product(range(heads), range(blocks)):
        near = set(range(max(0, i - window // 2), min(blocks, i + window // 2 + 1)))
        everywhere = set(range(front)) | set(range(blocks - back, blocks))
        drawn = [x for x in table[h, i].tolist() if x >= 0]
        assert len(set(drawn)) == len(drawn)
        assert not set(drawn) & (near | everywhere)
        legal = blocks - len(near | everywhere)
        spared = 1 if front and back and blocks > 4 and i in (1, blocks - 2) and legal else 0
        assert len(drawn) == min(random, legal - spared)
        allowed = set(range(blocks)) if i in everywhere else near | everywhere | set(drawn)
        fixed[h, i, sorted(allowed)] = True
    expected = fixed.repeat_interleave(block, 1).repeat_interleave(block, 2)
    assert torch.equal(pattern.dense(block * blocks, heads=heads), expected)
    assert torch.equal(BigBird(block, window, globals_, random, table).dense(block * blocks), expected)
    if random:
        assert not torch.equal(table, BigBird(block, window, globals_, random, seed=8).draw(heads, blocks))
        assert not torch.equal(table[0], table[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(-1), "before must be a whole number of at least 0, not -1"),
        (lambda: Strided(0), "stride must be"),
        (lambda: Fixed(4, 5), "a block of 4 has no 5 last positions"),
        (lambda: Segments(torch.zeros(3, 3, 3, dtype=torch.long)), r"\[M\] or \[B, M\]"),
        (lambda: Segments(IDS).dense(12), "30.*12 keys"),
        (lambda: Global([40]).dense(12), "12 keys"),
        (lambda: Rows((4, 5)).dense(19), "20 cells.*19 queries"),
        (lambda: Axis((2, 3), 2), "no axis 2"),
        (lambda: Neighborhood((4, 4), 3, stride=4), "stride 4 is larger than the kernel 3"),
        (lambda: Neighborhood((4, 4), (3, 3, 3)), "3 numbers for a grid of 2 axes"),
        (lambda: Halo((8, 8), 4, 1, stride=3), "does not divide"),
        (lambda: BigBird(4, 3, 2, 1).dense(16), "say heads="),
        (lambda: from_blocks(torch.ones(1, 2, 2), 4).dense(16), "does not cover 16 x 16"),
        (lambda: from_mask(torch.ones(3, 3, dtype=torch.bool)).dense(4), "does not fit 4 queries"),
        (lambda: from_mask(torch.ones(3, 3, dtype=torch.bool)).dense(3, q_offset=1), "q_offset=1 cannot shift it"),
        (lambda: PerHead(Causal(), Full()).dense(4, heads=3), "describes 2 heads, and 3 were asked"),
        (lambda: PerHead(Causal(), Full()) & PerHead(*[Full()] * 3), r"different numbers of heads.*\[2, 3\]"),
        (lambda: Causal().dense(-1), "no negative sizes"),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_masks_are_bool_and_ids_are_integers():
    with pytest.raises(TypeError, match="bool"):
        from_mask(torch.ones(3, 3))
    with pytest.raises(TypeError, match="int64"):
        Segments(torch.ones(3))
