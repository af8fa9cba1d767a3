"""The numbers of the report against numbers worked out by hand."""

import json
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import regard
from regard.swap import swap_attention
from regard.swap.comparing import divergence, output_errors, overlap
from tests.swap.models import Blocks, FusedAttention


def test_divergence_by_hand():
    old = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    new = torch.tensor([[0.25, 0.0, 0.75, 0.0], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    first = 0.5 * math.log(2) + 0.25 * math.log(0.25 / 1e-6) + 0.25 * math.log(1 / 3)
    assert_close(divergence(old, new), torch.tensor([first, math.log(2)]).double(), rtol=1e-6, atol=0)
    assert_close(divergence(old[:1], old[:1] * 3), torch.zeros(1).double())  # rows need not sum to 1
    assert divergence(old[:1], torch.tensor([[0.5, 0.5, 0.5, -0.5]])).isfinite().all()
    tiny = torch.tensor([[1.0, 1e-9]])
    assert_close(divergence(tiny, tiny), torch.zeros(1).double())


def test_overlap_by_hand():
    old = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.6, 0.4, 0.0, 0.0]])
    new = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.5, 0.0]])
    assert overlap(old, new, most=2).tolist() == [0.0, 0.5]
    assert overlap(old, new, most=3).tolist() == pytest.approx([2 / 3, 0.5])
    assert overlap(old, new).tolist() == [1.0, 0.5]
    only = torch.tensor([[0.0, 0.0, 0.0, 1.0]])  # keys without weight are in nobody's top
    assert overlap(old[:1], only).tolist() == [0.25]


def test_error_by_hand():
    old, new = torch.tensor([[1.0, -4.0], [2.0, 100.0]]), torch.tensor([[1.5, -4.0], [2.0, 0.0]])
    assert output_errors(new, old, torch.tensor([True, False])) == (0.125, pytest.approx(0.5 / 17**0.5))
    assert output_errors(new, old)[0] == 1.0
    assert output_errors(new, torch.zeros(2, 2))[0] == 4.0


@torch.no_grad()
def test_a_window_against_the_map_itself():
    model, x = Blocks(FusedAttention(24, 3)).eval(), torch.randn(2, 12, 24)
    attention, inside = model.layers[0]["attn"], model.layers[0]["norm"](x)
    q, k, v = attention.qkv(inside).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    near = (torch.arange(12)[:, None] - torch.arange(12)).abs() <= 2
    scores = q @ k.mT / 8**0.5
    old, new = scores.softmax(-1), scores.masked_fill(~near, -torch.inf).softmax(-1)
    expected = (old * (old / new.clamp(min=1e-6)).log()).sum(-1).mean()
    outs = [attention.proj((weights @ v).transpose(1, 2).flatten(2)) for weights in (old, new)]
    shared = torch.zeros_like(old).scatter(-1, old.topk(10).indices, 1.0) * near  # at most five keys: all are heaviest
    row = swap_attention(model, "local", window=2, batch=x).rows[0]
    assert row.kl == pytest.approx(float(expected), rel=1e-4)
    assert row.overlap == pytest.approx(float(shared.sum(-1).mean() / 10), rel=1e-5)
    assert row.error == pytest.approx(float((outs[1] - outs[0]).abs().max() / outs[0].abs().max()), rel=1e-4)
    assert row.rms == pytest.approx(float((outs[1] - outs[0]).norm() / outs[0].norm()), rel=1e-4)
    assert row.verdict == "approximate"


def test_tolerance():
    model, x = Blocks(FusedAttention(24, 3)).eval(), torch.randn(2, 12, 24)
    loose = swap_attention(model, "local", window=2, batch=x, tolerance=10.0, dry_run=True)
    assert loose.ok
    assert loose.rows[0].verdict == "within tolerance"
    tight = swap_attention(model, "local", window=2, batch=x, dry_run=True)
    assert not tight.ok
    assert tight.rows[0].verdict == "approximate"


def test_padding_counts_nowhere():
    model, x = nn.MultiheadAttention(24, 3, batch_first=True).eval(), torch.randn(2, 12, 24)
    mask = torch.arange(12) >= torch.tensor([[12], [7]])
    call = {"query": x, "key": x, "value": x, "key_padding_mask": mask, "need_weights": False}
    rows = []
    for noise in (0.0, 100.0):
        x[mask] = noise
        rows.append(swap_attention(model, "local", window=2, batch=call, dry_run=True).rows)
    assert rows[0] == rows[1]


def test_layers_without_a_map_say_so():
    model, x = Blocks(FusedAttention(24, 3)).eval(), torch.randn(2, 12, 24)
    report = swap_attention(model, "memory_compressed", batch=x)
    row = report.rows[0]
    assert row.kl is None
    assert row.overlap is None
    assert row.note.startswith("no map: memory_compressed")
    assert row.error is not None
    assert "note 1: no map" in str(report)


def test_the_report_reads_and_travels():
    model, x = Blocks(FusedAttention(24, 3), FusedAttention(24, 3)).eval(), torch.randn(2, 12, 24)
    report = swap_attention(model, "window-2|global-1", batch=x, layers=[1])
    text = str(report).splitlines()
    assert text[0] == "window-2|global-1 in 1 of 2 attentions of Blocks"
    assert text[1].split("  ")[0] == "attention"
    assert text[1].endswith("note")
    assert text[2].split() == ["layers.0.attn", "left", "alone", "-", "-", "-", "-", "1"]
    assert text[4] == "note 1: not chosen"
    told = json.loads(report.to_json())
    assert told["rows"][1]["name"] == "layers.1.attn"
    assert told["ok"] is False
    assert told["output_error"] > 0
    assert isinstance(model.layers[1]["attn"].attention, regard.MultiHead)
