"""Every score and alignment as loops over states and words, in float64; windows, lengths, steps, refusals."""

import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.pairs.luong import Luong, local_weights

SCORES = {
    "dot": {"score": "dot"},
    "general": {"score": "general"},
    "concat": {"score": "concat"},
    "concat-code": {"score": "concat", "source_proj": False},
    "location": {"score": "location", "max_length": 12},
}
ALIGNMENTS = {
    "global": {},
    "local-m": {"alignment": "local-m", "half_window": 2},
    "local-p": {"alignment": "local-p", "half_window": 2},
    "local-p-wide": {"alignment": "local-p", "half_window": 3, "sigma": 0.9},
    "normalised": {"alignment": "local-p", "half_window": 3, "normalise": True},
}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def drawn(*arguments, **options):
    """A layer whose weights are large enough to tell everything apart."""
    layer = Luong(*arguments, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


def score_of(layer, h, s, j):
    if layer.score == "location":
        return layer.query_proj.weight[j] @ h
    if layer.score == "concat":
        seen = s if layer.key_proj is None else layer.key_proj.weight @ s
        return layer.vector.weight[0] @ torch.tanh(layer.query_proj.weight @ h + seen)
    return h @ s if layer.score == "dot" else (layer.query_proj.weight @ h) @ s


def weights_of(layer, h, t, words):
    """One state and the real words, in order."""
    count, window, p = len(words), range(len(words)), None
    if layer.alignment == "local-m":
        p = min(t, count - 1)
    elif layer.alignment == "local-p":
        logit = layer.place_vector.weight[0] @ torch.tanh(layer.place_proj.weight @ h)
        p = count * float(torch.sigmoid(logit))
    if p is not None:
        window = [
            j for j in range(count) if math.floor(p) - layer.half_window <= j <= math.floor(p) + layer.half_window
        ]
    scores = {j: float(score_of(layer, h, words[j], j)) for j in window}
    fading = {
        j: 1.0 if layer.alignment != "local-p" else math.exp(-((j - p) ** 2) / (2 * layer.sigma**2)) for j in window
    }
    if layer.normalise:
        scores = {j: value * fading[j] for j, value in scores.items()}
    total = sum(math.exp(value) for value in scores.values())
    a = torch.zeros(count, dtype=torch.float64)
    for j in window:
        a[j] = math.exp(scores[j]) / total * (1.0 if layer.normalise else fading[j])
    return a


@torch.no_grad()
def equations(layer, x, context, x_real, real):
    y = torch.zeros_like(x)
    for b in range(len(x)):
        words = context[b, real[b]]
        for t, n in enumerate(x_real[b].nonzero().flatten().tolist()):
            c = weights_of(layer, x[b, n], t, words) @ words if len(words) else context.new_zeros(context.shape[-1])
            y[b, n] = torch.tanh(layer.out_proj.weight @ torch.cat((c, x[b, n])))
    return y


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_matches_the_equations(score, alignment):
    width = 6 if score in ("dot", "concat-code") else 4
    layer = drawn(6, width, **SCORES[score], **ALIGNMENTS[alignment])
    x, context = random(3, 9, 6), random(3, 12, width)
    everything = torch.ones(3, 9, dtype=torch.bool), torch.ones(3, 12, dtype=torch.bool)
    assert_close(layer(x, context), equations(layer, x, context, *everything), rtol=0, atol=1e-12)
    x_real, real = torch.rand(3, 9) < 0.7, torch.rand(3, 12) < 0.6
    real[1] = False
    found = layer(x, context.masked_fill(~real[..., None], torch.nan), key_mask=real, query_mask=x_real)
    assert_close(found, equations(layer, x, context, x_real, real), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alignment", ["local-m", "local-p"])
def test_a_window_reaches_as_far_as_its_name_says(alignment):
    layer = drawn(6, alignment=alignment, half_window=2)
    x, context = random(1, 20, 6), random(1, 40, 6)
    seen = layer.weights(x, context) > 0
    centre = layer.centre(x, context)
    middle = (centre.floor() >= 2) & (centre.floor() < 38)
    assert middle.any()
    assert (seen.sum(-1)[middle] == 5).all()


def test_monotonic_windows_stop_at_the_last_word():
    layer = drawn(6, alignment="local-m", half_window=1)
    centre = layer.centre(
        random(2, 5, 6), random(2, 4, 6), key_mask=torch.tensor([[True] * 4, [False, True, True, False]])
    )
    assert centre.tolist() == [[0, 1, 2, 3, 3], [0, 1, 1, 1, 1]]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_decoder_may_go_on_step_by_step(alignment):
    layer, x, context = drawn(6, **ALIGNMENTS[alignment]), random(2, 7, 6), random(2, 9, 6)
    whole = layer.weights(x, context)
    steps = [layer.weights(x[:, t : t + 1], context, start=torch.tensor([[t], [t]])) for t in range(7)]
    assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-12)


def test_the_place_learns_through_the_gaussian_alone():
    layer, x, context = drawn(6, alignment="local-p", half_window=2), random(1, 4, 6), random(1, 9, 6)
    values = random(1, 1, 9, 3)
    slopes = torch.autograd.grad(layer.weigh(x, values, context).sum(), list(layer.place_proj.parameters()))
    assert all(slope.abs().max() > 0 for slope in slopes)
    scores, place = random(1, 1, 9), torch.arange(9)[None]
    centre = torch.tensor([[4.6]], dtype=torch.float64, requires_grad=True)
    fading = torch.exp(-((place.double() - 4.6) ** 2) / 2)
    without = local_weights(scores, place, centre.detach(), 2)
    found = local_weights(scores, place, centre, 2, sigma=1.0)
    assert_close(found, without * fading, rtol=0, atol=1e-12)
    slope = torch.autograd.grad(found[0, 0, 3], centre)[0]
    assert_close(slope, (found[:, :, 3] * (3 - 4.6)).detach(), rtol=0, atol=1e-12)


def test_the_gaussian_is_half_as_wide_as_the_window():
    layer, x, context = Luong(6, alignment="local-p", half_window=3), random(1, 4, 6), random(1, 9, 6)
    torch.nn.init.zeros_(layer.query_proj.weight)
    torch.nn.init.zeros_(layer.place_proj.weight)
    weights = layer.double().weights(x, context)[0, 0]
    steps = torch.arange(1, 8, dtype=torch.float64) - 4.5
    assert_close(weights[1:8], torch.exp(-(steps**2) / (2 * 1.5**2)) / 7, rtol=0, atol=1e-12)


def test_weights_of_predicted_places_sum_to_less_than_one():
    x, context = random(2, 5, 6), random(2, 9, 6)
    assert (drawn(6, alignment="local-p", half_window=2).weights(x, context).sum(-1) < 1).all()
    normal = drawn(6, alignment="local-p", half_window=2, normalise=True).weights(x, context)
    assert_close(normal.sum(-1), torch.ones_like(normal[..., 0]))


def test_sparse_weights_sum_to_one_with_zeros_among_them():
    layer, x, context = drawn(6, sparse=True), random(2, 5, 6), random(2, 9, 6)
    weights = layer.weights(x, context)
    assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert (weights == 0).any()


def test_long_sentences_in_half_precision():
    layer = Luong(4, alignment="local-p", half_window=2, dtype=torch.bfloat16)
    torch.nn.init.zeros_(layer.place_vector.weight)
    context = torch.zeros(1, 2003, 4, dtype=torch.bfloat16)
    weights = layer.weights(context[:, :1], context)
    assert weights[0, 0].nonzero().flatten().tolist() == [999, 1000, 1001, 1002, 1003], "around 2003 / 2"


def test_starts_within_a_tenth():
    layer = Luong(40, score="concat", alignment="local-p")
    for name, parameter in layer.named_parameters():
        assert 0.09 < parameter.abs().max() <= 0.1, name
        assert name.endswith("weight"), "nothing has a bias"


def test_refusals():
    for options, message in (
        ({"score": "cosine"}, "score='cosine' is none of 'dot'"),
        ({"alignment": "local"}, "alignment='local' is none of 'global'"),
        ({"score": "location"}, "max_length=None"),
        ({"score": "dot", "context_dim": 5}, "dim=8 and context_dim=5"),
        ({"source_proj": False}, "score='general'"),
        ({"normalise": True}, "normalise and sigma"),
        ({"alignment": "local-m", "sigma": 2.0}, "normalise and sigma"),
        ({"alignment": "local-p", "half_window": 0, "sigma": 1.0}, "half_window=0"),
        ({"alignment": "local-p", "sigma": -1.0}, "sigma=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Luong(8, **options)
    with pytest.raises(ValueError, match=r"10 words.*max_length=9"):
        Luong(8, score="location", max_length=9)(torch.randn(1, 2, 8), torch.randn(1, 10, 8))
    with pytest.raises(ValueError, match="causal"):
        regard.create("luong", dim=8, causal=True)
