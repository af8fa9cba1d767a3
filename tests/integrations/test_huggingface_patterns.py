import functools
import gc
import sys

import pytest
import torch
from torch.testing import assert_close

from regard.engines import packing
from regard.integrations import huggingface
from regard.integrations.pattern_words import pattern_from_words
from regard.registry import UnsupportedError

pytest.importorskip("transformers")

from tests.integrations.huggingface_models import DECODERS, additive, inputs, model, prompts

WORDS = {
    "distances": "window-2|dilated-2-3",
    "globals": "causal&(window-1|global-2)",
    "blocks": "fixed-3-1&~strided-2|blocks-2",
}
EXTENDED = "regard:" + WORDS["globals"]


@pytest.fixture(autouse=True, scope="module")
def registered():
    huggingface.register(*WORDS.values())


def allowed(pattern, mask, causal, window=None):
    """Who may look at whom, for each sequence on its own: position 0 is its first real token."""
    n = mask.shape[1]
    pairs = torch.zeros(len(mask), 1, n, n, dtype=torch.bool)
    for row, real in enumerate(mask.bool()):
        kept = pattern.dense(int(real.sum()))
        kept = kept.tril() if causal else kept
        kept = kept if window is None else kept.triu(1 - window)
        pairs[row, 0] = pairs[row, 0].masked_scatter(real[:, None] & real, kept)
    return pairs


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bert", "roberta"])
def test_equals_eager_with_the_pattern_in_its_mask(name, words):
    net, batch = model(name), inputs(name)
    mask = batch["attention_mask"]
    pattern = pattern_from_words(WORDS[words])
    pairs = allowed(pattern, mask, name in DECODERS, 5 if name == "mistral" else None)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    results = []
    for implementation, given in (("eager", additive(pairs)), ("regard:" + WORDS[words], mask)):
        net.set_attn_implementation(implementation)
        net.zero_grad()
        places = {"position_ids": positions} if name in DECODERS else {}
        out = net(**batch | places | {"attention_mask": given})
        out.loss.backward()
        results.append(
            (out.logits[mask.bool()], {key: p.grad for key, p in net.named_parameters() if p.grad is not None})
        )
    (theirs, their_gradients), (ours, our_gradients) = results
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    largest = max(gradient.abs().max() for gradient in their_gradients.values())
    assert our_gradients.keys() == their_gradients.keys()
    for key, gradient in their_gradients.items():
        assert_close(our_gradients[key] / largest, gradient / largest, rtol=0, atol=1e-5, msg=key)


@pytest.mark.parametrize("words", WORDS)
def test_images_take_patterns_too(words):
    net, batch = model("vit"), inputs("vit")
    pairs = allowed(pattern_from_words(WORDS[words]), torch.ones(1, 17), causal=False)[0, 0]
    net.set_attn_implementation("regard:" + WORDS[words])
    maps = net(**batch, output_attentions=True).attentions
    assert ((maps[0] > 0) == pairs).all()
    assert_close(maps[0].sum(-1), torch.ones(2, 4, 17))


def test_cross_attention_keeps_the_models_mask():
    net, batch = model("t5"), inputs("t5")
    net.set_attn_implementation("regard:" + WORDS["distances"])
    found = net(**batch, output_attentions=True)
    real = batch["attention_mask"][:, None, None].expand(-1, 4, 6, -1).bool()
    assert ((found.cross_attentions[0] > 0) == real).all()
    assert (found.encoder_attentions[0] == 0).sum() > 3 * 4 * 9


