import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.memory import named_tensors
from regard.models.speech_recognizer import SpeechRecognizer, real_frames
from regard.registry import UnsupportedError

DECODERS = ["lstm", "transformer"]


def small(mechanism="full", num_labels=6, **options):
    torch.manual_seed(0)
    sizes = {"sample_rate": 1000, "num_mels": 8, "channels": 3, "convolution": 3, "decoder_options": {"dim": 8}}
    return SpeechRecognizer(num_labels, 16, 2, 4, mechanism, **{**sizes, **options}).eval()


def spoken():
    """Two recordings of 4 and 2 labels; what stands in padding is nothing."""
    torch.manual_seed(1)
    waveforms = torch.randn(2, 700)
    mask = torch.arange(700) < torch.tensor([[700], [430]])
    labels = torch.tensor([[1, 5, 5, 2], [3, 1, -100, 77]])
    return waveforms.masked_fill(~mask, math.nan), mask, labels, torch.arange(4) < torch.tensor([[4], [2]])


@pytest.mark.parametrize("decoder", DECODERS)
def test_padding_changes_nothing(decoder):
    model, (x, mask, labels, label_mask) = small(decoder=decoder), spoken()
    log_probs = model(x, key_mask=mask)
    logits = model.decoder_logits(model.encode(x, mask), labels, label_mask)
    weights = model.attention(x, labels, key_mask=mask, label_mask=label_mask)
    assert log_probs.shape == (2, 18, 6)
    assert logits.shape == (2, 5, 7)
    for row, (samples, count) in enumerate(((700, 4), (430, 2))):
        alone, said = x[row : row + 1, :samples], labels[row : row + 1, :count]
        found = model(alone)
        states = found.shape[1]
        assert_close(log_probs[row, :states], found[0], rtol=0, atol=1e-5)
        assert_close(logits[row, : count + 1], model.decoder_logits(model.encode(alone), said)[0], rtol=0, atol=1e-5)
        assert_close(weights[row, : count + 1, :states], model.attention(alone, said)[0], rtol=0, atol=1e-5)
        assert_close(weights[row].sum(-1), torch.ones(5))
        assert not weights[row, :, states:].any()


def test_padded_states_are_certainly_blank():
    model, (x, mask, labels, label_mask) = small(), spoken()
    log_probs = model(x, key_mask=mask)
    assert real_frames(log_probs).sum(1).tolist() == [18, 11]
    assert_close(log_probs.exp().sum(-1), torch.ones(2, 18))
    counts = label_mask.sum(1)
    options = {"target_lengths": counts, "reduction": "none"}
    cut = F.ctc_loss(log_probs.transpose(0, 1), labels, input_lengths=torch.tensor([18, 11]), **options)
    whole = F.ctc_loss(log_probs.transpose(0, 1), labels, input_lengths=torch.tensor([18, 18]), **options)
    assert_close(whole, cut)


def test_ctc_reads_the_states_behind_dropout():
    model, (x, mask, _, _) = small(dropout=0.5), spoken()
    encoded = model.encode(x[:1], mask[:1])
    expected = (encoded.states @ model.ctc_out.weight.T + model.ctc_out.bias).log_softmax(-1)
    assert_close(model.log_probs(encoded), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(model.train().log_probs(encoded), expected)


def test_frames_are_taken_as_well_as_waveforms():
    model, (x, mask, _, _) = small(), spoken()
    frames, frame_mask = model.log_mel(x, mask)
    assert_close(model(frames, key_mask=frame_mask), model(x, key_mask=mask), rtol=0, atol=0)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_loss_is_that_of_the_parts(decoder):
    model, (x, mask, labels, label_mask) = small(decoder=decoder, label_smoothing=0.1), spoken()
    log_probs, aux = model(x, key_mask=mask, context=labels, context_mask=label_mask, return_aux=True)
    logits = model.decoder_logits(model.encode(x, mask), labels, label_mask)
    spelled = 0
    for row, said in enumerate(([1, 5, 5, 2, 6], [3, 1, 6])):
        for place, label in enumerate(said):
            nats = -logits[row, place].log_softmax(-1)
            spelled += 0.9 * nats[label] + 0.1 * nats.mean()
    assert list(aux) == ["loss/attention"]
    assert_close(aux["loss/attention"], 0.7 * spelled / 8)
    lengths = {"input_lengths": torch.tensor([18, 11]), "target_lengths": torch.tensor([4, 2])}
    heard = F.ctc_loss(log_probs.transpose(0, 1), labels, **lengths, reduction="sum")
    loss = model.loss(x, labels, key_mask=mask, label_mask=label_mask)
    assert_close(loss.loss, 0.3 * heard / 2 + 0.7 * spelled / 2)


def test_the_loss_of_a_task_and_of_the_model_have_the_same_gradients():
    model, (x, mask, labels, label_mask) = small(), spoken()
    log_probs, aux = model(x, key_mask=mask, context=labels, context_mask=label_mask, return_aux=True)
    lengths = {"input_lengths": torch.tensor([18, 18]), "target_lengths": torch.tensor([4, 2])}
    heard = F.ctc_loss(log_probs.transpose(0, 1), labels, **lengths, reduction="sum")
    parameters = list(model.parameters())
    found = torch.autograd.grad(0.3 * heard / 2 + aux["loss/attention"] * 4, parameters)  # 8 labels and ends of 2
    loss = model.loss(x, labels, key_mask=mask, label_mask=label_mask).loss
    assert_close(found, torch.autograd.grad(loss, parameters), rtol=1e-4, atol=1e-5)
    assert all(bool(slope.isfinite().all()) for slope in found)
    silent = [name for (name, _), slope in zip(model.named_parameters(), found, strict=True) if not slope.any()]
    assert all("k_proj.bias" in name or "gvec" in name for name in silent), silent


@pytest.mark.parametrize("decoder", DECODERS)
def test_label_by_label_as_at_once(decoder):
    model, (x, mask, labels, label_mask) = small(decoder=decoder), spoken()
    logits = model.decoder_logits(model.encode(x, mask), labels, label_mask)
    memory, last = model.begin(x, mask), torch.full((2,), model.end)
    for place in range(5):
        found, memory = model.step(last, memory)
        assert_close(found[0], logits[0, place], rtol=0, atol=1e-5)
        if place < 3:
            assert_close(found[1], logits[1, place], rtol=0, atol=1e-5)
        if place < 4:
            last = labels[:, place].where(label_mask[:, place], model.end)


@pytest.mark.parametrize("options", [{"causal": True, "window": 3}, {"chunk": 4}])
@pytest.mark.parametrize("sizes", [(1237,), (*(1,) * 40, 1197), (333, 0, 333, 333, 238), (10,) * 123 + (7,)])
@torch.no_grad()
def test_streams_give_what_the_whole_gives(options, sizes):
    model, x = small("local", **options), torch.randn(2, 1237)
    memory, found = model.begin_stream(2), []
    for piece in x.split(sizes, 1):
        log_probs, memory = model.stream(piece, memory)
        found.append(log_probs)
    found.append(model.finish(memory))
    assert_close(torch.cat(found, 1), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"causal": True, "window": 3}, {"chunk": 4}])
