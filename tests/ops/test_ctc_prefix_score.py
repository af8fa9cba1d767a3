"""psi as the sum over everything that begins so."""

import math

import pytest
import torch
from torch.testing import assert_close

from regard.memory import reorder
from regard.ops.ctc_prefix_score import CTCPrefixScorer
from tests.ops.ctc_paths import NEVER, added, drawn, posteriors


def begun(found, prefix):
    total = NEVER
    for labels, score in found.items():
        if labels[: len(prefix)] == prefix:
            total = added(total, score)
    return total


@pytest.mark.parametrize("blank", [0, 1])
def test_psi_is_the_sum_over_all_that_begin_so(blank):
    log_probs = drawn(2, 5, 3)
    labels = [label for label in range(3) if label != blank]
    expected = [posteriors(row, blank) for row in log_probs]
    scorer = CTCPrefixScorer(log_probs, blank=blank)
    states = {(): scorer.begin()}
    for depth in range(4):
        for prefix, state in [item for item in states.items() if len(item[0]) == depth]:
            psi = scorer.score(state, torch.tensor([labels] * 2))
            for number in range(2):
                assert_close(
                    scorer.whole(state)[number].item(), expected[number].get(prefix, NEVER), rtol=0, atol=1e-12
                )
                for column, label in enumerate(labels):
                    assert_close(
                        psi[number, column].item(), begun(expected[number], (*prefix, label)), rtol=0, atol=1e-12
                    )
            for label in labels:
                states[(*prefix, label)] = scorer.grow(state, torch.tensor([label] * 2))


def test_rows_in_any_order_and_masked_frames():
    log_probs = drawn(2, 6, 4)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1]]).bool()
    scorer = CTCPrefixScorer(log_probs.masked_fill(~mask[..., None], math.nan), mask)
    rows = torch.tensor([1, 0, 1])
    state = scorer.grow(reorder(scorer.begin(), rows), torch.tensor([2, 2, 3]))
    tried = torch.tensor([[2, 1], [2, 3], [1, 3]])
    psi = scorer.score(state, tried)
    for number, (row, label) in enumerate(zip(rows.tolist(), (2, 2, 3), strict=True)):
        alone = CTCPrefixScorer(log_probs[row, mask[row]][None])
        expected = alone.grow(alone.begin(), torch.tensor([label]))
        assert_close(psi[number], alone.score(expected, tried[number : number + 1])[0], rtol=0, atol=1e-12)
        assert_close(scorer.whole(state)[number], alone.whole(expected)[0], rtol=0, atol=1e-12)


def test_more_labels_than_frames_cannot_be():
    scorer = CTCPrefixScorer(drawn(1, 2, 3))
    state = scorer.begin()
    for label in (1, 1):
        state = scorer.grow(state, torch.tensor([label]))
    assert scorer.whole(state).item() == NEVER
    assert scorer.score(state, torch.tensor([[1, 2]])).tolist() == [[NEVER, NEVER]]
