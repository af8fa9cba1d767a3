import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_adds_little_to_torch():
    code = "import torch, time; start = time.perf_counter(); import regard; print(time.perf_counter() - start)"
    assert min(float(run(code)[0]) for _ in range(2)) < 0.3


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import regard, sys; print(*sorted(name for name in sys.modules if name.startswith(('regard', 'torch'))))"
    assert run(code) == ["regard"]


@pytest.mark.parametrize(
    ("name", "file"), [("linear_transformer", "linear.linear_transformer"), ("full", "multi_head")]
)
def test_only_the_mechanism_asked_for_is_imported(name, file):
    code = f"""
import regard, sys
regard.create("{name}", dim=4, num_heads=1)
print(*(name for name, module in sys.modules.items() if "regard.mechanisms" in name and hasattr(module, "Card")))
"""
    assert run(code) == [f"regard.mechanisms.{file}"]


def test_every_public_name_is_there():
    code = "import regard; print(*(n for n in dir(regard) if not n.startswith('_') and getattr(regard, n) is None))"
    assert run(code) == []
    code = "from regard import *; print(callable(attend), callable(engines), callable(create), callable(check))"
    assert run(code) == ["True"] * 4


def test_engines_is_a_function_whatever_was_imported_before():
    for first in ("regard", "regard.attention"):
        assert "dense" in run(f"import {first}, regard; print(*regard.engines())")


def test_unknown_names():
    code = """
import regard
try:
    regard.atend
except AttributeError as error:
    print(error)
"""
    assert "atend" in " ".join(run(code))
