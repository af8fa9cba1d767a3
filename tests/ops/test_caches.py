import pytest
import torch

from regard.ops.caches import empty_cache, grow, slot_mask
from regard.patterns import Blocks, Causal, PerHead, Window


@pytest.mark.parametrize("pattern", [Causal(), Causal() & Blocks(3), Causal() & PerHead(Window(1), Blocks(2))])
def test_slots_show_each_sequence_what_the_pattern_shows_at_its_length(pattern):
    length, n, slots = torch.tensor([0, 4, 6]), 3, 10
    mask = slot_mask(pattern, length, n, slots, heads=2)
    full = pattern.dense(slots, heads=2).expand(2, slots, slots)
    for row, start in enumerate(length.tolist()):
        for head in range(mask.shape[1]):
            assert torch.equal(mask[row, head], full[head, start : start + n])


def test_a_static_cache_shows_what_a_growing_one_shows():
    """Slots ahead of the tokens are hidden, and of those in use each new token sees the same."""
    growing, static = (empty_cache(1, 1, 4, 4, static=slots) for slots in (None, 7))
    for n in (2, 1, 3):
        k, v = torch.randn(2, 1, 1, n, 4)
        growing, seen = grow(growing, k, v)
        static, allowed = grow(static, k, v)
        assert allowed.shape[-1] == 7
        used = growing.key.shape[-2]
        assert not allowed[..., used:].any()
        expected = torch.ones(n, used, dtype=torch.bool) if seen is None else seen
        assert torch.equal(allowed[0, 0, :, :used], expected.reshape(-1, used).expand(n, used))
