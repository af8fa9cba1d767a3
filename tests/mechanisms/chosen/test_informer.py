"""ProbSparse attention as loops over queries, in float64; who attends, strictly and not; refusals."""

import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.chosen.informer import ProbSparse, prob_sparse_attention
from regard.memory import reorder
from regard.ops import sharpness as sharpness_file
from regard.ops.sharpest import Sharp, sharp_so_far, sharpest
from regard.ops.sharpness import even_draws, log_count, most, sharpness
from regard.registry import UnsupportedError
from tests.samples import heads_first


def logarithm(n):
    return max(1, math.ceil(math.log(n)))


def peak(q, keys, draws, factor):
    """M of one query: of the keys it may see, some are sampled, again and again the same one perhaps."""
    n = len(keys)
    scores = [float(q @ keys[int(draw * n)]) for draw in draws[: min(n, factor * logarithm(n))]]
    return max(scores) - sum(scores) / n


def equations(q, k, v, draws, keys, queries, factor, causal=False, strict=False, lazy="mean"):
    out = torch.zeros_like(v[:, :, :1]).repeat(1, 1, q.shape[2], 1)
    for b, h in torch.cartesian_prod(torch.arange(len(v)), torch.arange(v.shape[1])).tolist():
        real = keys[b].nonzero().flatten()
        asking = queries[b].nonzero().flatten().tolist()
        seen = {i: real[real <= i] if causal else real for i in range(q.shape[2])}
        sampled = seen if strict else dict.fromkeys(range(q.shape[2]), real)
        peaks = [peak(q[b, h, i], k[b, h, sampled[i]], draws[b, i], factor) if len(sampled[i]) else 0 for i in asking]
        if strict:
            attending = {i for i, chosen in zip(asking, one_by_one(peaks, factor), strict=True) if chosen}
        else:
            order = sorted(range(len(asking)), key=lambda place: -peaks[place])
            attending = {asking[place] for place in order[: factor * logarithm(len(asking))]}
        for i in range(q.shape[2]):
            if i in attending:
                weights = torch.softmax(k[b, h, seen[i]] @ q[b, h, i] / q.shape[-1] ** 0.5, 0)
                out[b, h, i] = weights @ v[b, h, seen[i]]
            elif len(seen[i]):
                total = v[b, h, seen[i]].sum(0)
                out[b, h, i] = total / len(seen[i]) if lazy == "mean" else total
    return out


def one_by_one(peaks, factor):
    """Who attends, decided in turn."""
    attended, decisions = 0, []
    for i, m in enumerate(peaks, start=1):
        share, past = factor * logarithm(i) / i, torch.tensor(peaks[:i], dtype=torch.float64)
        sharp = share >= 1
        if not sharp:
            z = torch.special.ndtri(torch.tensor(1 - share, dtype=torch.float64))
            sharp = m > past.mean() + z * past.std(correction=0)
        decisions.append(bool(sharp) and attended < factor * logarithm(i) ** 2)
        attended += decisions[-1]
    return decisions


