"""Attention of torch, of timm and of our own models is replaced without a trace in what calls it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import regard
from regard.registry import UnsupportedError
from regard.swap import swap_attention
from tests.swap.models import LEFT, RIGHT, Blocks, FusedAttention, decoder, encoder, same, state

CAUSAL = torch.full((12, 12), -torch.inf).triu(1)


def source(batch_first=True):
    x = torch.randn(2, 12, 24)
    return x if batch_first else x.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, RIGHT, LEFT])
def test_exact_in_an_encoder(batch_first, mask):
    model, x = encoder(batch_first), source(batch_first)
    padding = None if mask is None else ~mask
    before = model(x, src_key_padding_mask=padding)
    report = swap_attention(model, "multi_head", batch={"src": x, "src_key_padding_mask": padding})
    after = model(x, src_key_padding_mask=padding)
    real = torch.ones(2, 12, dtype=torch.bool) if mask is None else mask
    real = real if batch_first else real.mT
    assert_close(after[real], before[real], rtol=0, atol=1e-5)
    assert [row.verdict for row in report.rows] == ["exact"] * 2
    assert report.ok
    assert report.output_error < 1e-5
    assert max(row.kl for row in report.rows) < 1e-9


def test_window_over_everything_is_full():
    model, x = encoder(), source()
    before = model(x)
    for mechanism, options in [("local", {"window": 12}), ("longformer", {"window": 12}), ("window-12", {})]:
        report = swap_attention(copy.deepcopy(model), mechanism, max_length=12, **options)
        assert [row.verdict for row in report.rows] == ["exact by construction"] * 2
        assert_close(report.model(x), before, rtol=0, atol=1e-5)
    report = swap_attention(copy.deepcopy(model), "local", window=3, max_length=12)
    assert [row.verdict for row in report.rows] == ["not measured"] * 2
    assert not report.ok


def test_decoder_with_its_mask_and_its_memory():
    model, x, memory = decoder(), source(), torch.randn(2, 9, 24)
    call = {"tgt": x, "memory": memory, "tgt_mask": CAUSAL}
    before = model(**call)
    alone = swap_attention(copy.deepcopy(model), "local", window=12, causal=True, batch=call)
    assert_close(alone.model(**call), before, rtol=0, atol=1e-5)
    left = [row for row in alone.rows if row.verdict == "left alone"]
    assert [row.name for row in left] == ["layers.0.multihead_attn", "layers.1.multihead_attn"]
    assert all("cross" in row.note for row in left)
    both = swap_attention(model, "multi_head", causal=True, cross=True, batch=call)
    assert_close(model(**call), before, rtol=0, atol=1e-5)
    assert [row.verdict for row in both.rows] == ["exact"] * 4


def test_a_causal_mask_needs_a_causal_attention():
    model, call = decoder(), {"tgt": source(), "memory": torch.randn(2, 9, 24), "tgt_mask": CAUSAL}
    before = state(model)
    with pytest.raises(UnsupportedError, match="pass causal=True"):
        swap_attention(model, "local", window=12, batch=call)
    assert same(state(model), before)
    with pytest.raises(UnsupportedError, match="nystrom cannot be causal"):
        swap_attention(model, "nystrom", causal=True)
    swap_attention(model, "local", window=12, causal=True)
    with pytest.raises(UnsupportedError, match="sees the future"):
        model(call["tgt"], call["memory"])
    with pytest.raises(UnsupportedError, match="more or less than padding"):
        model(call["tgt"], call["memory"], tgt_mask=CAUSAL.roll(1, 0))


def test_one_module_by_itself():
    x = torch.randn(12, 2, 24)
    attention = nn.MultiheadAttention(24, 3).eval()
    before, weights = attention(x, x, x, average_attn_weights=False)
    report = swap_attention(attention, "multi_head")
    after, maps = report.model(x, x, x, average_attn_weights=False)
    assert_close(after, before, rtol=0, atol=1e-5)
    assert_close(maps, weights, rtol=0, atol=1e-5)
    assert_close(report.model(x, x, x)[1], weights.mean(1), rtol=0, atol=1e-5)
    one = x[:, 0]
    assert_close(report.model(one, one, one)[0], attention(one, one, one)[0], rtol=0, atol=1e-5)
    assert report.model(x, x, x, need_weights=False)[1] is None
    with pytest.raises(UnsupportedError, match="different tensors"):
        report.model(x, x, x.clone())


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"qkv_bias": False}])
def test_exact_in_timm_like_blocks(options):
    model, x = Blocks(*(FusedAttention(24, 3, **options) for _ in range(2))).eval(), source()
    before, causal = model(x), model(x, is_causal=True)
    masked = model(x, attn_mask=RIGHT[:, None, None])
    new = swap_attention(copy.deepcopy(model), "full", batch=x)
    assert [row.kind for row in new.rows] == ["fused qkv"] * 2
    assert new.ok
    assert_close(new.model(x), before, rtol=0, atol=1e-5)
    assert_close(new.model(x, attn_mask=RIGHT[:, None, None])[RIGHT], masked[RIGHT], rtol=0, atol=1e-5)
    with pytest.raises(UnsupportedError, match="pass causal=True"):
        new.model(x, is_causal=True)
    new = swap_attention(model, "full", causal=True, batch={"x": x, "is_causal": True})
    assert_close(model(x, is_causal=True), causal, rtol=0, atol=1e-5)


def test_exact_in_our_own_model():
    tokens = torch.randint(50, (2, 12))
    model = regard.models.TransformerLM(50, 24, 2, 3, 16).eval()
    before = model(tokens)
    report = swap_attention(model, "local", window=16, batch=tokens, max_length=32)
    assert report.ok
    assert [row.kind for row in report.rows] == ["regard"] * 2
    assert_close(model(tokens), before, rtol=0, atol=1e-5)
    assert model(torch.randint(50, (1, 32))).shape == (1, 32, 50)
    memory = model.memory(2)
    streamed, memory = model.stream(tokens, memory)
    assert_close(streamed, before, rtol=0, atol=1e-5)


def test_what_is_kept():
    model = Blocks(FusedAttention(24, 3, attn_drop=0.2, proj_drop=0.3), nn.Identity()).double().train()
    model.layers[0]["attn"].qkv.requires_grad_(False)
    model.layers[0]["attn"].eval()
    swap_attention(model, "local", window=3)
    new = model.layers[0]["attn"]
    assert not new.training
    assert not new.attention.training
    assert model.training
    assert new.attention.core.attn_drop == 0.2
    assert new.proj_drop.p == 0.3
    assert {value.dtype for value in new.parameters()} == {torch.float64}
    frozen = {name for name, value in new.named_parameters() if not value.requires_grad}
    assert frozen == {f"attention.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")}


def test_dropout_that_is_lost_is_said():
    report = swap_attention(encoder(), "linear_transformer")
    assert {row.note for row in report.rows} == {
        "its dropout of 0.1 on the weights is gone: it never forms weights that could be dropped"
    }


@pytest.mark.parametrize("layers", [["layers.1.self_attn"], [1], [-1], lambda name, _: "1" in name])
def test_some_layers(layers):
    model = encoder()
    report = swap_attention(model, "local", window=2, layers=layers)
    assert [row.verdict for row in report.rows] == ["left alone", "not measured"]
    assert isinstance(model.layers[0].self_attn, nn.MultiheadAttention)
    assert report.to_dict()["rows"][0]["note"] == "not chosen"


def test_layers_that_do_not_exist():
    with pytest.raises(ValueError, match=r"did you mean layers\.1\.self_attn"):
        swap_attention(encoder(), "local", layers=["layers.1.self_attention"])
    with pytest.raises(ValueError, match="no attention number 2: the model has 2"):
        swap_attention(encoder(), "local", layers=[2])
    with pytest.raises(TypeError, match="pass a list"):
        swap_attention(encoder(), "local", layers="layers.1.self_attn")


def test_a_dry_run_changes_nothing_and_says_the_same():
    model, x = encoder().train(), source()
    before, random = state(model), torch.get_rng_state()
    options = {"batch": x, "num_features": 8, "generator": torch.Generator().manual_seed(3)}
    dry = swap_attention(model, "performer", dry_run=True, **options)
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert dry.model is model
    assert "nothing was changed" in str(dry)
    wet = swap_attention(model, "performer", **options)
    assert dry.rows == wet.rows
    assert dry.output_error == wet.output_error
    assert not same(state(model), before)


def test_a_dry_run_on_meta():
    with torch.device("meta"):
        model = encoder()
    report = swap_attention(model, "longformer", window=4, dry_run=True)
    assert [row.verdict for row in report.rows] == ["not measured"] * 2
    assert isinstance(model.layers[0].self_attn, nn.MultiheadAttention)


class Odd(nn.Module):
    """Called like timm's attention, but sharper."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.num_heads = nn.Linear(24, 72), nn.Linear(24, 24), 3

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj((q @ k.mT).softmax(-1) @ v)


