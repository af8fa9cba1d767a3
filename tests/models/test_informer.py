"""Informer: what its decoder may see, how lengths halve, marks, and training on a toy series."""

import pytest
import torch
from torch.testing import assert_close

from regard.models import Informer
from regard.models.informer import SeriesEmbedding


def made(**options):
    torch.manual_seed(0)
    sizes = {"horizon": 6, "dim": 8, "num_heads": 2, "hidden": 12, "dropout": 0.0}
    return Informer(3, **(sizes | options)).eval()


def series(n, batch=2, marks=4):
    return torch.randn(batch, n, 3), torch.rand(batch, n, marks) - 0.5


def test_a_forecast_starts_the_decoder_with_known_steps():
    model = made()
    (past, past_marks), (_, future_marks) = series(24), series(6)
    given = torch.cat((past[:, -8:], torch.zeros(2, 6, 3)), 1)
    expected = model(past, past_marks, given, torch.cat((past_marks[:, -8:], future_marks), 1))
    assert_close(model.forecast(past, past_marks, future_marks, known=8), expected, rtol=0, atol=0)
    assert model.forecast(past, past_marks, future_marks, known=0).shape == (2, 6, 3)


@pytest.mark.parametrize(
    ("options", "length"), [({"depth": 3}, 4), ({"depth": (3, 1)}, 4 + 6), ({"distil": False}, 13)]
)
def test_distilling_halves_what_the_decoder_attends_to(options, length):
    model, seen = made(**options), []
    model.decoder[0].cross.register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[1].shape))
    model.forecast(*series(13), series(6)[1], known=4)
    assert seen == [(2, length, 8)]


def later_marks_change(model):
    """Whether the first forecast step hears of the time marks of the last: values cannot tell, they are zeros."""
    (past, past_marks), (_, future_marks) = series(24), series(6)
    changed = future_marks.clone()
    changed[:, -1] += 9
    first, second = (model.forecast(past, past_marks, marks, known=4) for marks in (future_marks, changed))
    return bool((first[:, 0] - second[:, 0]).abs().max() > 1e-4)


def test_the_decoder_is_causal_but_for_the_authors_layout():
    """A convolution of width 3, circular, hears one step ahead and the last from the first; the rest is attention.

    With full attention, so that no choice of queries tells either.
    """
    blind = {"attention": "full", "decoder_inputs": 3}
    models = [made(**blind), made(mix=True, **blind)]
    for model in models:
        torch.nn.init.zeros_(model.decoder_embedding.values.weight)
    assert [later_marks_change(model) for model in models] == [False, True]


def test_training_lowers_the_loss():
    model = made(dropout=0.05, horizon=4).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    wave = torch.stack([(torch.arange(28) * 0.7 + shift).sin() for shift in range(3)], -1)[None]
    marks = torch.zeros(1, 28, 4)
    losses = []
    for _ in range(30):
        loss = (model.forecast(wave[:, :24], marks[:, :24], marks[:, 24:], known=8) - wave[:, 24:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert losses[-1] < 0.2 * losses[0]


def test_refusals():
    with pytest.raises(ValueError, match="'daily'"):
        SeriesEmbedding(3, 8, 4, "daily", 0.0)
    with pytest.raises(ValueError, match="num_marks=6"):
        SeriesEmbedding(3, 8, 6, "fixed", 0.0)
    with pytest.raises(ValueError, match="'sparse'"):
        made(attention="sparse")
    model, (past, marks) = made(), series(24)
    with pytest.raises(ValueError, match=r"24, 3\), expected \(2, 24, 4\)"):
        model(past, marks[..., :3], past, marks)
    with pytest.raises(ValueError, match="given 5 steps, fewer than horizon=6"):
        model(past, marks, past[:, :5], marks[:, :5])
    with pytest.raises(ValueError, match="known=25"):
        model.forecast(past, marks, marks[:, :6], known=25)
