"""DeepSpeed's layouts, block by block as their documentation describes them."""

import pytest
import torch

from regard.patterns import Causal, from_blocks
from regard.patterns.layouts import (
    bigbird_layout,
    dense_layout,
    fixed_layout,
    longformer_layout,
    random_columns,
    sliding_layout,
    variable_layout,
)


def by_loop(blocks, allowed):
    return torch.tensor([[bool(allowed(row, column)) for column in range(blocks)] for row in range(blocks)])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("blocks", "local", "summary", "patterns"), [(8, 4, 1, 1), (11, 4, 2, 2), (3, 4, 1, 4), (9, 3, 3, 1)]
)
def test_fixed(blocks, local, summary, patterns, causal):
    layout = fixed_layout(blocks, heads=4, local=local, summary=summary, patterns=patterns, causal=causal)
    for head in range(4):
        first = local - (1 + head % patterns) * summary
        starts = [w + first for w in range(0, blocks - local + 1, local)]
        starts += [min(blocks // local * local + first, blocks - summary)] if blocks % local else []

        def allowed(row, column, starts=starts):
            near = row // local == column // local and (column <= row or not causal)
            return near or any(s <= column < s + summary and (row >= s or not causal) for s in starts)

        assert torch.equal(layout[head], by_loop(blocks, allowed))


def test_horizontal_summaries_see_everything_and_cannot_be_causal():
    layout = fixed_layout(6, local=3, horizontal=True)[0]
    assert layout[[2, 5]].all()
    assert not layout[0].all()
    with pytest.raises(ValueError, match="horizontal=True lets summary blocks see the future"):
        fixed_layout(6, horizontal=True, causal=True)


def test_variable_windows_repeat_the_last_size():
    layout = variable_layout(7, windows=[1, 2], globals=[], causal=True)[0]
    window = [0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(layout, by_loop(7, lambda row, column: window[row] == window[column] and column <= row))


@pytest.mark.parametrize("causal", [False, True])
def test_variable_globals_are_columns_from_their_first_row_on(causal):
    layout = variable_layout(8, windows=[1], globals=[2, 6, 9], ends=[4, 12, 10], causal=causal)[0]

    def allowed(row, column):
        return row == column or any(s <= column < e and (row >= s or not causal) for s, e in ((2, 4), (6, 8)))

    assert torch.equal(layout, by_loop(8, allowed))


def test_sliding_windows():
    assert torch.equal(sliding_layout(6, window=3, causal=False)[0], by_loop(6, lambda r, c: abs(r - c) <= 1))
    assert torch.equal(sliding_layout(6, window=4)[0], by_loop(6, lambda r, c: 0 <= r - c <= 2))
    with pytest.raises(ValueError, match="a sliding window of 3 blocks does not fit into a row of 2"):
        sliding_layout(2)


@pytest.mark.parametrize("causal", [False, True])
def test_bigbird_and_longformer(causal):
    columns = torch.tensor([[[0], [0], [1], [3], [2], [5]]])

    def allowed(row, column):
        inside = abs(row - column) <= 1 or min(row, column) < 1
        return (inside or column == columns[0, row, 0]) and (column <= row or not causal)

    assert torch.equal(bigbird_layout(6, random=columns, causal=causal)[0], by_loop(6, allowed))

    def spread(row, column):
        return (abs(row - column) <= 1 or row == 4 or column == 4) and (column <= row or not causal)

    assert torch.equal(longformer_layout(6, globals=[4], causal=causal)[0], by_loop(6, spread))


def test_random_columns_are_distinct_and_stay_below_the_diagonal_if_asked():
    generator = torch.Generator().manual_seed(0)
    columns = random_columns(9, 4, heads=2, generator=generator)
    assert columns.shape == (2, 9, 4)
    assert all(len(set(row)) == 4 for head in columns.tolist() for row in head)
    assert (random_columns(9, 1, causal=True, generator=generator)[0, :, 0] <= torch.arange(9)).all()
    with pytest.raises(ValueError, match="2 random blocks cannot be drawn from the 1 columns"):
        random_columns(9, 2, causal=True)


def test_a_layout_is_a_pattern():
    pattern = Causal() & from_blocks(fixed_layout(3, local=2, causal=True), 4)
    assert pattern.dense(12)[11].tolist() == [False] * 4 + [True] * 8
    assert dense_layout(3).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 patterns of 2 summary blocks do not fit into a window of 4 blocks"):
        fixed_layout(8, summary=2, patterns=3)
    with pytest.raises(ValueError, match="each start needs an end after it"):
        variable_layout(8, globals=[2], ends=[2])
    with pytest.raises(ValueError, match="random columns for 5 block rows, but the layout has 8"):
        bigbird_layout(8, random=torch.zeros(1, 5, 1, dtype=torch.long))
