import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import regard
from regard.inspect import attention_map, attention_maps
from regard.inspect.head_gates import gate_heads
from regard.inspect.model_maps import maps_of
from regard.layers import MultiHead
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.models import Transformer, TransformerEncoder, TransformerLM
from regard.registry import UnsupportedError

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 20}


def tokens(n=7, batch=2):
    return torch.randint(1, 20, (batch, n))


def left_behind(model):
    """Everything that hooks and settings could have changed."""
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
    modes = [part.training for part in model.modules()]
    implementations = [getattr(getattr(part, "config", None), "_attn_implementation", None) for part in model.modules()]
    return hooks, modes, implementations, torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", ["full", "linear_transformer", "performer", "nystrom", "local"])
def test_layers_of_ours_are_asked_with_what_they_were_called_with(name):
    model = TransformerEncoder(20, 16, 2, 2, 64, name)
    model.blocks[1].eval()
    x, mask = tokens(), torch.arange(7) < torch.tensor([[7], [4]])
    inputs = []
    with torch.no_grad(), model.blocks[1].attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0])):
        model.eval()(x, key_mask=mask)
    model.train().blocks[1].eval()
    before = left_behind(model)
    found = attention_maps(model, x, key_mask=mask)
    assert left_behind(model) == before
    assert list(found) == ["blocks.0.attention", "blocks.1.attention"]
    expected = attention_map(model.blocks[1].attention, inputs[0], key_mask=mask)
    assert_close(found["blocks.1.attention"].tensor, expected.tensor)
    assert found["blocks.1.attention"].kind == "exact"
    assert (found["blocks.0.attention"].tensor[1, :, :, 4:] == 0).all()


def test_the_transformer_of_2017_whose_layers_are_never_called():
    model = Transformer(20, dim=16, num_heads=4, depth=2, hidden=24).double().eval()
    src, tgt, mask = tokens(9), tokens(5), torch.arange(9) < torch.tensor([[9], [6]])
    layer = model.decoder.layers[1].cross_attention
    caught = []
    with torch.no_grad(), layer.q_proj.register_forward_hook(lambda _, args, out: caught.append(out)):
        expected_logits = model(src, tgt, src_mask=mask)
        memory = model.encode(src, mask)
    before = left_behind(model)
    found = attention_maps(model, src, tgt, src_mask=mask)
    assert left_behind(model) == before
    paths = [f"encoder.layers.{n}.self_attention" for n in (0, 1)]
    paths += [f"decoder.layers.{n}.{kind}_attention" for n in (0, 1) for kind in ("self", "cross")]
    assert list(found) == paths
    q, k = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in (caught[0], layer.k_proj(memory)))
    weights = (q @ k.mT / 2).masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    assert_close(found["decoder.layers.1.cross_attention"].tensor, weights)
    assert (found["decoder.layers.0.self_attention"].tensor.triu(1) == 0).all()
    assert_close(model(src, tgt, src_mask=mask), expected_logits)


def test_gates_before_the_output_projection_do_not_touch_the_maps():
    model = Transformer(20, dim=16, num_heads=4, depth=2, hidden=24).eval()
    src, tgt = tokens(6), tokens(4)
    gate_heads(model, start=-1.0)
    out_proj = model.encoder.layers[0].self_attention.out_proj
    inputs, outputs = [], []
    out_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.register_forward_hook(lambda *args: outputs.append(args[-1]))
    found = attention_maps(model, src, tgt)
    assert_close(found["encoder.layers.0.self_attention"].tensor.sum(-1), torch.ones(2, 4, 6))
    assert len(outputs) == 3
    for again in (1, 2):  # 6 columns of heads that are 4 wide: what follows the attention is as in the first run
        assert_close(inputs[again], inputs[0])
        assert_close(outputs[again], outputs[0])


def hugging_face(name):
    if name == "bert":
        return transformers.BertModel(transformers.BertConfig(**SMALL))
    if name == "gpt2":
        sizes = {"n_embd": 16, "n_head": 4, "n_layer": 2, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=2, **SMALL))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("bert", "encoder.layer.{}.attention.self"),
        ("gpt2", "transformer.h.{}.attn"),
        ("llama", "model.layers.{}.self_attn"),
    ],
)
def test_hugging_face_models_tell_their_weights_and_stay_as_they_are(name, path):
    model, x = hugging_face(name), tokens()
    mask = (torch.arange(7) < torch.tensor([[7], [5]])).long()
    assert model.config._attn_implementation == "sdpa"
    before = left_behind(model)
    found = attention_maps(model, x, attention_mask=mask)
    assert left_behind(model) == before
    assert list(found) == [path.format(number) for number in (0, 1)]
    model.set_attn_implementation("eager")
    expected = model.eval()(x, attention_mask=mask, output_attentions=True).attentions
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert_close(ours.tensor, theirs)


def test_torch_layers_are_asked_and_their_callers_get_what_they_wanted():
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(2, 5, 16)
    padded = torch.arange(5) >= torch.tensor([[5], [3]])
    expected = model.eval()(x, src_key_padding_mask=padded)
    before = left_behind(model.train())
    outputs = []
    found = maps_of(model, lambda: outputs.append(model(x, src_key_padding_mask=padded)))
    assert left_behind(model) == before
    assert list(found) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert_close(outputs[0].masked_fill(padded[..., None], 0.0), expected.masked_fill(padded[..., None], 0.0))
    attention = model.layers[0].self_attn.eval()
    weights = attention(x, x, x, key_padding_mask=padded, average_attn_weights=False)[1]
    assert_close(found["layers.0.self_attn"].tensor, weights)
    answers = []
    maps_of(attention, lambda: answers.extend([attention(x, x, x), attention(x, x, x, need_weights=False)]))
    assert_close(answers[0][1], attention(x, x, x)[1])
    assert answers[1][1] is None


