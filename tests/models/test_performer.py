from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from regard.models import Performer
from regard.registry import UnsupportedError


def model(**options):
    return Performer(20, 12, 2, 3, 16, **options)


def rows(performer):
    return [buffer.clone() for buffer in performer.buffers()]


def test_features_are_drawn_anew_every_so_many_training_steps():
    performer, x = model(redraw_every=3), torch.randint(20, (2, 9))
    drawn = [rows(performer)]
    for _ in range(7):
        performer(x)
        drawn.append(rows(performer))
    changed = [any(not a.equal(b) for a, b in zip(*pair, strict=True)) for pair in pairwise(drawn)]
    assert changed == [False, False, False, True, False, False, True]
    performer.eval()
    for _ in range(4):
        performer(x)
    assert all(a.equal(b) for a, b in zip(rows(performer), drawn[-1], strict=True))


def test_the_count_goes_into_the_state_dict():
    first, second, x = model(redraw_every=2), model(redraw_every=2), torch.randint(20, (2, 9))
    first(x)
    second.load_state_dict(first.state_dict())
    before = rows(second)
    second(x)
    assert all(a.equal(b) for a, b in zip(rows(second), before, strict=True))
    second(x)
    assert any(not a.equal(b) for a, b in zip(rows(second), before, strict=True))


def test_both_directions():
    x = torch.randint(20, (2, 9))
    changed = torch.cat((x[:, :8], (x[:, 8:] + 1) % 20), 1)
    one, both = model().eval(), model(causal=False).eval()
    assert_close(one(changed)[:, :8], one(x)[:, :8], rtol=0, atol=1e-6)
    assert not torch.allclose(both(changed)[:, :8], both(x)[:, :8])
    one.stream(x, one.memory(2))
    with pytest.raises(UnsupportedError, match="causal=True"):
        both.memory(2)
    with pytest.raises(ValueError, match="redraw_every=-1"):
        model(redraw_every=-1)
