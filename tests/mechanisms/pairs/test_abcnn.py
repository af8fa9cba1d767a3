"""ABCNN: the paper's equations for each of its four networks, padding, and refusals."""

import pytest
import torch
from torch.testing import assert_close

from regard.mechanisms.pairs.abcnn import ABCNNLayer, match, to_front

KINDS = ("input", "pooling", "both", "none")


def build(kind, *, width=3, filters=4, **options):
    torch.manual_seed(0)
    layer = ABCNNLayer(5, 8, width=width, filters=filters, attention=kind, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def inputs(n=6, m=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, length, 5, generator=generator, dtype=torch.float64) for length in (n, m)]


def alike(u, v):
    return 1 / (1 + (u - v).square().sum().sqrt())


def equations(layer, x, context):
    """One pair, in loops: both sentences behind the pooling, and their means behind the convolution."""
    pair, width = (x, context), layer.width
    a = torch.stack([torch.stack([alike(u, v) for v in context]) for u in x])
    beside = pair
    if layer.on_input:
        tables = layer.tables if len(layer.tables) == 2 else layer.tables.expand(2, -1, -1)
        f = []
        for w, matches in ((tables[0], a), (tables[1], a.T)):
            f.append(torch.stack([sum(row[j] * w[:, j] for j in range(len(row))) for row in matches]))
        beside = [torch.cat((one, other), 1) for one, other in zip(pair, f, strict=True)]
    inside = []
    for one in beside:
        zeros = one.new_zeros(width - 1, one.shape[1])
        wide = torch.cat((zeros, one, zeros))
        columns = []
        for i in range(len(one) + width - 1):
            total = layer.bias + sum(layer.weight[:, :, k] @ wide[i + k] for k in range(width))
            columns.append(torch.tanh(total))
        inside.append(torch.stack(columns))
    weights = [x.new_full((len(one),), 1 / width) for one in inside]
    if layer.on_pooling:
        inner = torch.stack([torch.stack([alike(u, v) for v in inside[1]]) for u in inside[0]])
        weights = [inner.sum(1), inner.sum(0)]
        weights = [w / w.sum() for w in weights] if layer.normalise else weights
    pooled = [
        torch.stack([sum(w[k] * c[k] for k in range(i, i + width)) for i in range(len(c) - width + 1)])
        for w, c in zip(weights, inside, strict=True)
    ]
    means = [w @ c if layer.normalise else c.mean(0) for w, c in zip(weights, inside, strict=True)]
    return (*pooled, *means)


CASES = [(kind, {}) for kind in KINDS] + [
    ("both", {"share": False, "normalise": True, "width": 4}),
    ("input", {"share": False, "width": 1}),
    ("pooling", {"normalise": True, "filters": 5}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_matches_the_equations(kind, options):
    layer = build(kind, **options)
    x, context = inputs()
    keep = [torch.tensor([[1] * 6, [0, 1, 1, 0, 1, 0]]).bool(), torch.tensor([[1, 1, 0, 1], [1] * 4]).bool()]
    y, z = layer(x, context, query_mask=keep[0], key_mask=keep[1])
    for b in range(2):
        real = [mask[b] for mask in keep]
        pooled = equations(layer, x[b, real[0]], context[b, real[1]])[:2]
        for found, some, expected in zip((y[b], z[b]), real, pooled, strict=True):
            assert_close(found[some], expected, rtol=0, atol=1e-12)
            assert not found[~some].any()


@pytest.mark.parametrize("normalise", [False, True])
def test_what_stands_for_a_sentence(normalise):
    layer = build("both", normalise=normalise)
    x, context = inputs()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1]]).bool()
    answers = layer.convolve(to_front(x, mask), to_front(context, None))
    for b in range(2):
        *_, first, second = equations(layer, x[b, mask[b]], context[b])
        assert_close(answers.first_mean[b], first, rtol=0, atol=1e-12)
        assert_close(answers.second_mean[b], second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_words_and_empty_sentences_have_gradients(kind):
    layer = build(kind)
    x = torch.zeros(2, 4, 5, dtype=torch.float64, requires_grad=True)
    context = torch.zeros(2, 6, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 6, [False] * 6])
    y, z = layer(x, context, key_mask=mask)
    slopes = torch.autograd.grad(y.sum() + z.sum(), (x, context, *layer.parameters()))
    assert all(slope.isfinite().all() for slope in slopes)
    assert not z[1].any()
    assert y[1].any() != layer.on_pooling, "a sentence without words has no columns to match"


def test_gradcheck():
    layer = build("both", share=False, normalise=True)
    x, context = (t.requires_grad_() for t in inputs(3, 4))
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]]).bool()
    assert torch.autograd.gradcheck(lambda *given: layer(*given, key_mask=mask), (x, context), fast_mode=True)


def test_match_is_exact_where_words_are_near():
    u = torch.full((1, 1, 3), 1000.0)
    v = u + torch.tensor([0.1, 0.2, 0.3])
    assert_close(match(u, v)[0, 0, 0], 1 / (1 + (u - v).norm()))
    assert match(u.bfloat16(), u.bfloat16()).item() == 1


def test_only_attention_on_the_input_limits_the_length():
    x, context = inputs(9, 4)
    with pytest.raises(ValueError, match="x has 9 words, but this layer was built with max_length=8"):
        build("both")(x, context)
    with pytest.raises(ValueError, match="context has 9 words"):
        build("input")(context, x)
    assert build("pooling")(x, context)[0].shape == (2, 9, 4)


def test_starts_as_the_code_does():
    torch.manual_seed(0)
    layer = ABCNNLayer(30, 40, filters=50, width=4, share=False)
    assert_close(layer.weight.abs().max(), torch.tensor((6 / (120 * 52)) ** 0.5), rtol=0.01, atol=0)
    assert_close(layer.tables.abs().amax((1, 2)), torch.full((2,), (6 / 70) ** 0.5), rtol=0.01, atol=0)
    assert bool((layer.bias == 1e-4).all())


def test_refusals():
    for options, words in (
        ({"attention": "inside"}, "attention='inside'"),
        ({"attention": "input"}, "pass max_length"),
        ({"attention": "pooling", "share": False}, "share=False"),
        ({"attention": "none", "normalise": True}, "normalise=True"),
        ({"attention": "none", "width": 0}, "width=0"),
    ):
        with pytest.raises(ValueError, match=words):
            ABCNNLayer(4, **options)
