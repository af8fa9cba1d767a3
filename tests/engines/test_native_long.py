"""A million positions in bounded memory: 8 heads of 64, whose tensors alone are 8.6 GB."""

import subprocess
import sys

import pytest

from tests.engines.native_library import needs_native

SCRIPT = """
import resource
import torch
import regard
from regard.patterns import Causal, Window

n, heads, width = 1 << 20, 8, 64
q, k, v = (torch.empty(1, heads, n, width).uniform_(-2, 2) for _ in range(3))
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
out = regard.attend(q, k, v, Causal() & Window(512), engine="native")
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
four = 4 * q.nbytes
print(f"{(most - held - out.nbytes) / 1e6:.0f} MB beside tensors of {four / 1e6:.0f} MB")
assert held + 1.5 * four - 3 * q.nbytes > most
for h, i in ((0, 0), (0, 600), (3, 524288), (7, n - 1)):
    keys = slice(max(0, i - 512), i + 1)
    weights = (k[0, h, keys].double() @ q[0, h, i].double() / width**0.5).softmax(0)
    assert torch.allclose(out[0, h, i].double(), weights @ v[0, h, keys].double(), atol=1e-5)
"""


@pytest.mark.slow
@needs_native
def test_a_million_positions():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
