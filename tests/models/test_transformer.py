import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard import registry
from regard.models.transformer import TransformerClassifier, TransformerEncoder, TransformerLM
from regard.registry import Card, Layer, Sample, UnsupportedError, register

SIZES = {"vocab_size": 20, "dim": 12, "depth": 2, "num_heads": 3, "max_length": 16}
MECHANISMS = ["full", "linear_transformer"]


def tokens(n=9):
    return torch.randint(20, (2, n))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_language_model_sees_no_later_token(mechanism):
    model, x = TransformerLM(**SIZES, mechanism=mechanism), tokens()
    changed = torch.cat((x[:, :5], (x[:, 5:] + 1) % 20), 1)
    assert_close(model(changed)[:, :5], model(x)[:, :5])
    assert not torch.allclose(model(changed)[:, 5:], model(x)[:, 5:])


def test_the_blocks_are_pre_norm():
    model, x = TransformerLM(**SIZES), tokens()
    h = model.token_embedding.weight[x] + model.position_embedding.weight[:9]
    for block in model.blocks:
        h = h + block.attention(F.layer_norm(h, (12,)))
        h = h + block.mlp(F.layer_norm(h, (12,)))
    assert_close(model(x), F.layer_norm(h, (12,)) @ model.token_embedding.weight.T)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", [TransformerEncoder, TransformerLM, TransformerClassifier])
def test_padding_changes_nothing(kind, mechanism):
    extra = {"num_classes": 4} if kind is TransformerClassifier else {}
    model, x = kind(**SIZES, mechanism=mechanism, **extra), tokens()
    for real in (slice(0, 9), slice(4, 13)):  # right, left
        mask = torch.zeros(2, 13, dtype=torch.bool)
        mask[:, real] = True
        padded = torch.randint(20, (2, 13))
        padded[:, real] = x
        y = model(padded, key_mask=mask)
        assert_close(y if extra else y[:, real], model(x), rtol=0, atol=1e-5)


def test_the_classifier_takes_the_mean():
    model, x = TransformerClassifier(**SIZES, num_classes=4), tokens()
    assert model(x).shape == (2, 4)
    nothing = model(x, key_mask=torch.zeros(2, 9, dtype=torch.bool))
    assert_close(nothing, model.classes.bias.expand(2, 4))


def test_every_parameter_learns():
    for model in (TransformerLM(**SIZES, dropout=0.1), TransformerClassifier(**SIZES, num_classes=4)):
        model(tokens(16)).square().sum().backward()
        assert all(
            parameter.grad is not None and parameter.grad.any()
            for name, parameter in model.named_parameters()
            if "k_proj.bias" not in name
        )  # a bias on all keys cancels in the softmax


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_documents_are_kept_apart(mechanism):
    model, x = TransformerLM(**SIZES, mechanism=mechanism), tokens()
    y = model(x, segments=torch.tensor([[0] * 4 + [1] * 5] * 2))
    assert_close(y, torch.cat((model(x[:, :4]), model(x[:, 4:])), 1), rtol=0, atol=1e-5)


def test_what_layers_tell_carries_their_path(monkeypatch):
    regard.names()  # what is imported registers once, so all of it before the registry is set aside
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register("teller", samples=[Sample()])
    class Teller(Layer):
        card = Card(title="t", paper="p", year=1, family="f", data="sequence", causal="strict")

        def __init__(self, dim, causal):
            super().__init__()

        def forward(self, x, *, key_mask=None, segments=None, generator=None, return_aux=False):
            return (x, {"loss/balance": x.sum(), "map/weights": x}) if return_aux else x

    logits, aux = TransformerLM(**SIZES, mechanism="teller")(tokens(), return_aux=True)
    assert logits.shape == (2, 9, 20)
    assert sorted(aux) == [
        f"{kind}.{i}.attention/{what}"
        for kind, what in (("loss/blocks", "balance"), ("map/blocks", "weights"))
        for i in range(2)
    ]
    assert TransformerLM(**SIZES)(tokens(), return_aux=True)[1] == {}


def test_options_reach_the_mechanism():
    model = TransformerLM(**SIZES, num_kv_heads=1, attn_drop=0.1, dtype=torch.float64, mlp_ratio=2)
    assert model.blocks[1].attention.num_kv_heads == 1
    assert model.blocks[0].attention.core.attn_drop == 0.1
    assert model.blocks[0].mlp[0].out_features == 24
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_refusals():
    with pytest.raises(ValueError, match=r"17 tokens.*max_length=16"):
        TransformerLM(**SIZES)(tokens(17))
    with pytest.raises(UnsupportedError, match="cannot honour attn_drop"):
        TransformerEncoder(**SIZES, mechanism="linear_transformer", attn_drop=0.1)
    with pytest.raises(TypeError, match=r"segments is torch.float32"):
        TransformerLM(**SIZES)(tokens(), segments=torch.zeros(2, 9))
    with pytest.raises(TypeError, match="no option 'heads'"):
        TransformerLM(**SIZES, heads=3)


def test_the_networks_are_public():
    assert regard.models.TransformerLM is TransformerLM
    assert set(regard.models.__all__) <= set(dir(regard.models))
    with pytest.raises(AttributeError, match=r"no attribute 'TransformerXX'; it has .*TransformerLM"):
        regard.models.TransformerXX  # noqa: B018
