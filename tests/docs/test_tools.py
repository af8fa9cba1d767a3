"""The examples in what makes the site, and what it does with our docstrings."""

import doctest
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted((ROOT / "docs" / "_ext").glob("*.py")),
    ROOT / "tools" / "docs_parity.py",
    ROOT / "tools" / "docs_costs.py",
]
NEEDS_SPHINX = ("regard_docs",)


def load(path):
    """A module by its file; those of the site import each other by name."""
    if path.stem in NEEDS_SPHINX:
        pytest.importorskip("sphinx", reason="the site needs regard[docs]")
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        spec = importlib.util.spec_from_file_location(f"site_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_examples_hold(path):
    assert doctest.testmod(load(path)).failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a * b and *c", "a \\* b and \\*c"),
        ("* a bullet with *stars", "* a bullet with \\*stars"),
        ("w_1, l_ and ``l_``", "w_1, l\\_ and ``l_``"),
        (":func:`a_` of |x|", ":func:`a_` of \\|x\\|"),
        ("dim: C.", "dim: C\\."),
        ("so::\n\n    a * b\n\nand *c", "so::\n\n    a * b\n\nand \\*c"),
        ("so:\n\n    a * b", "so::\n\n    a * b"),
        ("Args:\n    x: *c", "Args:\n    x: \\*c"),
        (">>> a * b\n'*'\n\n*c", ">>> a * b\n'*'\n\n\\*c"),
    ],
)
def test_docstrings_keep_their_signs(text, expected):
    assert load(ROOT / "docs" / "_ext" / "regard_docs.py").escaped(text) == expected


def test_costs_are_reduced_with_reasons(tmp_path):
    points = [
        {"length": 256, "status": "measured", "cpu_seconds": 0.01, "memory_bytes": 5},
        {"length": 512, "status": "measured", "cpu_seconds": 0.04, "memory_bytes": 9},
    ]
    fast = [{**point, "cpu_seconds": 0.02} for point in points]
    slow = [points[0], {"length": 512, "status": "too slow", "cpu_seconds": None, "memory_bytes": None}]
    names = ("dim", "num_heads", "batch", "dtype", "threads", "rounds")
    bench = {
        "settings": {**dict.fromkeys(names, 1), "causal": True, "backward": True},
        "clock": "cpu",
        "created": "2026-11-26T12:00:00",
        "machine": {},
        "absent": [{"name": "linformer", "reason": "not causal: every mixture has seen the future"}],
        "entrants": [
            {"mechanism": "full", "points": points},
            {"mechanism": "local", "points": fast},
            {"mechanism": "coda", "points": slow},
        ],
    }
    tool = load(ROOT / "tools" / "docs_costs.py")
    found = tool.with_crossovers(tool.reduced(json.loads(json.dumps(bench))))
    assert found["words"] == "forward and backward, causal"
    assert found["curves"] == {"full": {"256": 0.01, "512": 0.04}, "local": {"256": 0.02, "512": 0.02}}
    assert found["absent"] == {"linformer": "not causal: every mixture has seen the future", "coda": "too slow"}
    assert found["crossovers"] == {"local": {"words": "362", "length": 362}}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"256": 0.011, "512": 0.041}, "as fast as full attention at every measured length"),
        ({"256": 0.02, "512": 0.02}, "faster than full attention from about 360 tokens on"),
        ({"256": 0.001, "512": 0.02}, "faster than full attention from 256 tokens on"),
        ({"256": 0.1, "512": 0.2}, "slower than full attention up to 512 tokens"),
    ],
)
def test_curves_are_told_in_words(own, told):
    tool, pages = load(ROOT / "tools" / "docs_costs.py"), load(ROOT / "docs" / "_ext" / "costs_told.py")
    series = {"words": "forward", "unit": "tokens", "yardstick": "full"}
    series["curves"] = {"full": {"256": 0.01, "512": 0.04}, "own": own}
    assert told in pages._sentence("own", tool.with_crossovers(series))


def test_a_mechanism_without_curve_and_reason_stops_the_build():
    with pytest.raises(ValueError, match="unheard_of has neither a cost curve nor a reason"):
        load(ROOT / "docs" / "_ext" / "costs_told.py").cost("unheard_of", "sequence")
