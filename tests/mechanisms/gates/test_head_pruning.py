"""Gated heads as loops in float64, the start, draws, the penalty and what it teaches, closed layers, refusals."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.gates.head_pruning import HeadPruning, gated_heads
from regard.registry import UnsupportedError
from tests.samples import heads_first


def equations(q, k, v, gate, mask, causal):
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    n, m, share = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        seen = [j for j in range(m) if mask[b, j] and (not causal or j <= i + m - n)]
        if seen:
            weights = torch.softmax(k[b, h // share, seen] @ q[b, h, i] / q.shape[-1] ** 0.5, 0)
            out[b, h, i] = gate[h] * (weights @ v[b, h // share, seen])
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m", "keep"), [(7, 7, 1.0), (4, 9, 0.5), (1, 1, 1.0)])
def test_matches_the_equations(causal, n, m, keep):
    core = HeadPruning(4, causal).double().eval()
    q, k, v, mask = heads_first(n, m, keep=keep, heads=4, kv_heads=2, value_dim=5)
    with torch.no_grad():
        core.gate.log_alpha.copy_(torch.tensor([-4.0, -0.5, 0.8, 4.0]))
    gate = (core.gate.log_alpha.detach().sigmoid() * 1.2 - 0.1).clamp(0, 1)
    assert gate[0] == 0
    assert gate[3] == 1
    assert_close(core(q, k, v, key_mask=mask), equations(q, k, v, gate, mask, causal), rtol=0, atol=1e-12)


def test_a_draw_is_shared_by_the_batch_and_all_positions():
    core = HeadPruning(3, start=0.0).double().train()
    q, k, v, _ = heads_first(6)
    out = core(q, k, v, generator=torch.Generator().manual_seed(5))
    open_heads = gated_heads(q, k, v, torch.ones(3, dtype=torch.float64))
    ratio = out / open_heads
    assert_close(ratio, ratio[:1, :, :1, :1].expand_as(ratio))
    assert not torch.allclose(core(q, k, v), core(q, k, v))  # another draw at each pass


def test_the_start():
    assert HeadPruning(5).gate.log_alpha.tolist() == [2.0] * 5
    drawn = HeadPruning(3000, start="glorot").gate.log_alpha
    assert drawn.abs().max() <= (3 / 3000) ** 0.5
    assert drawn.std().item() == pytest.approx(3000**-0.5, rel=0.1)


def test_the_penalty_is_the_expected_number_of_open_heads():
    layer = regard.create("head_pruning", dim=12, num_heads=3, weight=0.25, start=-0.5)
    aux = layer(torch.randn(2, 4, 12), return_aux=True)[1]
    opened = torch.sigmoid(torch.tensor(-0.5) - 0.33 * torch.log(torch.tensor(0.1 / 1.1)))
    assert_close(aux["loss/l0"], 0.25 * 3 * opened)
    assert aux["metric/open_heads"] == 3
    assert HeadPruning(3, start=-0.5, hard=True).aux()["metric/open_heads"] == 0
    slope = torch.autograd.grad(aux["loss/l0"], layer.core.gate.log_alpha)[0]
    assert_close(slope, 0.25 * (opened * (1 - opened)).expand(3))


def test_training_closes_the_heads_that_only_disturb():
    """Head 0 has the answer, the others give noise: those close, and the first stays open."""
    core = HeadPruning(4, weight=0.05)
    optimiser = torch.optim.Adam(core.parameters(), 0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        q, k, v = (torch.randn(8, 4, 5, 4, generator=generator) for _ in range(3))
        out, aux = core(q, k, v, generator=generator, return_aux=True)
        target = regard.attend(q[:, :1], k[:, :1], v[:, :1])
        loss = (out.sum(1, keepdim=True) - target).square().sum(-1).mean() + aux["loss/l0"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    gate = core.eval().gate()
    assert gate[0] > 0.9
    assert gate[1:].tolist() == [0.0] * 3
    assert core.aux()["metric/open_heads"] == 1


def test_a_layer_whose_heads_are_all_closed_gives_its_bias():
    layer = regard.create("head_pruning", dim=12, num_heads=3, start=-9.0).eval()
    torch.nn.init.normal_(layer.out_proj.bias)
    assert_close(layer(torch.randn(2, 5, 12)), layer.out_proj.bias.expand(2, 5, 12), rtol=0, atol=0)


def test_half_precision_keeps_the_gates_precise():
    layer = regard.create("head_pruning", dim=12, num_heads=3, start=0.3).bfloat16().eval()
    assert layer.core.gate().dtype == torch.float32
    assert layer(torch.randn(2, 5, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_refusals():
    with pytest.raises(ValueError, match=r"q has 3 heads.*num_heads=2"):
        HeadPruning(2).double()(*heads_first(5)[:3])
    with pytest.raises(ValueError, match="0 gates"):
        HeadPruning(0)
    with pytest.raises(ValueError, match="neither a number nor"):
        HeadPruning(2, start="open")
    with pytest.raises(ValueError, match=r"temperature=0.*must be positive"):
        HeadPruning(2, temperature=0)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        regard.create("head_pruning", dim=12, num_heads=3).memory(2)