class Foreign(nn.Module):
    """Somebody's attention, in one call of torch."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 36)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, key=k, value=v, is_causal=True).transpose(1, 2).flatten(2)


def test_calls_of_torch_in_foreign_modules():
    model, x = nn.Sequential(Foreign(), Foreign()), torch.randn(2, 7, 12)
    found = attention_maps(model, x)
    q, k, _ = model[1].qkv(model[0](x)).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    expected = (q @ k.mT / 2).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf).softmax(-1)
    assert list(found) == ["0", "1"]
    assert_close(found["1"].tensor, expected)


def test_a_layer_that_runs_twice_and_a_model_that_is_one_layer():
    layer, x = regard.create("full", dim=12, num_heads=3), torch.randn(1, 5, 12)
    found = maps_of(nn.Sequential(layer, layer), lambda: layer(layer(x)))
    assert list(found) == ["0", "0#2"]
    assert_close(found["0#2"].tensor, attention_map(layer, layer(x)).tensor)
    assert list(attention_maps(layer, x)) == ["MultiHead"]


def test_jacobians_on_request():
    model = nn.Sequential(nn.Linear(12, 12), nn.GRU(12, 12, batch_first=True))
    x = torch.randn(2, 5, 12)
    with pytest.raises(
        UnsupportedError, match="Sequential has no attention that was found: for Jacobians name modules in"
    ):
        attention_maps(model, x)
    found = attention_maps(model, x, jacobian=["1"])["1"]
    assert found.kind == "jacobian"
    assert found.tensor.shape == (2, 1, 5, 5)
    assert (found.tensor.triu(1) == 0).all()
    with pytest.raises(ValueError, match="there is no module 'one' in Sequential"):
        attention_maps(model, x, jacobian=["one"])
    with pytest.raises(ValueError, match="'1' did not run"):
        maps_of(model, lambda: model[0](x), jacobian=["1"])


def test_layers_of_ours_without_weights_are_named():
    model, x = TransformerEncoder(20, 16, 1, 2, 64, "star_transformer"), tokens()
    with pytest.raises(UnsupportedError, match=r"name modules in jacobian=, such as blocks.0.attention \(star_trans"):
        attention_maps(model, x)
    assert attention_maps(model, x, jacobian=["blocks.0.attention"])["blocks.0.attention"].kind == "jacobian"
    layer = regard.create("non_local", dim=12, sub_sample="after")
    with pytest.raises(
        UnsupportedError, match=r"the model: non_local has no weights of pixels .*; name it in jacobian="
    ):
        attention_maps(layer, torch.randn(1, 12, 4, 4))


def test_a_layer_that_was_called_with_what_weights_do_not_know():
    class Remembers(MultiHead):
        def forward(self, x, *, past=None):
            return super().forward(x)

    layer, x = Remembers(12, 3, ScaledDotProduct()), torch.randn(1, 5, 12)
    assert attention_maps(layer, x)["Remembers"].kind == "exact"
    with pytest.raises(UnsupportedError, match=r"the model was called with past, without which its weights are others"):
        attention_maps(layer, x, past=x)


class Drawn(MultiHead):
    """The weights are drawn at every call, in evaluation too."""

    def weigh(self, x, values, context=None, *, generator=None):
        self.weights = torch.rand(len(x), 1, x.shape[1], x.shape[1])
        return self.weights @ values

    def forward(self, x):
        return self.weigh(x, x[:, None])[:, 0]


def test_layers_that_draw_are_asked_with_the_draws_they_made():
    first, second = Drawn(12, 1, ScaledDotProduct()), Drawn(12, 1, ScaledDotProduct())
    seen = []
    first.register_forward_hook(lambda layer, *_: seen.append(layer.weights))
    second.register_forward_hook(lambda layer, *_: seen.append(layer.weights))
    x = torch.randn(1, 5, 12)
    first(x)
    state = torch.get_rng_state()
    seen.clear()
    found = attention_maps(nn.Sequential(first, second), x)
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(found["0"].tensor, seen[0])
    assert_close(found["1"].tensor, seen[1])


def test_values_that_are_projected_without_an_output():
    model, x = Transformer(20, dim=16, num_heads=4, depth=1, hidden=24), tokens()
    layer = model.encoder.layers[0].self_attention
    with pytest.raises(UnsupportedError, match="does not project its values once for each output"):
        maps_of(model, lambda: (model.encode(x), layer.v_proj(torch.randn(1, 3, 16))))


def test_nothing_is_left_when_the_model_fails():
    model, x = TransformerLM(20, 16, 1, 2, 8), tokens(9)
    before = left_behind(model)
    with pytest.raises(ValueError, match="9 tokens, but this model was built with max_length=8"):
        attention_maps(model, x)
    assert left_behind(model) == before
    bert = hugging_face("bert")
    before = left_behind(bert)
    with pytest.raises(IndexError):
        attention_maps(bert, torch.full((1, 3), 99))
    assert left_behind(bert) == before
