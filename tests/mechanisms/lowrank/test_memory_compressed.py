"""Memory-compressed attention against its equations, slot by slot, and what only it can get wrong."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.lowrank.memory_compressed import MemoryCompressed
from regard.registry import UnsupportedError

FORMS = [("projected", None), ("projected", 1), ("input", None), ("input", 3)]


def make(compress, groups, **options):
    layer = MemoryCompressed(6, 3, compress=compress, groups=groups, **options).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # the null and all biases too
    return layer


def convolved(layer, block):
    """One block (up to f rows) by the definition of a grouped convolution; missing rows are 0."""
    weight, bias, groups = layer.conv.weight, layer.conv.bias, layer.conv.groups
    out = bias.clone()
    width = block.shape[1] // groups
    for channel in range(len(weight)):
        group = channel // (len(weight) // groups)
        for t, row in enumerate(block):
            out[channel] = out[channel] + weight[channel, :, t] @ row[group * width : (group + 1) * width]
    return out


def equations(layer, x, source):
    """One sequence, without padding."""
    f, projected = layer.factor, layer.compress == "projected"
    blocks = source.split(f)
    if projected:
        keys = [layer.null_k.flatten(), *(convolved(layer, layer.k_proj(block)) for block in blocks)]
        values = [layer.null_v.flatten(), *(convolved(layer, layer.v_proj(block)) for block in blocks)]
    else:
        memory = [source[0], *(convolved(layer, block) for block in blocks)]
        keys, values = [layer.k_proj(m) for m in memory], [layer.v_proj(m) for m in memory]
    rows = []
    for i, token in enumerate(x):
        seen = [j for j in range(len(keys)) if not layer.causal or j * f <= i + projected]
        q, k, v = (
            t.unflatten(-1, (layer.num_heads, -1))
            for t in (layer.q_proj(token), torch.stack([keys[j] for j in seen]), torch.stack([values[j] for j in seen]))
        )
        weights = torch.einsum("hd,jhd->hj", q / q.shape[-1] ** 0.5, k).softmax(-1)
        rows.append(torch.einsum("hj,jhd->hd", weights, v).flatten())
    return layer.out_proj(torch.stack(rows))


@pytest.mark.parametrize(("compress", "groups"), FORMS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 9])
def test_matches_the_equations(compress, groups, causal, n):
    layer = make(compress, groups, causal=causal, qkv_bias=True)
    x = torch.randn(1, n, 6, dtype=torch.float64)
    assert_close(layer(x)[0], equations(layer, x[0], x[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("compress", "groups"), FORMS)
def test_another_sequence_is_asked(compress, groups):
    layer = make(compress, groups)
    x, context = torch.randn(1, 4, 6, dtype=torch.float64), torch.randn(1, 8, 6, dtype=torch.float64)
    keep = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0]]).bool()
    expected = equations(layer, x[0], context[0, keep[0]])
    assert_close(layer(x, context, key_mask=keep)[0], expected, rtol=0, atol=1e-12)


def test_who_sees_the_block_that_ends():
    """In the first form its last token does, in tensor2tensor's only the next one; before, all see slot 0 alone."""
    for compress, first in (("projected", 2), ("input", 3)):
        layer = make(compress, None, causal=True)
        x = torch.randn(1, 5, 6, dtype=torch.float64)
        changed = x.clone()
        changed[:, 1] += 1.0
        moved = (layer(x) - layer(changed)).abs().amax(-1)[0] > 1e-9
        assert moved.tolist() == (torch.arange(5) >= first).tolist()


@pytest.mark.parametrize(("compress", "groups"), FORMS)
def test_queries_that_are_no_keys_stay_in_the_blocks_as_zeros(compress, groups):
    """And a slot without any key takes no part."""
    layer = make(compress, groups)
    x = torch.randn(1, 6, 6, dtype=torch.float64)
    keep = torch.tensor([[1, 0, 1, 0, 0, 0]]).bool()
    y = layer(x, key_mask=keep, query_mask=torch.ones(1, 6, dtype=torch.bool))
    assert_close(y[0], equations(layer, x[0], (x * keep[..., None])[0, :3]), rtol=0, atol=1e-12)


def test_a_memory_of_fixed_size_does_not_grow_and_is_refused_beyond_it():
    layer = make("projected", None, causal=True)
    x = torch.randn(2, 14, 6, dtype=torch.float64)
    with torch.no_grad():
        _, memory = layer.stream(x[:, :7], layer.memory(2, static=9))
        _, later = layer.stream(x[:, 7:9], memory)
        assert [t.shape for t in memory.slots] == [t.shape for t in later.slots]
        with pytest.raises(ValueError, match="this memory was made with static"):
            layer.stream(x, later)


def test_a_growing_memory_grows_by_a_slot_a_block():
    layer = make("input", None, causal=True)
    _, memory = layer.stream(torch.randn(2, 8, 6, dtype=torch.float64), layer.memory(2))
    assert memory.slots.key.shape == (2, 3, 3, 2)  # the first token and two blocks
    assert memory.tokens.shape == (2, 2, 6)


def test_refusals():
    x = torch.randn(2, 5, 6)
    with pytest.raises(UnsupportedError, match="only without causal=True"):
        regard.create("memory_compressed", dim=6, num_heads=3, causal=True)(x, x)
    layer = regard.create("memory_compressed", dim=6, num_heads=3)
    with pytest.raises(UnsupportedError, match="without segments"):
        layer(x, x, segments=torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="2 and 1 sequences"):
        layer(x, x[:1])
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        layer.memory(2)
    with pytest.raises(ValueError, match="'both' is neither"):
        MemoryCompressed(6, 3, compress="both")
    with pytest.raises(ValueError, match="groups=4"):
        MemoryCompressed(6, 3, groups=4)
    with pytest.raises(ValueError, match="factor=0"):
        MemoryCompressed(6, 3, factor=0)
