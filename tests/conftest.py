"""What every test runs under: checked shapes, poisoned memory, fixed seeds, one thread."""

import logging

import pytest
import torch

from tests import typechecker

typechecker.install()
logging.getLogger("torch.__trace").propagate = False  # hundreds of empty lines under each failure


@pytest.fixture(autouse=True)
def _reproducible():
    """Fresh memory holds NaN, so that reading it shows; every test starts from the same random numbers."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
