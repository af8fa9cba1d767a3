"""Attention of Hugging Face's models is replaced, and longer inputs fit."""

import copy

import pytest
import torch
from torch.testing import assert_close

from regard.registry import UnsupportedError
from regard.swap import swap_attention
from tests.swap.models import IDS, LEFT, RIGHT, bert, gpt2, roberta, same, state, vit

pytest.importorskip("transformers")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [bert, roberta])
@pytest.mark.parametrize("mask", [None, RIGHT, LEFT])
def test_longformer_with_a_wide_window_is_an_encoder(make, attention, mask):
    model = make()
    model.set_attn_implementation(attention)
    call = {"input_ids": IDS} if mask is None else {"input_ids": IDS, "attention_mask": mask.long()}
    before = model(**call).last_hidden_state
    report = swap_attention(model, "longformer", window=16, batch=call)
    after = model(**call).last_hidden_state
    real = slice(None) if mask is None else mask
    assert_close(after[real], before[real], rtol=0, atol=1e-5)
    assert [row.verdict for row in report.rows] == ["exact"] * 2
    assert report.output_error < 1e-5


def test_longformer_in_vit():
    model, pixels = vit(), torch.randn(2, 3, 8, 8)
    before = model(pixels).last_hidden_state
    report = swap_attention(model, "longformer", window=17, batch={"pixel_values": pixels})
    assert report.ok
    assert_close(model(pixels).last_hidden_state, before, rtol=0, atol=1e-5)
    with pytest.raises(UnsupportedError, match="may form a grid"):
        swap_attention(vit(), "local", max_length=100)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", [None, RIGHT, LEFT])
def test_longformer_in_gpt2(attention, mask):
    model = gpt2(attention=attention)
    call = {"input_ids": IDS} if mask is None else {"input_ids": IDS, "attention_mask": mask.long()}
    before = model(**call).logits
    words = model.generate(IDS[:, :4], max_new_tokens=6, do_sample=False)
    report = swap_attention(model, "longformer", window=16, batch=call)
    real = slice(None) if mask is None else mask
    assert_close(model(**call).logits[real], before[real], rtol=0, atol=1e-5)
    assert report.ok
    assert "use_cache is off" in str(report)
    assert torch.equal(model.generate(IDS[:, :4], max_new_tokens=6, do_sample=False), words)
    with pytest.raises(UnsupportedError, match="keeps no cache"):
        model(IDS, use_cache=True)


def test_a_causal_model_refuses_what_cannot_be():
    model = gpt2()
    before = state(model)
    with pytest.raises(UnsupportedError, match=r"star_transformer.*causal"):
        swap_attention(model, "star_transformer")
    with pytest.raises(UnsupportedError, match=r"causal=False, but transformer\.h\.0\.attn is causal"):
        swap_attention(model, "longformer", causal=False)
    with pytest.raises(ValueError, match="the batch must fit the model as it is"):
        swap_attention(model, "longformer", max_length=64, batch=torch.zeros(1, 20, dtype=torch.long))
    assert same(state(model), before)


def test_a_mask_on_pairs_is_refused():
    model, pairs = bert(), torch.rand(2, 1, 12, 12) < 0.5
    swap_attention(model, "longformer", window=16)
    with pytest.raises(UnsupportedError, match="which keys are real, not which pairs may meet"):
        model(IDS, attention_mask=pairs)


def test_a_causal_bert():
    model = bert(is_decoder=True)
    before = model(IDS, use_cache=False).last_hidden_state
    swap_attention(model, "longformer", window=16)
    assert_close(model(IDS).last_hidden_state, before, rtol=0, atol=1e-5)


def test_weights_are_returned_where_they_are_asked_for():
    model = bert(attention="eager")
    layer, x = model.encoder.layer[0].attention, torch.randn(2, 12, 24)
    _, before = layer(x)
    swap_attention(model, "longformer", window=16)
    assert layer(x)[1] is None
    assert_close(layer(x, output_attentions=True)[1], before, rtol=0, atol=1e-6)
    with pytest.raises(UnsupportedError, match="no place for head_mask"):
        layer(x, head_mask=torch.ones(3))


def test_saved_and_loaded(tmp_path):
    model = bert()
    fresh = copy.deepcopy(model)
    swap_attention(model, "longformer", window=2, max_length=40)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    long = torch.arange(40)[None]
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    swap_attention(fresh, "longformer", window=2, max_length=40)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(fresh(long).last_hidden_state, model(long).last_hidden_state)
    assert '"max_position_embeddings": 40' in (tmp_path / "config.json").read_text()
