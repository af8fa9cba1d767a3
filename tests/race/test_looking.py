import json
import struct
import zlib
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from regard.inspect import Map, attention_map
from regard.models.transformer import TransformerClassifier, TransformerLM
from regard.race.entrants import Entrant
from regard.race.job import Job
from regard.race.looking import LONGEST, choose_passage, look, pack, unpack
from regard.race.page.looks import _png, one_sign_a_byte
from regard.race.runner import Runner
from regard.race.settings import Settings
from regard.tasks.classification import Classification
from regard.tasks.documents import Document
from regard.tasks.labelled import Labelled, LabelledSplit
from regard.tasks.language import LanguageModelling
from regard.tasks.split import Split

PASSAGE = b"To be, or not to be: that is"


def model_of(name="full", kind=TransformerLM, **options):
    torch.manual_seed(0)
    return kind(256, 16, 2, 2, 64, name, **options)


def reading(*texts, length=64):
    documents = tuple(Document(f"{number}", text) for number, text in enumerate(texts))
    return LanguageModelling(
        Split((Document("train", bytes(200)),), documents, documents, ""), length=length, batch=1, seed=0
    )


def test_a_passage_can_be_printed_and_begins_at_a_line():
    task = Settings(smoke=True, steps=1).discipline.prepare(Settings(smoke=True, steps=1)).task
    passage = choose_passage(task, 4)
    assert passage == choose_passage(task, 4)
    assert len(passage) == LONGEST
    assert passage.isascii()
    assert passage[:1].isupper()
    assert any(passage in document.data for document in task.split.test)
    assert not any(passage in document.data for document in task.split.train)
    assert len(choose_passage(task, 16)) == 67, "more heads, fewer bytes"


@pytest.mark.parametrize(
    ("texts", "passage"),
    [
        ([b"\x00no\nsuch\nThis one is it.\n"], b"This one is it.\n"),
        ([b"The head is long\n" + 30 * b"\xff" + b"\nThe body is read."], b"The body is read"),
        ([b"a small letter to begin with"], b"a small letter t"),
        ([bytes(range(128, 160)), b"short"], bytes(range(128, 144))),
        ([b"tiny"], b"tiny"),
    ],
)
def test_a_passage_of_any_text(texts, passage):
    assert choose_passage(reading(*texts, length=16), 2) == passage


def test_a_passage_to_classify():
    found = Labelled(tuple(Document(str(n), b"Text number %d" % n) for n in range(6)), tuple("ab" * 3), ())
    task = Classification(found, LabelledSplit((0, 1), (2, 3), (4, 5)), length=8, batch=1, seed=0)
    assert choose_passage(task, 2) == b"Text num"


def test_a_byte_a_weight_is_enough():
    weights = torch.randn(1, 3, 5, 5).softmax(-1)
    weights[0, 0, 2] = 0
    weights[0, 1, 3, 1] = -0.3
    told = pack(Map(weights, "exact"))
    assert told["kind"] == "exact"
    limit = weights[0].abs().amax(-1, keepdim=True) / 254 + 1e-7
    again = unpack(json.loads(json.dumps(told)))
    assert ((again - weights[0]).abs() <= limit).all()
    assert not again[0, 2].any()
    assert again[1, 3, 1] < 0
    most = torch.randn(1, 8, 94, 94)
    assert len(json.dumps(pack(Map(most, "exact")))) < 100_000
    with pytest.raises(ValueError, match="no numbers"):
        pack(Map(torch.full((1, 1, 2, 2), torch.nan), "exact"))


@pytest.mark.parametrize(("name", "kind"), [("full", TransformerLM), ("longformer", TransformerClassifier)])
def test_looks_at_the_last_layer(name, kind):
    model = model_of(name, kind, **({"num_classes": 3} if kind is TransformerClassifier else {}))
    state = torch.get_rng_state()
    told = look(model, PASSAGE)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert told["kind"] == "exact"
    model.eval()
    x = model.token_embedding(torch.tensor([list(PASSAGE)])) + model.position_embedding.weight[: len(PASSAGE)]
    x, _ = model.blocks[0](x)
    expected = attention_map(model.blocks[1].attention, model.blocks[1].norm1(x)).tensor[0]
    assert_close(unpack(told), expected, rtol=0, atol=float(expected.max()) / 250)


def test_without_weights_a_few_mixtures_of_features_are_looked_at():
    model = model_of().eval()
    attention = model.blocks[1].attention
    attention.core.weighs_values = False
    told = look(model, PASSAGE)
    assert (told["kind"], told["shape"]) == ("jacobian", [1, len(PASSAGE), len(PASSAGE)])
    caught = []
    with attention.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0])):
        model(torch.tensor([list(PASSAGE)]))
    expected = attention_map(attention, caught[0]).tensor[0]
    found = unpack(told)
    assert_close(found.sum(-1), torch.ones(1, len(PASSAGE)), rtol=0, atol=0.05)
    assert (found - expected).abs().mean() < 0.1 * expected.mean()
    assert not found.triu(1).any()


def test_what_goes_wrong_is_told():
    class Broken(nn.Module):
        def forward(self, x, key_mask=None, segments=None, generator=None, return_aux=False):
            raise RuntimeError("no way\nto look")

    model = model_of()
    model.blocks[1].attention = Broken()
    assert look(model, PASSAGE) == {"error": "RuntimeError: no way to look"}
    assert model.training


def test_a_run_looks_and_a_resumed_race_keeps_it(tmp_path):
    settings = Settings(smoke=True, steps=2, length=32, dim=16, depth=1, num_heads=2, batch=1, device="cpu")
    runner = Runner(settings, (Entrant("full"),), tmp_path, "", None)
    place = runner._place(Entrant("full"))
    place.mkdir(parents=True)
    job = Job(settings, Entrant("full"), place)
    outcome = job.run()
    looked = outcome.attention_map
    assert looked["shape"] == [2, 32, 32]
    (place / "result.json").write_text(json.dumps(asdict(outcome)))
    assert runner._known(Entrant("full")).attention_map == looked


def pixels(png):
    """The bytes of an image with a palette, and what they mean."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    parts, place = {}, 8
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        kind, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        assert struct.unpack(">I", png[place + 8 + size : place + 12 + size])[0] == zlib.crc32(kind + data)
        parts[kind] = data
        place += 12 + size
    width, height, *form = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert form == [8, 3, 0, 0, 0]
    lines = zlib.decompress(parts[b"IDAT"])
    rows = [lines[row * (width + 1) + 1 : (row + 1) * (width + 1)] for row in range(height)]
    return [[(parts[b"PLTE"][3 * cell : 3 * cell + 3], parts[b"tRNS"][cell]) for cell in row] for row in rows]


def test_pictures_hold_the_weights():
    found = pixels(_png(torch.tensor([[127, 0, -127], [1, -1, 64]], dtype=torch.int8)))
    assert [[opacity for _, opacity in row] for row in found] == [[254, 0, 254], [2, 2, 128]]
    (blue, _), _, (orange, _) = found[0]
    assert blue != orange
    assert [colour for colour, _ in found[1]] == [blue, orange, blue]


def test_one_sign_a_byte():
    for text, signs in (("a\nb\t\r", "a\nb··"), ("é€😀", "é·€··😀···"), ("", "")):
        assert one_sign_a_byte(text.encode()) == signs
        assert len(signs) == len(text.encode())
    assert one_sign_a_byte(b"\xa9ok\xff\x00") == "·ok··"