def test_what_cannot_be():
    model = encoder()
    before = state(model)
    with pytest.raises(TypeError, match="local has no option 'windw'"):
        swap_attention(model, "local", windw=3)
    with pytest.raises(UnsupportedError, match=r"reformer cannot take over.*its queries are its keys"):
        swap_attention(model, "reformer")
    with pytest.raises(UnsupportedError, match="talk_convolutions cannot take over"):
        swap_attention(model, "talk_convolutions")
    with pytest.raises(UnsupportedError, match=r"later tokens influence which keys.*strict=True"):
        swap_attention(model, "informer", causal=True)
    with pytest.raises(TypeError, match="the batch is a set"):
        swap_attention(model, "local", batch={1})
    with pytest.raises(UnsupportedError, match="no attention that could be replaced"):
        swap_attention(nn.Linear(3, 3), "local")
    with pytest.raises(UnsupportedError, match="does not compute what it computes"):
        swap_attention(Blocks(Odd()), "local")
    with pytest.raises(UnsupportedError, match="keys that no token has"):
        swap_attention(nn.MultiheadAttention(24, 3, add_zero_attn=True), "local")
    assert same(state(model), before)


def test_an_error_half_way_leaves_the_model_as_it_was():
    model, x = encoder(), source()
    before = state(model)
    with pytest.raises(ValueError, match="max_length=8"):
        swap_attention(model, "linformer", max_length=8, rank=4, batch=x)
    assert same(state(model), before)


def test_saved_copied_and_pickled():
    model, x = encoder(), source()
    fresh = copy.deepcopy(model)
    swap_attention(model, "performer", num_features=8)
    expected = model(x)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        swap_attention(fresh, "performer", num_features=8)
    assert not torch.equal(fresh(x), expected)
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)


def test_it_compiles_as_one_graph():
    model, x = encoder(), source()
    swap_attention(model, "local", window=2)
    expected = model(x, src_key_padding_mask=~RIGHT)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, src_key_padding_mask=~RIGHT), expected, rtol=0, atol=1e-5)


def test_gradients_reach_everything():
    model = encoder().train()
    swap_attention(model, "longformer", window=3)
    model(source()).square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


def test_linears_of_global_tokens_start_as_the_local_ones():
    model = encoder()
    swap_attention(model, "longformer", window=3)
    new = model.layers[0].self_attn.attention
    for part in "qkv":
        ours, theirs = (getattr(new, f"{part}_{kind}") for kind in ("global", "proj"))
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)
        assert ours.weight is not theirs.weight
