import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.memory.global_memory import GlobalMemory, MemoryTokens, Structure
from regard.patterns import Blocks, Window
from regard.registry import UnsupportedError

G, N = 3, 10


def project(linear, x, first):
    """Of tokens whose first few may have a projection of their own."""
    if isinstance(linear, torch.nn.Linear):
        return linear(x)
    return torch.stack([(linear.first if i < first else linear.rest)(row) for i, row in enumerate(x)])


def equations(layer, x, real, near, given=None, first=G):
    """Pair by pair; ``near(i, j)`` says which long tokens meet."""
    given, out, width = given or Structure(), torch.zeros_like(x), x.shape[-1] // layer.num_heads
    places = [*range(first), *range(x.shape[1] - first)]  # among the tokens of one kind
    for b in range(len(x)):
        q, k, v = (
            project(p, x[b], first).unflatten(-1, (-1, width)) for p in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        for i in range(x.shape[1]):
            for h in range(layer.num_heads):
                logits, keys = [], []
                for j in range(x.shape[1]):
                    (r, asks_memory), (c, is_memory) = (places[i], i < first), (places[j], j < first)
                    if asks_memory and is_memory:
                        meets = given.global_to_global is None or given.global_to_global[b, r, c]
                    elif asks_memory:
                        meets = given.global_to_long is None or given.global_to_long[b, r, c]
                    elif is_memory:
                        meets = given.long_to_global is None or given.long_to_global[b, r, c]
                    else:
                        meets = near(r, c) and (given.segments is None or given.segments[b, r] == given.segments[b, c])
                    if not meets or not real[b, j]:
                        continue
                    key = k[j, h]
                    if layer.labels is not None:
                        top = (layer.labels.shape[1] - 3) // 2
                        label = max(-top, min(top, c - r)) + top
                        if asks_memory != is_memory:
                            long, memory = (r, c) if is_memory else (c, r)
                            owned = given.owner is not None and given.owner[b, long] == memory
                            label = 2 * top + (1 if owned else 2)
                        key = key + layer.labels[h, label]
                    logits.append(q[i, h] @ key / width**0.5)
                    keys.append(j)
                if keys:
                    out[b, i, h * width : (h + 1) * width] = torch.stack(logits).softmax(0) @ v[keys, h]
    return layer.out_proj(out)


def build(**options):
    layer = GlobalMemory(8, 2, G, **options).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def sequences(n=G + N):
    x = torch.randn(3, n, 8, dtype=torch.float64)
    return x, torch.arange(n) < torch.tensor([[n], [n - 3], [n - 4]])


@pytest.mark.parametrize("max_distance", [None, 2])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("pattern", [Blocks(4), Window(2)], ids=str)
def test_one_softmax_over_the_memory_and_what_is_near(pattern, separate, max_distance):
    layer, (x, real) = build(pattern=pattern, separate=separate, max_distance=max_distance), sequences()

    def near(i, j):
        return i // 4 == j // 4 if pattern == Blocks(4) else abs(i - j) <= 2

    y = layer(x, key_mask=real)
    assert_close(y, equations(layer, x, real, near) * real[..., None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_distance", [None, 1])
def test_what_is_known_of_a_document(max_distance):
    layer, (x, real) = build(pattern=Window(3), separate=True, max_distance=max_distance), sequences()
    real[1, 2] = False  # a memory of two places
    given = Structure(
        owner=torch.randint(-1, G, (3, N)),
        global_to_global=torch.rand(3, G, G) < 0.7,
        global_to_long=torch.rand(3, G, N) < 0.7,
        long_to_global=torch.rand(3, N, G) < 0.7,
        segments=torch.randint(2, (3, N)),
    )
    everyone = torch.ones_like(real)
    y = layer(x, key_mask=real, query_mask=everyone, structure=given)
    assert_close(y, equations(layer, x, real, lambda i, j: abs(i - j) <= 3, given), rtol=0, atol=1e-12)


def test_the_first_real_tokens_are_the_memory_and_short_sequences_are_all_memory():
    layer, x = build(pattern=Blocks(4), separate=True, max_distance=2), torch.randn(1, 9, 8, dtype=torch.float64)
    padded = torch.cat((torch.randn(1, 5, 8, dtype=torch.float64), x), 1)
    assert_close(layer(padded, key_mask=torch.arange(14)[None] >= 5)[:, 5:], layer(x), rtol=0, atol=1e-12)
    for n in (1, 2, 3):
        few, real = x[:, :n], torch.ones(1, n, dtype=torch.bool)
        assert_close(layer(few), equations(layer, few, real, lambda i, j: True, first=n), rtol=0, atol=1e-12)


def test_layers_carry_the_memory_along():
    start, layers = MemoryTokens(G, 8).double(), [build(pattern=Blocks(2)), build(pattern=Blocks(2))]
    x = torch.randn(1, N, 8, dtype=torch.float64, requires_grad=True)

    def far(depth):
        """The gradient of the last token with respect to the first, which it never meets itself."""
        h, mask = start(x)
        assert mask is None
        for layer in layers[:depth]:
            h = layer(h)
        return torch.autograd.grad(h[0, -1].sum(), x)[0][0, 0].abs().max()

    assert far(1) == 0
    assert far(2) > 1e-6


def test_refusals():
    reason = "cannot be causal: the memory reads the whole sequence"
    with pytest.raises(UnsupportedError, match=reason):
        regard.create("global_memory", dim=8, num_heads=2, causal=True)
    with pytest.raises(ValueError, match="num_global=0"):
        GlobalMemory(8, 2, 0)
    layer, (x, _) = build(), sequences()
    with pytest.raises(UnsupportedError, match="takes no context"):
        layer(x, x)
    with pytest.raises(UnsupportedError, match="unpack the segments first"):
        layer(x, segments=torch.zeros(3, G + N, dtype=torch.long), structure=Structure())
