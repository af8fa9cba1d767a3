"""torch's module and ours by the same arguments: outputs, weights, gradients, layers around; then every mechanism."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import regard
from regard.factory import find
from regard.patterns import Window
from regard.registry import Core, UnsupportedError
from regard.torch_shell import MultiheadAttention

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "own widths": {"kdim": 6, "vdim": 10},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
    "all": {"kdim": 6, "vdim": 10, "add_bias_kv": True, "add_zero_attn": True, "bias": False, "batch_first": True},
}
CORES = [name for name in regard.names(data="sequence") if issubclass(find(name).cls, Core)]
CAUSAL = nn.Transformer.generate_square_subsequent_mask


def masks(kind, batch, heads, n, m):
    pairs = torch.rand(n, m) < 0.3
    pairs[:, 0] = False
    keys = torch.zeros(batch, m, dtype=torch.bool)
    keys[1, m - 2 :] = True
    floats = torch.randn(n, m, dtype=torch.double)
    return {
        "none": {},
        "keys": {"key_padding_mask": keys},
        "both": {"key_padding_mask": keys, "attn_mask": pairs},
        "floats": {"key_padding_mask": torch.randn(batch, m, dtype=torch.double), "attn_mask": floats},
        "float keys": {"key_padding_mask": keys.double().masked_fill(keys, -torch.inf), "attn_mask": floats},
        "per head": {"attn_mask": torch.rand(batch * heads, n, m) < 0.2},
    }[kind]


def pair(dtype=torch.double, **config):
    """torch's module and ours with its weights, none of them 0."""
    theirs, ours = nn.MultiheadAttention(8, 2, **config, dtype=dtype), MultiheadAttention(8, 2, **config, dtype=dtype)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("kind", ["none", "keys", "both", "floats", "float keys", "per head"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_full_is_torchs(options, kind):
    theirs, ours = pair(**options)
    config = {"kdim": 8, "vdim": 8, "batch_first": False, **options}
    inputs = [torch.randn(2, n, c, dtype=torch.double) for n, c in ((5, 8), (7, config["kdim"]), (7, config["vdim"]))]
    inputs = [x if config["batch_first"] else x.transpose(0, 1) for x in inputs]
    given = masks(kind, 2, 2, 5, 7)
    for average in (True, False):
        found = []
        for module in (theirs, ours):
            leaves = [x.detach().clone().requires_grad_() for x in inputs]
            out, weights = module(*leaves, **given, average_attn_weights=average)
            asked = [*leaves, *module.parameters()]
            found.append([out, weights, *torch.autograd.grad(out.sin().sum() + weights.sin().sum(), asked)])
        assert_close(found[1], found[0], rtol=0, atol=1e-12)
    out, weights = ours(*inputs, **given, need_weights=False)
    assert weights is None
    assert_close(out, found[0][0], rtol=0, atol=1e-12)


def test_single_precision_without_a_batch_and_in_place_of_torch():
    theirs, ours = pair(torch.float32)
    x = torch.randn(5, 8)
    hidden = torch.tensor([False] * 4 + [True])
    for average in (True, False):
        options = {"key_padding_mask": hidden, "average_attn_weights": average}
        assert_close(ours(x, x, x, **options), theirs(x, x, x, **options), rtol=0, atol=1e-6)
    assert isinstance(ours, nn.MultiheadAttention)
    theirs.load_state_dict(ours.state_dict())  # strict both ways
    for options in OPTIONS.values():
        torch.manual_seed(1)
        first = nn.MultiheadAttention(8, 2, **options).state_dict()
        torch.manual_seed(1)
        second = MultiheadAttention(8, 2, **options)
        assert_close(second.state_dict(), first, rtol=0, atol=0)  # the same start, draw by draw
    assert second.in_proj_bias is None  # the last options have none
    second = MultiheadAttention(8, 2, kdim=6, mechanism="linformer", max_length=9, rank=3)
    for parameter in second.parameters():
        nn.init.zeros_(parameter)
    second.reset_parameters()
    assert 0.3 < second.k_proj_weight.abs().max() <= (6 / 14) ** 0.5
    assert second.core.e.any()


def test_causal_with_and_without_a_mask():
    theirs, ours = pair(batch_first=True)
    x, longer = torch.randn(2, 5, 8, dtype=torch.double), torch.randn(2, 7, 8, dtype=torch.double)
    expected = theirs(x, x, x, attn_mask=CAUSAL(5, dtype=torch.double), need_weights=False)[0]
    assert_close(ours(x, x, x, is_causal=True, need_weights=False)[0], expected)
    assert_close(ours(x, x, x, is_causal=True, attn_mask=CAUSAL(5, dtype=torch.double))[0], expected)
    # a wrong hint lets nobody see what the mask hides
    first_only = torch.ones(5, 5, dtype=torch.bool)
    first_only[:, 0] = False
    right = theirs(x, x, x, attn_mask=first_only)
    assert_close(ours(x, x, x, attn_mask=first_only, is_causal=True), right)
    # with other lengths a mask is aligned as it says, and without one the last query stands at the last key
    for asks, asked in ((x, longer), (longer, x)):
        later = torch.ones(asks.shape[1], asked.shape[1], dtype=torch.bool).triu(1)
        right = theirs(asks, asked, asked, attn_mask=later)
        assert_close(ours(asks, asked, asked, attn_mask=later, is_causal=True), right)
    right = theirs(x, longer, longer, attn_mask=torch.ones(5, 7, dtype=torch.bool).triu(3))
    assert_close(ours(x, longer, longer, is_causal=True), right)


def test_pattern_and_scale_are_honoured_in_output_and_weights():
    x = torch.randn(2, 9, 8)
    hidden = torch.tensor([[False] * 9, [False] * 7 + [True] * 2])
    allowed = Window(2, 0).dense(9)
    theirs, ours = nn.MultiheadAttention(8, 2, batch_first=True), MultiheadAttention(
        8, 2, batch_first=True, pattern=Window(2), causal=True
    )  # fmt: skip
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(x, x, x, attn_mask=~allowed, key_padding_mask=hidden)
    found = ours(x, x, x, key_padding_mask=hidden)
    assert_close(found, expected, rtol=0, atol=1e-6)
    flat = MultiheadAttention(8, 2, batch_first=True, scale=1e-9)
    assert_close(flat(x, x, x)[1], torch.full((2, 9, 9), 1 / 9))


def test_a_query_without_keys_gives_the_bias_where_torch_gives_nan():
    theirs, ours = pair(batch_first=True)
    x, nothing = torch.randn(1, 3, 8, dtype=torch.double), torch.ones(1, 3, dtype=torch.bool)
    assert theirs(x, x, x, key_padding_mask=nothing)[0].isnan().all()
    out, weights = ours(x, x, x, key_padding_mask=nothing)
    assert_close(out, theirs.out_proj.bias.expand(1, 3, 8), rtol=0, atol=0)
    assert not weights.any()


def test_dropout_is_that_of_the_module_now():
    x = torch.randn(1, 6, 8)
    for mechanism in ("full", "local"):
        options = {} if mechanism == "full" else {"window": 6}
        layer = MultiheadAttention(8, 2, dropout=0.5, batch_first=True, mechanism=mechanism, **options)
        dry, weights = layer.eval()(x, x, x)
        assert_close(layer.train()(x, x, x)[1], weights)  # those before dropout
        assert (layer(x, x, x)[0] - dry).abs().max() > 0.01
        layer.dropout = 0.0
        assert_close(layer(x, x, x)[0], dry)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("training", "grad"), [(True, True), (False, True), (False, False)])
def test_in_torchs_encoder_and_decoder(training, grad):
    """Its fused path would compute the softmax whatever the module is: with a mechanism the difference shows."""
    encoder = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True).train(training)
    decoder = nn.TransformerDecoderLayer(8, 2, 12, 0.0, batch_first=True).train(training)
    x, memory = torch.randn(2, 6, 8), torch.randn(2, 9, 8)
    hidden = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    for mechanism, error in (("full", 0.0), ("linear_transformer", 1e-3)):
        ours = [copy.deepcopy(layer) for layer in (encoder, decoder)]
        for layer, names in zip(ours, (["self_attn"], ["self_attn", "multihead_attn"]), strict=True):
            for name in names:
                new = MultiheadAttention(8, 2, batch_first=True, mechanism=mechanism).train(training)
                new.load_state_dict(getattr(layer, name).state_dict())
                setattr(layer, name, new)
        with torch.set_grad_enabled(grad):
            expected = encoder(x, src_key_padding_mask=hidden), decoder(x, memory, memory_key_padding_mask=None)
            found = ours[0](x, src_key_padding_mask=hidden), ours[1](x, memory)
        for a, b in zip(found, expected, strict=True):
            difference = (a - b)[~hidden].abs().max().item()
            assert difference < 2e-6 if error == 0.0 else difference > error
    causal = MultiheadAttention(8, 2, batch_first=True, mechanism="linear_transformer", causal=True).train(training)
    layer = copy.deepcopy(encoder)
    layer.self_attn = causal
    with torch.set_grad_enabled(grad):
        y = layer(x, src_mask=CAUSAL(6), is_causal=True)
        assert_close(layer(x[:, :4], src_mask=CAUSAL(4)), y[:, :4])  # the mask says it, the hint need not
    stack = nn.TransformerEncoder(encoder, 2).train(training)
    for one in stack.layers:
        one.self_attn = MultiheadAttention(8, 2, batch_first=True)
    if not grad:  # here torch would make a nested tensor of it
        with torch.no_grad(), pytest.raises(UnsupportedError, match="use_nested_tensor = False"):
            stack(x, src_key_padding_mask=hidden)
    stack.use_nested_tensor = False
    with torch.set_grad_enabled(grad):
        assert stack(x, src_key_padding_mask=hidden).isfinite().all()


