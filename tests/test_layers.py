import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import regard
from regard.layers import MultiHead
from regard.memory import reorder
from regard.registry import Card, Core, UnsupportedError

CARD = Card(title="Softmax", paper="p", year=1, family="f", data="sequence", cross=True)


class Softmax(Core):
    """The plainest core there is; it tells how often it was called."""

    card = CARD

    def forward(self, q, k, v, *, key_mask=None, query_mask=None, generator=None, return_aux=False):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None, None], -1e9)
        out = scores.softmax(-1) @ v
        return (out, {"metric/rows": torch.tensor(len(q))}) if return_aux else out


def layer(core=None, dim=12, num_heads=3, **options):
    torch.manual_seed(1)
    made = MultiHead(dim, num_heads, core or Softmax(), **options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def by_hand(made, x, context):
    """Head by head, with num_kv_heads < num_heads read as in the docstring."""
    q, k, v = made.q_proj(x), made.k_proj(context), made.v_proj(context)
    width, group = made.head_dim, made.num_heads // made.num_kv_heads
    heads = []
    for h in range(made.num_heads):
        mine, shared = (slice(index * width, (index + 1) * width) for index in (h, h // group))
        weights = torch.softmax(q[..., mine] @ k[..., shared].mT / width**0.5, -1)
        heads.append(weights @ v[..., shared])
    return made.out_proj(torch.cat(heads, -1))


@pytest.mark.parametrize("options", [{}, {"num_heads": 4, "num_kv_heads": 2}, {"head_dim": 5, "qkv_bias": False}])
def test_matches_the_formula(options):
    made, x, context = layer(**options), torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double()
    assert_close(made(x), by_hand(made, x, x))
    assert_close(made(x, context), by_hand(made, x, context))


def test_queries_and_keys_are_normalised():
    made, x = layer(qk_norm=True), torch.randn(2, 5, 12).double()
    q, k, _ = made._project(x, x, torch.arange(5)[None])
    for t, norm in ((q, made.q_norm), (k, made.k_norm)):
        assert_close((t / norm.weight).square().mean(-1), torch.ones(2, 3, 5).double(), atol=1e-4, rtol=0)


def test_rotary_positions_start_at_the_first_real_token():
    made, x = layer(rotary=100.0), torch.randn(1, 4, 12).double()
    padded = torch.cat((torch.randn(1, 3, 12).double(), x), 1)
    mask = torch.arange(7)[None] >= 3
    assert_close(made(padded, key_mask=mask)[:, 3:], made(x))
    assert not torch.allclose(made(x), layer()(x))
    assert not torch.allclose(made(x.flip(1)).flip(1), made(x))


def test_rotary_may_be_a_module():
    class Double(nn.Module):
        def forward(self, x, positions):
            assert positions.tolist() == [[0, 1, 2, 3]]
            return 2 * x

    x = torch.randn(1, 4, 12).double()
    made, plain = layer(rotary=Double()), layer()
    with torch.no_grad():
        for linear in (plain.q_proj, plain.k_proj):
            linear.weight.mul_(2), linear.bias.mul_(2)
    assert_close(made(x), plain(x))


def test_padding_is_never_read_and_padded_rows_are_zero():
    made, x = layer(), torch.randn(2, 5, 12).double()
    mask = torch.tensor([[True, True, True, False, False], [False, True, True, True, True]])
    poisoned = x.masked_fill(~mask[..., None], float("nan")).requires_grad_()
    for masks in ({"key_mask": mask}, {"query_mask": mask}, {"key_mask": mask, "query_mask": mask}):
        y = made(poisoned, **masks)
        for row, real in enumerate(mask):
            assert_close(y[row, real], made(x[row : row + 1, real])[0])
            assert (y[row, ~real] == 0).all()
    y.square().sum().backward()
    assert (poisoned.grad[~mask] == 0).all()
    assert poisoned.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_masks_of_both_sides_of_a_cross_attention():
    made, x, context = layer(), torch.randn(2, 4, 12).double(), torch.randn(2, 6, 12).double()
    queries, keys = torch.rand(2, 4) < 0.5, torch.rand(2, 6) < 0.7
    y = made(x, context.masked_fill(~keys[..., None], float("nan")), key_mask=keys, query_mask=queries)
    for row in range(2):
        expected = made(x[row : row + 1], context[row : row + 1, keys[row]])[0]
        assert_close(y[row], expected * queries[row][:, None])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["multi_head", "linear_transformer"])
def test_packed_documents_equal_a_loop(name, causal):
    made = regard.create(name, dim=12, num_heads=3, causal=causal, rotary=100.0, dtype=torch.float64)
    x = torch.randn(2, 9, 12).double()
    segments = torch.tensor([[5, 5, 5, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 3, 3]])
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, -1] = False
    y = made(x, segments=segments, key_mask=mask)
    for row in range(2):
        for document in segments[row].unique():
            own = (segments[row] == document) & mask[row]
            assert_close(y[row, own], made(x[row : row + 1, own])[0])
    assert (y[:, -1] == 0).all()


def test_a_core_tells_what_it_has_to_tell():
    made, x = layer(), torch.randn(2, 5, 12).double()
    y, aux = made(x, return_aux=True)
    assert_close(y, made(x))
    assert {name: int(value) for name, value in aux.items()} == {"metric/rows": 2}
    made = regard.create("linear_transformer", dim=12, num_heads=3)
    assert made(x.float(), return_aux=True)[1] == {}


STREAMING = [("multi_head", None), ("multi_head", 9), ("linear_transformer", None), ("linear_transformer", 9)]


@pytest.mark.parametrize("pieces", [(1,) * 8, (5, 1, 2), (8,)])
@pytest.mark.parametrize(("name", "static"), STREAMING)
def test_streaming_equals_the_whole(name, static, pieces):
    made = regard.create(name, dim=16, num_heads=4, num_kv_heads=2, causal=True, rotary=100.0, qk_norm=True)
    x = torch.randn(3, 8, 16)
    with torch.no_grad():
        memory, parts = made.memory(3, static=static), []
        for part in x.split(pieces, 1):
            y, memory = made.stream(part, memory)
            parts.append(y)
        assert_close(torch.cat(parts, 1), made(x), rtol=0, atol=1e-5)
    assert memory.position.tolist() == [8] * 3


@pytest.mark.parametrize("name", ["multi_head", "linear_transformer"])
def test_beams_branch_off_without_disturbing_each_other(name):
    made = regard.create(name, dim=12, num_heads=3, causal=True, rotary=100.0)
    x, ends = torch.randn(2, 5, 12), torch.randn(3, 2, 12)
    _, memory = made.stream(x, made.memory(2))
    beams = reorder(memory, torch.tensor([1, 1, 0]))
    for _ in range(2):  # the second time shows whether the first one changed anything
        y, _ = made.stream(ends, beams)
        assert_close(y, made(torch.cat((x[[1, 1, 0]], ends), 1))[:, 5:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["multi_head", "linear_transformer"])
def test_gradients_flow_through_a_stream(name):
    made = regard.create(name, dim=12, num_heads=3, causal=True, dtype=torch.float64)
    x = torch.randn(2, 6, 12).double().requires_grad_()
    first, memory = made.stream(x[:, :4], made.memory(2))
    second, _ = made.stream(x[:, 4:], memory)
    streamed = torch.autograd.grad(torch.cat((first, second), 1).square().sum(), x)[0]
    assert_close(streamed, torch.autograd.grad(made(x).square().sum(), x)[0])


def test_what_cannot_stream_says_so():
    with pytest.raises(UnsupportedError, match="Softmax does not stream"):
        layer().memory(2)
    for name in ("multi_head", "linear_transformer"):
        with pytest.raises(UnsupportedError, match=f"{name} streams only with causal=True"):
            regard.create(name, dim=12, num_heads=3).memory(2)
    made = regard.create("multi_head", dim=12, num_heads=3, causal=True)
    with pytest.raises(ValueError, match=r"memory.core.key has shape \(2, 3, 0, 4\).*need \(3, 3, any, 4\)"):
        made.stream(torch.randn(3, 1, 12), made.memory(2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": (2, 5, 8)}, ValueError, r"x has shape \(2, 5, 8\), expected \(batch, length, 12\)"),
        ({"x": (5, 12)}, ValueError, r"x has shape \(5, 12\)"),
        ({"context": (2, 5, 8)}, ValueError, r"context has shape \(2, 5, 8\)"),
        ({"context": (3, 5, 12)}, ValueError, "x and context hold 2 and 3 sequences"),
        ({"key_mask": torch.ones(2, 5)}, TypeError, "key_mask is torch.float32"),
        ({"key_mask": torch.ones(2, 5, dtype=torch.long)}, TypeError, "key_mask is torch.int64"),
        ({"query_mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"query_mask has shape \(2, 4\)"),
        ({"segments": torch.zeros(2, 4, dtype=torch.long)}, ValueError, r"segments has shape \(2, 4\)"),
        ({"segments": torch.zeros(2, 5)}, TypeError, r"segments is torch.float32"),
        (
            {"segments": torch.zeros(2, 5, dtype=torch.long), "context": (2, 5, 12)},
            UnsupportedError,
            "segments divide one sequence",
        ),
    ],
)
def test_wrong_input_is_refused_at_the_door(arguments, error, message):
    arguments = {"x": (2, 5, 12), **arguments}
    arguments = {key: torch.randn(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    with pytest.raises(error, match=message):
        MultiHead(12, 3, Softmax())(**arguments)


def test_what_one_sequence_only_can_do():
    x = torch.randn(2, 5, 12).double()
    with pytest.raises(UnsupportedError, match="rotary positions need one origin"):
        layer(rotary=100.0)(x, x)
    core = Softmax()
    core.card = Card(title="t", paper="p", year=1, family="f", data="sequence")
    with pytest.raises(UnsupportedError, match="Softmax attends within one sequence"):
        layer(core)(x, x)


def test_wrong_sizes_are_refused():
    for options in ({"num_heads": 5}, {"num_kv_heads": 2}, {"num_kv_heads": 0}, {"head_dim": 0}):
        with pytest.raises(ValueError, match=r"num_heads=\d"):
            layer(**options)
    with pytest.raises(ValueError, match="head_dim=3 is odd"):
        layer(rotary=100.0, head_dim=3)


def test_attn_drop_needs_weights():
    with pytest.raises(UnsupportedError, match=r"Softmax cannot honour attn_drop=0.1"):
        layer(attn_drop=0.1)
    assert layer(regard.core("multi_head"), attn_drop=0.1).core.attn_drop == 0.1
    assert layer(regard.core("multi_head", attn_drop=0.2)).core.attn_drop == 0.2


def test_the_output_is_dropped_in_training_only():
    made, x = layer(proj_drop=0.5), torch.randn(2, 5, 12).double()
    assert 0 < (made(x) == 0).double().mean() < 1
    assert (made.eval()(x) != 0).all()


def test_weights_start_as_in_the_paper():
    made = MultiHead(300, 3, Softmax(), num_kv_heads=1)
    for linear in (made.q_proj, made.k_proj, made.v_proj, made.out_proj):
        rows, columns = linear.weight.shape
        bound = (6 / (rows + columns)) ** 0.5
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert_close(linear.weight.var().sqrt(), torch.tensor(bound / 3**0.5), rtol=0.02, atol=0)
        assert not linear.bias.any()


def test_a_core_is_taken_as_it_is():
    core = Softmax()
    core.table = nn.Parameter(torch.full((3,), 7.0))
    core.reset_parameters = lambda: nn.init.zeros_(core.table)
    made = MultiHead(12, 3, core)
    assert core.table.tolist() == [7.0] * 3
    made.reset_parameters()
    assert core.table.tolist() == [0.0] * 3


def test_copies():
    made, x = layer(qk_norm=True, rotary=100.0), torch.randn(2, 5, 12).double()
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert_close(again(x), made(x), rtol=0, atol=0)
    assert {name.split(".")[0] for name in made.state_dict()} == {
        *("q_proj", "k_proj", "v_proj", "out_proj", "q_norm", "k_norm")
    }
    fresh = MultiHead(12, 3, Softmax(), qk_norm=True, rotary=100.0, dtype=torch.float64)
    fresh.load_state_dict(made.state_dict())
    assert_close(fresh(x), made(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["multi_head", "linear_transformer"])
def test_autocast(name):
    made = regard.create(name, dim=12, num_heads=3, causal=True, qk_norm=True, rotary=100.0)
    x = torch.randn(2, 7, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
        streamed, _ = made.stream(x, made.memory(2))
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), made(x), rtol=0, atol=0.05)
    assert_close(streamed.float(), y.float(), rtol=0, atol=0.02)
