"""``regard.check`` over the registry: every rule on every sample, on the layer and on the core inside."""

import pytest

from regard.factory import find
from regard.inspect.check import RULES, run_rule
from tests.contract.cases import CASES, LAYERS, NAMES

ONCE = ("train = eval", "gradients", "autocast", "compile")
"""Rules on the layer that show nothing new on its core."""

RUNS = [(case, rule) for case in CASES for rule in RULES if case.kind == "layer" or rule not in ONCE]
COMPILED = {case.name: case for case in reversed(LAYERS) if case.card.compile}
"""The first sample of each mechanism that compiles; a graph takes ten seconds, so the other samples are slow tests."""


def run(case, rule):
    slow = rule == "compile" and case.card.compile and case is not COMPILED[case.name]
    return pytest.param(case, rule, id=f"{case}-{rule}", marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("case", "rule"), [run(case, rule) for case, rule in RUNS])
def test_rule(case, rule):
    row = run_rule(rule, case.subject())
    assert row.verdict != "FAIL", f"{row.numbers} {row.explanation}"


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_is_put_to_the_test(name):
    """A rule that is skipped proves nothing: what the card claims, some sample must show."""
    card, layers = find(name).card, [case for case in LAYERS if case.name == name]
    for field in ("cross", "segments", "smooth", "compile", "export"):
        assert not getattr(card, field) or any(getattr(case.card, field) for case in layers), field
    for claimed, rule in ((card.causal, "causality"), (card.streaming, "memory = full")):
        able = (case for case in layers if case.causal)
        assert not claimed or any(run_rule(rule, case.subject()).verdict == "pass" for case in able), rule
    if card.gqa:
        assert any(case.layer_of().num_kv_heads < case.layer_of().num_heads for case in layers), "gqa"
