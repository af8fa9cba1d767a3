"""Tables of positions grow by repeating themselves, and everything that counts on their size follows."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import regard
from regard.registry import UnsupportedError
from regard.swap import swap_attention
from regard.swap.positions import extend_positions, reserved
from regard.swap.surgery import Surgery
from tests.swap.models import IDS, bert, gpt2, llama, roberta, same, state, whisper

pytest.importorskip("transformers")


def test_bert():
    model = bert(16)
    before, table = model(IDS).last_hidden_state, model.embeddings.position_embeddings.weight.clone()
    report = swap_attention(model, "longformer", window=16, max_length=40)
    new = model.embeddings.position_embeddings
    assert torch.equal(new.weight, torch.cat([table, table, table[:8]]))
    assert new.num_embeddings == model.config.max_position_embeddings == 40
    assert torch.equal(model.embeddings.position_ids, torch.arange(40)[None])
    assert torch.equal(model.embeddings.token_type_ids, torch.zeros(1, 40, dtype=torch.long))
    assert_close(model(IDS).last_hidden_state, before, rtol=0, atol=1e-5)
    assert model(torch.full((1, 40), 7)).last_hidden_state.isfinite().all()
    assert report.notes[0] == "embeddings.position_embeddings: 16 positions repeated up to 40"
    assert report.notes[-1] == "the tokenizer is no part of the model: set tokenizer.model_max_length = 40 yourself"


def test_roberta_counts_from_two():
    model = roberta(16)
    before, table = model(IDS).last_hidden_state, model.embeddings.position_embeddings.weight.clone()
    report = swap_attention(model, "longformer", window=16, max_length=40)
    new = model.embeddings.position_embeddings
    assert reserved(new) == 2
    assert torch.equal(new.weight, torch.cat([table[:2], table[2:], table[2:], table[2:10]]))
    assert model.config.max_position_embeddings == new.num_embeddings == 42
    assert_close(model(IDS).last_hidden_state, before, rtol=0, atol=1e-5)
    assert model(torch.full((1, 40), 7)).last_hidden_state.isfinite().all()
    assert "behind 2 reserved rows" in report.notes[0]


def test_gpt2_and_ours():
    model = gpt2(16)
    before = model(IDS).logits
    swap_attention(model, "longformer", window=16, max_length=33)
    assert model.transformer.wpe.weight.shape == (33, 24)
    assert model.config.n_positions == 33
    assert_close(model(IDS).logits, before, rtol=0, atol=1e-5)
    ours = regard.models.TransformerLM(50, 24, 2, 3, 16).eval()
    swap_attention(ours, "local", window=4, max_length=33)
    assert ours.max_length == 33
    assert ours(torch.zeros(1, 33, dtype=torch.long)).shape == (1, 33, 50)


def test_frozen_tables_stay_frozen():
    model = bert(16)
    model.embeddings.position_embeddings.weight.requires_grad_(False)
    swap_attention(model, "longformer", window=16, max_length=40)
    assert not model.embeddings.position_embeddings.weight.requires_grad


def test_what_is_long_enough_stays():
    model = bert(16)
    before = state(model)
    surgery = Surgery()
    notes = extend_positions(model, 16, surgery)
    assert notes == ["embeddings.position_embeddings holds 16 positions already"]
    assert same(state(model), before)
    assert extend_positions(nn.Linear(2, 2), 9, surgery) == [
        "no table of learned positions was found to repeat for max_length=9"
    ]


def test_rotary_positions_have_no_table():
    model = llama(16)
    report = swap_attention(model, "local", window=4, max_length=40)
    assert model.config.max_position_embeddings == 40
    assert report.notes[1] == "no table of learned positions was found to repeat for max_length=40"
    assert report.notes[2] == "config.max_position_embeddings is 40 instead of 16"


def test_what_is_no_plain_table_is_refused():
    model = whisper()
    before = state(model)
    with pytest.raises(UnsupportedError, match="adds the whole table"):
        swap_attention(model, "local", max_length=40)
    assert same(state(model), before)

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token, self.position_embedding = nn.Parameter(torch.zeros(1)), nn.Embedding(5, 2)

    with pytest.raises(UnsupportedError, match="may form a grid"):
        extend_positions(Patches(), 9, Surgery())


def test_taken_back():
    model = roberta(16)
    before = state(model)
    surgery = Surgery()
    extend_positions(model, 40, surgery)
    assert not same(state(model), before)
    surgery.undo()
    assert same(state(model), before)
