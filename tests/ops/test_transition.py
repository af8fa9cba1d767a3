"""The transition as a loop."""

import pytest
from torch.testing import assert_close

from regard.ops.transition import Transition
from tests.ops import evoformer_loops as loops


def test_it_is_the_equation():
    part = loops.redrawn(Transition(6, 1.5))
    assert part.inner.weight.shape == (9, 6)
    msa = loops.protein()[0]
    assert_close(part(msa[None])[0], loops.transition(part, msa), rtol=0, atol=1e-12)
    assert_close(part(msa[None], chunk_size=3)[0], loops.transition(part, msa), rtol=0, atol=1e-12)


def test_sizes_are_refused():
    with pytest.raises(ValueError, match=r"factor=0.*positive"):
        Transition(6, 0)
