import pytest
import torch
from torch.testing import assert_close

from regard.models.qacg_bert import ContextGuidedBert

KINDS = ["quasi", "mixed", "plain"]


def build(kind="quasi", **options):
    torch.manual_seed(0)
    return ContextGuidedBert(30, 12, 2, 3, 24, num_contexts=5, num_labels=3, kind=kind, **options)


def tokens(n=9):
    return torch.randint(30, (2, n))


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_decides_the_answer(kind):
    """By little at the start, as all weights are small."""
    model, x = build(kind).eval().double(), tokens()
    first, second = (model(x, torch.full((2,), number)) for number in (0, 3))
    assert first.shape == (2, 3)
    assert (first - second).abs().min() > 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(kind, side):
    model, x, contexts = build(kind).eval(), tokens(), torch.tensor([1, 4])
    real = torch.arange(13) < 9 if side == "right" else torch.arange(13) >= 4
    padded = tokens(13)
    padded[:, real] = x
    assert_close(model(padded, contexts, key_mask=real.expand(2, -1)), model(x, contexts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_starts_anew(kind):
    model = build(kind)
    model(tokens(24), torch.tensor([1, 4])).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if parameter.numel() > 100:
            assert float(parameter.detach().std()) == pytest.approx(float(before[name].std()), rel=0.4), name


def test_the_context_of_a_layer_is_made_of_the_question_and_its_tokens():
    model, x, contexts = build().eval(), tokens(), torch.tensor([1, 4])
    h = model.encoder.embed(x)
    asked = model.context_embedding.weight[contexts][:, None].expand_as(h)
    for linear, block in zip(model.context_maps, model.encoder.blocks, strict=True):
        context = linear(torch.cat((asked, h), -1)) + asked
        h = block.norm1(h + block.attention(h, context))
        h = block.norm2(h + block.mlp(h))
    assert_close(model(x, contexts), model.classifier(model.encoder.pooled(h)))


def test_refusals():
    with pytest.raises(ValueError, match="kind='soft' is none of quasi, mixed, plain"):
        build("soft")
    with pytest.raises(ValueError, match="num_labels=0"):
        ContextGuidedBert(30, 12, 2, 3, 24, num_contexts=5, num_labels=0)
    with pytest.raises(ValueError, match=r"contexts has shape \(1,\)"):
        build()(tokens(), torch.tensor([1]))
