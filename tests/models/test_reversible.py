"""Reversible residuals against plain ones: outputs, every gradient, random numbers, and the bytes that are kept."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import regard
from regard.models import ChunkedFeedForward, PreNorm, ReversibleBlock, ReversibleSequence


def feed_forward(dim, dropout=0.0):
    return nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(3 * dim, dim))


class Mixes(nn.Module):
    """The branch that takes options."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, **options):
        return self.layer(x, **options)


def sequence(depth, dim=8, dropout=0.0, join="concatenate", mechanism="full", **options):
    blocks = []
    for _ in range(depth):
        attention = regard.create(mechanism, dim=dim, num_heads=2, causal=True, attn_drop=dropout, **options)
        blocks.append(ReversibleBlock(PreNorm(dim, Mixes(attention)), PreNorm(dim, feed_forward(dim, dropout))))
    return ReversibleSequence(blocks, join)


def plain(model, x, **options):
    x1 = x2 = x
    for block in model.blocks:
        x1 = x1 + block.f(x2, **options)
        x2 = x2 + block.g(x1)
    return torch.cat((x1, x2), -1) if model.join == "concatenate" else (x1 + x2) / 2


def slopes(out, model, x):
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weights).sum(), [x, *model.parameters()])


@pytest.mark.parametrize("join", ["concatenate", "mean"])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_plain_computation_with_the_same_gradients(join, masked):
    model = sequence(3, join=join).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    options = {"key_mask": torch.arange(7) < torch.tensor([[7], [4]])} if masked else {}
    out, expected = model(x, **options), plain(model, x, **options)
    assert_close(out, expected, rtol=0, atol=1e-12)
    for got, wanted in zip(slopes(out, model, x), slopes(expected, model, x), strict=True):
        assert_close(got, wanted, rtol=0, atol=1e-10)


def test_options_arrive():
    model, x = sequence(1), torch.randn(1, 5, 8)
    keep = torch.tensor([[True, True, True, False, False]])
    assert not torch.allclose(model(x, key_mask=keep), model(x))


@pytest.mark.parametrize("seeded", [False, True], ids=["torch's own", "a generator"])
def test_random_numbers_are_those_of_the_first_time(seeded):
    """Dropout and hashes, from torch's random numbers and from a generator that is handed down."""
    model = sequence(3, dropout=0.4, mechanism="reformer", chunk_length=2, num_hashes=2).double().train()
    x = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)

    def run(function):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(5) if seeded else None
        out = function(x, generator=generator)
        torch.randn(17)  # whatever happens between the two passes
        if generator is not None:
            torch.randn(17, generator=generator)
        found = slopes(out, model, x)
        return out, found, torch.rand(1), generator

    out, found, after, generator = run(model)
    expected, wanted, _, _ = run(lambda x, **options: plain(model, x, **options))
    assert_close(out, expected, rtol=0, atol=1e-12)
    for got, slope in zip(found, wanted, strict=True):
        assert_close(got, slope, rtol=0, atol=1e-10)
    torch.manual_seed(3)
    _ = plain(model, x, generator=torch.Generator().manual_seed(5) if seeded else None), torch.randn(17)
    assert_close(after, torch.rand(1))  # the backward pass leaves no trace
    if generator is not None:
        again = torch.Generator().manual_seed(5)
        _ = plain(model, x, generator=again), torch.randn(17, generator=again)
        assert_close(generator.get_state(), again.get_state())


def kept_bytes(run):
    """What autograd keeps of activations, each storage once; parameters belong to the model."""
    sizes = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    return sum(sizes.values()), out


def test_what_is_kept_does_not_grow_with_the_depth():
    x = torch.randn(2, 32, 8, requires_grad=True)
    models = [sequence(depth) for depth in (1, 6)]
    one, six = (kept_bytes(lambda model=model: model(x))[0] for model in models)
    assert one == six > 0
    assert kept_bytes(lambda: plain(models[1], x))[0] > 5 * kept_bytes(lambda: plain(models[0], x))[0]


def test_the_inverse_gives_the_inputs_back():
    block = sequence(1).double().blocks[0]
    x1, x2 = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    for got, wanted in zip(block.inverse(*block(x1, x2)), (x1, x2), strict=True):
        assert_close(got, wanted, rtol=0, atol=1e-12)


def test_shared_and_frozen_parameters():
    block = sequence(1).double().blocks[0]
    block.g.norm.weight.requires_grad_(False)
    model = ReversibleSequence([block, block])
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    wanted = [p for p in model.parameters() if p.requires_grad]
    found = [torch.autograd.grad(run.square().sum(), wanted) for run in (model(x), plain(model, x))]
    for got, slope in zip(*found, strict=True):
        assert_close(got, slope, rtol=0, atol=1e-10)


def test_autocast_is_as_it_was():
    model, x = sequence(2, dim=16), torch.randn(2, 9, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = [run(x) for run in (model, lambda x: plain(model, x))]
    slopes = [torch.autograd.grad(out.sum(), list(model.parameters())) for out in found]
    for got, wanted in zip(*slopes, strict=True):
        assert_close(got, wanted, rtol=0.02, atol=0.02)


def test_compiled_it_is_the_same():
    model, x = sequence(2), torch.randn(2, 9, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), model(x))
    torch.compiler.reset()


def test_refusals():
    with pytest.raises(ValueError, match="'sum' is neither"):
        ReversibleSequence([], "sum")
    with pytest.raises(ValueError, match="context requires a gradient"):
        sequence(1)(torch.randn(1, 3, 8), context=torch.randn(1, 3, 8, requires_grad=True))
    with pytest.raises(ValueError, match="chunk=0"):
        ChunkedFeedForward(nn.Identity(), 0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_slices_are_the_whole(chunk, recompute):
    inner = feed_forward(8).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    out = ChunkedFeedForward(inner, chunk, recompute=recompute)(x)
    assert_close(out, inner(x), rtol=0, atol=1e-12)
    for got, wanted in zip(slopes(out, inner, x), slopes(inner(x), inner, x), strict=True):
        assert_close(got, wanted, rtol=0, atol=1e-12)


def test_hidden_activations_are_not_kept():
    inner, x = feed_forward(8), torch.randn(2, 64, 8, requires_grad=True)
    kept = [kept_bytes(lambda layer=layer: layer(x))[0] for layer in (inner, ChunkedFeedForward(inner, 16))]
    assert kept[1] <= x.nbytes < kept[0] / 4


def test_slices_drop_out_alike_both_times():
    inner = feed_forward(8, dropout=0.5).double().train()
    x = torch.randn(1, 8, 8, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    out = ChunkedFeedForward(inner, 4)(x)
    torch.manual_seed(1)
    expected = torch.cat([inner(part) for part in x.split(4, 1)], 1)
    for got, wanted in zip(slopes(out, inner, x), slopes(expected, inner, x), strict=True):
        assert_close(got, wanted, rtol=0, atol=1e-12)
