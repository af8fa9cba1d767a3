"""Show, Attend and Tell: the paper's equations, draws, and what hard attention learns from."""

import pytest
import torch
from torch.testing import assert_close

from regard.mechanisms.pairs.show_attend_tell import ShowAttendTell, doubly_stochastic, log_location_weights
from regard.ops.drawn_places import draw_places, score_gradient


def spread(layer, seed=0):
    """Weights that are no longer near 0, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.double().parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    return layer


def inputs(t=4, places=5, dim=3, width=6):
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, t, dim), (2, places, width))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def equations(layer, x, context, mask, temperature):
    z, alpha = x.new_zeros(*x.shape[:2], context.shape[-1]), x.new_zeros(*x.shape[:2], context.shape[1])
    for b, t in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
        seen = mask[b].nonzero().flatten().tolist()
        scores = []
        for place in seen:
            p = layer.key_proj.weight @ context[b, place] + layer.key_proj.bias
            for further in layer.layers:
                p = torch.tanh(further.weight @ p + further.bias)
            scores.append(layer.u @ torch.tanh(p + layer.query_proj.weight @ x[b, t]))
        weights = torch.softmax(temperature * torch.stack(scores), 0)
        alpha[b, t, seen] = weights
        z[b, t] = weights @ context[b, seen]
        if layer.selector is not None:
            z[b, t] *= torch.sigmoid(layer.selector.weight[0] @ x[b, t] + layer.selector.bias[0])
    return z, alpha


@pytest.mark.parametrize(("num_layers", "selector", "temperature"), [(1, False, 1.0), (2, True, 1.0), (3, True, 2.5)])
@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_matches_the_equations(num_layers, selector, temperature, attention):
    options = {"attention": attention, "num_layers": num_layers, "selector": selector, "temperature": temperature}
    layer = spread(ShowAttendTell(3, 6, **options)).eval()
    x, context = inputs()
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]]).bool()
    z, aux = layer(x, context, key_mask=mask, return_aux=True)
    expected, alpha = equations(layer, x, context, mask, temperature)
    assert_close(z, expected, rtol=0, atol=1e-12)
    assert_close(aux["map/weights"], alpha, rtol=0, atol=1e-12)
    values = torch.randn(2, 1, 5, 2, dtype=torch.float64)
    gate = 1 if layer.selector is None else torch.sigmoid(layer.selector(x))
    assert_close(
        layer.weigh(x, values, context, key_mask=mask)[:, 0], gate * (alpha @ values[:, 0]), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("penalty", ["paper", "code"])
def test_every_place_should_be_looked_at_once(penalty):
    layer = spread(ShowAttendTell(3, 6, doubly_stochastic=0.5, penalty=penalty))
    x, context = inputs()
    query_mask, key_mask = torch.arange(4) < torch.tensor([[4], [2]]), torch.arange(5) < torch.tensor([[3], [5]])
    _, aux = layer(x, context, key_mask=key_mask, query_mask=query_mask, return_aux=True)
    alpha = aux["map/weights"].detach()
    total = 0.0
    for b, (steps, places) in enumerate(((4, 3), (2, 5))):
        steps = 4 if penalty == "code" else steps  # the authors' sum runs over padded steps too
        missed = [float(1 - alpha[b, :steps, place].sum()) ** 2 for place in range(places)]
        total += sum(missed) / 2 if penalty == "paper" else sum(missed) / places
    assert aux["loss/doubly_stochastic"].item() == pytest.approx(0.5 * total, abs=1e-12)
    assert doubly_stochastic(torch.full((2, 4, 4), 0.25)).item() == 0


def test_places_are_drawn_by_their_weights():
    weights = torch.tensor([0.0, 0.2, 0.3, 0.0, 0.5]).expand(1, 20_000, 5)
    drawn = draw_places(weights, torch.Generator().manual_seed(0))
    assert bool((drawn.sum(-1) == 1).all())
    assert_close(drawn.mean(1)[0], weights[0, 0], rtol=0, atol=0.02)
    assert not drawn[..., [0, 3]].any(), "a place of weight 0 is never drawn"


def test_training_draws_for_the_whole_pass_or_not_at_all():
    layer = spread(ShowAttendTell(3, 6, attention="hard"))
    x, context = inputs()
    counts = {0: 0, 1: 0}
    for seed in range(60):
        _, aux = layer(x, context, generator=torch.Generator().manual_seed(seed), return_aux=True)
        hard = (aux["map/chosen"].amax(-1) == 1).flatten()
        assert hard.all() or not hard.any(), "one draw for all"
        counts[int(hard[0])] += 1
    assert min(counts.values()) > 15
    first, again = (layer(x, context, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(layer.eval()(x, context), first)


def test_samples_can_be_given():
    layer = spread(ShowAttendTell(3, 6, attention="hard")).eval()
    x, context = inputs()
    place = torch.tensor([[0, 4, 2, 2], [1, 1, 3, 0]])
    samples = torch.nn.functional.one_hot(place, 5).double()
    for sampled in (True, False):
        log_weights, chosen = layer.look(x, layer.keys(context), samples=samples, sampled=torch.tensor(sampled))
        assert_close(chosen, samples if sampled else log_weights.exp(), rtol=0, atol=0)
    likeliest = spread(ShowAttendTell(3, 6, attention="hard", argmax=True)).eval()
    weights = layer(x, context, return_aux=True)[1]["map/weights"]
    assert_close(likeliest(x, context), context.gather(1, weights.argmax(-1)[..., None].expand(-1, -1, 6)))


def test_the_gradient_of_draws_is_that_of_the_expectation():
    """E[(cost_s - b) d log p(s)] = d E[cost_s], whatever b is."""
    logits = torch.randn(1, 1, 4, dtype=torch.float64, requires_grad=True)
    cost, log_weights = torch.tensor([3.0, -1.0, 0.5, 2.0]).double(), logits.log_softmax(-1)
    found = torch.zeros_like(logits)
    for place in range(4):
        chosen = torch.nn.functional.one_hot(torch.tensor([[place]]), 4).double()
        told = score_gradient(log_weights, chosen, cost[None, place : place + 1] - 0.7).sum()
        assert told == 0
        found += log_weights.exp()[0, 0, place].detach() * torch.autograd.grad(told, logits, retain_graph=True)[0]
    assert_close(found, torch.autograd.grad((log_weights.exp() * cost).sum(), logits)[0], rtol=0, atol=1e-12)
    log_weights = logits.log_softmax(-1)
    soft = score_gradient(log_weights, log_weights.exp(), torch.ones(1, 1).double()).sum()
    assert_close(torch.autograd.grad(soft, logits)[0], torch.zeros_like(logits), rtol=0, atol=1e-12)


def test_a_vanished_weight_has_a_logarithm():
    key = torch.tensor([[[30.0], [-30.0]]])
    log_weights = log_location_weights(torch.zeros(1, 1, 1), key, torch.tensor([200.0]))
    assert log_weights.exp()[0, 0, 1] == 0
    assert_close(log_weights[0, 0, 1], torch.tensor(-400.0))


def test_gradcheck_with_an_empty_row():
    layer = spread(ShowAttendTell(2, 3, num_layers=2, selector=True))
    x, context = (t.requires_grad_() for t in inputs(2, 3, 2, 3))
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()
    assert torch.autograd.gradcheck(lambda *given: layer(*given, key_mask=mask), (x, context), fast_mode=True)
    assert not layer(x, context, key_mask=mask)[1].any()


def test_starts_as_the_authors_do():
    layer = ShowAttendTell(40, 40, num_layers=2, dtype=torch.bfloat16)
    assert layer.u.dtype == torch.bfloat16
    for matrix in (layer.layers[0].weight, layer.query_proj.weight):
        assert_close((matrix.double() @ matrix.double().T), torch.eye(40).double(), rtol=0, atol=0.02)
    assert 0.009 < layer.key_proj.weight.float().std().item() < 0.011
    assert 0.009 < ShowAttendTell(20, 60).query_proj.weight.std().item() < 0.011


def test_refusals():
    for options, words in (
        ({"attention": "firm"}, "attention='firm'"),
        ({"penalty": "mine"}, "penalty='mine'"),
        ({"attention": "hard", "sampling": 1.5}, "no probability"),
        ({"sampling": 0.2}, 'for attention="hard"'),
        ({"argmax": True}, 'for attention="hard"'),
        ({"doubly_stochastic": -1.0}, "at least 0"),
        ({"num_layers": 0}, "num_layers=0"),
    ):
        with pytest.raises(ValueError, match=words):
            ShowAttendTell(4, **options)