@pytest.mark.parametrize("name", CORES)
def test_every_core(name):
    """out = out_proj(weights v), with the weights that were returned; padding changes nothing; causal where asked."""
    for sample in find(name).samples:
        arguments = {k: v for k, v in sample.arguments.items() if k not in ("qkv_bias", "qk_norm", "rotary")}
        arguments = {k: v for k, v in arguments.items() if k not in ("num_kv_heads", "head_dim", "attn_drop")}
        dim, heads = arguments.pop("dim"), arguments.pop("num_heads")
        layer = MultiheadAttention(dim, heads, batch_first=True, mechanism=name, **arguments)
        x = torch.randn(2, 9, dim)
        x[1, 7:] = torch.nan
        hidden = torch.tensor([[False] * 9, [False] * 7 + [True] * 2])
        for training in (True, False):
            layer.train(training)
            out, weights = layer(x, x, x, key_padding_mask=hidden, average_attn_weights=False)
            value = layer._project(x, x, x)[2].nan_to_num()
            joined = layer.out_proj((weights @ value).transpose(1, 2).flatten(2))
            assert_close(out[~hidden], joined[~hidden], rtol=0, atol=2e-6)
            assert not weights[1, :, :7, 7:].any()
        alone = x[1:, :7]
        assert_close(layer(alone, alone, alone, need_weights=False)[0][0], out[1, :7], rtol=0, atol=1e-5)
        parameters = [p for p in layer.parameters() if p.requires_grad]
        layer.train()
        clean = x.nan_to_num()
        gradients = torch.autograd.grad(layer(clean, clean, clean)[0].sin().sum(), parameters, allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)