@torch.no_grad()
def test_the_memory_of_a_stream_does_not_grow(options):
    model, memory, sizes = small("local", **options), None, []
    memory = model.begin_stream(1)
    for _ in range(4):
        _, memory = model.stream(torch.randn(1, 640), memory)
        sizes.append(sum(tensor.numel() for tensor in named_tensors(memory).values()))
    assert len(set(sizes[1:])) == 1


@torch.no_grad()
def test_nothing_and_a_moment_are_recordings_too():
    model = small()
    assert model(torch.zeros(2, 0)).shape == (2, 0, 6)
    assert model(torch.zeros(2, 1)).shape == (2, 1, 6)
    memory = small("local", causal=True).begin_stream(1)
    assert small("local", causal=True).finish(memory).shape == (1, 0, 6)
    silent = torch.zeros(2, 700)
    assert bool(model(silent, key_mask=torch.zeros(2, 700, dtype=torch.bool))[..., 0].eq(0).all())
    assert bool(model(silent).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model, (x, mask, labels, label_mask) = small(dtype=dtype), spoken()
    log_probs, aux = model(x.to(dtype), key_mask=mask, context=labels, context_mask=label_mask, return_aux=True)
    assert log_probs.dtype == torch.promote_types(dtype, torch.float32)
    assert bool(aux["loss/attention"].isfinite())
    (log_probs[..., 1][real_frames(log_probs)].mean() + aux["loss/attention"]).backward()


@torch.no_grad()
def test_samples_may_be_more_precise_than_weights():
    model, x = small("local", causal=True), torch.randn(1, 700)
    assert_close(model(x.double()), model(x), rtol=0, atol=1e-5)
    log_probs, memory = model.stream(x.double(), model.begin_stream(1))
    assert_close(torch.cat((log_probs, model.finish(memory)), 1), model(x), rtol=0, atol=1e-5)


def test_without_a_decoder_there_is_ctc_alone():
    model, (x, mask, labels, label_mask) = small(decoder=None), spoken()
    assert model.ctc_weight == 1
    _, aux = model(x, key_mask=mask, context=labels, context_mask=label_mask, return_aux=True)
    assert not aux
    with pytest.raises(UnsupportedError, match=r'no decoder: build it with decoder="lstm"'):
        model.begin(x, mask)


def test_what_the_mechanism_tells_is_told_with_its_place():
    _, aux = small("head_pruning").train()(torch.randn(2, 700), return_aux=True)
    assert aux
    assert all("/encoder.blocks." in name for name in aux)


def test_refusals():
    model, (x, mask, labels, _) = small(), spoken()
    with pytest.raises(ValueError, match=r"labels lie between -100 and 77.*1 to 5, and the blank, 0, is none"):
        model(x, key_mask=mask, context=labels, return_aux=True)
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 700, 5\): expected waveforms .* frames \(batch, frames, 8\)"
    ):
        model(torch.zeros(2, 700, 5))
    with pytest.raises(ValueError, match="padding stands at the end"):
        model(torch.zeros(2, 70, 8), key_mask=(torch.arange(70) > 3).expand(2, -1))
    with pytest.raises(ValueError, match="1 of 2"):
        model.loss(
            x[:, :40], labels.abs().clamp(1, 5), label_mask=torch.tensor([[True] * 4, [True, False, False, False]])
        )
    short = torch.arange(700) < torch.tensor([[700], [40]])  # one state for two labels, whatever padding adds
    with pytest.raises(ValueError, match="1 of 2"):
        model.loss(x, torch.tensor([[1, 2], [3, 4]]), key_mask=short)
    with pytest.raises(UnsupportedError, match="this encoder reads whole recordings"):
        small(normalise="none").begin_stream(1)
    with pytest.raises(UnsupportedError, match=r'normalise="utterance" needs whole recordings'):
        small("local", causal=True, normalise="utterance").begin_stream(1)
    with pytest.raises(ValueError, match="decoder='gru' is none of"):
        small(decoder="gru")
    with pytest.raises(ValueError, match="num_labels=1"):
        small(num_labels=1)
    with pytest.raises(ValueError, match=r"ctc_weight=1.5 does not lie between 0 and 1"):
        small(ctc_weight=1.5)
