"""LSH attention as loops over rings of chunks, in float64; hashes, strict causality, dropout, memory."""

import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.chosen import reformer
from regard.mechanisms.chosen.reformer import Reformer, lsh_attention
from regard.ops import chunk_attention, hashing
from regard.ops.hashing import lsh_buckets
from regard.registry import UnsupportedError


def met(buckets, part, asked, L, before, after, causal, strict):
    """Whom each token of one head meets in each list: {token: keys, with repetitions}."""
    seen = {t: [] for t in part}
    if strict:
        for row in buckets.tolist():
            for t in part:
                own = [j for j in range(t) if j in asked and t in asked and row[j] == row[t]]
                seen[t] += own[-before * L :]
        return seen
    ring = []
    for row in buckets.tolist():
        order = sorted(part, key=lambda t, row=row: (row[t] if t in asked else math.inf, t))
        ring += [order[i : i + L] for i in range(0, len(order), L)]
    for place, chunk in enumerate(ring):
        window = [t for o in range(-before, after + 1) for t in ring[(place + o) % len(ring)]]
        for t in chunk:
            seen[t] += [j for j in window if j in asked and j != t and (j < t or not causal)]
    return seen


def equations(qk, v, buckets, key_mask, query_mask, once=False, **options):
    out = torch.zeros_like(v)
    k = qk / (qk.square().mean(-1, keepdim=True) + 1e-6).sqrt() / qk.shape[-1] ** 0.5
    for b, h in torch.cartesian_prod(torch.arange(len(v)), torch.arange(v.shape[1])).tolist():
        asked = set(key_mask[b].nonzero().flatten().tolist())
        asks = set(query_mask[b].nonzero().flatten().tolist())
        seen = met(buckets[b, h], sorted(asked | asks), asked, **options)
        for i in asks:
            keys = sorted(set(seen[i])) if once else seen[i]
            if keys:
                out[b, h, i] = torch.softmax(k[b, h, keys] @ qk[b, h, i], 0) @ v[b, h, keys]
            elif i in asked:
                out[b, h, i] = v[b, h, i]
    return out


def case(n, rounds, count, masks="none", batch=2, heads=2):
    qk = torch.randn(batch, heads, n, 5, dtype=torch.float64, requires_grad=True)
    v = torch.randn(batch, heads, n, 3, dtype=torch.float64, requires_grad=True)
    keys, queries = (
        (torch.rand(2, batch, n) < 0.6) if masks == "both" else (torch.rand(1, batch, n) < 0.6).repeat(2, 1, 1)
    )
    if masks == "none":
        keys, queries = torch.ones(2, batch, n, dtype=torch.bool)
    return qk, v, torch.randint(count, (batch, heads, rounds, n)), keys, queries