def test_cross_attention_and_what_cannot_cross():
    x, context = torch.randn(2, 4, 8), torch.randn(2, 7, 8)
    out, weights = MultiheadAttention(8, 2, batch_first=True, mechanism="performer")(x, context, context)
    assert out.shape == (2, 4, 8)
    assert weights.shape == (2, 4, 7)
    local = MultiheadAttention(8, 2, batch_first=True, mechanism="local", window=2)
    with pytest.raises(UnsupportedError, match="local attends within one sequence: pass the same tensor"):
        local(x, context[:, :4], context[:, :4])


def test_refusals():
    x = torch.randn(2, 5, 8)
    linear = MultiheadAttention(8, 2, batch_first=True, mechanism="linear_transformer")
    with pytest.raises(UnsupportedError, match=r"takes no attn_mask but the causal one.*pattern="):
        linear(x, x, x, attn_mask=torch.rand(5, 5) < 0.5)
    with pytest.raises(UnsupportedError, match="built bidirectional: pass causal=True"):
        linear(x, x, x, attn_mask=CAUSAL(5))
    causal = MultiheadAttention(8, 2, batch_first=True, mechanism="linear_transformer", causal=True)
    with pytest.raises(UnsupportedError, match="takes no attn_mask but the causal one"):  # of other lengths: which?
        causal(x, x.repeat(1, 2, 1), x.repeat(1, 2, 1), attn_mask=torch.ones(5, 10, dtype=torch.bool).triu(1))
    with pytest.raises(UnsupportedError, match="built bidirectional: pass causal=True"):
        linear(x, x, x, is_causal=True)
    with pytest.raises(UnsupportedError, match="nystrom cannot be causal: landmarks average over the future"):
        MultiheadAttention(8, 2, batch_first=True, mechanism="nystrom", num_landmarks=2)(x, x, x, is_causal=True)
    with pytest.raises(UnsupportedError, match="floats that are 0 or -inf"):
        linear(x, x, x, key_padding_mask=torch.randn(2, 5))
    nested = torch.nested.nested_tensor([x[0], x[1, :3]])
    with pytest.raises(UnsupportedError, match="nested tensors are not taken"):
        linear(nested, nested, nested)
    with pytest.raises(UnsupportedError, match="no place for the keys of add_bias_kv"):
        MultiheadAttention(8, 2, add_bias_kv=True, mechanism="local", window=2)
    with pytest.raises(UnsupportedError, match="never forms weights"):
        MultiheadAttention(8, 2, 0.1, mechanism="linear_transformer")
    with pytest.raises(UnsupportedError, match="longformer has no core"):
        MultiheadAttention(8, 2, mechanism="longformer", window=2)
    with pytest.raises(TypeError, match="has no option 'pattern'"):
        MultiheadAttention(8, 2, mechanism="linear_transformer", pattern=Window(2))
    with pytest.raises(TypeError, match="local has no option 'windw': the word is window"):
        MultiheadAttention(8, 2, mechanism="local", windw=2)
    with pytest.raises(ValueError, match="embed_dim=8 is no multiple of num_heads=3"):
        MultiheadAttention(8, 3)
    linear.core.weighs_values = False
    with pytest.raises(UnsupportedError, match=r"has no weights.*need_weights=False"):
        linear(x, x, x)