@pytest.mark.parametrize(
    ("name", "words", "how"),
    [
        *(("llama", words, {}) for words in WORDS),
        *(("llama", words, {"cache_implementation": "static"}) for words in WORDS),
        *(("gemma2", "globals", how) for how in ({"num_beams": 3}, {"cache_implementation": "static"})),
        ("gpt_oss", "blocks", {}),
        ("gpt2", "globals", {"num_beams": 2}),
    ],
)
def test_generates_with_a_cache_what_it_generates_without(name, words, how):
    net, prompt = model(name), prompts(name)
    net.set_attn_implementation("regard:" + WORDS[words])
    options = {"max_new_tokens": 4, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    beams = {key: value for key, value in how.items() if key == "num_beams"}
    slow, quick = net.generate(**prompt, **options, **beams, use_cache=False), net.generate(**prompt, **options, **how)
    assert quick.sequences.tolist() == slow.sequences.tolist()
    for score, expected in zip(quick.scores, slow.scores, strict=True):
        assert_close(score, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize(("name", "left"), [("mistral", 0), ("mistral", 2), ("gemma2", 2)])
def test_a_sliding_cache_in_pieces_is_one_pass(name, words, left):
    from transformers import DynamicCache

    net = model(name)
    net.set_attn_implementation("regard:" + WORDS[words])
    ids, mask = torch.randint(3, 50, (2, 14), generator=torch.Generator().manual_seed(3)), torch.ones(2, 14).long()
    mask[0, :left] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    whole = net(ids, attention_mask=mask, position_ids=places, use_cache=False).logits
    cache, pieces = DynamicCache(config=net.config), []
    for start, stop in ((0, 4), (4, 8), (8, 13), (13, 14)):
        part = net(ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=places[:, start:stop], cache=cache)
        pieces.append(part.logits)
    assert_close(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("words", WORDS)
def test_padding_on_the_left_changes_nothing(words):
    net, prompt = model("llama"), prompts("llama")
    net.set_attn_implementation("regard:" + WORDS[words])
    padded = net.generate(**prompt, max_new_tokens=4, do_sample=False)[0, 3:]
    alone = net.generate(prompt["input_ids"][:1, 3:], max_new_tokens=4, do_sample=False)[0]
    assert padded.tolist() == alone.tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_nothing_leaks(name):
    net = model(name)
    ids = prompts(name)["input_ids"][1:]
    changed = ids.clone()
    changed[:, 5:] = changed[:, 5:].flip(1) + 1 - 2 * (changed[:, 5:].flip(1) > 40)
    assert not changed[:, 5:].equal(ids[:, 5:])
    for words in (*WORDS.values(), "~causal|full"):
        huggingface.use(net, f"regard:{words}")
        before, after = net(ids).logits, net(changed).logits
        assert before[:, :5].equal(after[:, :5])
        assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_patterns_of_a_whole_sequence_refuse_padding_and_caches():
    net, ids = model("llama"), prompts("llama")["input_ids"]
    huggingface.use(net, "regard:bigbird-2-1-2-1")
    assert net(ids[1:], use_cache=False).logits.isfinite().all()
    for refused in (lambda: net(**prompts("llama")), lambda: net.generate(ids[1:], max_new_tokens=3, do_sample=False)):
        with pytest.raises(UnsupportedError, match="laid out over the whole sequence"):
            refused()


def test_positions_that_nobody_knows_are_refused():
    from transformers import DynamicCache

    net, ids = model("llama"), prompts("llama")["input_ids"][1:]
    net.set_attn_implementation(EXTENDED)
    cache = DynamicCache(config=net.config)
    net(ids[:, :5], cache=cache)
    with pytest.raises(UnsupportedError, match=r"a 4-D mask of 4 x 9 does not say where"):
        net(ids[:, 5:], attention_mask=torch.ones(2, 1, 4, 9, dtype=torch.bool), cache=cache)


def test_blanks_in_an_expression_do_not_matter():
    assert "regard:causal&window-9" in huggingface.register(" causal & window-9 ")


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(reentrant):
    net, batch = model("llama").train(), inputs("llama") | {"use_cache": False}
    net.set_attn_implementation(EXTENDED)
    gradients = []
    for _ in range(2):
        net.zero_grad()
        net(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
        net.activation_checkpointing_enable({"use_reentrant": reentrant})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_the_backward_pass_finds_its_pattern_however_late():
    net, batch = model("llama"), inputs("llama")
    net.set_attn_implementation(EXTENDED)
    loss = net(**batch).loss
    modules = [part for name, part in sys.modules.items() if name.startswith("regard.engines.")]
    for cached in [value for part in modules for value in vars(part).values() if hasattr(value, "cache_clear")]:
        cached.cache_clear()
    packing._held.clear()
    gc.collect()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("implementation", ["regard", "regard:" + WORDS["distances"], EXTENDED])
@pytest.mark.slow
def test_compiles_in_one_graph(implementation, padded):
    torch._dynamo.reset()
    net, batch = model("llama"), prompts("llama")
    batch = batch if padded else {"input_ids": batch["input_ids"]}
    net.set_attn_implementation(implementation)
    expected = net(**batch, use_cache=False).logits
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    keep = batch.get("attention_mask", torch.ones(3, 9)).bool()
    assert_close(compiled(**batch, use_cache=False).logits[keep], expected[keep], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["regard", "regard:" + WORDS["distances"], EXTENDED])
@pytest.mark.slow
def test_generates_with_a_compiled_step(implementation):
    from transformers import CompileConfig

    torch._dynamo.reset()
    net, prompt = model("llama"), prompts("llama")
    net.set_attn_implementation(implementation)
    generate = functools.partial(
        net.generate, **prompt, max_new_tokens=5, do_sample=False, cache_implementation="static"
    )
    compiling = CompileConfig(backend="aot_eager", fullgraph=True, mode=None)
    compiling._compile_all_devices = True
    assert generate(compile_config=compiling).tolist() == generate(disable_compile=True).tolist()
