import pytest

from regard.bench.entrants import choose
from regard.bench.settings import Settings, format_length, parse_lengths
from regard.factory import card, names
from regard.race.entrants import Entrant
from regard.tasks.documents import InputError

SMALL = {"lengths": (64, 128), "dim": 16, "num_heads": 2}


def labels(field):
    return [entrant.label for entrant in field.entrants]


def test_lengths():
    assert parse_lengths("1k,4k,16k") == (1024, 4096, 16384)
    assert parse_lengths(" 1000, 1K,64 ,64,1m") == (64, 1000, 1024, 2**20)
    for text in ("", ",", "0", "0k", "-1", "1.5k", "k", "1g", "many"):
        with pytest.raises(InputError, match="--lengths"):
            parse_lengths(text)
    assert [format_length(n) for n in parse_lengths("1k,16k,1000,1m")] == ["1000", "1k", "16k", "1m"]
    assert format_length(1536) == "1536"


@pytest.mark.parametrize("name", ["dim", "num_heads", "batch", "threads", "rounds", "limit"])
def test_sizes_are_positive(name):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} 0 is not positive"):
        Settings(**{name: 0})


def test_other_refusals():
    with pytest.raises(InputError, match="cannot be shared equally"):
        Settings(dim=10, num_heads=4)
    with pytest.raises(InputError, match="--device abacus cannot be used"):
        Settings(device="abacus")
    with pytest.raises(InputError, match="there are clocks for cpu and cuda"):
        Settings(device="meta")


def test_mechanisms_of_fixed_length_get_the_length():
    settings = Settings(**SMALL, causal=True, dtype="bfloat16")
    arguments = settings.arguments(Entrant("local", {"window": 8, "causal": False}), 64)
    assert arguments.pop("dtype").itemsize == 2
    expected = {"dim": 16, "num_heads": 2, "max_length": 64, "device": "cpu", "window": 8, "causal": False}
    assert arguments == expected


def test_without_names_all_that_run_on_sequences_are_measured():
    field = choose(Settings(**SMALL))
    assert labels(field)[0] == "full"
    assert {entrant.name for entrant in field.entrants} | {name for name, _ in field.absent} == {
        "full" if name == "multi_head" else name for name in names(data="sequence")
    }


def test_those_that_cannot_be_causal_are_listed_with_the_reason():
    field = choose(Settings(**SMALL, causal=True))
    absent = dict(field.absent)
    assert "linear_transformer" in labels(field)
    for name in names(data="sequence"):
        if card(name).causal is None:
            assert absent[name].startswith("not causal: ")


def test_dense_attention_comes_first_and_once():
    field = choose(Settings(**SMALL, mechanisms=("local:window=8,local:window=4", "multi-head", "local:window=8")))
    assert labels(field) == ["full", "local:window=8", "local:window=4"]


@pytest.mark.parametrize(
    ("variant", "words"), [("local:window=-3", "local:window=-3 .* not -3"), ("local:wimdow=8", "no option 'wimdow'")]
)
def test_a_variant_that_cannot_be_made_is_refused_as_in_the_race(variant, words):
    with pytest.raises(InputError, match=words):
        choose(Settings(**SMALL, mechanisms=(variant,)))


def test_unknown_names_name_the_nearest():
    with pytest.raises(InputError, match="did you mean local"):
        choose(Settings(**SMALL, mechanisms=("lokal",)))
