import base64
import json
import shutil
import time

import pytest
import torch

import regard
from regard.explore import cost as costs
from regard.explore.answers import Answers
from regard.explore.controls import controls, written
from regard.explore.pictures import pack
from regard.explore.trainings import KINDS
from regard.tasks.documents import InputError
from regard.train.budget import Budget
from regard.train.checkpoint import read_checkpoint, write_checkpoint


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path))


@pytest.fixture
def answers():
    return Answers(Budget(steps=2))


def choice(name, **options):
    given = {control.name: written(control.start) for control in controls(name)[0]} | options
    causal = regard.card(name).causal is not None and regard.card(name).data == "sequence"
    return {"name": name, "num_heads": 4, "causal": causal, "options": given}


def shares(told):
    heads, n, m = told["shape"]
    found = torch.frombuffer(bytearray(base64.b64decode(told["shares"])), dtype=torch.int8)
    return found.view(heads, n, m) / 127 * torch.tensor(told["largest"]).view(heads, n, 1)


def trained(answers, asked):
    answers.train(asked)
    end = time.monotonic() + 120
    while answers.training(asked)["status"] in ("waiting", "training") and time.monotonic() < end:
        time.sleep(0.05)
    return answers.training(asked)


def test_a_map_survives_its_packing():
    weights = torch.randn(2, 5, 7)
    assert (shares(pack(weights)) - weights).abs().max() < weights.abs().max() / 200
    with pytest.raises(InputError, match="no numbers"):
        pack(torch.full((1, 2, 2), float("nan")))


def test_everything_is_listed_and_described(answers):
    told = answers.mechanisms({})
    assert [one["name"] for one in told["mechanisms"]] == regard.names()
    assert told["budget"] == "2 steps"
    for name in regard.names():
        about = answers.describe({"name": name})
        json.dumps(about)
        assert about["causal"] in ("never", "always", "either")
        rows = dict(about["card"])
        assert rows["causal"]
        assert str(regard.card(name).year) in rows["paper"]
    assert answers.describe({"name": "delta_rule"})["causal"] == "always"
    assert answers.describe({"name": "linformer"})["causal"] == "never"


def test_a_fixed_pattern_is_drawn_as_it_is(answers):
    told = answers.picture({"choice": choice("local", window="3"), "length": 20})
    assert (told["kind"], told["title"]) == ("pattern", "Window(3, 0)")
    assert torch.equal(shares(told)[0].bool(), regard.patterns.Window(3, 0).dense(20))
    assert told["call"].startswith('regard.create("local", dim=64, window=3')
    long = answers.picture({"choice": choice("local"), "length": 4096})
    assert max(long["shape"]) <= 256
    halo = answers.picture({"choice": choice("halonet"), "length": 100})
    assert halo["grid"] == [10, 10]
    assert halo["shape"][1:] == [100, 100]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("linear_transformer", "exact"), ("kronecker", "jacobian"), ("bahdanau", "exact"), ("alphafold2", "none")],
)
def test_without_a_pattern_an_untrained_layer_is_shown_and_labelled_so(answers, name, kind):
    told = answers.picture({"choice": choice(name), "length": 256})
    assert told["kind"] == kind
    if kind != "none":
        assert "untrained" in told["title"]
        assert "random weights" in told["words"]
        assert shares(told).isfinite().all()
        assert ("Jacobian" in told["words"]) == (kind == "jacobian")


def test_pictures_that_nobody_can_draw(answers):
    for length, words in (("0", "cannot be drawn"), ("many", "no whole number"), (10**9, "cannot be drawn")):
        with pytest.raises(InputError, match=words):
            answers.picture({"choice": choice("local"), "length": length})
    with pytest.raises(InputError, match="no mechanism was chosen"):
        answers.picture({})


@pytest.mark.parametrize("name", ["local", "halonet"])
def test_costs_are_measured_once_beside_dense_attention(answers, name, monkeypatch):
    monkeypatch.setattr(costs, "LENGTHS", (64, 128))
    monkeypatch.setattr(costs, "SIDES", (8, 11))
    told = answers.cost({"choice": choice(name)})
    lengths = [64, 128] if name == "local" else [64, 121]
    assert [length for length, _ in told["own"]] == [length for length, _ in told["dense"]] == lengths
    assert all(seconds > 0 for _, seconds in told["own"] + told["dense"])
    assert "dense attention" in told["crossover"]
    assert answers.cost({"choice": choice(name)}) is told
    if name == "local":
        own, dense = (one for one in told["counted"] if one["length"] == 128)
        assert own["flops"] < dense["flops"]


