import functools
import importlib
import itertools
import sys
from pathlib import Path

import jaxtyping
import pytest

import regard
from regard import factory, mechanisms, registry
from regard.registry import Card, Core, Layer, Sample, entry, register

CARD = Card(title="Fake", paper="arXiv:0000.00000", year=2000, family="fake", data="sequence")


@pytest.fixture(autouse=True)
def _separate(monkeypatch):
    """What a test registers is gone after it."""
    regard.names()  # what is imported registers once, so all of it before the registry is set aside
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.fixture
def unchecked(monkeypatch):
    """Without the type checker of the test run, which would speak before we do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def fake(**body):
    return type("Fake", (Core,), {"card": CARD, **body})


def test_a_registered_class_is_found_by_name_and_alias():
    samples = [Sample(dim=4, num_heads=1)]
    cls = register("fake", samples=samples, aliases=["forged"])(fake())
    assert entry("fake") is entry("forged")
    assert (entry("fake").cls, entry("fake").card, entry("fake").samples) == (cls, CARD, tuple(samples))
    assert cls.mechanism == "fake"


@pytest.mark.parametrize(
    ("name", "aliases"), [("fake", ()), ("forged", ()), ("other", ("fake",)), ("other", ("forged",))]
)
def test_names_are_taken_once(name, aliases):
    register("fake", samples=[Sample()], aliases=["forged"])(fake())
    with pytest.raises(ValueError, match=r"'(fake|forged)' is already registered"):
        register(name, samples=[Sample()], aliases=aliases)(fake())


def test_refusals():
    with pytest.raises(TypeError, match="no subclass of Core or Layer"):
        register("fake", samples=[Sample()])(object)
    with pytest.raises(TypeError, match="Bare is registered as 'fake' but has no card"):
        register("fake", samples=[Sample()])(type("Bare", (Layer,), {}))
    with pytest.raises(ValueError, match="no samples"):
        register("fake", samples=[])(fake())
    with pytest.raises(ValueError, match="'fa-ke' cannot be a registry name"):
        register("fa-ke", samples=[Sample()])(fake())
    with pytest.raises(KeyError, match="'fake' is not registered"):
        entry("fake")


@pytest.mark.parametrize(
    "field", [{"data": "sequences"}, {"causal": "yes"}, {"empty_rows": "nan"}, {"stochastic": ("luck",)}]
)
def test_a_card_refuses_misspelt_values(field, unchecked):
    values = {"title": "t", "paper": "p", "year": 1, "family": "f", "data": "set", **field}
    with pytest.raises(ValueError, match=f"{next(iter(field))}=.* is none of"):
        Card(**values)


def test_a_card_wants_a_tuple_of_randomness(unchecked):
    with pytest.raises(TypeError, match="stochastic is a tuple"):
        Card(title="t", paper="p", year=1, family="f", data="set", stochastic="dropout")


def test_a_sample_shows_itself():
    sample = Sample(dim=4, share="kv", claims={"cross": False})
    assert repr(sample) == "Sample(claims={'cross': False}, dim=4, share='kv')"
    assert sample.inputs is None


def test_what_does_not_stream_says_so():
    register("fake", samples=[Sample()])(cls := fake())
    for method in (cls().memory, cls().stream):
        with pytest.raises(registry.UnsupportedError, match="fake does not stream"):
            method(1)


@pytest.fixture
def ideal(monkeypatch, tmp_path):
    """The mechanism file of the style guide, under another name, dropped into a room that nobody has announced."""
    source = Path(__file__).parent / "ideal"
    mechanism, test = ((source / name).read_text() for name in ("linformer.txt", "test_linformer.txt"))
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "__init__.py").touch()
    (tmp_path / "guide" / "ideal.py").write_text(mechanism.replace('register("linformer"', 'register("ideal"'))
    monkeypatch.setattr(mechanisms, "__path__", [*mechanisms.__path__, str(tmp_path)])
    factory._files.cache_clear()
    importlib.invalidate_caches()
    renamed = {
        "mechanisms.lowrank.linformer": "mechanisms.guide.ideal",
        '"linformer"': '"ideal"',
        "linformer cannot": "ideal cannot",
    }
    yield functools.reduce(lambda text, names: text.replace(*names), renamed.items(), test)
    factory._files.cache_clear()
    for module in [name for name in sys.modules if name.startswith("regard.mechanisms.guide")]:
        del sys.modules[module]
    vars(mechanisms).pop("guide", None)


def test_the_ideal_mechanism_works_unchanged(ideal):
    namespace = {}
    exec(ideal, namespace)  # the guide's own test file
    for test in [value for name, value in namespace.items() if name.startswith("test_")]:
        marks = [mark.args for mark in getattr(test, "pytestmark", [])]
        for case in itertools.product(*([dict(zip(names, row, strict=True)) for row in rows] for names, rows in marks)):
            test(**{name: value for part in case for name, value in part.items()})
    assert "ideal" in regard.names(family="lowrank")
    assert regard.create("ideal", dim=12, num_heads=3, max_length=24).core.e.shape == (1, 128, 24)
