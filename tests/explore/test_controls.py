import pytest

import regard
from regard.explore.choice import Choice
from regard.explore.controls import Control, controls, written
from regard.tasks.documents import InputError


def by_name(mechanism):
    return {control.name: control for control in controls(mechanism)[0]}


def test_numbers_choices_switches_and_words():
    local = by_name("local")
    assert (local["window"].kind, local["window"].integer, local["window"].default) == ("number", True, 256)
    assert local["window"].start == 32, "256 would show nothing on a sentence"
    assert (local["form"].kind, local["form"].choices) == ("choice", ("window", "blocks", "luong"))
    assert local["exact"].kind == "switch"
    assert local["look_forward"].optional
    assert by_name("sasa")["stride"].start == 1, "a start is never above the default"
    assert by_name("neighborhood")["kernel"].kind == "text"
    assert by_name("mac")["initial_control"].choices[0] is None
    assert by_name("routing")["share_qk"].choices == (None, True, False)
    assert "window" in local["window"].words or local["window"].words


def test_what_the_page_sets_itself_and_what_nobody_can_type_has_no_control():
    assert not {"dim", "num_heads", "causal", "max_length", "attn_drop", "proj_drop"} & by_name("longformer").keys()
    assert controls("sparse_transformer")[1] == ["pattern"]
    assert controls("mac")[1] == ["cell"]


@pytest.mark.parametrize("name", regard.names())
def test_every_mechanism_starts_with_values_that_it_takes(name):
    given = {control.name: written(control.start) for control in controls(name)[0]}
    causal = regard.card(name).causal is not None
    assert Choice.read({"name": name, "causal": causal, "options": given}).layer(64) is not None


def test_what_was_typed_is_read():
    number = Control("rank", "number", 128, 16, integer=True)
    assert (number.read(" 7 "), number.read("")) == (7, 128)
    for wrong in ("7.5", "seven", "None", "True", "[1]", "9" * 400, "(" * 9999):
        with pytest.raises(InputError, match="rank"):
            number.read(wrong)
    assert Control("scale", "number", None, None, optional=True).read("None") is None
    assert Control("kernel", "text", 7, 7).read("(3, 5)") == (3, 5)
    assert Control("how", "text", "merged", "merged").read("heads") == "heads"
    assert Control("exact", "switch", False, False).read("True") is True
    with pytest.raises(InputError, match="'maybe' is none of True, False"):
        Control("exact", "switch", False, False).read("maybe")


def test_a_choice_keeps_only_what_differs_and_its_key_tells_choices_apart():
    plain = Choice.read({"name": "local", "options": {"window": "256", "exact": "False"}})
    assert plain.options == {}
    narrow = Choice.read({"name": "local", "options": {"window": "16"}, "num_heads": 2, "causal": True})
    assert narrow.options == {"window": 16}
    assert narrow.call(99) == 'regard.create("local", dim=64, window=16, num_heads=2, max_length=99, causal=True)'
    assert len({plain.key, narrow.key, Choice("local", causal=True).key, Choice("local", 2).key}) == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "locale"}, "did you mean local"),
        ({"name": None}, "no mechanism"),
        ({"name": "local", "options": {"rank": "3"}}, "no option 'rank' here; it has window"),
        ({"name": "local", "options": []}, "expected names with values"),
        ({"name": "local", "num_heads": 3}, "cannot be shared by 3; use 1, 2, 4, 8, 16"),
        ({"name": "local", "num_heads": "many"}, "no whole number"),
        ({"name": "local", "num_heads": 0}, "cannot be shared by 0"),
    ],
)
def test_choices_that_nobody_can_have(given, words):
    with pytest.raises(InputError, match=words):
        Choice.read(given)


def test_a_refusal_is_in_the_words_of_the_mechanism():
    with pytest.raises(InputError, match="at least 0, not -3"):
        Choice.read({"name": "local", "options": {"window": "-3"}}).layer(64)
    with pytest.raises(InputError, match="linformer cannot be causal: "):
        Choice("linformer", causal=True, options={"causal": True}).layer(64)