def test_shapes_and_dtypes_at_the_door():
    x = torch.randn(2, 5, 8)
    layer = MultiheadAttention(8, 2, batch_first=True)
    with pytest.raises(ValueError, match=r"key, batch first, has shape \(2, 5, 7\), expected \(batch, length, 8\)"):
        layer(x, x[..., :7], x)
    with pytest.raises(ValueError, match="all without a batch"):
        layer(x, x[0], x[0])
    with pytest.raises(ValueError, match="one batch, key as long as value"):
        layer(x, x, x[:, :4])
    with pytest.raises(ValueError, match=r"attn_mask has shape \(5, 4\), expected \(5, 5\) or \(4, 5, 5\)"):
        layer(x, x, x, attn_mask=torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"key_padding_mask has shape \(5, 2\), expected \(2, 5\)"):
        layer(x, x, x, key_padding_mask=torch.zeros(5, 2))
    with pytest.raises(TypeError, match=r"attn_mask is torch.int64: pass Bool, True = leave out"):
        layer(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.long))


def test_attention_maps_of_a_model_that_holds_it():
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
    layer.self_attn = MultiheadAttention(8, 2, batch_first=True, mechanism="linear_transformer")
    x = torch.randn(2, 5, 8)
    (found,) = regard.inspect.attention_maps(layer, x).values()
    assert_close(found.tensor, layer.self_attn(x, x, x, average_attn_weights=False)[1])


@pytest.mark.parametrize("mechanism", [pytest.param("full", marks=pytest.mark.slow), "linear_transformer"])
def test_compiles_with_padding_and_causal_masks_and_is_pickled(mechanism):
    options = {} if mechanism == "full" else {"mechanism": mechanism, "causal": True}
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
    layer.self_attn = MultiheadAttention(8, 2, batch_first=True, **options)
    again = pickle.loads(pickle.dumps(layer))
    compiled = torch.compile(layer.requires_grad_(False), fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (6, 11):
        x, hidden = torch.randn(2, n, 8), torch.zeros(2, n)
        hidden[1, 4:] = -torch.inf
        given = {"src_mask": CAUSAL(n), "src_key_padding_mask": hidden, "is_causal": True}
        assert_close(compiled(x, **given), layer(x, **given), rtol=0, atol=1e-6)
        assert_close(again(x, **given), layer(x, **given), rtol=0, atol=0)
    if mechanism != "full":
        with pytest.raises(RuntimeError, match="0 or -inf"):
            compiled(x, **given | {"src_key_padding_mask": torch.randn(2, n)})


def test_large_inputs_without_weights_take_little_memory():
    """8 heads of 16,384 tokens: scores would be 8.6 GB."""
    layer = MultiheadAttention(16, 8, batch_first=True, pattern=Window(16))
    x = torch.randn(1, 16384, 16)
    assert layer(x, x, x, need_weights=False)[0].shape == x.shape


def test_options_meet():
    for batch_first, training, needed in itertools.product([False, True], repeat=3):
        theirs, ours = pair(batch_first=batch_first)
        x = torch.randn(3, 3, 8, dtype=torch.double)
        theirs.train(training), ours.train(training)
        assert_close(ours(x, x, x, need_weights=needed), theirs(x, x, x, need_weights=needed))
