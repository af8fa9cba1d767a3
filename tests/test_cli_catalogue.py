"""``regard show``: what a card can."""

from regard.cli.catalogue import describe
from regard.factory import card


def can(name):
    return next(line for line in describe(name, card(name)).splitlines() if line.strip().startswith("can "))


def test_a_card_says_what_leaves_python():
    assert "compile (fullgraph), dynamic length, export, onnx" in can("multi_head")
    assert "compile (fullgraph), export, onnx" in can("ctc")
