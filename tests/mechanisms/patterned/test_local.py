import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.local import Local, luong_attention
from regard.registry import UnsupportedError
from tests.samples import heads_first


def equations(q, k, v, keep, sees):
    """softmax over the keys that ``sees(b, i, j)`` and the mask allow, row by row."""
    rep = q.shape[1] // k.shape[1]
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        keys = [j for j in range(k.shape[2]) if keep[b, j] and sees(b, i, j)]
        if keys:
            weights = (k[b, h // rep, keys] @ q[b, h, i] / q.shape[-1] ** 0.5).softmax(0)
            out[b, h, i] = weights @ v[b, h // rep, keys]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "w", "keep"), [(9, 1, 1.0), (13, 4, 0.7), (5, 8, 0.5)])
def test_window(causal, n, w, keep):
    q, k, v, mask = heads_first(n, keep=keep, heads=4, kv_heads=2, value_dim=3)
    out = Local(w, causal=causal)(q, k, v, key_mask=mask)
    assert_close(out, equations(q, k, v, mask, lambda b, i, j: -w <= j - i <= (0 if causal else w)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("causal", "back", "forward"), [(False, 1, None), (False, 0, 2), (True, 2, None), (True, 0, 0)]
)
def test_blocks(causal, back, forward, exact):
    w, n = 3, 14
    ahead = (0 if causal else 1) if forward is None else forward

    def sees(b, i, j):
        inside = -back <= j // w - i // w <= ahead and not (causal and j > i)
        return inside and (not exact or -w * back <= j - i <= w * ahead)

    core = Local(w, "blocks", causal, look_backward=back, look_forward=forward, exact=exact)
    q, k, v, mask = heads_first(n)
    assert_close(core(q, k, v), equations(q, k, v, mask, sees), rtol=0, atol=1e-12)


def test_blocks_count_from_the_first_real_token():
    core = Local(3, "blocks", causal=True)
    q, k, v, _ = heads_first(11)
    mask = torch.arange(11).expand(2, 11) >= torch.tensor([[2], [4]])
    out = core(q, k, v, key_mask=mask)
    for b, start in ((0, 2), (1, 4)):
        assert_close(out[b, :, start:], core(*(x[b : b + 1, :, start:] for x in (q, k, v)))[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "m", "w", "keep"), [(7, 7, 2, 1.0), (12, 5, 1, 1.0), (12, 9, 3, 0.6), (3, 9, 2, 0.4), (8, 3, 4, 1.0)]
)
def test_luong_walks_along_the_source_and_stays_at_its_end(n, m, w, keep):
    q, k, v, mask = heads_first(n, m, keep=keep)
    rank = mask.cumsum(-1) - 1

    def sees(b, t, j):
        return abs(int(rank[b, j]) - min(t, int(mask[b].sum()) - 1)) <= w

    assert_close(Local(w, "luong")(q, k, v, key_mask=mask), equations(q, k, v, mask, sees), rtol=0, atol=1e-12)


def test_luong_steps_count_real_queries():
    q, k, v, _ = heads_first(6, 5)
    steps = torch.tensor([[False, False, True, True, True, True]]).expand(2, 6)
    out = luong_attention(q, k, v, 1, query_mask=steps)
    assert_close(out[:, :, 2:], luong_attention(q[:, :, 2:], k, v, 1), rtol=0, atol=1e-12)
    assert not out[:, :, :2].any()


@pytest.mark.parametrize("options", [{}, {"form": "blocks"}, {"form": "blocks", "look_backward": 2, "exact": True}])
@pytest.mark.parametrize("pieces", [[1] * 13, [5, 1, 7], [13]])
def test_a_stream_of_pieces_is_the_whole_and_the_memory_stays_small(options, pieces):
    core = Local(3, causal=True, **options)
    q, k, v, _ = heads_first(13)
    for static in (None, 13):
        memory, outs = core.memory(2, 3, 4, 4, dtype=torch.float64, static=static), []
        for q_piece, k_piece, v_piece in zip(*(x.split(pieces, 2) for x in (q, k, v)), strict=True):
            out, memory = core.stream(q_piece, k_piece, v_piece, memory)
            outs.append(out)
        assert_close(torch.cat(outs, 2), core(q, k, v), rtol=0, atol=1e-12)
        if static is None:
            assert memory.key.shape[2] < 3 * (options.get("look_backward", 1) + 1)


def test_only_luong_reads_another_sequence():
    x, context = torch.randn(2, 9, 12), torch.randn(2, 5, 12)
    layer = regard.create("local", dim=12, num_heads=3, window=1, form="luong")
    assert layer.card.cross
    assert layer(x, context).shape == x.shape
    with pytest.raises(UnsupportedError, match="takes no context"):
        regard.create("local", dim=12, num_heads=3)(x, context)


def test_refusals():
    with pytest.raises(UnsupportedError, match="look_forward=1: later blocks are the future"):
        Local(4, "blocks", causal=True, look_forward=1)
    with pytest.raises(UnsupportedError, match="reads the source ahead"):
        regard.create("local", dim=12, num_heads=3, form="luong", causal=True)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        Local(4).memory(1, 3, 4, 4)
    with pytest.raises(ValueError, match="'windows' is none of"):
        Local(4, "windows")
