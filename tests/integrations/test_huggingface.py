import pytest
import torch
from torch.testing import assert_close

from regard.integrations import huggingface
from regard.registry import UnsupportedError

pytest.importorskip("transformers")

from tests.integrations.huggingface_models import DECODERS, NAMES, additive, inputs, model, prompts

MAPS = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")


@pytest.fixture(autouse=True, scope="module")
def registered():
    huggingface.register()


def run(net, implementation, batch, **options):
    huggingface.use(net, implementation) if implementation != "eager" else net.set_attn_implementation("eager")
    net.zero_grad()
    out = net(**batch, **options)
    out.loss.backward()
    return out, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def real(tensor, batch, dim):
    """What belongs to real tokens: eager gives an average to those that may look at nothing, we give 0."""
    mask = batch.get("attention_mask")
    if mask is None or tensor.shape[dim] != mask.shape[1]:
        return tensor
    shape = [1] * tensor.ndim
    shape[0], shape[dim] = mask.shape
    return tensor.masked_fill(mask.view(shape) == 0, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_logits_gradients_and_maps_equal_eagers(name):
    net, batch = model(name), inputs(name)
    theirs, their_gradients = run(net, "eager", batch, output_attentions=True)
    ours, our_gradients = run(net, "regard", batch, output_attentions=True)
    assert_close(real(ours.logits, batch, 1), real(theirs.logits, batch, 1), rtol=1e-5, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    largest = max(gradient.abs().max() for gradient in their_gradients.values())
    for parameter, gradient in their_gradients.items():
        assert_close(our_gradients[parameter] / largest, gradient / largest, rtol=0, atol=1e-5, msg=parameter)
    counted = 0
    for kind in MAPS:
        for ours_map, their_map in zip(ours.get(kind) or (), theirs.get(kind) or (), strict=True):
            assert_close(real(ours_map, batch, 2), real(their_map, batch, 2), rtol=0, atol=1e-5)
            counted += 1
    assert counted == (6 if name in ("t5", "whisper") else 2)


HOW = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
    "again": {"use_cache": False},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", [*DECODERS, "t5", "whisper"])
def test_generates_what_eager_generates(name, how):
    net, prompt = model(name), prompts(name)
    options = {"max_new_tokens": 6, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    net.set_attn_implementation("eager")
    theirs = net.generate(**prompt, **options, **HOW[how])
    net.set_attn_implementation("regard")
    ours = net.generate(**prompt, **options, **HOW[how])
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for score, expected in zip(ours.scores, theirs.scores, strict=True):
        assert_close(score, expected, rtol=1e-4, atol=1e-4)


def test_assisted_decoding_gives_the_same_tokens():
    net, helper, prompt = model("llama"), model("llama", num_hidden_layers=1), {"input_ids": torch.tensor([[5, 6, 7]])}
    for part in (net, helper):
        part.set_attn_implementation("regard")
    plain = net.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert net.generate(**prompt, max_new_tokens=6, do_sample=False, assistant_model=helper).tolist() == plain.tolist()


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_takes_a_mask_for_each_pair(kind):
    net = model("llama")
    ids = inputs("llama")["input_ids"]
    allowed = (torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(2)) < 0.6).tril() | torch.eye(9).bool()
    net.set_attn_implementation("eager")
    expected = net(ids, attention_mask=additive(allowed)).logits
    net.set_attn_implementation("regard")
    given = allowed if kind == "bool" else additive(allowed)
    assert_close(net(ids, attention_mask=given).logits, expected, rtol=1e-5, atol=1e-5)


def test_packed_sequences_do_not_see_each_other():
    net = model("llama")
    batch = {"input_ids": inputs("llama")["input_ids"], "use_cache": False}
    batch["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 3)
    net.set_attn_implementation("eager")
    expected = net(**batch).logits
    net.set_attn_implementation("regard")
    assert_close(net(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    assert_close(net(batch["input_ids"][:, 4:]).logits, expected[:, 4:], rtol=1e-5, atol=1e-5)


def test_a_decoder_made_bidirectional_looks_ahead():
    net, batch = model("llama", is_causal=False), {"input_ids": inputs("llama")["input_ids"]}
    net.set_attn_implementation("eager")
    expected = net(**batch).logits
    net.set_attn_implementation("regard")
    assert_close(net(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    assert not any(site.causal for site in huggingface.sites(net).values())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(reentrant):
    net, batch = model("llama").train(), inputs("llama")
    _, plain = run(net, "regard", batch)
    net.activation_checkpointing_enable({"use_reentrant": reentrant})
    _, again = run(net, "regard", batch, use_cache=False)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert_close(again[name], gradient, rtol=1e-5, atol=1e-6)


def test_drops_weights_in_training_only():
    net, ids = model("llama", attention_dropout=0.5), inputs("llama")["input_ids"]
    net.set_attn_implementation("regard")
    assert net(ids).logits.equal(net(ids).logits)
    net.train()
    assert not net(ids).logits.equal(net(ids).logits)


def attention(net):
    return huggingface.sites(net)["model.layers.0.self_attn"].module


def call(**options):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    module = attention(model("llama"))
    return ALL_ATTENTION_FUNCTIONS["regard"](module, q, k, v, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": None}, "causal and makes no mask: where its 5 queries stand among 9 keys"),
        ({"attention_mask": torch.ones(1, 9, dtype=torch.bool)}, "mask of 2 dimensions"),
        ({"attention_mask": object()}, "the type object"),
        ({"attention_mask": None, "is_causal": False, "sliding_window": 3}, "sliding_window=3, no mask"),
        ({"attention_mask": None, "is_causal": False, "head_mask": torch.ones(4)}, "head_mask.*gate_heads"),
        ({"attention_mask": None, "is_causal": False, "cu_seq_lens_q": torch.ones(4)}, "packed sequences"),
        ({"attention_mask": None, "is_causal": False, "dropuot": 0.5}, "dropuot.*not known to change nothing"),
    ],
)
def test_what_would_change_the_result_is_refused(options, message):
    with pytest.raises(UnsupportedError, match=message):
        call(**options)


def test_harmless_arguments_and_none_are_let_through():
    out, weights = call(attention_mask=None, is_causal=False, position_ids=torch.arange(5), head_mask=None)
    assert out.shape == (1, 5, 4, 8)
    assert out.is_contiguous()
    assert weights is None


def test_without_a_mask_the_arguments_decide():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    q, k, v = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    allowed = torch.ones(6, 6, dtype=torch.bool).tril().triu(-2)
    module = attention(model("llama"))
    out, _ = ALL_ATTENTION_FUNCTIONS["regard"](module, q, k, v, None, sliding_window=3, scaling=0.5)
    full = torch.nn.functional.scaled_dot_product_attention(q, k, v, allowed, scale=0.5, enable_gqa=True)
    assert_close(out, full.transpose(1, 2))


def test_models_that_ignore_the_interface_raise():
    from transformers import LongformerConfig, LongformerModel

    sizes = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 12}
    net = LongformerModel(LongformerConfig(vocab_size=20, attention_window=4, **sizes))
    for act in (
        huggingface.sites,
        lambda net: huggingface.use(net, "regard"),
        lambda net: huggingface.attach(net, "full"),
    ):
        with pytest.raises(UnsupportedError, match=r"LongformerModel.*does not call transformers' attention interface"):
            act(net)


def test_a_model_that_ignores_the_interface_in_part_raises():
    net = model("llama")
    net.more = torch.nn.Module()
    net.more.query, net.more.key, net.more.value, net.more.out_proj = (torch.nn.Linear(8, 8) for _ in range(4))
    net.more.num_heads = 2
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM: more does not call"):
        huggingface.sites(net)


def test_sites_know_heads_widths_and_directions():
    found = huggingface.sites(model("whisper"))
    facts = {name.rpartition("layers.")[2]: (site.causal, site.cross, site.max_length) for name, site in found.items()}
    assert facts["0.encoder_attn"] == (False, True, 40)
    assert {(site.num_heads, site.num_kv_heads, site.head_dim) for site in found.values()} == {(4, 4, 8)}
    assert found["model.encoder.layers.0.self_attn"].causal is False
    assert found["model.decoder.layers.0.self_attn"].causal is True
    llama = huggingface.sites(model("llama"))["model.layers.1.self_attn"]
    assert (llama.num_heads, llama.num_kv_heads, llama.head_dim, llama.max_length) == (4, 2, 8, 2048)
    t5 = huggingface.sites(model("t5"))
    assert [site.cross for name, site in t5.items() if name.endswith("EncDecAttention")] == [True, True]
    assert [site.causal for name, site in t5.items() if name.endswith("SelfAttention")] == [False, False, True, True]


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="no pattern is called 'regrad'"):
        huggingface.use(model("llama"), "regard:regrad")


def test_a_missing_transformers_is_told_with_the_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers.masking_utils", None)
    with pytest.raises(ImportError, match=r"pip install 'regard\[transformers\]'"):
        huggingface.register()


def test_registering_twice_is_harmless():
    assert huggingface.register() == huggingface.register()
