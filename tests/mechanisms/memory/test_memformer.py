"""Memformer's equations as loops: reading, both ways of writing, and the recurrence over segments."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.memory.memformer import Memformer
from regard.ops.memory_slots import SlotMemory
from regard.registry import UnsupportedError


def made(**options):
    options = {"dim": 6, "num_heads": 2, "num_slots": 3, "segment_length": 4, **options}
    layer = Memformer(**options, dtype=torch.float64).eval()
    torch.nn.init.normal_(layer.slots.start)
    return layer


def heads(x, count=2):
    return x.unflatten(-1, (count, -1)).movedim(-2, 0)


def written(memory, slots, x):
    """One sequence: slots (K, C), tokens (N, C)."""
    for _ in range(memory.num_updates):
        gru = memory.update == "gru"
        q, own_k, k, v = (
            heads(t) for t in (memory.q_proj(slots), memory.k_proj(slots), memory.k_proj(x), memory.v_proj(x))
        )
        own_v = heads(memory.v_proj(slots) if gru else slots)
        rows = []
        for i in range(len(slots)):
            parts = []
            for h in range(len(q)):
                scores = torch.stack([q[h, i] @ own_k[h, i], *(q[h, i] @ key for key in k[h])])
                weights = (scores / q.shape[-1] ** 0.5 / (1 if gru else memory.temperature)).softmax(0)
                parts.append(weights[0] * own_v[h, i] + weights[1:] @ v[h])
            rows.append(torch.cat(parts))
        if not gru:
            moved = torch.stack(rows) + memory.start
            return moved / moved.norm(dim=-1, keepdim=True)
        slots = memory.gru(memory.out_proj(torch.stack(rows)), slots)
        slots = slots + memory.feed_forward(slots)
    return slots


def recurrence(layer, x):
    """One sequence (N, C), segment by segment."""
    start, outs = layer.slots.start, []
    slots = start if layer.slots.update == "gru" else start / start.norm(dim=-1, keepdim=True)
    for h in x.split(layer.segment_length):
        q, k, v = (heads(linear(h)) for linear in (layer.q_proj, layer.k_proj, layer.v_proj))
        read = (heads(layer.read_q(h)), heads(layer.read_k(slots)), heads(layer.read_v(slots)))
        near, far = [], []
        for i in range(len(h)):
            seen = slice(0, i + 1) if layer.causal else slice(0, len(h))
            for rows, (a, b, c), own in ((near, (q, k, v), seen), (far, read, slice(None))):
                parts = [(b[t, own] @ a[t, i] / 3**0.5).softmax(0) @ c[t, own] for t in range(2)]
                rows.append(torch.cat(parts))
        outs.append(layer.out_proj(torch.stack(near)) + layer.read_out(torch.stack(far)))
        slots = written(layer.slots, slots, h)
    return torch.cat(outs)


WAYS = [{}, {"temperature": 1.5, "num_slots": 1}, {"update": "gru"}, {"update": "gru", "num_updates": 3}]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("causal", [False, True])
def test_matches_the_equations(options, causal):
    layer, x = made(**options, causal=causal), torch.randn(2, 11, 6, dtype=torch.float64)
    keep = torch.arange(11) >= torch.tensor([[0], [3]])
    y = layer(x, key_mask=keep)
    for row, real, expected in zip(y, keep, x, strict=True):
        assert_close(row[real], recurrence(layer, expected[real]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("pieces", [[1] * 11, [2, 3, 5, 1], [4, 4, 3]])
def test_pieces_of_any_size_give_what_the_whole_gives(options, pieces):
    layer, x = made(**options, causal=True), torch.randn(2, 11, 6, dtype=torch.float64)
    outs, memory = [], layer.memory(2)
    for piece in x.split(pieces, 1):
        y, memory = layer.stream(piece, memory)
        outs.append(y)
        assert memory.segment.shape[1] < 4
    assert_close(torch.cat(outs, 1), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("update", ["normalised", "gru"])
def test_what_a_slot_keeps_and_forgets(update):
    memory = SlotMemory(6, 2, 3, update, dtype=torch.float64)
    slots, x = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    real = torch.tensor([[True] * 5, [False] * 5])
    after = memory(slots, x.masked_fill(~real[..., None], 1e3), real)
    assert after.isfinite().all()
    if update == "normalised":
        assert_close(after.norm(dim=-1), torch.ones(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)
        alone = slots[1] + memory.start
        assert_close(after[1], alone / alone.norm(dim=-1, keepdim=True), rtol=0, atol=1e-12)
    moved = slots.clone()
    moved[:, 0] += 1
    changed = memory(moved, x, real)
    assert_close(changed[:, 1:], memory(slots, x, real)[:, 1:], rtol=0, atol=0), "slots do not see each other"
    assert not torch.allclose(changed[:, 0], after[:, 0])


def test_gradients_go_back_through_all_segments():
    layer, x = made(), torch.randn(1, 12, 6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x)[:, 8:].sum(), x)
    assert slope[:, :4].abs().max() > 1e-6


def test_refusals():
    make = {"dim": 6, "num_heads": 2}
    with pytest.raises(ValueError, match="update='sum' is neither"):
        Memformer(**make, update="sum")
    with pytest.raises(ValueError, match="num_slots=0"):
        Memformer(**make, num_slots=0)
    with pytest.raises(ValueError, match="a segment needs a token"):
        Memformer(**make, segment_length=0)
    for options in ({"update": "gru", "temperature": 0.5}, {"num_updates": 2}):
        with pytest.raises(ValueError, match='temperature= belongs to update="normalised"'):
            Memformer(**make, **options)
    with pytest.raises(UnsupportedError, match="memformer streams only with causal=True"):
        Memformer(**make).memory(1)
    with pytest.raises(UnsupportedError, match="takes no context"):
        regard.create("memformer", **make)(torch.randn(1, 4, 6), torch.randn(1, 4, 6))
