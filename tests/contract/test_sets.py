"""The order of a set means nothing, for every registered mechanism on sets."""

import pytest
import torch
from torch.testing import assert_close

from tests.contract.cases import SETS


@pytest.mark.parametrize("case", SETS, ids=str)
def test_the_order_of_a_set_means_nothing(case):
    layer = case.build()
    x, order = torch.randn(2, 9, layer.dim), torch.randperm(9)
    assert_close(layer(x[:, order]), layer(x)[:, order], rtol=1e-5, atol=1e-5)
