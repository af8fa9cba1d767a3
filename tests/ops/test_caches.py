import pytest
import torch

from regard.ops.caches import slot_mask
from regard.patterns import Blocks, Causal, PerHead, Window


@pytest.mark.parametrize("pattern", [Causal(), Causal() & Blocks(3), Causal() & PerHead(Window(1), Blocks(2))])
def test_slots_show_each_sequence_what_the_pattern_shows_at_its_length(pattern):
    length, n, slots = torch.tensor([0, 4, 6]), 3, 10
    mask = slot_mask(pattern, length, n, slots, heads=2)
    full = pattern.dense(slots, heads=2).expand(2, slots, slots)
    for row, start in enumerate(length.tolist()):
        for head in range(mask.shape[1]):
            assert torch.equal(mask[row, head], full[head, start : start + n])
