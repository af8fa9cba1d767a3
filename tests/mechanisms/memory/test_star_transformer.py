import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.mechanisms.memory.star_transformer import StarTransformer, ring_attention
from regard.ops.ring import Neighbours
from regard.registry import UnsupportedError


def attention(part, x, keys):
    """One query x (C) over a list of keys (C), None for a key and a value of 0."""
    q, out = part.q_proj(x).view(part.num_heads, -1), []
    for h in range(part.num_heads):
        k, v = (
            torch.stack([q[0] * 0 if key is None else linear(key).view(part.num_heads, -1)[h] for key in keys])
            for linear in (part.k_proj, part.v_proj)
        )
        out.append((k @ q[h] / len(q[h]) ** 0.5).softmax(0) @ v)
    return part.out_proj(torch.cat(out))


def equations(layer, x):
    """Word by word, of one sequence (N, C) without padding."""
    n, pre, closed = len(x), layer.rounds[0].relay_norm is None, layer.ring == "wrap"
    e = x if layer.positions is None else x + layer.positions.weight[:n]
    nodes, relay = e, e.mean(0)
    for part in layer.rounds:
        asking = part.node_norm(nodes) if pre else nodes
        new = []
        for i in range(n):
            beside = [asking[j % n] if closed or 0 <= j < n else None for j in (i - 1, i + 1)]
            update = attention(part.ring, asking[i], [*beside, asking[i], e[i], relay])
            new.append(F.leaky_relu(update) if pre else part.node_norm(update.relu()))
        nodes = torch.stack(new)
        update = attention(part.star, relay, [relay, *nodes])
        relay = F.leaky_relu(update) if pre else part.relay_norm(update.relu())
    return nodes, relay


def build(**options):
    layer = StarTransformer(8, 2, **options).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("ring", ["wrap", "zero"])
@pytest.mark.parametrize(("head_dim", "num_positions"), [(None, None), (3, 12)])
def test_words_see_their_neighbours_and_the_relay(norm, ring, head_dim, num_positions):
    layer = build(norm=norm, ring=ring, head_dim=head_dim, num_positions=num_positions, num_rounds=3)
    x, mask = torch.randn(4, 9, 8, dtype=torch.float64), torch.zeros(4, 9, dtype=torch.bool)
    for row, real in enumerate((slice(0, 9), slice(4, 9), slice(0, 2), slice(6, 7))):
        mask[row, real] = True
    mask[1, 6] = False  # also in the midst of a sentence
    nodes, relay = layer.encode(x, mask)
    for row in range(4):
        expected = equations(layer, x[row, mask[row]])
        assert_close((nodes[row, mask[row]], relay[row]), expected, rtol=0, atol=1e-12)
    assert_close(layer(x, key_mask=mask), nodes, rtol=0, atol=0)
    assert_close(layer(x[:1]), nodes[:1], rtol=0, atol=1e-12)


def test_the_relay_carries_words_across_the_sentence_in_two_rounds():
    def far(rounds):
        layer, x = build(num_rounds=rounds, norm="pre"), torch.randn(1, 12, 8, dtype=torch.float64, requires_grad=True)
        neighbours = Neighbours.of(torch.ones(1, 12, dtype=torch.bool))
        # a first relay of 0: the mean of the words would carry them in one
        nodes, _ = layer.run(x, torch.zeros(1, 1, 8, dtype=torch.float64), neighbours, None)
        return torch.autograd.grad(nodes[0, 0].sum(), x)[0][0, 6].abs().max()

    assert far(1) == 0
    assert far(2) > 1e-6


def test_no_word_at_all():
    layer = build()
    nodes, relay = layer.encode(torch.randn(2, 5, 8, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool))
    assert not nodes.any()
    assert relay.isfinite().all()


def test_dropout_on_the_weights_keeps_their_mean():
    q, more = torch.randn(1, 2, 6, 4, dtype=torch.float64), torch.randn(1, 2, 7, 4, dtype=torch.float64)
    q, more, neighbours = q.expand(2000, -1, -1, -1), more.expand(2000, -1, -1, -1), torch.ones(2000, 6).bool()
    options = {"neighbours": Neighbours.of(neighbours, closed=False)}
    exact = ring_attention(q, q, q, more, more, **options)[0]
    drawn = ring_attention(q, q, q, more, more, **options, attn_drop=0.3)
    assert_close(drawn.mean(0), exact, rtol=0, atol=float(5 * drawn.std(0).max() / 2000**0.5))
    assert not torch.equal(drawn[0], drawn[1])


def test_refusals():
    with pytest.raises(UnsupportedError, match="cannot be causal: the relay reads the whole sequence"):
        regard.create("star_transformer", dim=8, num_heads=2, causal=True)
    with pytest.raises(ValueError, match="ring='open' is"):
        StarTransformer(8, 2, ring="open")
    with pytest.raises(ValueError, match="num_rounds=0"):
        StarTransformer(8, 2, 0)
    with pytest.raises(ValueError, match="9 tokens, but there are num_positions=8"):
        build(num_positions=8)(torch.randn(1, 9, 8, dtype=torch.float64))
    with pytest.raises(UnsupportedError, match="takes no context"):
        build()(torch.zeros(1, 3, 8).double(), torch.zeros(1, 3, 8).double())
