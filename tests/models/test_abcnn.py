"""The network around ABCNN: features, padding, an embedding of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.mechanisms.pairs.abcnn import Columns
from regard.models.abcnn import ABCNN


def inputs(n=6, m=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, length, 5, generator=generator, dtype=torch.float64) for length in (n, m)]


def build(**options):
    torch.manual_seed(0)
    return ABCNN(5, 3, filters=4, width=3, max_length=8, **options).double()


def test_a_feature_a_layer():
    x, context = inputs()
    model = build(depth=2, num_features=2, similarity="both")
    found = model.similarities(x, context)
    assert found.shape == (2, 6)
    means = [(x.mean(1), context.mean(1))]
    for layer in model.layers:
        answers = layer.convolve(Columns(x, None), Columns(context, None))
        x, context = answers.first.x, answers.second.x
        means.append(answers[2:])
    expected = [f(u, v) for u, v in means for f in (F.cosine_similarity, lambda u, v: 1 / (1 + (u - v).norm(dim=-1)))]
    assert_close(found, torch.stack(expected, -1), rtol=0, atol=1e-9)
    features = torch.randn(2, 2).double()
    logits = model(*inputs(), features)
    assert_close(logits, model.output(torch.cat((features, found), -1)), rtol=0, atol=1e-12)


def test_means_of_length_one():
    x, context = inputs()
    model = build(depth=1, similarity="euclid", normalise=True)
    u, v = (F.normalize(t.mean(1), dim=-1) for t in (x, context))
    assert_close(model.similarities(x, context)[:, 0], 1 / (1 + (u - v).norm(dim=-1)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("attention", ["input", "pooling", "both", "none"])
def test_padding_changes_nothing(attention):
    model = build(depth=2, attention=attention)
    x, context = inputs()
    alone = model(x[:, [1, 2, 5]], context[:, 1:])
    masks = [torch.tensor(mask).bool().expand(2, -1) for mask in ([0, 1, 1, 0, 0, 1], [0, 1, 1, 1])]
    x, context = (t.masked_fill(~mask[..., None], torch.nan) for t, mask in zip((x, context), masks, strict=True))
    assert_close(model(x, context, query_mask=masks[0], key_mask=masks[1]), alone, rtol=0, atol=1e-12)


def test_tokens_have_an_embedding():
    model = ABCNN(5, vocab_size=11, max_length=8, filters=4)
    x, context = torch.randint(11, (2, 6)), torch.randint(11, (2, 4))
    model(x, context).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {p.device.type for p in ABCNN(5, vocab_size=11, max_length=8, device="meta").parameters()} == {"meta"}


def test_equal_sentences_have_gradients():
    x = torch.randn(2, 3, 5).double().requires_grad_()
    build(similarity="both")(x, x).sum().backward()
    assert x.grad.isfinite().all()


def test_refusals():
    x, context = inputs()
    with pytest.raises(ValueError, match="0 features were given, but this network was built with 2"):
        build(num_features=2)(x, context)
    with pytest.raises(ValueError, match="1 features were given"):
        build()(x, context, torch.zeros(2, 1).double())
    with pytest.raises(ValueError, match="similarity='dot'"):
        build(similarity="dot")
    with pytest.raises(ValueError, match="depth=0"):
        build(depth=0)
    with pytest.raises(ValueError, match=r"context has shape .*expected"):
        build()(x, context[..., :4])
    with pytest.raises(ValueError, match="the mask of x"):
        build()(x, context, query_mask=torch.ones(2, 5, dtype=torch.bool))
