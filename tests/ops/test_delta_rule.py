"""The delta rule against its recurrence, token by token, in torch operations and in the native kernels."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp, vmap
from torch.testing import assert_close

from regard.ops import delta_rule as module
from regard.ops import native_delta_rule
from regard.ops.delta_rule import chunked, delta_rule
from tests.engines.native_library import ISAS, needs_native

WAYS = ["torch", *ISAS]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """The torch operations, or the kernels of one instruction set."""
    if request.param == "torch":
        monkeypatch.setenv("REGARD_NATIVE", "0")
    else:
        monkeypatch.setenv("REGARD_ISA", request.param)
    return request.param


def recurrence(q, k, v, beta, state, scale):
    """The definition."""
    outs = []
    for t in range(q.shape[2]):
        key, write = k[:, :, t, :, None], beta[:, :, t, None, None]
        old = (state * key).sum(-2, keepdim=True)
        state = state + key * write * (v[:, :, t, None] - old)
        outs.append(scale * (state * q[:, :, t, :, None]).sum(-2))
    return torch.stack(outs, 2), state


def problem(n, *, batch=2, heads=3, dim=8, value_dim=6, dtype=torch.float64, seed=0):
    """q, k of length 1, v, beta in (0, 1) and a state."""
    torch.manual_seed(seed)
    q, v = torch.randn(batch, heads, n, dim), torch.randn(batch, heads, n, value_dim)
    k = F.normalize(torch.randn(batch, heads, n, dim), dim=-1)
    beta, state = torch.rand(batch, heads, n), torch.randn(batch, heads, dim, value_dim)
    return [t.to(dtype) for t in (q, k, v, beta)] + [state.to(torch.promote_types(dtype, torch.float32))]


def slopes(function, inputs, weights):
    """What comes out, and all gradients for these gradients of out and state."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    ends = function(*leaves)
    return [*ends, *torch.autograd.grad(ends, leaves, [w.to(e.dtype) for w, e in zip(weights, ends, strict=True)])]


@pytest.mark.parametrize(
    ("n", "dim", "value_dim"), [(1, 8, 6), (5, 1, 1), (64, 16, 16), (65, 20, 33), (131, 64, 64), (200, 70, 130)]
)
def test_matches_the_recurrence(way, n, dim, value_dim):
    inputs = problem(n, dim=dim, value_dim=value_dim)
    weights = [torch.randn_like(inputs[2]), torch.randn_like(inputs[4])]
    found = slopes(lambda *t: delta_rule(*t, scale=0.3), inputs, weights)
    expected = slopes(lambda *t: recurrence(*t, scale=0.3), inputs, weights)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


# Measured on 20 problems, relative to the largest: 1.8e-6, 4.8e-3, 6.1e-4, in torch operations as in the kernels.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)])
def test_fewer_bits(way, dtype, limit):
    rng = random.Random(1)
    for seed in range(6):
        n, dim, value_dim = rng.choice([3, 64, 150]), rng.choice([7, 16, 64]), rng.choice([5, 32, 80])
        inputs = problem(n, dim=dim, value_dim=value_dim, dtype=dtype, seed=seed)
        weights = [torch.randn_like(inputs[2]), torch.randn_like(inputs[4])]
        found = slopes(delta_rule, inputs, weights)
        assert [t.dtype for t in found] == [dtype, inputs[4].dtype, *(t.dtype for t in inputs)]
        exact = slopes(lambda *t: recurrence(*t, scale=dim**-0.5), [t.double() for t in inputs], weights)  # noqa: B023
        for ours, theirs in zip(found, exact, strict=True):
            largest = theirs.abs().max()
            assert_close(ours.double() / largest, theirs / largest, rtol=0, atol=limit)


def test_numbers_may_lie_anyhow(way):
    q, k, v, beta, state = problem(70, value_dim=16)
    strange = [
        q.mT.contiguous().mT,
        k.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack((v, v), 3).flatten(2, 3)[:, :, ::2],
        beta[..., None].expand(-1, -1, -1, 3).contiguous()[..., 1],
        state.mT.contiguous().mT,
    ]
    weights = [torch.randn(1, 1, 1, 1, dtype=torch.float64).expand_as(v), torch.randn_like(state).mT.contiguous().mT]
    plain = slopes(delta_rule, (q, k, v, beta, state), weights)
    assert_close(slopes(delta_rule, strange, weights), plain, rtol=0, atol=1e-12)


