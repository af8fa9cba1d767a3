import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.chosen.product_key_memory import (
    ProductKeyMemory,
    memory_metrics,
    parameter_groups,
    product_key_memory,
    slot_weights,
)
from regard.ops.product_keys import product_key_search
from regard.registry import UnsupportedError

SIZES = {"dim": 6, "num_heads": 3, "key_dim": 8, "num_keys": 7, "topk": 4}


def equations(q, keys, values, topk):
    """Every one of the n^2 slots is scored."""
    out, n = q.new_zeros(len(q), values.shape[-1]), keys.shape[2]
    for t in range(len(q)):
        for h in range(q.shape[1]):
            score = torch.stack([q[t, h, 0] @ keys[h, 0, i] + q[t, h, 1] @ keys[h, 1, j]
                                 for i in range(n) for j in range(n)])  # fmt: skip
            best = score.argsort(descending=True)[:topk]
            weight = torch.softmax(score[best], 0)
            for slot, share in zip(best, weight, strict=True):
                out[t] += share * values[slot]
    return out


def layer(**options):
    made = ProductKeyMemory(**{**SIZES, **options}).double()
    if made.query_norm is not None:
        for tensor in (*made.query_norm.parameters(), made.query_norm.running_mean, made.query_norm.running_var):
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return made.eval()


@pytest.mark.parametrize("topk", [1, 2, 4, 7])
@pytest.mark.parametrize("norm", ["batch", None])
def test_matches_the_equations(topk, norm):
    memory, x = layer(topk=topk, norm=norm, value_dim=5), torch.randn(2, 4, 6, dtype=torch.float64)
    q = x @ memory.query_proj.weight.T + memory.query_proj.bias
    if norm is not None:
        stats = memory.query_norm
        q = (q - stats.running_mean) / (stats.running_var + stats.eps).sqrt() * stats.weight + stats.bias
    expected = equations(q.view(8, 3, 2, 4), memory.keys, memory.values, topk)
    assert_close(memory(x), expected.view(2, 4, 5), rtol=0, atol=1e-12)


def test_the_search_is_exact():
    q, keys = torch.randn(9, 2, 2, 3, dtype=torch.float64), torch.randn(2, 2, 40, 3, dtype=torch.float64)
    every = (torch.einsum("thd,hnd->thn", q[:, :, 0], keys[:, 0])[..., None]
             + torch.einsum("thd,hnd->thn", q[:, :, 1], keys[:, 1])[..., None, :]).flatten(2)  # fmt: skip
    for topk in (1, 3, 12, 40):
        score, slot = product_key_search(q, keys, topk)
        expected, place = every.topk(topk)
        assert_close(score, expected)
        assert torch.equal(slot, place)


def test_gradients():
    """Of queries, sub-keys and values: the scores carry them, the choice does not."""
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 2, 2, 2), (2, 2, 5, 2), (25, 3))]
    assert torch.autograd.gradcheck(lambda *t: product_key_memory(*t, topk=4), tensors)


def test_padding_enters_no_statistic_in_training():
    memory = layer().train()
    alone = layer().train()
    alone.load_state_dict(memory.state_dict())
    x, keep = torch.randn(3, 5, 6, dtype=torch.float64), torch.rand(3, 5) < 0.6
    y = memory(x, key_mask=keep)
    assert not y[~keep].any()
    assert_close(y[keep], alone(x[keep][None])[0], rtol=0, atol=1e-12)
    assert_close(memory.state_dict(), alone.state_dict(), rtol=0, atol=1e-12)


def test_a_sparse_gradient_holds_the_rows_that_were_read():
    dense, sparse = layer(), layer(sparse=True)
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(1, 2, 6, dtype=torch.float64)
    for memory in (dense, sparse):
        memory(x).square().sum().backward()
    slot, _ = dense.slots(x)
    assert sparse.values.grad.is_sparse
    assert_close(sparse.values.grad.to_dense(), dense.values.grad)
    assert set(sparse.values.grad.coalesce().indices()[0].tolist()) == set(slot.flatten().tolist())
    assert_close(sparse.keys.grad, dense.keys.grad)
    torch.optim.SparseAdam(parameter_groups(sparse)[1:]).step()


def test_groups_for_an_optimiser():
    first, second = layer(), layer()
    second.values = first.values  # one table for two layers
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), first, second)
    rest, tables = parameter_groups(model, value_lr=0.5)
    assert [id(p) for p in tables["params"]] == [id(first.values)]
    assert {id(p) for p in rest["params"]} == {id(p) for p in model.parameters()} - {id(first.values)}
    optimiser = torch.optim.AdamW([rest, tables], lr=0.1, weight_decay=0.2)
    assert [(group["lr"], group["weight_decay"]) for group in optimiser.param_groups] == [(0.1, 0.2), (0.5, 0.0)]


def test_metrics_count_real_tokens():
    memory, x = layer(), torch.randn(2, 5, 6, dtype=torch.float64)
    keep = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    _, told = memory(x, key_mask=keep, return_aux=True)
    slot, weight = memory.slots(x[:1, :3])
    use = torch.zeros(49, dtype=torch.float64)
    for place, share in zip(slot.flatten().tolist(), weight.flatten().tolist(), strict=True):
        use[place] += share / 9  # three tokens, three heads
    assert_close(told["metric/usage"].item(), len(slot.unique()) / 49)
    assert_close(told["metric/kl"].item(), math.log(49) + sum(z * math.log(z) for z in use.tolist() if z))
    assert_close(slot_weights(slot, weight, 49), 9 * use)
    assert memory_metrics(torch.zeros(49)) == {"metric/usage": 0.0, "metric/kl": 0.0}


def test_it_starts_as_in_the_authors_code():
    memory = ProductKeyMemory(64, 2, 32, 64, 8)
    assert memory.keys.abs().max() <= 16**-0.5
    assert abs(memory.keys.std() * 16**0.5 - 3**-0.5) < 0.02
    assert abs(memory.values.std() * 8 - 1) < 0.02


def test_refusals():
    for options, message in (
        ({"key_dim": 7}, "key_dim=7 is odd"),
        ({"topk": 8}, "topk=8 .* num_keys=7"),
        ({"num_keys": 0}, "num_keys=0.*must be positive"),
        ({"norm": "layer"}, "norm='layer' is neither"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(**options)
    with pytest.raises(UnsupportedError, match="is always causal"):
        regard.create("product_key_memory", **SIZES, causal=False)
