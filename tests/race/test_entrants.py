import pytest
import torch

import regard
from regard.race import entrants
from regard.race.discipline import CAUSAL_FIELD
from regard.race.entrants import Entrant, choose, parse
from regard.race.settings import Settings
from regard.registry import Card
from regard.tasks.documents import InputError


def settings(*mechanisms, **changes):
    return Settings(**{"steps": 1, "dim": 16, "num_heads": 2, "length": 32, "mechanisms": mechanisms, **changes})


def labels(field):
    return [entrant.label for entrant in field.entrants]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["local,longformer"], ["local", "longformer"]),
        (["local:window=64,form=luong,full"], ["local:window=64,form=luong", "full"]),
        (["local:window=64,window=8"], ["local:window=8"]),
        (["linear-transformer", "local , full"], ["linear_transformer", "local", "full"]),
        (["local:exact=true"], ["local:exact=True"]),
    ],
)
def test_reads_names_and_variants(words, expected):
    assert [entrant.label for entrant in parse(words)] == expected


@pytest.mark.parametrize("words", ["window=3", "local:", "local:window", "local:window=", "local:=3"])
def test_refuses_what_is_no_variant(words):
    with pytest.raises(InputError, match="NAME:"):
        parse([words])


def test_the_yardstick_is_always_there_and_first():
    assert labels(choose(settings("local"))) == ["full", "local"]
    assert labels(choose(settings("local", "multi_head", "full"))) == ["full", "local"]


@pytest.mark.parametrize("task", ["lm", "classify", "listops", "copy"])
def test_by_default_a_field_of_eight_that_fits_the_time_and_the_task(task):
    given = settings(task=task, length=64)
    field = choose(given)
    found = [label for label in labels(field) if label != "local:window=0"]
    assert tuple(found) == given.discipline.field(64)
    assert found[0] == "full"
    assert len(found) == len(set(found)) == 8
    assert field.absent == ()
    assert ("local:window=8" in found) == (task in ("listops", "copy")), "windows fit short sequences"
    group = labels(choose(settings("causal", task=task)))
    assert set(CAUSAL_FIELD) <= set(group), "the groups still name everybody"
    assert len(labels(choose(settings("all", task=task)))) >= len(group)


def test_the_control_runs_where_nobody_was_named():
    *_, control = choose(settings()).entrants
    assert control == entrants.CONTROL
    assert "each byte sees only itself" in control.mark(settings(), "bytes")
    layer = regard.create(control.name, **control.arguments(settings()))
    x = torch.randn(1, 9, 16)
    torch.testing.assert_close(layer(x)[:, 4:5], layer(x[:, 4:5]))
    assert "local:window=0" not in labels(choose(settings(task="classify")))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"no mechanism is called 'lokal': did you mean local"):
        choose(settings("lokal"))


@pytest.mark.parametrize(
    ("mechanism", "words"),
    [("local:windwo=3", "windwo"), ("local:form=luong", "cannot be causal"), ("local:window=-1", "at least 0")],
)
def test_a_variant_that_cannot_be_made_is_refused(mechanism, words):
    with pytest.raises(InputError, match=f"{mechanism} cannot race: .*{words}"):
        choose(settings(mechanism))


def test_sizes_that_suit_nobody_are_refused():
    with pytest.raises(InputError, match="--dim 16 cannot be shared equally by --num-heads 3"):
        settings(num_heads=3)


def test_those_that_cannot_do_the_task_are_listed_with_the_reason(monkeypatch):
    cards = {
        "multi_head": Card(title="Full", paper="-", year=2017, family="softmax", data="sequence", causal="strict"),
        "mixer": Card(
            title="Mixer",
            paper="-",
            year=2020,
            family="lowrank",
            data="sequence",
            refuses={"causal": "it has seen all"},
        ),
        "picker": Card(title="Picker", paper="-", year=2020, family="chosen", data="sequence", causal="selection"),
        "gate": Card(title="Gate", paper="-", year=2018, family="gates", data="map"),
        "odd": Card(title="Odd", paper="-", year=2018, family="gates", data="sequence", causal="strict"),
    }

    def create(name, **options):
        if name == "odd":
            raise ValueError("needs an\nodd length")

    monkeypatch.setattr(entrants, "names", lambda causal=None: [n for n in cards if not causal or cards[n].causal])
    monkeypatch.setattr(entrants, "card", lambda name: cards[{"full": "multi_head"}.get(name, name)])
    monkeypatch.setattr(entrants, "create", create)
    field = choose(settings("all"))
    assert labels(field) == ["full", "picker"]
    assert dict(field.absent) == {
        "mixer": "not causal: it has seen all",
        "gate": "works on maps, not on sequences",
        "odd": "needs an odd length",
    }
    assert [entrant.mark(settings(), "bytes") != "" for entrant in field.entrants] == [False, True]
    assert field.entrants[1].mark(settings(task="copy"), "tokens").endswith("depends on later tokens")
    assert field.entrants[1].mark(settings(task="listops"), "tokens") == ""
    assert labels(choose(settings("all", task="classify"))) == ["full", "mixer", "picker"]


def test_the_call_is_exact():
    import regard

    given = settings("local:window=8")
    entrant = choose(given).entrants[1]
    call = entrant.call(given)
    assert call == 'regard.create("local", dim=16, num_heads=2, max_length=32, causal=True, window=8)'
    assert eval(call, {"regard": regard}).core.window == 8
    assert entrant.slug == "local_window=8"
    assert Entrant("a", {"b": "../c"}).slug == "a_b=.._c"
