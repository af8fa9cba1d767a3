"""``regard.check`` over the registry: every rule on every sample, on the layer and on the core inside."""

import pytest

from regard.factory import find
from regard.inspect.check import RULES, run_rule
from regard.inspect.compiling import compiled
from tests.contract.cases import CORES, LAYERS, NAMES, first_of_each

ONCE = ("train = eval", "gradients", "autocast", "compile")
"""Rules on the layer that show nothing new on its core."""

RUNS = [pytest.param(case, rule, id=f"{case}-{rule}") for case in LAYERS for rule in RULES if rule != "compile"]
for rule in RULES:
    if rule not in ONCE:
        RUNS += first_of_each(CORES, rule)
RUNS += [pytest.param(case, "compile", marks=pytest.mark.slow, id=f"{case}-compile") for case in LAYERS]


@pytest.mark.parametrize(("case", "rule"), RUNS)
def test_rule(case, rule):
    row = run_rule(rule, case.subject())
    assert row.verdict != "FAIL", f"{row.numbers} {row.explanation}"


@pytest.mark.parametrize("case", [*first_of_each([case for case in LAYERS if case.card.compile])])
def test_compiles_for_inference(case):
    """The cheap part of the rule "compile": one graph, without its gradients."""
    subject = case.subject()
    row = compiled(subject, masked=subject.takes_mask)
    assert row.verdict != "FAIL", f"{row.numbers} {row.explanation}"


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_is_put_to_the_test(name):
    """A rule that is skipped proves nothing: what the card claims, some sample must show."""
    card, layers = find(name).card, [case for case in LAYERS if case.name == name]
    for field in ("cross", "segments", "smooth", "compile", "dynamic", "export", "onnx"):
        assert not getattr(card, field) or any(getattr(case.card, field) for case in layers), field
    for claimed, rule in ((card.causal, "causality"), (card.streaming, "memory = full")):
        able = (case for case in layers if case.causal)
        assert not claimed or any(run_rule(rule, case.subject()).verdict == "pass" for case in able), rule
    if card.gqa:
        assert any(case.layer_of().num_kv_heads < case.layer_of().num_heads for case in layers), "gqa"