WAYS = {
    "all": {},
    "causal": {"causal": True},
    "sum": {"causal": True, "lazy": "sum"},
    "strict": {"causal": True, "strict": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n", "keep", "factor"), [(40, 1.0, 2), (33, 0.6, 1), (1, 1.0, 5), (9, 0.5, 3)])
def test_matches_the_equations(way, n, keep, factor):
    q, k, v, mask = heads_first(n, keep=keep, value_dim=3)
    draws = torch.rand(2, n, factor * logarithm(n), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    masks = {} if keep == 1 else {"key_mask": mask, "query_mask": mask}
    out = prob_sparse_attention(q, k, v, draws, factor=factor, **WAYS[way], **masks)
    everyone = mask if masks else torch.ones_like(mask)
    expected = equations(q, k, v, draws, everyone, everyone, factor, **WAYS[way])
    real = everyone[:, None, :, None]
    assert_close(out * real, expected * real, rtol=0, atol=1e-12)


def test_cross_attention_counts_queries_and_keys_apart():
    q, k, v, keys = heads_first(30, 50, keep=0.7)
    queries = torch.arange(30) < torch.tensor([[30], [17]])
    draws = torch.rand(2, 30, 2 * logarithm(50), dtype=torch.float64)
    out = prob_sparse_attention(q, k, v, draws, factor=2, key_mask=keys, query_mask=queries)
    expected = equations(q, k, v, draws, keys, queries, 2)
    real = queries[:, None, :, None]
    assert_close(out * real, expected * real, rtol=0, atol=1e-12)


def test_a_large_factor_is_softmax_attention():
    q, k, v, mask = heads_first(20, keep=0.7)
    for causal in (False, True):
        ours = ProbSparse(20, causal).eval()(q, k, v, key_mask=mask)
        assert_close(ours, regard.attend(q, k, v, key_mask=mask, is_causal=causal), rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_gradcheck(way):
    """Who attends does not change within the steps that it takes."""
    q, k, v, mask = heads_first(12, keep=0.8, batch=1, heads=2)
    draws = even_draws(torch.arange(12)[None], 3)

    def run(*tensors):
        return prob_sparse_attention(*tensors, draws, factor=1, key_mask=mask, query_mask=mask, **WAYS[way])

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in (q, k, v)], fast_mode=True)


def test_sharpness_in_runs_is_the_same(monkeypatch):
    q, k, _, mask = heads_first(23, keep=0.7)
    seen, order = mask.cumsum(-1), mask.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
    draws = torch.rand(1, 23, 12)
    whole = sharpness(q, k, draws, seen, 3, order)
    monkeypatch.setitem(sharpness_file.GATHERED_AT_ONCE, "cpu", 7 * 2 * 3 * 4 * 12)
    assert_close(sharpness(q, k, draws, seen, 3, order), whole, rtol=0, atol=0)


@pytest.mark.parametrize("bunch", [[3000], [1, 7, 500, 2492]])
def test_a_budget_holds_whatever_comes(bunch):
    """Each query sharper than all before it: still no more than c ceil(ln n)^2 of the first n attend."""
    m, before = (torch.arange(3000.0) / 3000).pow(8).expand(1, 2, -1), Sharp.start(1, 2)
    attended, start = torch.zeros(1, 2, 3000, dtype=torch.bool), 0
    for count in bunch:
        place = torch.arange(start, start + count)[None]
        found, before = sharp_so_far(m[..., start : start + count], place, None, 2, before, 3000)
        attended[..., start : start + count].scatter_(2, found.row, found.real)
        start += count
    n = torch.arange(1, 3001)
    so_far = attended.cumsum(-1)
    assert (so_far <= 2 * log_count(n) ** 2).all()
    expected = 0
    for budget in (2 * log_count(n) ** 2).tolist():
        expected = min(expected + 1, budget)
    assert so_far[0, 0, -1] == expected == 148
    assert_close(before.attended, so_far[..., -1])


def test_about_as_many_attend_strictly_as_a_running_choice_would_let():
    """Of independent normal M: the sum of c ceil(ln i) / i, give or take its spread and what is not normal."""
    m = torch.randn(4, 8, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    place = torch.arange(4096).expand(4, -1)
    found, _ = sharp_so_far(m, place, None, 2, Sharp.start(4, 8), 4096)
    expected = (2 * log_count(place[0] + 1) / (place[0] + 1)).clamp(max=1).sum()
    assert abs(found.real.sum(-1).double().mean() / expected - 1) < 0.1


def test_padding_does_not_compete_even_where_all_are_blunt():
    m, real = (
        torch.tensor([[[-3.0, -1.0, -2.0, -9.0, -8.0, -7.0]]]),
        torch.tensor([[False, True, True, True, True, False]]),
    )
    found = sharpest(m, real, 1)
    assert found.row[found.real].tolist() == [1, 2]


def test_log_count_and_most_agree():
    assert [int(log_count(torch.tensor(n))) for n in range(1, 3000)] == [most(n) for n in range(1, 3000)]


def test_training_and_generators_draw():
    q, k, v, _ = heads_first(60)
    core = ProbSparse(1).eval()
    assert_close(core(q, k, v), core(q, k, v), rtol=0, atol=0)
    seeds = [core(q, k, v, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert_close(seeds[0], seeds[1], rtol=0, atol=0)
    assert not torch.equal(seeds[0], seeds[2])
    core.train()
    assert not torch.equal(core(q, k, v), core(q, k, v))


def test_beams_keep_their_sharpness():
    """Sequences of a memory change places, and go on as before."""
    q, k, v, _ = heads_first(40)
    core = ProbSparse(1, causal=True, strict=True).eval()
    _, memory = core.stream(q[:, :, :30], k[:, :, :30], v[:, :, :30], core.memory(2, 3, 4, 4, dtype=torch.float64))
    order = torch.tensor([1, 0])
    out, _ = core.stream(*(t[order][:, :, 30:] for t in (q, k, v)), reorder(memory, order))
    assert_close(out, core(q, k, v)[order][:, :, 30:], rtol=0, atol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="factor=0"):
        ProbSparse(0)
    with pytest.raises(ValueError, match="'median'"):
        ProbSparse(lazy="median")
    with pytest.raises(ValueError, match="pass causal=True"):
        ProbSparse(strict=True)
    with pytest.raises(ValueError, match="pass causal=True"):
        ProbSparse(lazy="sum")
    q, k, v, _ = heads_first(5, 10)
    with pytest.raises(ValueError, match=r"5 queries, 10 keys"):
        ProbSparse(causal=True)(q, k, v)
    with pytest.raises(ValueError, match=r"2 draws, but with factor=5 10 of 10 keys"):
        prob_sparse_attention(q, k, v, torch.rand(1, 5, 2))
    with pytest.raises(UnsupportedError, match="strict=True"):
        ProbSparse(causal=True).memory(1, 2, 4, 4)
    with pytest.raises(UnsupportedError, match="cannot honour attn_drop"):
        regard.create("informer", dim=12, num_heads=3, attn_drop=0.1)
