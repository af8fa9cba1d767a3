"""Rows a few at a time."""

import pytest
import torch
from torch.testing import assert_close

from regard.ops.chunks import in_chunks


def test_every_size_gives_the_same_and_calls_as_often_as_it_must():
    x, mask = torch.randn(2, 5, 3), torch.rand(2, 5) < 0.5
    sizes = []

    def function(x, mask, nothing):
        assert nothing is None
        sizes.append(x.shape[1])
        return x.cumsum(-1).masked_fill(~mask[..., None], 0.0)

    whole = function(x, mask, None)
    with torch.no_grad():
        for size, parts in ((None, [5]), (2, [2, 2, 1]), (5, [5]), (9, [5])):
            sizes.clear()
            assert_close(in_chunks(function, size, 1, x, mask, None), whole)
            assert sizes == parts


def test_another_axis():
    x = torch.randn(2, 3, 5)
    assert_close(in_chunks(lambda x: 2 * x, 2, 2, x), 2 * x)


def test_a_chunk_is_computed_again_in_the_backward_pass():
    x, calls = torch.randn(1, 4, 2, requires_grad=True), []

    def function(x):
        calls.append(x.shape[1])
        return x.exp()

    in_chunks(function, 2, 1, x).sum().backward()
    assert_close(x.grad, x.detach().exp())
    assert calls == [2] * 4


def test_chunks_of_nothing_are_refused():
    with pytest.raises(ValueError, match="chunk_size=0"):
        in_chunks(torch.exp, 0, 1, torch.zeros(1, 2))
