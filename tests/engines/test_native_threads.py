"""The workers of the native kernels: any number of them, the same numbers; forks, callers at once, no memory."""

import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.patterns import Causal, Global, Strided, Window
from regard.scores import Bias, Relative, Slope
from tests.engines.native_library import needs_native
from tests.engines.native_problems import native_problem
from tests.engines.problems import attend_and_gradients
from tests.samples import some_daily

pytestmark = needs_native


@pytest.mark.parametrize("seed", [*some_daily(range(2000, 2024), 8)])
def test_any_number_of_threads(seed):
    """Few sequences and heads are worked off in slices of the keys; the sums differ in their order only."""
    leaves, options = native_problem(seed)
    expected = attend_and_gradients("dense", leaves, options)
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        found, again = (attend_and_gradients("native", leaves, options) for _ in range(2))
        assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert_close(again, found, rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ones", list(itertools.product([0, 1], repeat=4)))
def test_gradients_of_masks_of_every_shape(isa, threads, ones):
    """Sequences, heads, queries or keys share entries of attn_mask, and slices of the keys are summed apart."""
    sizes = (2, 4, 70, 130)
    shape = [1 if one else size for one, size in zip(ones, sizes, strict=True)]
    q = torch.randn(2, 4, 70, 5, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 2, 130, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    leaves = {"query": q, "key": k, "value": v, "mask": torch.randn(shape, dtype=q.dtype, requires_grad=True)}
    options = {"attn_mask": leaves["mask"], "enable_gqa": True, "pattern": Window(30) | Global(2) | Strided(9)}
    expected = attend_and_gradients("dense", leaves, options)
    torch.set_num_threads(threads)
    assert_close(attend_and_gradients("native", leaves, options), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("own", [(), (3,), (2, 1), (1, 3), (2, 3)])
def test_masks_of_groups_of_sequences(own, threads):
    """Leading dimensions (2, 3): each sequence reads the mask of its group, and the group's gradient is one sum."""
    q, k, v = (torch.randn(2, 3, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (70, 90, 90))
    mask = torch.randn(*own, 1, 70, 90, dtype=torch.float64, requires_grad=True)
    leaves = {"query": q, "key": k, "value": v, "mask": mask}
    options = {"attn_mask": mask, "key_mask": torch.rand(*own, 90) < 0.7, "pattern": Window(30) | Strided(9)}
    expected = attend_and_gradients("dense", leaves, options)
    torch.set_num_threads(threads)
    assert_close(attend_and_gradients("native", leaves, options), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lead", [(), (1,), (2,)])
def test_gradients_of_terms_summed_by_many(lead):
    q, k, v = torch.randn(3, *lead, 2, 300, 5, dtype=torch.float64).requires_grad_().unbind(0)
    table, slopes = (torch.randn(*shape, dtype=q.dtype, requires_grad=True) for shape in ((1, 41), (2,)))
    leaves = {"query": q, "key": k, "value": v, "table": table, "slopes": slopes}
    options = {"pattern": Causal(), "score": [Bias(table, Relative(20)), Slope(slopes)]}
    expected = attend_and_gradients("dense", leaves, options)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        assert_close(attend_and_gradients("native", leaves, options), expected, rtol=1e-9, atol=1e-9)


def test_callers_at_once():
    """Only one of them has the workers; the others do their own work, with other numbers of threads."""
    problems = [native_problem(seed) for seed in range(2100, 2108)]
    expected = [attend_and_gradients("native", *problem) for problem in problems]
    wrong = []

    def call(number):
        torch.set_num_threads(1 + number % 3)
        for turn in range(12):
            at = (number + turn) % len(problems)
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in problems[at][0].items()}
            options = {**problems[at][1], "engine": "native", "return_lse": True}
            out, lse = regard.attend(leaves["query"], leaves["key"], leaves["value"], **options)
            if not all(torch.allclose(a, b, rtol=1e-12) for a, b in zip((out, lse), expected[at], strict=False)):
                wrong.append((number, turn))
            out.sum().backward()

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def run(script):
    """A process of its own."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_workers_of_its_own():
    """The parent's threads do not exist in the child, which must not wait for them; grandchildren neither."""
    told = run(
        "import os, torch, regard\n"
        "torch.set_num_threads(3)\n"
        "q = torch.randn(2, 3, 300, 8, requires_grad=True)\n"
        "def work():\n"
        "    out = regard.attend(q, q, q, is_causal=True, engine='native')\n"
        "    return out, *torch.autograd.grad(out.sum(), q)\n"
        "expected = work()\n"
        "def child(depth):\n"
        "    assert all(torch.equal(a, b) for a, b in zip(work(), expected, strict=True))\n"
        "    number = depth and os.fork()\n"
        "    if depth and number == 0:\n"
        "        child(depth - 1)\n"
        "        os._exit(7)\n"
        "    if depth:\n"
        "        assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 7\n"
        "        assert all(torch.equal(a, b) for a, b in zip(work(), expected, strict=True))\n"
        "child(2)\n"
        "print('done')\n"
    )
    assert told.stdout == "done\n", told.stderr


def test_no_memory_is_an_error_of_python():
    """Rows of 10^12 numbers, all the same one: no machine has room for a tile of them, in whatever thread."""
    torch.set_num_threads(3)
    row, value = torch.ones(1).expand(1, 8, 300, 10**12), torch.ones(1, 8, 300, 4)
    for _ in range(3):
        with pytest.raises(MemoryError, match="workspace"):
            regard.attend(row, row, value, engine="native")
    q = torch.randn(1, 8, 300, 4)
    assert_close(regard.attend(q, q, value, engine="native"), value)