def test_costs_end_at_the_limit_and_say_so(answers, monkeypatch):
    monkeypatch.setattr(costs, "LIMIT", 0.0)
    told = answers.cost({"choice": choice("linear_transformer")})
    assert len(told["own"]) <= 1
    assert told["stopped"].startswith("stopped before")
    with pytest.raises(InputError, match="two inputs meet"):
        answers.cost({"choice": choice("luong")})


def look(answers, name, kind="text", given=None):
    given = given or ({"example": 1} if kind == "image" else {"text": "abcabc"})
    return answers.look({"choice": choice(name), "kind": kind, "input": given})


@pytest.mark.parametrize(
    ("name", "kind", "places"),
    [
        ("multi_head", "text", 6), ("linear_transformer", "sequence", 6), ("linformer", "text", 6),
        ("set_transformer", "text", 6),
        ("multi_head", "image", 256), ("halonet", "image", 256), ("global_context", "image", 256),
    ],
)  # fmt: skip
def test_every_kind_of_mechanism_looks_at_every_kind_of_input(answers, name, kind, places):
    told = look(answers, name, kind)
    assert not told["trained"]
    assert "untrained" in told["model"]
    for layer in told["layers"]:
        weights = shares(layer)
        assert weights.shape[1:] == (places, places)
        assert len(weights) == len(told["names"])
        if told["kind"] == "exact" and name == "multi_head":
            torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights), places), rtol=0, atol=0.05)
    if name == "multi_head" and kind == "text":
        assert not weights.triu(1).any(), "causal"
        assert told["signs"] == list("abcabc")
        assert told["depths"] == [1, 2]


def test_a_map_by_gradients_is_of_fewer_tokens_and_says_so(answers):
    told = look(answers, "memory_compressed", given={"text": "x" * 300})
    assert told["kind"] == "jacobian"
    assert told["remark"].startswith("Cut after 96 of 300 bytes")
    assert told["depths"] == [2]


def test_who_cannot_look_says_why(answers):
    assert "choose Image" in look(answers, "halonet")["words"]
    assert "from one input to another" in look(answers, "luong", "image")["words"]
    for given, words in (({"text": ""}, "nothing to look at"), ({"image": "!"}, "did not arrive whole")):
        with pytest.raises(InputError, match=words):
            look(answers, "multi_head", "image" if "image" in given else "text", given)
    with pytest.raises(InputError, match="'sound' is no kind of input"):
        look(answers, "multi_head", "sound")
    with pytest.raises(InputError, match="choose Image"):
        answers.train({"choice": choice("halonet"), "kind": "text"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_trained_kept_and_used(answers, kind, tmp_path):
    asked = {"choice": choice("linear_transformer"), "kind": kind}
    before = look(answers, "linear_transformer", kind)
    assert answers.training(asked)["status"] == "untrained"
    told = trained(answers, asked)
    assert told["status"] == "trained", told
    assert "(2 steps); held out: " in told["words"]
    assert [path.name.split("-")[1] for path in (tmp_path / "explore").iterdir()] == [kind]
    after = look(Answers(Budget(steps=2)), "linear_transformer", kind)
    assert after["trained"]
    assert after["model"] == told["words"]
    assert after["layers"] != before["layers"]
    assert answers.training({**asked, "choice": {**asked["choice"], "num_heads": 2}})["status"] == "untrained"


def test_a_training_that_fails_says_so(answers, tmp_path):
    (tmp_path / "explore").write_text("in the way")
    asked = {"choice": choice("multi_head"), "kind": "text"}
    told = trained(answers, asked)
    assert told["status"] == "failed"
    assert "cannot write into" in told["words"]


@pytest.mark.parametrize("damage", ["truncated", "deleted", "another version"])
def test_what_is_kept_and_of_no_use_is_trained_again(answers, tmp_path, damage):
    asked = {"choice": choice("linear_transformer"), "kind": "text"}
    trained(answers, asked)
    (folder,) = (tmp_path / "explore").iterdir()
    (weights,) = folder.glob("*.safetensors")
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
        answers = Answers(Budget(steps=2))
    elif damage == "deleted":
        shutil.rmtree(folder)
    else:
        tensors, facts = read_checkpoint(folder)
        tensors.pop("model/token_embedding.weight")
        write_checkpoint(folder, tensors, facts)
    assert not look(answers, "linear_transformer")["trained"]
    assert trained(answers, asked)["status"] == "trained"
    assert look(answers, "linear_transformer")["trained"]
