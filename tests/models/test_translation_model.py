import pytest
import torch
from torch.testing import assert_close

import regard
from regard.models.translation_model import TranslationModel, check_crossing
from regard.registry import UnsupportedError


def small(mechanism="full", **options):
    torch.manual_seed(0)
    return TranslationModel(14, 16, 2, 4, 12, mechanism, **options).eval().requires_grad_(False)


def tokens(rows=3):
    torch.manual_seed(1)
    return torch.randint(14, (rows, 6)), torch.randint(14, (rows, 5)), torch.arange(6) < torch.tensor([[6], [4], [2]])


CROSSING = [
    ("full", {}),
    ("luong", {"alignment": "local-m", "half_window": 1}),
    ("coda", {}),
    ("linear_transformer", {}),
]


@pytest.mark.parametrize(("mechanism", "options"), CROSSING)
def test_token_by_token_as_at_once(mechanism, options):
    model, (src, tgt, mask) = small(mechanism, **options), tokens()
    memory, found = model.begin(src, mask), []
    for column in tgt.unbind(1):
        logits, memory = model.step(column, memory)
        found.append(logits)
    assert_close(torch.stack(found, 1), model(src, tgt, src_mask=mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mechanism", "options"), [*CROSSING, (None, {})])
def test_no_target_sees_a_later_one_and_padding_changes_nothing(mechanism, options):
    model, (src, tgt, mask) = small(mechanism, **options), tokens()
    y, changed = model(src, tgt, src_mask=mask), tgt.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % 14
    assert_close(model(src, changed, src_mask=mask)[:, :3], y[:, :3], rtol=0, atol=1e-5)
    for row, (real, one) in enumerate(zip(mask, y, strict=True)):
        alone = model(src[row : row + 1, real], tgt[row : row + 1])[0]
        assert_close(alone, one, rtol=0, atol=1e-5)
    padded = torch.cat((tgt, tgt[:, :2]), 1)
    target_mask = torch.arange(7) < 5
    wider = model(src, padded, src_mask=mask, tgt_mask=target_mask.expand(3, -1))
    assert_close(wider[:, :5], y, rtol=0, atol=1e-5)


def test_only_without_a_mechanism_does_the_source_not_matter():
    src, tgt, _ = tokens()
    assert not torch.equal(small()(src, tgt), small()(src.flip(0), tgt))
    blind = small(None)
    assert torch.equal(blind(src, tgt), blind(src.flip(0), tgt))
    assert not list(blind.encoder.layers)


@pytest.mark.parametrize(("mechanism", "options"), CROSSING[:2])
def test_alignments_come_from_the_last_block(mechanism, options):
    model, (src, tgt, mask) = small(mechanism, **options), tokens()
    asked = []
    model.blocks[-1].attention.register_forward_pre_hook(
        lambda layer, x, named: asked.append((x[0], named)), with_kwargs=True
    )
    _ = model(src, tgt, src_mask=mask)
    ((x, named),) = asked
    expected = regard.inspect.attention_map(
        model.blocks[-1].attention, x, named["context"], key_mask=mask, kind="exact"
    )
    found = model.align(src, tgt, src_mask=mask)
    assert found.shape == (3, 5, 6)
    assert_close(found, expected.tensor.mean(1), rtol=0, atol=1e-5)
    assert float(found[2, :, 2:].abs().max()) == 0


def test_what_the_mechanism_tells_is_told_with_its_place():
    model, (src, tgt, _) = small("head_pruning"), tokens()
    _, told = model.train()(src, tgt, return_aux=True)
    assert told
    assert all(name.split("/")[1] in ("blocks.0.attention", "blocks.1.attention") for name in told)


@pytest.mark.parametrize(
    ("mechanism", "words"),
    [
        ("nystrom", "nystrom lets the tokens that ask see each other: a decoder would see what comes"),
        ("local", "local attends within one sequence"),
        ("co_attention", "co_attention cannot look from a target at a source"),
    ],
)
def test_mechanisms_that_cannot_stand_between_decoder_and_source_are_refused(mechanism, words):
    options = {"num_landmarks": 4} if mechanism == "nystrom" else {}
    with pytest.raises(UnsupportedError, match=words):
        small(mechanism, **options)


def test_the_trial_leaves_no_trace():
    layer = regard.create("performer", dim=8, num_heads=2).train()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = torch.random.get_rng_state()
    check_crossing(layer, 8, 9)
    assert layer.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_no_weights_no_alignment():
    src, tgt, _ = tokens()
    with pytest.raises(UnsupportedError, match="memory_compressed has no weights to show"):
        small("memory_compressed").align(src, tgt)
