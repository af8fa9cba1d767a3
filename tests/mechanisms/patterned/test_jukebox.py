import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.jukebox import KINDS, FactoredAttention, LastRows
from regard.memory import KeyValueCache, truncate
from regard.registry import UnsupportedError
from tests.samples import heads_first

N, L, S, P = 23, 4, 2, 7
"""Tokens, length of rows, spread and first positions; 23 is no multiple of anything."""

OPTIONS = {
    "dense": {},
    "row": {"row_length": L},
    "column": {"row_length": L},
    "previous_row": {"row_length": L},
    "summary": {"row_length": L, "max_length": N + 1},
    "spread": {"row_length": L, "spread": S, "max_length": N + 1},
    "prime": {"prime_length": P},
}
SELF = pytest.mark.parametrize("kind", list(OPTIONS))


def sees(kind, i, j, *, causal=True, n_ctx=N + 1):
    """The table of the paper and its code, pair by pair."""
    row, column = divmod(i, L)
    key_row, key_column = divmod(j, L)
    if kind == "previous_row":
        return key_row == row - 1
    final = key_row == n_ctx // L - 1
    here = {
        "dense": True,
        "row": key_row == row,
        "column": key_column == column,
        "summary": key_column == L - 1 and not final,
        "spread": key_column >= L - S and not final,
        "prime": j < P,
    }[kind]
    return here and (j <= i or not causal)


def equations(kind, q, k, v, keep=None, **options):
    """One softmax a query, with keys of zeros where the kind has them; a loop over everything."""
    out = torch.zeros_like(q)
    zeros = {"summary": 1, "spread": S}.get(kind, 0)
    for b in range(len(q)):
        places = list(range(q.shape[2])) if keep is None else keep[b].nonzero().flatten().tolist()
        for h in range(q.shape[1]):
            for i, place in enumerate(places):
                seen = [p for j, p in enumerate(places) if sees(kind, i, j, **options)]
                logits = torch.cat((k[b, h, seen] @ q[b, h, place] / math.sqrt(q.shape[-1]), q.new_zeros(zeros)))
                values = torch.cat((v[b, h, seen], v.new_zeros(zeros, v.shape[-1])))
                if len(logits):
                    out[b, h, place] = logits.softmax(0) @ values
    return out


@SELF
@pytest.mark.parametrize("causal", [True, False])
def test_matches_the_equations(kind, causal):
    core = FactoredAttention(kind, causal=causal, **OPTIONS[kind])
    q, k, v, _ = heads_first(N)
    assert_close(core(q, k, v), equations(kind, q, k, v, causal=causal), rtol=0, atol=1e-12)


@SELF
def test_rows_count_from_the_first_real_token(kind):
    q, k, v, keep = heads_first(N, keep=0.7)
    core = FactoredAttention(kind, causal=True, **OPTIONS[kind])
    assert_close(core(q, k, v, key_mask=keep), equations(kind, q, k, v, keep), rtol=0, atol=1e-12)


def test_the_first_row_gives_zero_and_no_gradient():
    q, k, v, _ = heads_first(L + 1)
    q.requires_grad_()
    out = FactoredAttention("previous_row", L)(q, k, v)
    assert not out[:, :, :L].any()
    (slope,) = torch.autograd.grad(out.sum(), q)
    assert slope.isfinite().all()
    assert not slope[:, :, :L].any()


