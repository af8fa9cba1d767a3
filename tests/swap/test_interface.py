"""Cores and patterns between the projections of models of transformers, which keep the rest of their attention."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from regard.patterns import Window
from regard.registry import UnsupportedError
from regard.swap import swap_attention
from tests.swap.models import IDS, LEFT, RIGHT, bert, gpt2, llama, roberta, same, state, t5, vit, whisper

pytest.importorskip("transformers")

PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
SOUND = torch.linspace(-1, 1, 2 * 4 * 20).view(2, 4, 20)
MODELS = {
    "bert": (bert, {"input_ids": IDS, "attention_mask": RIGHT.long()}, RIGHT),
    "roberta": (roberta, {"input_ids": IDS, "attention_mask": RIGHT.long()}, RIGHT),
    "gpt2": (gpt2, {"input_ids": IDS, "attention_mask": LEFT.long()}, LEFT),
    "llama": (llama, {"input_ids": IDS, "attention_mask": LEFT.long()}, LEFT),
    "vit": (vit, {"pixel_values": PIXELS}, slice(None)),
    "t5": (t5, {"input_ids": IDS, "attention_mask": RIGHT.long(), "decoder_input_ids": IDS}, slice(None)),
    "whisper": (whisper, {"input_features": SOUND, "decoder_input_ids": IDS}, slice(None)),
}


@pytest.mark.parametrize("mechanism", ["full", "window-20", "local"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_exact_is_exact(name, mechanism):
    make, call, real = MODELS[name]
    model = make()
    before = model(**call)[0]
    options = {"window": 20} if mechanism == "local" else {}
    if (name, mechanism) == ("t5", "local"):
        with pytest.raises(UnsupportedError, match="has position_bias in its scores"):
            swap_attention(model, mechanism, batch=call, **options)
        return
    report = swap_attention(model, mechanism, batch=call, **options)
    assert_close(model(**call)[0][real], before[real], rtol=0, atol=1e-5)
    assert report.ok
    assert report.output_error < 1e-5
    swapped = [row for row in report.rows if row.verdict != "left alone"]
    assert all(row.verdict == "exact" and row.kl < 1e-9 and row.overlap > 0.999 for row in swapped)
    assert all("cross" in row.note for row in report.rows if row not in swapped)
    assert {row.kind for row in report.rows} == {"transformers interface"}


@pytest.mark.parametrize("mechanism", ["full", "causal&window-20", "local"])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_caches_and_generation_are_kept(make, mechanism):
    model = make()
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": LEFT[:, 4:].long(), "pad_token_id": 0}
    words = model.generate(IDS[:, :8], **options)
    swap_attention(model, mechanism, **({"window": 20} if mechanism == "local" else {}))
    assert torch.equal(model.generate(IDS[:, :8], **options), words)


def test_the_numbers_are_those_of_whole_modules():
    call = {"input_ids": IDS, "attention_mask": RIGHT.long()}
    model = bert()
    whole = copy.deepcopy(model)
    layer = whole.encoder.layer[0].attention.self
    x, mask = whole.embeddings(IDS), RIGHT[:, None, None].expand(-1, 1, 12, -1)
    one = swap_attention(layer, "longformer", window=2, num_global=0, batch=(x, mask)).rows[0]
    row = swap_attention(model, "local", window=2, batch=call).rows[0]
    assert row.error == pytest.approx(one.error, rel=1e-3)
    assert row.kl == pytest.approx(one.kl, rel=1e-3)
    assert row.overlap == pytest.approx(one.overlap, rel=1e-3)
    assert 0.1 < row.overlap < 0.9
    assert row.verdict == "approximate"


@pytest.mark.parametrize("mechanism", ["nystrom", "window-2", Window(2)])
def test_some_layers(mechanism):
    model, call = bert(), {"input_ids": IDS}
    options = {"num_landmarks": 4} if mechanism == "nystrom" else {}
    report = swap_attention(model, mechanism, layers=[1], batch=call, **options)
    assert [row.verdict for row in report.rows] == ["left alone", "approximate"]
    first, second = (layer.attention.self for layer in model.encoder.layer)
    assert not hasattr(first, "regard_core")
    assert hasattr(second, "regard_core")


def test_what_is_learnt_is_in_the_model():
    model = bert()
    fresh = copy.deepcopy(model)
    swap_attention(model, "linformer", rank=4)
    names = {name for name, _ in model.named_parameters()} - {name for name, _ in fresh.named_parameters()}
    assert names == {f"encoder.layer.{i}.attention.self.regard_core.{table}" for i in range(2) for table in "ef"}
    expected = model(IDS).last_hidden_state
    swap_attention(fresh, "linformer", rank=4)
    assert not torch.allclose(fresh(IDS).last_hidden_state, expected)
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IDS).last_hidden_state, expected)
    model.train()(IDS).last_hidden_state.square().sum().backward()
    assert model.encoder.layer[0].attention.self.regard_core.e.grad.abs().sum() > 0


def test_longer_inputs_reach_tables_and_mechanism():
    model = bert(16)
    swap_attention(model, "linformer", rank=4, max_length=40)
    assert model.encoder.layer[0].attention.self.regard_core.max_length == 40
    assert model(torch.full((1, 40), 7)).last_hidden_state.shape == (1, 40, 24)


def test_dropout_without_weights_is_said_and_switched_off():
    model = bert()
    report = swap_attention(model, "nystrom", num_landmarks=4)
    assert {row.note for row in report.rows} == {
        "its dropout of 0.1 on the weights is gone: the weights of a query are a product of three matrices, which is "
        "never formed"
    }
    assert model.train()(IDS).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("mechanism", ["local", "performer", "window-2", "longformer"])
def test_a_dry_run_changes_nothing_and_says_the_same(mechanism):
    model, call = bert().train(), {"input_ids": IDS}
    before, implementation = state(model), model.config._attn_implementation
    options = {"batch": call, "generator": torch.Generator().manual_seed(3)}
    dry = swap_attention(model, mechanism, dry_run=True, **options)
    assert same(state(model), before)
    assert model.config._attn_implementation == implementation
    wet = swap_attention(model, mechanism, **options)
    assert dry.rows == wet.rows
    assert dry.output_error == wet.output_error


def test_an_error_leaves_the_model_as_it_was():
    model, call = llama(), {"input_ids": IDS}
    before, implementation = state(model), model.config._attn_implementation
    for mechanism, options, words in [
        ("nystrom", {}, "cannot be causal"),
        ("informer", {}, "later tokens decide"),
        ("local", {"causal": False}, "is causal"),
        ("longformer", {}, "rotary positions are turned inside"),
    ]:
        with pytest.raises(UnsupportedError, match=words):
            swap_attention(model, mechanism, batch=call, **options)
    with pytest.raises(TypeError, match="no option 'windw'"):
        swap_attention(model, "local", windw=2)
    with pytest.raises(ValueError, match="max_length"):
        swap_attention(bert(), "linformer", max_length=8, rank=4, batch=call)
    assert same(state(model), before)
    assert model.config._attn_implementation == implementation


def test_cross_attention_where_it_is_asked_for():
    make, call, _ = MODELS["whisper"]
    model = make()
    before = model(**call)[0]
    for mechanism in ("full", "linear_transformer"):
        report = swap_attention(model, mechanism, cross=True, batch=call)
        assert len(report.swapped) == 3
        assert report.ok == (mechanism == "full")
    assert hasattr(model.decoder.layers[0].encoder_attn, "regard_core")
    assert not torch.allclose(model(**call)[0], before, atol=1e-3)
    with pytest.raises(UnsupportedError, match="asks another sequence, which window-2 cannot"):
        swap_attention(make(), "window-2", cross=True)


def test_a_model_inside_a_model():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.mixer = bert(), nn.TransformerEncoderLayer(24, 3, 32, batch_first=True)

        def forward(self, ids):
            return self.mixer(self.body(ids).last_hidden_state)

    model = Classifier().eval()
    before = model(IDS)
    report = swap_attention(model, "local", window=12, batch=IDS)
    assert [row.name for row in report.rows][-1] == "mixer.self_attn"
    assert len(report.rows) == 3
    assert report.ok
    assert_close(model(IDS), before, rtol=0, atol=1e-5)
