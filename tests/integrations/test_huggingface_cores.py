import copy
import io

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.integrations import huggingface
from regard.integrations.huggingface.cores import core_names
from regard.registry import Core, UnsupportedError

pytest.importorskip("transformers")

from tests.integrations.huggingface_models import inputs, model, prompts

OPTIONS = {  # small enough to matter on nine tokens
    "bigbird": {"block": 2, "random": 1},
    "bpt": {"step": 2},
    "clustered": {"clusters": 3, "topk": 4},
    "informer": {"strict": True},
    "jukebox": {"row_length": 4},
    "local": {"window": 2},
    "nystrom": {"num_landmarks": 4},
    "performer": {"num_features": 16},
    "smyrf": {"cluster_size": 4},
    "sparse_transformer": {"stride": 3, "columns": 1},
}
NEVER_CAUSAL = ("clustered", "linformer", "nystrom", "smyrf")
ALWAYS_CAUSAL = ("slim_performer",)
NEEDS_MORE = {"linformer": {"rank": 4}}
CAUSAL = sorted(set(core_names()) - set(NEVER_CAUSAL))
BOTH_WAYS = sorted(set(core_names()) - set(ALWAYS_CAUSAL))


def attached(family, name, **options):
    net = model(family)
    options = OPTIONS.get(name, {}) | NEEDS_MORE.get(name, {}) | options
    torch.manual_seed(3)
    huggingface.attach(net, name, **options)
    return net


def bidirectional(name):
    options = {"strict": False} if name == "informer" else {}
    return attached("bert", name, **options)


def test_names_are_those_of_the_registry():
    with_core = [name for name in regard.names() if issubclass(regard.factory.find(name).cls, Core)]
    assert core_names() == with_core
    assert {f"regard:{name}" for name in with_core} <= set(huggingface.register())


@pytest.mark.parametrize("name", CAUSAL)
def test_nothing_leaks(name):
    net, ids = attached("llama", name), prompts("llama")["input_ids"][1:]
    changed = ids.clone()
    changed[:, 5:] = changed[:, 5:] % 40 + 7
    before, after = net(ids).logits, net(changed).logits
    assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-5)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_prompt_and_steps_are_one_pass(name):
    net, ids = attached("llama", name), prompts("llama")["input_ids"][1:]
    whole = net(ids, use_cache=False).logits
    found = net(ids[:, :5])
    pieces = [found.logits]
    for start, stop in ((5, 8), (8, 9)):
        found = net(ids[:, start:stop], cache=found.cache)
        pieces.append(found.logits)
    assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", CAUSAL)
