"""The rule on torch.compile, where a card claims less than all lengths."""

from regard.inspect.check import run_rule
from regard.inspect.inputs import make_subject
from tests.inspect import toys
from tests.inspect.test_check import tokens


def test_a_graph_of_one_length_is_held_to_that_length():
    fixed = toys.with_card(toys.RecompilesAlways, dynamic=False)()
    row = run_rule("compile", make_subject(fixed, tokens()))
    assert row.verdict == "pass"
    assert "one length" in row.explanation
    broken = toys.with_card(toys.BreaksGraph, dynamic=False)()
    assert run_rule("compile", make_subject(broken, tokens())).verdict == "FAIL"