def test_beta_zero_is_padding(way):
    q, k, v, beta, state = problem(90)
    kept = torch.rand(90) < 0.6
    out, after = delta_rule(q, k, v, beta.masked_fill(~kept, 0.0), state)
    short = delta_rule(*(t[:, :, kept] for t in (q, k, v, beta)), state)
    assert_close((out[:, :, kept], after), short)


def test_parts_are_the_whole(way):
    q, k, v, beta, state = problem(150)
    weights = [torch.randn_like(v), torch.randn_like(state)]

    def in_parts(q, k, v, beta, state):
        outs = []
        for rows in (slice(0, 1), slice(1, 70), slice(70, 150)):
            out, state = delta_rule(*(t[:, :, rows] for t in (q, k, v, beta)), state)
            outs.append(out)
        return torch.cat(outs, 2), state

    inputs = (q, k, v, beta, state)
    assert_close(slopes(in_parts, inputs, weights), slopes(delta_rule, inputs, weights))


def test_a_key_that_comes_again_is_overwritten(way):
    k = torch.eye(4, dtype=torch.float64)[[0, 1, 0]][None, None]
    v = torch.randn(1, 1, 3, 5, dtype=torch.float64)
    out, _ = delta_rule(k[:, :, [0, 1, 0]], k, v, torch.ones(1, 1, 3, dtype=torch.float64), scale=1.0)
    assert_close(out, v)


def test_no_token_at_all(way):
    q, k, v, beta, state = problem(0)
    out, after = delta_rule(q, k, v, beta, state)
    assert out.shape == (2, 3, 0, 6)
    assert_close(after, state)


@needs_native
def test_threads_change_nothing():
    inputs = problem(130, dim=16, value_dim=16, dtype=torch.float32)
    weights = [torch.randn_like(inputs[2]), torch.randn_like(inputs[4])]
    one = slopes(delta_rule, inputs, weights)
    torch.set_num_threads(3)
    assert_close(slopes(delta_rule, inputs, weights), one, rtol=0, atol=0)


@needs_native
def test_the_kernels_are_called_where_they_can(monkeypatch):
    inputs = problem(9, dtype=torch.float32)
    monkeypatch.setattr(module, "chunked", None)
    delta_rule(*inputs)
    assert not native_delta_rule.serves(*inputs[:3], inputs[3].double())
    assert not native_delta_rule.serves(*(t.to("meta") for t in inputs[:4]))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward-mode rules use it
def test_transforms_and_gradients_of_gradients():
    """The operator alone would give zero tangents, without a word."""
    inputs = problem(5, dim=3, value_dim=2)
    tangents = tuple(torch.randn_like(t) for t in inputs)
    assert_close(
        jvp(delta_rule, tuple(inputs), tangents),
        jvp(lambda *t: recurrence(*t, scale=3**-0.5), tuple(inputs), tangents),
    )
    q, k, v, beta, state = inputs
    several = torch.stack((v, 2 * v))
    found = vmap(delta_rule, (None, None, 0, None, None))(q, k, several, beta, state)[0]
    assert_close(found, torch.stack([delta_rule(q, k, each, beta, state)[0] for each in several]))
    assert torch.autograd.gradgradcheck(delta_rule, [t.requires_grad_() for t in inputs], fast_mode=True)


def test_compiled_it_takes_gradients_at_every_length():
    compiled = torch.compile(delta_rule, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (130, 70, 200):
        inputs = problem(n, dtype=torch.float32)
        weights = [torch.randn_like(inputs[2]), torch.randn_like(inputs[4])]
        assert_close(slopes(compiled, inputs, weights), slopes(delta_rule, inputs, weights))


def test_autocast_leaves_the_sums_alone():
    inputs = problem(70, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = delta_rule(*inputs), chunked(*inputs, 0.5)
    assert_close(inside, (delta_rule(*inputs), chunked(*inputs, 0.5)), rtol=0, atol=0)


def test_refusals():
    q, k, v, beta, state = problem(5)
    with pytest.raises(ValueError, match=r"beta \(B, H, N\), got .* beta \(2, 3, 5, 6\)"):
        delta_rule(q, k, v, v, state)
    with pytest.raises(ValueError, match=r"state has shape \(2, 3, 6, 8\).*need \(2, 3, 8, 6\)"):
        delta_rule(q, k, v, beta, state.mT)
