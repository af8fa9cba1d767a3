import pytest
import torch
from torch.testing import assert_close

from regard.models.jukebox_block import JukeboxBlock, quick_gelu
from regard.models.jukebox_transformer import ORDERS, JukeboxTransformer, kinds_of
from regard.registry import UnsupportedError

SMALL = {"row_length": 4, "attention_ratio": 0.5}


def small(depth=3, **options):
    torch.manual_seed(0)
    return JukeboxTransformer(12, depth, 2, init_scale=10.0, **SMALL, **options).double().eval()


def test_orders_are_the_authors():
    assert [len(order) for order in ORDERS] == [1, 2, 3, 2, 2, 4, 4, 16, 10, 4, 79, 48, 48]
    names = kinds_of(10, 79)
    assert names[:9] == ["row", "column", "previous_row"] * 3
    assert [place for place, name in enumerate(names) if name == "encoder_decoder"] == [18, 28, 38, 48, 58, 68, 78]
    assert [kinds_of(12, 64)[place] for place in (15, 31, 47, 63)] == ["prime", "prime", "dense", "prime"]
    assert [kinds_of(11, 48)[place] for place in (15, 31, 47)] == ["encoder_decoder", "encoder_decoder", "dense"]
    assert kinds_of(["row", 3], 3) == ["row", "previous_row", "row"]


@pytest.mark.parametrize("order", [13, -1, [], ["rows"]])
def test_unknown_orders_are_refused(order):
    with pytest.raises(ValueError, match=r"kind|order"):
        kinds_of(order, 3)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_block_adds_attention_and_network_at_once(scaled):
    model = small(scale_residuals=scaled)
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    expected = x
    for block in model.blocks:
        a = block.attention(block.norm1(expected))
        u = block.first(block.norm2(expected + a))  # of x + a, though not all of a is added where residuals are scaled
        m = block.second(u * torch.sigmoid(1.702 * u))
        expected = expected + (a + m) / (3 if scaled else 1)
    assert_close(model(x), expected, rtol=0, atol=1e-12)


def test_quick_gelu_has_a_second_derivative():
    u = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert_close(quick_gelu(u), u * torch.sigmoid(1.702 * u), rtol=0, atol=1e-12)
    assert torch.autograd.gradgradcheck(quick_gelu, u)


def test_weights_start_as_the_authors_do():
    torch.manual_seed(0)
    model = JukeboxTransformer(64, 4, 2, order=6, init_scale=2.0, zero_out=False)
    for block in model.blocks:
        across = block.attention.across
        assert abs(float(block.first.weight.detach().std()) - 0.04) < 0.004
        assert abs(float(block.attention.q_proj.weight.detach().std()) - 0.04) < 0.006
        assert bool(block.attention.out_proj.weight.any()) != across, "layers across start at 0"
        assert bool(block.second.weight.any()) != across
        assert not block.attention.out_proj.bias.any()
    x = torch.randn(1, 9, 64)
    silent = JukeboxTransformer(64, 3, 2, zero_out=True)
    assert_close(silent(x), x)
    for block in silent.blocks:
        assert isinstance(block, JukeboxBlock)
        torch.nn.init.ones_(block.second.weight)
    silent.reset_parameters()
    assert_close(silent(x), x)


@pytest.mark.parametrize("order", [2, 6, 9, ["summary", "spread"], ["prime", "row"]])
def test_a_stream_is_the_whole(order):
    model = small(4, order=order, max_length=13, spread=2, prime_length=5)
    across = any(block.attention.across for block in model.blocks)
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.out_proj.weight)
    x, lyrics = torch.randn(2, 13, 12, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    keep = torch.arange(7) < torch.tensor([[7], [5]])
    told = (lyrics, keep) if across else ()
    memory, outs = model.memory(2, *told), []
    for piece in x.split([4, 1, 1, 5, 2], 1):
        y, memory = model.stream(piece, memory)
        outs.append(y)
    whole = model(x, lyrics, context_mask=keep) if across else model(x)
    assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-12)
    assert memory.position.tolist() == [13, 13]


def test_padding_and_what_stands_in_it_change_nothing():
    model = small(6)
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    keep = torch.ones(2, 11, dtype=torch.bool)
    keep[0, :3], keep[1, 6:] = False, False
    y = model(x.masked_fill(~keep[..., None], torch.nan), key_mask=keep)
    for row in range(2):
        assert_close(y[row, keep[row]], model(x[row : row + 1, keep[row]])[0], rtol=0, atol=1e-12)


def test_it_is_causal_or_not():
    x, changed = torch.randn(2, 1, 12, 12, dtype=torch.float64)
    changed = torch.where(torch.arange(12)[:, None] >= 7, changed, x)
    for causal in (True, False):
        model = small(6, causal=causal)
        assert torch.allclose(model(x)[:, :7], model(changed)[:, :7]) == causal


@pytest.mark.slow
def test_it_compiles_in_one_graph():
    model = small(3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (9, 14):
        x = torch.randn(2, length, 12, dtype=torch.float64)
        assert_close(compiled(x), model(x))


def test_refusals():
    with pytest.raises(ValueError, match=r"attention_ratio=0.25 of dim=12 makes queries 3 wide.*num_heads=2"):
        JukeboxTransformer(12, 1, 2)
    with pytest.raises(ValueError, match="activation='tanh' is none of quick_gelu"):
        JukeboxTransformer(16, 1, 2, activation="tanh")
    with pytest.raises(ValueError, match="needs prime_length="):
        JukeboxTransformer(16, 1, 2, order=["prime"])
    model, x = small(), torch.randn(1, 5, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match="takes no context: its layers are of kinds row, column, previous_row"):
        model(x, x)
    with pytest.raises(ValueError, match="needs context="):
        small(4, order=6)(x)
    with pytest.raises(ValueError, match=r"shape \(1, 5, 12\)"):
        JukeboxTransformer(16, 1, 2)(x)
    with pytest.raises(ValueError, match="memory"):
        model.stream(x.expand(2, -1, -1), model.memory(1))
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        small(causal=False).memory(1)
