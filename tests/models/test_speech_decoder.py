import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.memory import reorder
from regard.models.speech_decoder import TransformerDecoder
from regard.models.transformer_2017 import sinusoids


def small(context_dim=8, **options):
    torch.manual_seed(0)
    decoder = TransformerDecoder(9, context_dim, dim=8, depth=2, num_heads=2, dtype=torch.float64, **options)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return decoder.eval().requires_grad_(False)


def heard(context_dim=8):
    torch.manual_seed(1)
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    return torch.randn(3, 7, context_dim, dtype=torch.float64), torch.randint(9, (3, 5)), mask


def attended(layer, x, context, causal):
    """Two heads of 4, row by row."""
    q, k, v = layer.q_proj(x), layer.k_proj(context), layer.v_proj(context)
    rows = []
    for n in range(len(x)):
        seen = slice(n + 1) if causal else slice(None)
        heads = [torch.softmax(q[n, h] @ k[seen, h].T / 2, -1) @ v[seen, h] for h in (slice(4), slice(4, 8))]
        rows.append(layer.out_proj(torch.cat(heads)))
    return torch.stack(rows)


def test_matches_the_equations():
    decoder, (context, labels, _) = small(), heard()
    x = decoder.embedding.weight[labels[0]] * 8**0.5 + sinusoids(torch.arange(5), 8).double()
    for layer in decoder.layers.layers:
        normed = layer.norms[0](x)
        x = x + attended(layer.self_attention, normed, normed, causal=True)
        x = x + attended(layer.cross_attention, layer.norms[1](x), context[0], causal=False)
        x = x + layer.second(F.relu(layer.first(layer.norms[2](x))))
    expected = decoder.output(decoder.layers.norm(x))
    assert_close(decoder(context, labels)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("width", [8, 6])
def test_label_by_label_as_at_once(width):
    decoder, (context, labels, mask), order = small(width), heard(width), torch.tensor([2, 0, 1, 0])
    whole, memory = decoder(context, labels, key_mask=mask)[order], reorder(decoder.begin(context, mask), order)
    for t in range(5):
        logits, memory = decoder.step(labels[order, t], memory)
        assert_close(logits, whole[:, t], rtol=0, atol=1e-10)


def test_padding_changes_nothing():
    decoder, (context, labels, mask) = small(6), heard(6)
    padded = context.masked_fill(~mask[..., None], math.nan)
    found, weights = decoder(padded, labels, key_mask=mask), decoder.weights(padded, labels, key_mask=mask)
    for row, count in enumerate((7, 4, 1)):
        one = slice(row, row + 1)
        assert_close(found[one], decoder(context[one, :count], labels[one]), rtol=0, atol=1e-10)
        assert_close(weights[row, :, :count].sum(-1), torch.ones(5, dtype=torch.float64))
        assert not weights[row, :, count:].any()
    changed = labels.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % 9
    assert_close(decoder(context, changed, key_mask=mask)[:, :3], found[:, :3], rtol=0, atol=1e-10)


def test_weights_are_those_of_the_last_layer():
    decoder, (context, labels, mask) = small(), heard()
    asked = []
    last = decoder.layers.layers[-1]
    last.norms[1].register_forward_hook(lambda norm, inputs, out: asked.append(out))
    _ = decoder(context, labels, key_mask=mask)
    q, k = last.cross_attention.q_proj(asked[0]), last.cross_attention.k_proj(context)
    scores = torch.stack([q[..., h] @ k[..., h].mT / 2 for h in (slice(4), slice(4, 8))])
    expected = scores.masked_fill(~mask[None, :, None], -torch.inf).softmax(-1).mean(0)
    assert_close(decoder.weights(context, labels, key_mask=mask), expected, rtol=0, atol=1e-10)


def test_refusals():
    decoder, (context, labels, mask) = small(), heard()
    with pytest.raises(ValueError, match=r"context has shape \(3, 7, 5\), expected \(batch, length, 8\)"):
        decoder(context[..., :5], labels)
    with pytest.raises(TypeError, match=r"key_mask is torch\.int64"):
        decoder.begin(context, mask.long())
