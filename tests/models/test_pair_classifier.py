"""The classifier of two sequences: padding, what each side sees, and who can be in it."""

import pytest
import torch
from torch.testing import assert_close

from regard.models.pair_classifier import PairClassifier
from regard.registry import UnsupportedError

KINDS = ("full", "linear_transformer", "bahdanau", "abcnn", None)


def build(mechanism="full", **options):
    torch.manual_seed(0)
    return PairClassifier(30, 8, 2, 2, 12, mechanism, num_classes=3, **options).double().eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(30, (2, 7), generator=generator), torch.randint(30, (2, 5), generator=generator)


@pytest.mark.parametrize("mechanism", KINDS)
def test_padding_changes_nothing(mechanism):
    model = build(mechanism)
    x, z = inputs()
    alone = model(x, context=z)
    for left in (0, 2):
        masks, padded = [], []
        for tokens in (x, z):
            padded.append(torch.nn.functional.pad(tokens, (left, 2 - left), value=9))
            place = torch.arange(tokens.shape[1] + 2)
            masks.append(((place >= left) & (place < left + tokens.shape[1])).expand(2, -1))
        out = model(padded[0], context=padded[1], key_mask=masks[0], context_mask=masks[1])
        assert_close(out, alone, rtol=0, atol=1e-12)
    empty = model(x, context=z, context_mask=torch.zeros(2, 5, dtype=torch.bool))
    assert empty.isfinite().all()


def test_sides_see_each_other_and_only_with_a_mechanism():
    x, z = inputs()
    for mechanism, seen in (("full", True), (None, False)):
        model = build(mechanism)
        told = []
        hook = model.norm.register_forward_hook(lambda module, given, out, told=told: told.append(out))
        model(x, context=z)
        model(x, context=z.flip(0))
        hook.remove()
        assert torch.equal(told[0], told[2]) != seen, "x behind the blocks depends on z"


def test_every_parameter_learns_and_is_made_where_asked():
    x, z = inputs()
    for mechanism in KINDS:
        model = build(mechanism)
        model(x, context=z).square().sum().backward()
        unused = [name for name, p in model.named_parameters() if p.grad is None]
        assert not unused
        meta = PairClassifier(30, 8, 1, 2, 12, mechanism, device="meta")
        assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_what_the_layers_tell_keeps_its_place():
    _, told = build("show_attend_tell", doubly_stochastic=0.5)(*inputs()[:1], context=inputs()[1], return_aux=True)
    assert "loss/blocks.1.attention/context/doubly_stochastic" in told


def test_refusals():
    x, z = inputs()
    with pytest.raises(UnsupportedError, match="local attends within one sequence"):
        build("local")
    with pytest.raises(UnsupportedError, match="kronecker works on maps"):
        build("kronecker")
    with pytest.raises(UnsupportedError, match=r"abcnn makes \(2, 7, 3\) of \(2, 7, 8\)"):
        build("abcnn", filters=3)(x, context=z)
    with pytest.raises(ValueError, match="14 tokens, but this model was built with max_length=12"):
        build()(torch.cat((x, x), 1), context=z)
    with pytest.raises(ValueError, match="context_mask"):
        build()(x, context=z, context_mask=torch.ones(2, 7, dtype=torch.bool))