def test_generates_behind_padding_what_it_generates_alone(name, how):
    net, prompt = attached("llama", name), prompts("llama")
    padded = net.generate(**prompt, max_new_tokens=3, do_sample=False, **how)[0, 3:]
    alone = net.generate(prompt["input_ids"][:1, 3:], max_new_tokens=3, do_sample=False, use_cache=False)[0]
    assert padded.tolist() == alone.tolist()


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_padding_on_the_right_changes_nothing(name):
    net, batch = bidirectional(name), inputs("bert")
    torch.manual_seed(5)
    padded = net(batch["input_ids"][:1], attention_mask=batch["attention_mask"][:1]).logits[:, :6]
    torch.manual_seed(5)
    assert_close(padded, net(batch["input_ids"][:1, :6]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_every_parameter_learns(name):
    net, batch = bidirectional(name), inputs("bert")
    net(**batch).loss.backward()
    cores = [site.module.regard_core for site in huggingface.sites(net).values()]
    learnt = {parameter for core in cores for parameter in core.parameters()}
    assert learnt <= set(net.parameters())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learnt)


@pytest.mark.parametrize("name", ["full", "linear_transformer", "local", "linformer"])
def test_maps_are_the_weights_that_act(name):
    net = bidirectional(name)
    site = next(iter(huggingface.sites(net).values()))
    seen = []
    site.module.regard_core.register_forward_hook(lambda core, args, out: seen.append((args[2], out)))
    weights = net(**inputs("bert"), output_attentions=True).attentions[0]
    values, out = seen[0]
    assert weights.shape == (3, 4, 9, 9)
    assert_close(weights @ values, out, rtol=1e-4, atol=1e-5)


def test_full_is_exact():
    net, batch = model("llama"), prompts("llama")
    net.set_attn_implementation("eager")
    keep = batch["attention_mask"].bool()
    expected = net(**batch).logits[keep]
    huggingface.attach(net, "full")
    assert_close(net(**batch).logits[keep], expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        scaled = model("whisper")
        scaled.set_attn_implementation("eager")
        expected = scaled(**inputs("whisper")).logits
        huggingface.attach(scaled, "full")
        assert_close(scaled(**inputs("whisper")).logits, expected, rtol=1e-5, atol=1e-5)


def test_only_some_layers_and_off_again():
    net, batch = model("bert"), inputs("bert")
    huggingface.use(net, "regard")
    exact = net(**batch).logits
    first, second = huggingface.sites(net)
    assert list(huggingface.attach(net, "linear_transformer", only=[second])) == [second]
    changed = net(**batch, output_hidden_states=True)
    assert not changed.logits.allclose(exact)
    huggingface.attach(net, lambda site: regard.core("local", window=1), only=first)
    assert huggingface.detach(net, only=[first]) == [first]
    assert net(**batch).logits.equal(changed.logits)
    assert huggingface.detach(net) == [second]
    assert huggingface.detach(net) == []
    assert net.config._attn_implementation == "regard"
    assert net(**batch).logits.equal(exact)


def test_cores_are_saved_moved_and_copied_with_the_model():
    net, batch = attached("bert", "linformer"), inputs("bert")
    state = net.state_dict()
    name = next(iter(huggingface.sites(net)))
    assert f"{name}.regard_core.e" in state
    again = attached("bert", "linformer", rank=4)
    again.load_state_dict(state)
    assert again(**batch).logits.equal(net(**batch).logits)
    assert copy.deepcopy(net)(**batch).logits.equal(net(**batch).logits)
    assert net.double().state_dict()[f"{name}.regard_core.e"].dtype == torch.float64
    doubled = model("bert").double()
    assert next(iter(huggingface.attach(doubled, "linformer", rank=4).values())).e.dtype == torch.float64
    torch.save(net.state_dict(), io.BytesIO())


def test_by_name_alone_where_nothing_is_learnt():
    net, ids = model("llama"), {"input_ids": prompts("llama")["input_ids"]}
    huggingface.use(net, "regard:linear_transformer")
    by_name = net(**ids).logits
    assert not any("core" in key for key in net.state_dict())
    huggingface.attach(net, "linear_transformer")
    assert net(**ids).logits.equal(by_name)
    net.set_attn_implementation("regard:coda")
    with pytest.raises(UnsupportedError, match=r"holds a core of 'linear_transformer'.*detach\(model\) first"):
        net(**ids)
    huggingface.detach(net)
    net.set_attn_implementation("regard:coda")
    assert not net(**ids).logits.allclose(by_name)


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("llama", "talking_heads", r"parameters or buffers.*attach\(model, \"talking_heads\"\)"),
        ("llama", "performer", "parameters or buffers"),
        ("llama", "nystrom", "nystrom cannot be causal: landmarks average over the future"),
        ("llama", "informer", "lets later tokens decide which keys are chosen"),
        ("whisper", "linear_transformer", r"two sequences needs attach\(model, \"linear_transformer\"\)"),
        ("mistral", "local", "masks by Window"),
        ("gemma2", "linear_transformer", "has softcap in its scores, which linear_transformer does not form"),
        ("gpt_oss", "linear_transformer", "has s_aux in its scores"),
    ],
)
def test_what_a_core_cannot_honour_is_refused_at_the_first_call(family, name, message):
    net = model(family)
    huggingface.use(net, f"regard:{name}")
    with pytest.raises(UnsupportedError, match=message):
        net(**inputs(family))


