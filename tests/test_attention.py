"""``attend`` against torch's own attention and against its own conventions."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.patterns import Causal, Full, Global, Segments, Window
from regard.scores import Bias, Relative
from tests.samples import heads_first

ENGINES = regard.engines("cpu")  # native is one of them where its library is
BEST = "native" if "native" in ENGINES else "tiles"  # for what sdpa does not serve; native is before sdpa too
OTHERS = [name for name in ENGINES if name != "dense"]
DROPPING = [name for name in ENGINES if name != "sdpa"]


def repeated(k, heads):
    return k.repeat_interleave(heads // k.shape[1], 1)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 9), (9, 5), (1, 70), (70, 1), (65, 130)])
def test_equals_torch(engine, n, m):
    q, k, v, mask = heads_first(n, m, keep=0.7, heads=4, kv_heads=2, value_dim=6)
    expected = F.scaled_dot_product_attention(
        q, repeated(k, 4), repeated(v, 4), attn_mask=mask[:, None, None, :], scale=0.3
    )
    assert_close(regard.attend(q, k, v, key_mask=mask, scale=0.3, enable_gqa=True, engine=engine), expected)
    corner = torch.ones(n, m, dtype=torch.bool).tril(m - n)  # the last query meets the last key
    expected = F.scaled_dot_product_attention(q, repeated(k, 4), repeated(v, 4), attn_mask=corner)
    found = regard.attend(q, k, v, is_causal=True, enable_gqa=True, engine=engine)
    assert_close(found, expected.masked_fill(~corner.any(-1)[:, None], 0.0))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)])
def test_leading_dimensions(engine, lead):
    q, k, v = (torch.randn(*lead, 2, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    mask = torch.rand(*lead[1:], 7) < 0.7  # broadcasts over the first
    bias = torch.randn(*lead[-1:], 1, 1, 7, dtype=torch.float64) if lead else torch.randn(7, dtype=torch.float64)
    out, lse = regard.attend(q, k, v, key_mask=mask, engine=engine, return_lse=True)
    assert out.shape == (*lead, 2, 5, 4)
    assert lse.shape == (*lead, 2, 5)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[..., None, None, :].expand(*lead, 1, 1, 7))
    assert_close(out, expected.nan_to_num(0.0))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(*lead, 2, 5, 7))
    engine = "tiles" if len(lead) > 1 and engine == "sdpa" else engine  # shared by groups: sdpa would have to expand it
    assert_close(regard.attend(q, k, v, attn_mask=bias, engine=engine), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"is_causal": True, "q_offset": -2}])
def test_empty_rows(engine, options):
    q, k, v, mask = heads_first(6)
    mask[0], mask[1, 0] = False, False
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out, lse = regard.attend(*leaves, key_mask=mask, engine=engine, return_lse=True, **options)
    empty = lse == -torch.inf
    assert empty[0].all()
    assert not empty[1].all()
    assert (out[empty] == 0).all()
    grads = torch.autograd.grad(out.sum() + lse[~empty].sum() + lse.exp().sum(), leaves)
    assert not any(grad.isnan().any() for grad in grads)
    assert all((grad[0] == 0).all() for grad in grads)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_queries_or_no_keys(engine):
    q, k, v = (torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(3))
    out, lse = regard.attend(q, k[:, :, :0], v[:, :, :0], engine=engine, return_lse=True)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    out.sum().backward()
    assert (q.grad == 0).all()
    assert regard.attend(q[:, :, :0], k, v, engine=engine).shape == (2, 3, 0, 5)
    assert regard.attend(q[:0], k[:0], v[:0], engine=engine).shape == (0, 3, 4, 5)


def test_everything_is_combined_by_and():
    q, k, v, mask = heads_first(9, keep=0.8)
    own = torch.rand(9, 9) < 0.8
    pattern = Window(3) | Global(1)
    out = regard.attend(q, k, v, pattern, is_causal=True, key_mask=mask, attn_mask=own)
    allowed = pattern.dense(9) & Causal().dense(9) & own & mask[:, None, None, :]
    assert_close(out, regard.attend(q, k, v, attn_mask=allowed, engine="dense"))


def test_causality_needs_no_building_of_patterns():
    q, k, v, _ = heads_first(9)
    for pattern in (None, Full(), Causal()):
        assert_close(regard.attend(q, k, v, pattern, is_causal=True), regard.attend(q, k, v, Causal(), engine="dense"))


def test_q_offset_moves_the_queries():
    """Decoding in pieces equals one pass."""
    q, k, v, _ = heads_first(12)
    whole = regard.attend(q, k, v, Window(4), is_causal=True)
    pieces = [
        regard.attend(q[..., s, :], k[..., : s.stop, :], v[..., : s.stop, :], Window(4), is_causal=True)
        for s in (slice(0, 5), slice(5, 6), slice(6, 12))
    ]
    assert_close(torch.cat(pieces, -2), whole)
    middle = regard.attend(q[..., 5:8, :], k, v, Window(4), is_causal=True, q_offset=5)
    assert_close(middle, whole[..., 5:8, :])


@pytest.mark.parametrize("engine", OTHERS)
def test_inputs_need_not_be_contiguous(engine):
    x = torch.randn(2, 9, 3, 4, 5, dtype=torch.float64)
    q, k, _ = x.permute(2, 0, 3, 1, 4).unbind(0)
    t = torch.randn(2, 4, 5, 9, dtype=torch.float64).mT  # the last dimension is not the dense one
    expected = regard.attend(q.contiguous(), k.contiguous(), t.contiguous(), is_causal=True, engine="dense")
    assert_close(regard.attend(q, k, t, is_causal=True, engine=engine), expected)


# --- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", DROPPING)
def test_dropout(engine):
    q, k, _, _ = heads_first(60, heads=2)
    v = torch.ones_like(k)
    draw = [
        regard.attend(q, k, v, dropout_p=0.25, engine=engine, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert_close(draw[0], draw[1], rtol=0, atol=0)
    assert (draw[0] != draw[2]).any()
    assert abs(draw[0].mean() - 1) < 0.02  # kept weights are scaled up
    assert draw[0].std() > 0.01
    torch.manual_seed(5)
    first = regard.attend(q, k, v, dropout_p=0.25, engine=engine)
    assert (first != regard.attend(q, k, v, dropout_p=0.25, engine=engine)).any()
    torch.manual_seed(5)
    assert_close(first, regard.attend(q, k, v, dropout_p=0.25, engine=engine), rtol=0, atol=0)


@pytest.mark.parametrize("engine", DROPPING)
def test_dropout_is_the_same_in_backward(engine):
    leaves = [torch.randn(1, 1, 5, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def function(*leaves):
        generator = torch.Generator().manual_seed(3)
        return regard.attend(*leaves, Window(2), dropout_p=0.4, engine=engine, generator=generator)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


# --- merge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_merge_joins_disjoint_keys(engine):
    q, k, v, mask = heads_first(5, 12, keep=0.6)
    mask[0, :4] = False
    leaves = [t.requires_grad_() for t in (q, k, v)]
    cuts = [slice(0, 4), slice(4, 5), slice(5, 12)]
    parts = [
        regard.attend(q, k[..., s, :], v[..., s, :], key_mask=mask[:, s], return_lse=True, engine=engine) for s in cuts
    ]
    found = regard.merge(*zip(*parts, strict=True))
    expected = regard.attend(q, k, v, key_mask=mask, return_lse=True, engine="dense")
    assert_close(found, expected)
    weight = torch.randn_like(found[0])
    grads = [torch.autograd.grad((out * weight).sum() + lse.sin().sum(), leaves) for out, lse in (found, expected)]
    assert_close(*grads)


def test_merge_of_nothing():
    lses = torch.full((2, 3), -torch.inf, dtype=torch.float64, requires_grad=True)
    outs = torch.full((2, 3, 4), torch.nan, dtype=torch.float64, requires_grad=True)  # absent parts may hold anything
    out, lse = regard.merge(list(outs), list(lses))
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    grads = torch.autograd.grad(out.sum() + lse.exp().sum(), [outs, lses])
    assert all((grad == 0).all() for grad in grads)
    with pytest.raises(ValueError, match="at least one"):
        regard.merge([], [])


def test_a_sink_is_a_part_without_value():
    q, k, v, _ = heads_first(5)
    sink = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    out, lse = regard.attend(q, k, v, return_lse=True)
    found, _ = regard.merge([out, torch.zeros(1, dtype=out.dtype)], [lse, sink])
    scores = torch.cat([q @ k.mT / 2, sink[:, None].expand(2, 3, 5, 1)], -1)
    assert_close(found, scores.softmax(-1)[..., :-1] @ v)
    assert torch.autograd.gradcheck(lambda s: regard.merge([out, torch.zeros(1, dtype=out.dtype)], [lse, s]), [sink])


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_refusals_of_types():
    q, k, v, mask = heads_first(5)
    with pytest.raises(TypeError, match=r"attn_mask="):
        regard.attend(q, k, v, torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"pattern is made of regard\.patterns"):
        regard.attend(q, k, v, "causal")
    with pytest.raises(TypeError, match=r"key_mask is bool.*int64"):
        regard.attend(q, k, v, key_mask=mask.long())
    with pytest.raises(TypeError, match=r"attn_mask is bool.*int64"):
        regard.attend(q, k, v, attn_mask=torch.ones(5, 5).long())
    with pytest.raises(TypeError, match=r"float32.*float64"):
        regard.attend(q.float(), k, v)
    with pytest.raises(TypeError, match="floating"):
        regard.attend(q.long(), k.long(), v.long())
    with pytest.raises(TypeError, match="scale is a number"):
        regard.attend(q, k, v, scale=torch.tensor(1.0))


def test_refusals_of_shapes():
    q, k, v, mask = heads_first(5, 7)
    with pytest.raises(ValueError, match=r"enable_gqa=True.*\(2, 3, 5, 4\)"):
        regard.attend(q, k[:, :1], v[:, :1])
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads evenly"):
        regard.attend(q, k[:, :2], v[:, :2], enable_gqa=True)
    with pytest.raises(ValueError, match="heads first"):
        regard.attend(q[0, 0], k[0, 0], v[0, 0])
    with pytest.raises(ValueError, match="same width D"):
        regard.attend(q[..., :2], k, v)
    with pytest.raises(ValueError, match="width of at least 1"):
        regard.attend(q[..., :0], k[..., :0], v)
    with pytest.raises(ValueError, match="every key has one value"):
        regard.attend(q, k, v[..., :3, :])
    with pytest.raises(ValueError, match=r"leading dimensions.*expand"):
        regard.attend(q, k[:1], v[:1])
    with pytest.raises(ValueError, match=r"key_mask \(2, 7\) does not fit 5 keys"):
        regard.attend(q, k[..., :5, :], v[..., :5, :], key_mask=mask)
    with pytest.raises(ValueError, match="does not broadcast"):
        regard.attend(q, k, v, attn_mask=torch.zeros(7, 5))
    with pytest.raises(ValueError, match="4 sequences"):
        regard.attend(q, k, v, Segments(torch.zeros(4, 7, dtype=torch.long)))


def test_refusals_of_options():
    q, k, v, _ = heads_first(5)
    for p in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share of weights dropped"):
            regard.attend(q, k, v, dropout_p=p)
    with pytest.raises(ValueError, match="cannot shift it"):
        regard.attend(q, k, v, regard.patterns.from_mask(torch.ones(5, 5, dtype=torch.bool)), q_offset=1)
    with pytest.raises(ValueError, match=r"no engine 'fast'; there are auto, dense, sdpa, native, tiles"):
        regard.attend(q, k, v, engine="fast")
    with pytest.raises(ValueError, match="table of Bias has 2 heads, and the query has 3"):
        regard.attend(q, k, v, score=Bias(torch.zeros(2, 5), Relative(2)))


def test_a_forced_engine_refuses_with_the_reasons_of_explain():
    q, k, v, _ = heads_first(5)
    with pytest.raises(regard.UnsupportedError, match=r"full and the causal pattern only.*no dropout"):
        regard.attend(q, k, v, Window(1), dropout_p=0.1, engine="sdpa")
    reasons = regard.explain(q, k, v, Window(1), dropout_p=0.1).others["sdpa"]
    with pytest.raises(regard.UnsupportedError) as refused:
        regard.attend(q, k, v, Window(1), dropout_p=0.1, engine="sdpa")
    assert all(reason in str(refused.value) for reason in reasons)
    with pytest.raises(regard.UnsupportedError, match="no backward on cpu"):
        regard.attend(q.requires_grad_(), k, v, engine="flex")


# --- explain and engines ---------------------------------------------------------------------------------------------


def test_explain_counts():
    q, k, v, _ = heads_first(10, heads=4, kv_heads=2, value_dim=6)
    told = regard.explain(q, k, v, Window(2), is_causal=True, enable_gqa=True)
    pairs = 2 * 4 * int((Window(2) & Causal()).dense(10).sum())
    assert told.engine == BEST
    assert told.pairs == pairs
    assert told.density == pytest.approx(pairs / (2 * 4 * 10 * 10))
    assert told.flops == (2 * pairs * (4 + 6), 2 * pairs * (4 + 6) + 2 * pairs * (3 * 4 + 2 * 6))
    assert set(told.others) == {"dense", "sdpa", "native", "tiles", "flex"} - {BEST}
    assert all(told.others.values())
    assert told.memory[0] <= told.memory[1]
    text = str(told)
    assert BEST in text
    assert "full and the causal pattern only" in text
    assert "Window(2, 2)" in text


def test_explain_chooses_as_attend_does():
    q, k, v, mask = heads_first(10)
    plain = "native" if BEST == "native" else "sdpa"
    assert regard.explain(q, k, v).engine == plain
    assert regard.explain(q, k, v, is_causal=True, key_mask=mask).engine == plain
    assert regard.explain(q[..., :1, :], k, v).engine == "sdpa"  # one query: decoding
    assert regard.explain(q, k, v, dropout_p=0.1).engine == BEST
    assert regard.explain(q, k, v, engine="dense").engine == "dense"
    with pytest.raises(regard.UnsupportedError):
        regard.explain(q, k, v, Window(1), engine="sdpa")


def test_explain_draws_no_random_number():
    q, k, v, _ = heads_first(10)
    state = torch.get_rng_state()
    regard.explain(q, k, v, dropout_p=0.1)
    assert torch.equal(torch.get_rng_state(), state)


def test_explain_warns_of_quadratic_planning():
    q, k, v, _ = heads_first(10)
    odd = regard.patterns.from_mask_mod(lambda b, h, i, j: (i + j) % 2 == 0)
    listed = regard.patterns.from_mask(torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool))
    assert all("O(N M)" in str(regard.explain(q, k, v, pattern)) for pattern in (odd, Window(3) & listed))
    assert "O(N M)" not in str(regard.explain(q, k, v, Window(3)))


def test_dense_says_what_it_takes():
    q, k, v, _ = heads_first(100)
    assert regard.explain(q, k, v, engine="dense").memory[0] > 100 * regard.explain(q[..., :5, :], k, v).memory[0]


def test_engines():
    assert regard.engines() == ["dense", "sdpa", *(["native"] if BEST == "native" else []), "tiles"]
    assert importlib.import_module("regard.engines.tiles") is regard.engines.tiles  # the package has the same name
    assert regard.engines("cpu") == regard.engines()


@pytest.mark.parametrize("engine", OTHERS)
def test_a_mask_is_never_expanded(engine):
    """Three hundred sequences share one mask; expanded it would take 48 MB."""
    q, k, v = (torch.randn(300, 4, 100, 2) for _ in range(3))
    mask = torch.randn(100, 100)
    with torch.profiler.profile(profile_memory=True) as profile:
        out = regard.attend(q, k, v, attn_mask=mask, engine=engine)
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 12e6
    assert_close(out[7], regard.attend(q[7], k[7], v[7], attn_mask=mask, engine="dense"), rtol=1e-4, atol=1e-4)
