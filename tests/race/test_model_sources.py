import json
from dataclasses import asdict

import pytest
import torch
from torch.testing import assert_close

from regard.inspect.sentences import as_tokenize, bytes_of_words
from regard.race.build import build
from regard.race.entrants import Entrant
from regard.race.folder import FORMAT
from regard.race.model_sources import load_model
from regard.race.settings import Settings
from regard.tasks.documents import InputError
from regard.train.checkpoint import write_checkpoint

ENTRANT = Entrant("local", {"window": 4})


def race(folder, **options):
    """The folder of an entrant of a race, as a race leaves it, and the model in it."""
    settings = Settings(smoke=True, steps=2, length=32, dim=16, depth=1, num_heads=2, **options)
    (folder / "race").mkdir()
    told = {"format": FORMAT, "settings": asdict(settings), "fingerprint": "0"}
    (folder / "race" / "race.json").write_text(json.dumps(told))
    own = folder / "race" / "entrants" / ENTRANT.slug
    own.mkdir(parents=True)
    model = build(ENTRANT, settings, settings.discipline.prepare(settings).task)
    with torch.no_grad():
        model.norm.weight.normal_()  # it has learned something
    tensors = {f"model/{name}": each for name, each in model.state_dict().items()}
    write_checkpoint(own, tensors, {"label": ENTRANT.label, "settings": settings.digest})
    return own, model


def test_an_entrant_of_a_race(tmp_path):
    own, model = race(tmp_path)
    loaded = load_model(str(own))
    tokens = torch.tensor([bytes_of_words(["so", "it", "goes"])[0]])
    assert_close(loaded.model(tokens), model(tokens))
    assert loaded.tokenizer is bytes_of_words
    logits = model(tokens)[0, :-1].log_softmax(-1)
    expected = -logits.gather(1, tokens[0, 1:, None]).mean()
    assert_close(loaded.loss(loaded.model, tokens), expected)


def test_a_whole_race_names_its_entrants(tmp_path):
    own, _ = race(tmp_path)
    with pytest.raises(InputError, match=f"is a whole race: name one of {own}"):
        load_model(str(tmp_path / "race"))


def test_damaged_and_foreign_checkpoints_are_told(tmp_path):
    own, _ = race(tmp_path)
    facts = json.loads((own / "checkpoint.json").read_text())
    (own / "checkpoint.json").write_text(json.dumps(facts | {"settings": "other"}))
    with pytest.raises(InputError, match="belongs to a race with other settings"):
        load_model(str(own))
    (own / "checkpoint.json").write_text(json.dumps(facts | {"label": "linformer:rank=4"}))
    with pytest.raises(ValueError, match="linformer cannot be causal"):
        load_model(str(own))
    (own / "checkpoint.json").write_text(json.dumps(facts | {"label": "synthesizer"}))
    with pytest.raises(InputError, match="belongs to another model"):
        load_model(str(own))
    (own / facts["file"]).write_bytes(b"short")
    with pytest.raises(InputError, match="is truncated"):
        load_model(str(own))
    (tmp_path / "race" / "race.json").unlink()
    with pytest.raises(InputError, match=r"belongs to no race: there is no race.json"):
        load_model(str(own))


def test_a_race_that_reads_no_text(tmp_path):
    own, _ = race(tmp_path)
    path = tmp_path / "race" / "race.json"
    stored = json.loads(path.read_text())
    stored["settings"] |= {"task": "copy", "smoke": False}
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match="ran in --task copy: only models of texts"):
        load_model(str(own))


@pytest.mark.parametrize("kind", ["masked", "causal", "encoder-decoder"])
def test_a_hugging_face_folder(tmp_path, kind):
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    pieces = tokenizers.models.WordLevel({"[UNK]": 0, "so": 1, "it": 2}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(pieces)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
    sizes = {"vocab_size": 3, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    if kind == "masked":
        model = transformers.BertForMaskedLM(transformers.BertConfig(intermediate_size=8, **sizes))
    elif kind == "causal":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=8, **sizes))
    else:
        config = transformers.T5Config(vocab_size=3, d_model=8, d_kv=4, num_heads=2, num_layers=1, d_ff=8)
        model = transformers.T5ForConditionalGeneration(config)
    model.eval().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert as_tokenize(loaded.tokenizer)(["so", "it"]) == ([1, 2], [0, 1])
    tokens = torch.tensor([[1, 2, 1]])
    if kind == "encoder-decoder":
        assert_close(loaded.model.eval()(tokens)[0], model.get_encoder()(tokens)[0])
        assert loaded.loss is None
    else:
        assert type(loaded.model) is type(model)
        assert_close(loaded.loss(loaded.model.eval(), tokens), model(tokens, labels=tokens).loss)


def test_functions(tmp_path):
    path = tmp_path / "made.py"
    path.write_text(
        "from torch import nn\n"
        "def pair(): return nn.Linear(2, 2), print\n"
        "def three(): return nn.Linear(2, 2), print, len\n"
        "def alone(): return nn.Linear(2, 2)\n"
        "def words(): return 'model', print\n"
        "def fails(): return 1 / 0\n"
    )
    assert load_model(f"{path}:pair").loss is None
    assert load_model(f"{path}:three").loss is len
    for name, told in (
        ("alone", r"must return \(model, tokenizer\) or .*, it returns Linear"),
        ("words", r"returns \(str, builtin_function_or_method\)"),
        ("fails", "raises ZeroDivisionError"),
        ("missing", "has no missing"),
    ):
        with pytest.raises(ValueError, match=told):
            load_model(f"{path}:{name}")


def test_what_is_no_model(tmp_path):
    with pytest.raises(InputError, match="holds neither a checkpoint of a race nor a Hugging Face model"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match="is no model: expected the folder"):
        load_model(str(tmp_path / "nothing"))
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="transformers cannot read"):
        load_model(str(tmp_path))