@pytest.mark.parametrize(
    ("family", "arguments", "error", "message"),
    [
        ("llama", {"mechanism": "linformer"}, UnsupportedError, "linformer cannot be causal"),
        (
            "llama",
            {"mechanism": "linear_transformer", "causal": False},
            UnsupportedError,
            "hides later tokens.*causal=True",
        ),
        ("bert", {"mechanism": "slim_performer"}, UnsupportedError, "slim_performer is always causal"),
        ("llama", {"mechanism": "informer"}, UnsupportedError, "selection=True"),
        ("llama", {"mechanism": "routing"}, UnsupportedError, "routing has no core"),
        ("llama", {"mechanism": "local", "windw": 3}, TypeError, "no option 'windw'"),
        (
            "llama",
            {"mechanism": "local", "only": ["model.layers.7.self_attn"]},
            ValueError,
            "no attention at 'model.layers.7",
        ),
        ("llama", {"mechanism": lambda site: torch.nn.Identity()}, TypeError, "needs a Core of regard"),
        (
            "llama",
            {"mechanism": lambda site: None, "window": 3},
            TypeError,
            "options window are for mechanisms by name",
        ),
    ],
)
def test_attach_refuses_and_changes_nothing(family, arguments, error, message):
    net = model(family)
    before = net.config._attn_implementation
    with pytest.raises(error, match=message):
        huggingface.attach(net, **arguments)
    assert net.config._attn_implementation == before
    assert not any("regard_core" in name for name, _ in net.named_modules())


def test_masks_that_a_core_cannot_honour_are_refused():
    net, ids = attached("llama", "local"), prompts("llama")["input_ids"]
    with pytest.raises(UnsupportedError, match="a mask of its own for each pair; local is causal or not"):
        net(ids, attention_mask=torch.ones(3, 1, 9, 9, dtype=torch.bool).tril())
    net.config.is_causal = False
    with pytest.raises(UnsupportedError, match="called with a full mask, and local is causal"):
        net(ids)


def test_a_window_that_reaches_everywhere_is_none():
    short, long = prompts("mistral")["input_ids"][1:, :5], prompts("mistral")["input_ids"][1:]
    net = attached("mistral", "linear_transformer")
    assert net(short).logits.isfinite().all()
    with pytest.raises(UnsupportedError, match="masks by Window"):
        net(long)


def test_dropout_in_training_reaches_the_core_or_is_refused():
    net = attached("bert", "local").train()
    core = next(iter(huggingface.sites(net).values())).module.regard_core
    net(**inputs("bert"))
    assert core.attn_drop == pytest.approx(0.1)
    net.eval()(**inputs("bert"))
    assert core.attn_drop == 0.0
    with pytest.raises(
        UnsupportedError, match=r"drops 0\.1 of its weights in training, which linear_transformer cannot"
    ):
        attached("bert", "linear_transformer").train()(**inputs("bert"))


def test_selection_is_accepted_when_asked_for():
    net = attached("llama", "informer", strict=False, selection=True)
    assert net(prompts("llama")["input_ids"], use_cache=False).logits.isfinite().all()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("family", "name"), [("llama", "linear_transformer"), ("bert", "linformer")])
@pytest.mark.slow
def test_compiles_in_one_graph(family, name, padded):
    torch._dynamo.reset()
    net, batch = attached(family, name), prompts(family)
    if not padded:  # a decoder without an attention_mask may be given packed sequences, for all that a graph knows
        batch = {"input_ids": batch["input_ids"]} | ({"attention_mask": torch.ones(3, 9)} if family == "llama" else {})
    options = {"use_cache": False} if family == "llama" else {}
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    keep = batch.get("attention_mask", torch.ones(3, 9)).bool()
    assert_close(compiled(**batch, **options).logits[keep], net(**batch, **options).logits[keep], rtol=1e-4, atol=1e-5)
