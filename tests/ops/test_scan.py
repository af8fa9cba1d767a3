import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from regard.memory import LinearState
from regard.ops.scan import causal_products

B, H, D, DV = 2, 3, 4, 5


def features(n, batch=B, heads=H):
    return tuple(torch.rand(batch, heads, n, width, dtype=torch.float64) for width in (D, D, DV))


def equations(q, k, v, before):
    weights = (q @ k.mT).tril()
    out, total = weights @ v + q @ before.state, weights.sum(-1) + (q @ before.normaliser[..., None]).squeeze(-1)
    return out, total, LinearState(before.state + k.mT @ v, before.normaliser + k.sum(-2))


@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 8, 13])
def test_matches_the_equations(n, chunk):
    q, k, v = features(n)
    before = LinearState(torch.rand(B, H, D, DV).double(), torch.rand(B, H, D).double())
    assert_close(causal_products(q, k, v, before, chunk=chunk), equations(q, k, v, before), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # torch scripts its own rules for forward mode
@pytest.mark.parametrize("n", [2, 5])
def test_derivatives(n):
    before = LinearState(torch.rand(1, 1, D, DV).double(), torch.rand(1, 1, D).double())
    inputs = [t.requires_grad_() for t in (*features(n, 1, 1), *before)]

    def products(q, k, v, state, normaliser):
        out, total, after = causal_products(q, k, v, LinearState(state, normaliser), chunk=2)
        return out, total, *after

    assert gradcheck(products, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(products, inputs)


def test_vmap():
    q, k, v = features(5)
    before = LinearState.start(B, H, D, DV, dtype=torch.float64)

    def one(q, k, v):
        row = LinearState(*(t[:1] for t in before))
        return causal_products(q[None], k[None], v[None], row, chunk=2)[0][0]

    assert_close(torch.vmap(one)(q, k, v), causal_products(q, k, v, before)[0])


@pytest.mark.slow
def test_one_graph_for_all_lengths():
    torch._dynamo.reset()
    compiled = torch.compile(causal_products, fullgraph=True, dynamic=True, backend="aot_eager")
    before = LinearState.start(B, H, D, DV, dtype=torch.float64)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (7, 64, 130):
            assert_close(compiled(*features(n), before)[0].shape, torch.Size((B, H, n, DV)))
            q, k, v = features(n)
            assert_close(compiled(q, k, v, before), causal_products(q, k, v, before))
