"""Models of Hugging Face's transformers under regard.check; see also test_loading_networks.py."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import regard
from regard.inspect import causality
from regard.inspect.check import RULES, run_rule
from regard.inspect.inputs import make_subject
from regard.inspect.tensors import noise

transformers = pytest.importorskip("transformers")
from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
    "initializer_range": 0.3,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PADDING = ("padding right", "padding left")
TRIED = ("causality", "prefix", *PADDING, "lengths", "empty rows", "train = eval", "memory = full")


def llama(**options):
    sizes = {**SIZES, "num_key_value_heads": 2, **SPECIAL, **options}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def gpt2(**options):
    sizes = {"n_embd": 16, "n_head": 4, "n_layer": 2, "vocab_size": 30, "initializer_range": 0.3, **SPECIAL, **options}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def bert(**options):
    return transformers.BertModel(transformers.BertConfig(**SIZES, **SPECIAL, **options))


def t5(**options):
    sizes = {"d_model": 16, "d_kv": 4, "num_heads": 4, "d_ff": 24, "num_layers": 2, "vocab_size": 30, **SPECIAL}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, **options)
    return transformers.T5ForConditionalGeneration(config)


def whisper():
    layers = {
        f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in (("layers", 1), ("ffn_dim", 24))
    }
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_mel_bins": 8, "init_std": 0.3}
    sizes = {"d_model": 16, "vocab_size": 30, "max_source_positions": 10, "max_target_positions": 40}
    config = transformers.WhisperConfig(**sizes, **layers, **heads, **SPECIAL, decoder_start_token_id=1)
    return transformers.WhisperForConditionalGeneration(config)


def vit():
    sizes = {key: size for key, size in SIZES.items() if key != "vocab_size"}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=4))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(causality, "PLACES", 4)
    monkeypatch.delitem(RULES, "compile")


def verdicts(model, inputs=None, rules=TRIED, **options):
    subject = make_subject(model, inputs, **options)
    return {rule: run_rule(rule, subject) for rule in rules}


def failed(model, inputs=None, rules=TRIED, **options):
    return {rule for rule, row in verdicts(model, inputs, rules, **options).items() if row.verdict == "FAIL"}


@pytest.mark.parametrize("make", [llama, gpt2, t5, whisper])
def test_what_generates_is_held_to_strict_causality_and_to_its_cache(make):
    rows = verdicts(make())
    assert {rule: row.verdict for rule, row in rows.items()} == dict.fromkeys(TRIED, "pass"), rows
    assert "17 tokens and then 16 one by one" in rows["memory = full"].explanation


def test_what_encodes_is_held_to_no_causality():
    rows = verdicts(bert())
    assert [row.name for row in rows.values() if row.verdict == "info"] == ["causality"]
    assert "output position 0 changed" in rows["causality"].explanation
    assert {rows[rule].verdict for rule in PADDING} == {"pass"}
    assert rows["memory = full"].verdict == "skipped"
    assert make_subject(bert(is_decoder=True)).claim == "strict"
    assert make_subject(llama(is_causal=False)).claim is None


def test_images_have_no_axis_of_time():
    rows = verdicts(vit(), rules=(*TRIED, "batch mates", "determinism"))
    assert rows["causality"].explanation == "not applicable: the inputs have no time axis"
    assert [rows[rule].verdict for rule in ("train = eval", "batch mates", "determinism")] == ["pass"] * 3


def test_inputs_made_here_hold_no_padding():
    subject = make_subject(t5())
    assert {name: tuple(value.shape) for name, value in subject.inputs.items()} == {
        "decoder_input_ids": (2, 33),
        "input_ids": (2, 21),
    }
    for value in subject.inputs.values():
        assert set(value.unique().tolist()) <= set(range(1, 30))
    assert (subject.mask_name, subject.mask_dtype, subject.masked) == ("attention_mask", torch.int64, ("input_ids",))
    assert make_subject(llama(max_position_embeddings=12)).inputs["input_ids"].shape == (2, 12)
    spoken = make_subject(whisper())
    assert spoken.mask_name == "decoder_attention_mask"
    assert spoken.positions == "decoder_position_ids"


def test_inputs_may_be_given():
    ids = torch.randint(1, 30, (3, 9))
    subject = make_subject(gpt2(), ids)
    assert (subject.claim, subject.mask_name, subject.positions) == ("strict", "attention_mask", "position_ids")
    given = {"input_ids": ids, "decoder_input_ids": ids.flip(1)}  # as long as each other, the encoder's first
    assert failed(t5(), given) == set()
    assert failed(t5(), given, mask_name="decoder_attention_mask") == set()
    assert failed(bert(), ids, rules=("causality",), causal="strict") == {"causality"}
    model = bert()
    model.main_input_name = "input_smells"
    with pytest.raises(ValueError, match=r"BertModel takes input_smells, .*: pass inputs as a dict"):
        regard.check(model)


def plain(module, query, key, value, allowed, scaling):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scaling
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def ignores(module, query, key, value, attention_mask, scaling=None, **_):
    return plain(module, query, key, value, None, scaling)


def keeps_padded_values(module, query, key, value, attention_mask, scaling=None, **_):
    """The commonest fault: what a padded key says is dropped, its share of the softmax is not."""
    n, m = query.shape[2], key.shape[2]
    causal = torch.ones(n, m, dtype=torch.bool).tril(m - n)[None, None]
    if attention_mask is not None:
        value = value * attention_mask[:, :1, -1:].mT
    return plain(module, query, key, value, causal if module.is_causal else None, scaling)


@pytest.fixture
def planted():
    """Two broken attention functions; the second is given its mask, as transformers asks for."""
    AttentionInterface.register("ignores", ignores)
    AttentionInterface.register("keeps", keeps_padded_values)
    AttentionMaskInterface.register("keeps", sdpa_mask)
    yield
    for name in ("ignores", "keeps"):
        AttentionInterface._global_mapping.pop(name)
    AttentionMaskInterface._global_mapping.pop("keeps")


@pytest.mark.usefixtures("planted")
def test_a_function_that_loses_its_mask_is_caught():
    rows = verdicts(llama(attn_implementation="ignores"))
    assert {rule for rule, row in rows.items() if row.verdict == "FAIL"} >= {"causality", "prefix", *PADDING}
    assert "output position 0 changed by" in rows["causality"].explanation
    assert "input position" in rows["causality"].explanation
    assert "padded on the left by" in rows["padding left"].explanation
    report = regard.check(llama(attn_implementation="ignores"))
    with pytest.raises(AssertionError, match="FAIL     causality"):
        report.raise_if_failed()
    encoder = failed(bert(attn_implementation="ignores"))
    assert encoder == set(PADDING)


@pytest.mark.usefixtures("planted")
def test_a_padding_bug_is_caught_and_nothing_else():
    assert failed(llama(attn_implementation="keeps"), rules=("causality", "prefix", *PADDING)) == {"padding left"}
    assert failed(bert(attn_implementation="keeps"), rules=PADDING) == set(PADDING)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_uniform_rows_at_padded_places_are_no_fault(implementation):
    assert failed(llama(attn_implementation=implementation), rules=(*PADDING, "empty rows")) == set()


class ForgetsWhereItIs(transformers.LlamaForCausalLM):
    def forward(self, input_ids, use_cache=None, cache=None, **others):
        if cache is not None and cache.get_seq_length():
            others["position_ids"] = torch.zeros_like(input_ids)
        return super().forward(input_ids=input_ids, use_cache=use_cache, cache=cache, **others)


def test_a_cache_that_yields_something_else_is_caught():
    row = verdicts(ForgetsWhereItIs(llama().config), rules=["memory = full"])["memory = full"]
    assert row.verdict == "FAIL"
    assert "the first one that differs is at position 17" in row.explanation


def test_the_report_says_how_it_was_tried():
    report = regard.check(llama(num_hidden_layers=1))
    assert report.ok, str(report)
    about = "\n".join(report.about)
    assert "held to 'strict' causality" in about
    assert "attention_mask in int64: True or 1 takes part; over input_ids" in about
    assert "position_ids come along with every mask" in about
    text = report.to_markdown()
    assert text.startswith("# regard check: LlamaForCausalLM\n\n**No rule is broken.**")
    assert "| padding left | Short sequences padded on the left yield what they yield alone. |" in text
    assert all(row.meaning for row in report.rows)
    broken = replace(report, rows=tuple(replace(row, verdict="FAIL") for row in report.rows[:2]))
    assert "**2 rules are broken: finite, causality.**" in broken.to_markdown()
    assert "## Failed" in broken.to_markdown()


def test_masks_may_be_integers_in_any_module():
    class Counts(nn.Module):
        def forward(self, x, keep=None):
            assert keep is None or keep.dtype == torch.int64
            weights = torch.ones(x.shape[:2]) if keep is None else keep
            return (x * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)

    options = {"mask_name": "keep", "mask_dtype": torch.int64}
    assert failed(Counts(), torch.randn(2, 9, 4), rules=PADDING, **options) == set()


def test_other_ids_are_ids_that_were_seen():
    ids = torch.tensor([[3, 900, 3, 17], [17, 3, 900, 17]], dtype=torch.int32)
    other = noise(ids)
    assert other.dtype == torch.int32
    assert set(other.unique().tolist()) <= {3, 17, 900}
    assert bool((other != ids).all())
    assert torch.equal(noise(torch.zeros(2, 3, dtype=torch.long)), torch.zeros(2, 3, dtype=torch.long))
