"""Dropout that all rows share."""

import torch
from torch.testing import assert_close

from regard.ops.dropout import drop_shared


def test_one_draw_for_all_along_an_axis():
    x = torch.ones(2, 5, 7, 3)
    for dim, others in ((1, (0, 2, 3)), (2, (0, 1, 3))):
        dropped = drop_shared(x, 0.5, dim, torch.Generator().manual_seed(0))
        first = dropped.narrow(dim, 0, 1)
        assert_close(dropped, first.expand_as(dropped), rtol=0, atol=0)
        assert set(dropped.unique().tolist()) == {0.0, 2.0}
        for other in others:
            assert bool((first != first.narrow(other, 0, 1)).any())
    assert drop_shared(x, 0.0, 1) is x