def test_keys_of_zeros_take_weight_late_in_a_sequence_too():
    q, k, v, _ = heads_first(N)
    out = FactoredAttention("spread", L, spread=S, causal=True, max_length=N + 1)(q, k, torch.ones_like(v))
    assert (out < 1).all()
    none = FactoredAttention("summary", L, causal=True)(q, torch.zeros_like(k), torch.ones_like(v))
    expected = [(i + 1) // L / ((i + 1) // L + 1) for i in range(N)]  # every key has logit 0, one of them no value
    assert_close(none[0, 0, :, 0], torch.tensor(expected, dtype=torch.float64))


def test_only_the_longest_sequence_has_a_final_row():
    q, k, v, _ = heads_first(2 * L)
    shorter = FactoredAttention("summary", L, causal=True, max_length=3 * L)
    whole = FactoredAttention("summary", L, causal=True, max_length=2 * L)
    last = slice(2 * L - 1, None)
    assert_close(shorter(q, k, v)[:, :, : 2 * L - 1], whole(q, k, v)[:, :, : 2 * L - 1], rtol=0, atol=1e-12)
    assert not torch.allclose(shorter(q, k, v)[:, :, last], whole(q, k, v)[:, :, last])


def test_the_lyrics_are_seen_whole():
    q, k, v, keep = heads_first(6, 9, keep=0.6)
    weights = (q @ k.mT / 2).masked_fill(~keep[:, None, None], -torch.inf).softmax(-1)
    assert_close(FactoredAttention(6)(q, k, v, key_mask=keep), weights @ v, rtol=0, atol=1e-12)


@SELF
@pytest.mark.parametrize("pieces", [[1] * N, [5, 1, 1, 9, 1, 6], [N]], ids=["one by one", "pieces", "at once"])
@pytest.mark.parametrize("static", [None, N + 1], ids=["grows", "static"])
def test_a_stream_is_the_whole(kind, pieces, static):
    q, k, v, _ = heads_first(N, kv_heads=1)
    core = FactoredAttention(kind, causal=True, **OPTIONS[kind])
    memory, outs, start = core.memory(2, 1, 4, 4, static=static, dtype=torch.float64), [], 0
    for piece in pieces:
        part = slice(start, start + piece)
        out, memory = core.stream(q[:, :, part], k[:, :, part], v[:, :, part], memory)
        outs.append(out)
        start += piece
    assert_close(torch.cat(outs, 2), core(q, k, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("row", lambda t: t % L),
        ("previous_row", lambda t: t % L + L * (t >= L)),
        ("prime", lambda t: min(t, P)),
        ("column", lambda t: t),
    ],
)
def test_a_memory_lets_go_of_what_nobody_will_see(kind, most):
    q, k, v, _ = heads_first(N)
    core = FactoredAttention(kind, causal=True, **OPTIONS[kind])
    memory = core.memory(2, 3, 4, 4, dtype=torch.float64)
    for t in range(N):
        _, memory = core.stream(*(x[:, :, t : t + 1] for x in (q, k, v)), memory)
        assert memory.key.shape[2] == most(t + 1)


def test_a_memory_that_let_go_of_rows_cannot_be_taken_back():
    assert isinstance(FactoredAttention("row", L, causal=True).memory(1, 1, 4, 4), LastRows)
    assert isinstance(FactoredAttention("column", L, causal=True).memory(1, 1, 4, 4), KeyValueCache)
    with pytest.raises(ValueError, match="keep the memory from"):
        truncate(FactoredAttention("row", L, causal=True).memory(1, 1, 4, 4), 0)


def test_numbers_are_the_authors():
    assert [
        FactoredAttention(n, spread=2 if n == 5 else None, prime_length=3 if n == 7 else None).kind for n in range(8)
    ] == list(KINDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "rows"}, "'rows' is none of 'dense', 'row'"),
        ({"kind": 8}, "kind=8 is none of"),
        ({"kind": "row", "spread": 2}, "spread=2.*for spread, not row"),
        ({"kind": "dense", "row_length": 4}, "row_length=4.*not dense"),
        ({"kind": "row", "row_length": 0}, "row_length=0: a positive number"),
        ({"kind": "spread"}, "kind='spread' needs spread="),
        ({"kind": "prime"}, "kind='prime' needs prime_length="),
        ({"kind": "spread", "row_length": 3, "spread": 4}, "row_length=3 has no spread=4"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        FactoredAttention(**options)


def test_refusals_on_use():
    with pytest.raises(UnsupportedError, match="every lyric is seen"):
        regard.create("jukebox", dim=12, num_heads=3, kind="encoder_decoder", causal=True)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        FactoredAttention("row").memory(1, 1, 4, 4)
    core = FactoredAttention("summary", L, causal=True, max_length=8)
    q, k, v, _ = heads_first(9)
    with pytest.raises(ValueError, match=r"9 tokens.*max_length=8"):
        core(q, k, v)
    with pytest.raises(ValueError, match=r"9 tokens.*max_length=8"):
        core.stream(q, k, v, core.memory(2, 3, 4, 4, dtype=torch.float64))