WAYS = {
    "all": {"chunks_before": 1, "chunks_after": 1},
    "alone": {"chunks_before": 0},
    "causal": {"causal": True},
    "wide": {"causal": True, "chunks_before": 2},
    "once": {"causal": True, "count_once": True},
    "once around": {"chunks_before": 1, "chunks_after": 2, "count_once": True},
    "strict": {"causal": True, "strict": True},
    "strict and wide": {"causal": True, "strict": True, "chunks_before": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("masks", ["none", "one", "both"])
@pytest.mark.parametrize(("n", "L", "rounds"), [(16, 4, 2), (17, 3, 3), (3, 8, 2), (1, 2, 1), (30, 5, 1)])
def test_matches_the_equations(way, masks, n, L, rounds, monkeypatch):
    """Also with several runs of chunks, whose windows overlap."""
    monkeypatch.setitem(chunk_attention.SCORES_AT_ONCE, "cpu", 2 * rounds**2 * 4 * L * L)
    options = WAYS[way]
    qk, v, buckets, keys, queries = case(n, rounds, 4, masks)
    given = {} if masks == "none" else {"key_mask": keys} | ({"query_mask": queries} if masks == "both" else {})
    out = lsh_attention(qk, v, buckets, chunk_length=L, **options, **given)
    expected = equations(
        qk,
        v,
        buckets,
        keys,
        queries,
        options.get("count_once", False),
        L=L,
        before=options.get("chunks_before", 1),
        after=options.get("chunks_after", 0),
        causal=options.get("causal", False),
        strict=options.get("strict", False),
    )
    assert_close(out, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(out)
    found, wanted = (
        torch.autograd.grad((y * weights).sum(), (qk, v), materialize_grads=True)
        for y in (out, expected + 0 * qk.sum())
    )
    assert_close(found, wanted, rtol=0, atol=1e-11)


def test_padding_that_asks_takes_the_last_chunks():
    """As in trax: real queries that are no keys stand at the end of each list, and shift who stands next to whom."""
    qk, v, buckets, _, _ = case(12, 2, 4)
    keys = torch.arange(12).expand(2, -1) < 7
    everyone = torch.ones_like(keys)
    out = lsh_attention(qk, v, buckets, chunk_length=4, key_mask=keys, query_mask=everyone)
    expected = equations(qk, v, buckets, keys, everyone, L=4, before=1, after=0, causal=False, strict=False)
    assert_close(out, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(out[:, :, :7], lsh_attention(qk, v, buckets, chunk_length=4, key_mask=keys)[:, :, :7])


@pytest.mark.parametrize("asks", [False, True])
def test_masked_tokens_may_hold_anything(asks):
    """Also where they ask: then only their values."""
    qk, v, buckets, _, _ = case(12, 2, 4)
    keys = torch.arange(12).expand(2, -1) < torch.tensor([[7], [0]])
    given = {"chunk_length": 4, "key_mask": keys} | ({"query_mask": torch.ones_like(keys)} if asks else {})
    hidden = ~keys[:, None, :, None]
    odd = [t.detach().masked_fill(hidden & gone, torch.nan).requires_grad_() for t, gone in ((qk, not asks), (v, True))]
    spoilt = lsh_attention(*odd, buckets, **given)
    assert_close(spoilt, lsh_attention(qk, v, buckets, **given), rtol=0, atol=0)
    assert not spoilt[1].any()
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(spoilt.sum(), odd))


@pytest.mark.parametrize("way", ["all", "causal", "once", "strict"])
def test_gradcheck_with_dropout(way):
    qk, v, buckets, keys, _ = case(9, 2, 2, "one")

    def run(qk, v):
        generator = torch.Generator().manual_seed(4)
        options = {"key_mask": keys, "attn_drop": 0.4, "generator": generator}
        return lsh_attention(qk, v, buckets, chunk_length=3, **WAYS[way], **options)

    assert torch.autograd.gradcheck(run, (qk, v), fast_mode=True)


def test_dropout_drops_single_weights_and_keeps_their_mean():
    """All scores equal and values 1: each row sums what is left of its weights."""
    qk, v = torch.zeros(1, 1, 256, 4), torch.ones(1, 1, 256, 1)
    buckets = torch.zeros(1, 1, 1, 256, dtype=torch.long)
    options = {"chunk_length": 64, "attn_drop": 0.25, "generator": torch.Generator().manual_seed(0)}
    out = lsh_attention(qk, v, buckets, **options).flatten()
    assert_close(out.mean(), torch.ones(()), rtol=0, atol=0.01)
    assert_close(out.std(), torch.tensor((0.25 / 0.75 / 127) ** 0.5), rtol=0.2, atol=0)


def test_there_is_no_second_gradient_and_it_says_so():
    qk, v, buckets, _, _ = case(6, 1, 2)
    (slope,) = torch.autograd.grad(lsh_attention(qk, v, buckets, chunk_length=2).sum(), v, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(slope.sum(), qk)


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_scores_of_any_size(size):
    """The score with oneself is the largest there is; without it the next ones must not vanish."""
    qk, v, buckets, keys, queries = case(30, 2, 4)
    qk = (qk * size).detach()
    out = lsh_attention(qk.float(), v.float(), buckets, chunk_length=4, causal=True)
    expected = equations(qk, v, buckets, keys, queries, L=4, before=1, after=0, causal=True, strict=False)
    assert_close(out.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_summed_in_float32(dtype):
    qk, v = torch.randn(2, 1, 2, 300, 8).to(dtype)
    buckets = torch.randint(4, (1, 2, 2, 300))
    out = lsh_attention(qk, v, buckets, chunk_length=64)
    assert out.dtype == dtype
    exact = lsh_attention(qk.double(), v.double(), buckets, chunk_length=64)
    assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


# hashes


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("factors", [(6,), (4, 2), (2, 4, 6)])
def test_hashes_are_the_nearest_axis(factors, shared, monkeypatch):
    monkeypatch.setattr(hashing, "TOKENS_AT_ONCE", 4)
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    tables = [torch.randn(1 if shared else 2, 3, 5, 4, f // 2, dtype=torch.float64) for f in factors]
    found = lsh_buckets(x, tables)
    for b, h, r, i in torch.cartesian_prod(*(torch.arange(s) for s in (2, 3, 4, 7))).tolist():
        number, step = 0, 1
        for factor, table in zip(factors, tables, strict=True):
            turned = x[b, h, i] @ table[0 if shared else b, h, :, r]
            number += step * int(torch.cat((turned, -turned)).argmax())
            step *= factor
        assert found[b, h, r, i] == number


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_some_columns_may_be_out_of_use(order):
    x, sizes = torch.randn(3, 2, 7, 5), [torch.tensor([2, 6, 4]), torch.tensor([0, 3, 1])]
    tables = [torch.randn(1, 2, 5, 4, columns) for columns in (6, 3)]
    found = lsh_buckets(x, [tables[f] for f in order], [sizes[f] for f in order])
    for b in range(3):
        used = [tables[f][..., : sizes[f][b]] for f in order if sizes[f][b]]
        assert (found[b] == lsh_buckets(x[b : b + 1], used)[0]).all()


@pytest.mark.parametrize("chunks", [1, 3, 64, 65, 100, 128, 129, 200, 512, 513, 2048, 2049, 8192])
def test_the_number_of_buckets_is_that_of_trax(chunks):
    first, second = (int(half) for half in reformer._sizes(torch.tensor([chunks])))
    buckets = 2 * chunks
    if buckets <= 128:
        assert (first, second) == (chunks, 0)
    else:
        power = 2 ** math.ceil(math.log2(math.sqrt(buckets)))
        assert (2 * first, 2 * second) == (power, 2 * (buckets // (2 * power)))


def test_the_number_of_buckets_follows_the_real_tokens():
    layer = regard.create("reformer", dim=8, num_heads=2, chunk_length=1).eval()
    x = torch.randn(2, 150, 8)
    keep = torch.arange(150) < torch.tensor([[150], [20]])
    y = layer(x, key_mask=keep)
    for row, n in ((0, 150), (1, 20)):
        assert_close(y[row, :n], layer(x[row : row + 1, :n])[0])


# the layer


def test_rotations_are_drawn_in_training_and_by_a_generator_and_saved_otherwise():
    layer, x = regard.create("reformer", dim=8, num_heads=2, chunk_length=4).eval(), torch.randn(1, 40, 8)
    saved = layer.rotations.clone()
    assert_close(layer(x), layer(x), rtol=0, atol=0)
    first, again, other = (layer(x, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    layer.train()
    assert not torch.allclose(layer(x), layer(x))
    assert_close(layer.rotations, saved, rtol=0, atol=0)


def test_more_rounds_than_in_training():
    layer, x = regard.create("reformer", dim=8, num_heads=2, chunk_length=2).eval(), torch.randn(1, 40, 8)
    values = torch.eye(40)[None, None]
    few = (layer.weigh(x, values) > 0).sum()
    layer.rehash(8, torch.Generator().manual_seed(0))
    assert layer.num_hashes == 8
    assert (layer.weigh(x, values) > 0).sum() > 3 * few


def test_causal_is_a_selection_and_strict_is_not():
    """A later token decides which earlier ones are met; with strict=True it does not."""
    options = {"dim": 8, "num_heads": 1, "chunk_length": 4, "num_buckets": 4, "causal": True}
    x = torch.randn(1, 40, 8)
    changed = [torch.cat((x[:, :20], torch.randn(1, 20, 8)), 1) for _ in range(5)]
    for strict in (False, True):
        layer = regard.create("reformer", strict=strict, **options).eval()
        same = [torch.allclose(layer(x)[:, :20], layer(other)[:, :20], atol=1e-6) for other in changed]
        assert all(same) if strict else not all(same)
        assert layer.card.causal == ("strict" if strict else "selection")


def test_refusals():
    make = {"dim": 8, "num_heads": 2}
    with pytest.raises(UnsupportedError, match="takes no context"):
        regard.create("reformer", **make)(torch.randn(1, 4, 8), torch.randn(1, 4, 8))
    with pytest.raises(ValueError, match="num_buckets=3: pass an even number"):
        Reformer(**make, num_buckets=3)
    with pytest.raises(ValueError, match="num_hashes=0"):
        regard.create("reformer", dim=12, num_heads=3).rehash(0)
    with pytest.raises(ValueError, match="chunk_length=0"):
        Reformer(**make, chunk_length=0)
    for options in ({}, {"causal": True}, {"causal": True, "num_buckets": 4, "chunks_after": 1}):
        with pytest.raises(ValueError, match="strict=True needs causal=True"):
            Reformer(**make, strict=True, **options)
    many = torch.zeros(1, 1, 2**11, 2**14, dtype=torch.uint8)
    with pytest.raises(ValueError, match="2048 rounds of 16384 tokens"):
        lsh_attention(torch.zeros(1, 1, 2**14, 1), torch.zeros(1, 1, 2**14, 1), many)


def test_what_is_kept_for_the_backward_pass_is_linear_in_the_length():
    """N x N would be 17 million numbers, the scores of all chunks 1 million."""
    n, width, sizes = 4096, 16, []
    qk, v = torch.randn(2, 1, 1, n, width, requires_grad=True)

    def keep(tensor):
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lsh_attention(qk, v, torch.randint(128, (1, 1, 1, n)))
    assert 0 < max(sizes) <= 2 * n * width * 4
    assert sum(sizes) < 10 * n * width * 4
