"""What every test runs under: checked shapes, poisoned memory, fixed seeds, one thread."""

import logging
import signal

import pytest
import torch

from tests import typechecker

typechecker.install()
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as under nohup: tests of Ctrl-C, and their processes, must hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)
logging.getLogger("torch.__trace").propagate = False  # hundreds of empty lines under each failure


@pytest.fixture(autouse=True)
def _reproducible():
    """Fresh memory holds NaN, so that reading it shows; every test starts from the same random numbers."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
