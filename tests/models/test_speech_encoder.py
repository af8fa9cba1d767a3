import math

import pytest
import torch
from torch.testing import assert_close

from regard.memory import named_tensors, reorder
from regard.models.speech_encoder import SpeechEncoder
from regard.registry import UnsupportedError

STREAMS = [
    ("local", {"causal": True, "window": 3}),
    ("local", {"chunk": 4, "history": 2}),
    ("local", {"chunk": 1, "history": 0}),
    ("linear_transformer", {"causal": True, "convolution": None}),
    ("full", {"causal": True, "rotary": 10000.0}),
    ("local", {"chunk": 3, "rotary": 10000.0, "num_kv_heads": 2}),
]


def small(mechanism="full", **options):
    torch.manual_seed(0)
    options = {"channels": 3, "convolution": 5, **options}
    return SpeechEncoder(6, 16, 2, 4, mechanism, **options).eval().requires_grad_(False)


@pytest.mark.parametrize("mechanism", ["full", "linear_transformer", "nystrom", "performer", "head_pruning"])
def test_mechanisms_by_name(mechanism):
    options = {"num_landmarks": 4} if mechanism == "nystrom" else {}
    encoded = small(mechanism, **options)(torch.randn(2, 13, 6))
    assert encoded.states.shape == (2, 4, 16)
    assert encoded.mask is None


@pytest.mark.parametrize(("mechanism", "options"), [("full", {}), ("linear_transformer", {}), *STREAMS])
def test_padding_changes_nothing(mechanism, options):
    encoder, x = small(mechanism, **options), torch.randn(2, 30, 6)
    padded = torch.full((2, 41, 6), math.nan)
    padded[:, :30] = x
    mask = torch.arange(41) < torch.tensor([[30], [11]])
    encoded = encoder(padded, mask)
    assert encoded.mask.sum(1).tolist() == [8, 3]
    assert_close(encoded.states[:1, :8], encoder(x[:1]).states, rtol=0, atol=1e-5)
    assert_close(encoded.states[1:, :3], encoder(x[1:, :11]).states, rtol=0, atol=1e-5)
    assert not encoded.states[~encoded.mask].any()


@pytest.mark.parametrize(("mechanism", "options"), STREAMS)
@pytest.mark.parametrize("sizes", [(51,), (1,) * 51, (7, 0, 23, 1, 20)])
def test_pieces_are_the_whole(mechanism, options, sizes):
    encoder, x = small(mechanism, **options), torch.randn(2, 51, 6)
    memory, found = encoder.memory(2), []
    for piece in x.split(sizes, 1):
        y, memory = encoder.stream(piece, memory)
        found.append(y)
    y, memory = encoder.stream(x[:, :0], memory, last=True)
    assert memory.position.tolist() == [13, 13]
    assert_close(torch.cat((*found, y), 1), encoder(x).states, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mechanism", "options"), STREAMS[:2])
def test_streams_can_be_chosen_from(mechanism, options):
    encoder, x, order = small(mechanism, **options), torch.randn(3, 40, 6), torch.tensor([2, 0])
    _, memory = encoder.stream(x[:, :22], encoder.memory(3))
    y, _ = encoder.stream(x[order, 22:], reorder(memory, order), last=True)
    assert_close(y, encoder(x[order]).states[:, -y.shape[1] :], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mechanism", "options"), STREAMS[:4])
def test_the_memory_does_not_grow(mechanism, options):
    encoder, x = small(mechanism, **options), torch.randn(1, 64, 6)
    sizes, memory = [], encoder.memory(1)
    for _ in range(3):
        _, memory = encoder.stream(x, memory)
        sizes.append(sum(tensor.numel() for tensor in named_tensors(memory).values()))
    assert sizes[0] == sizes[1] == sizes[2]


def test_no_state_of_a_causal_encoder_sees_a_later_frame():
    encoder, x = small("local", causal=True, window=3), torch.randn(1, 40, 6)
    changed = x.clone()
    changed[:, 21:] += 1  # state 5 reads up to frame 20
    before, after = encoder(x).states, encoder(changed).states
    assert_close(after[:, :6], before[:, :6], rtol=0, atol=0)
    assert not torch.allclose(after[:, 6:], before[:, 6:])


def test_a_chunk_sees_ahead_as_far_as_its_end():
    encoder, x = small("local", chunk=4, convolution=None), torch.randn(1, 64, 6)
    changed = x.clone()
    changed[:, 4 * 7 : 4 * 7 + 1] += 1  # state 7, the last of the second chunk, is the first to read it
    different = (encoder(changed).states - encoder(x).states).abs().amax(-1)[0] > 1e-6
    assert different[4:8].all()
    assert not different[:4].any()


def test_what_layers_tell_carries_their_path():
    told = small("head_pruning").train()(torch.randn(2, 13, 6)).told
    assert told
    assert {name.split("/")[1] for name in told} == {"blocks.0.attention", "blocks.1.attention"}


def test_options_reach_the_mechanism():
    encoder = small("full", num_kv_heads=1, mlp_ratio=2, convolution=None, dtype=torch.float64)
    assert encoder.blocks[1].attention.num_kv_heads == 1
    assert encoder.blocks[0].mlp[0].out_features == 32
    assert not encoder.convolutions
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float64}


def test_every_parameter_learns():
    encoder = SpeechEncoder(6, 16, 2, 4, channels=3, dropout=0.1)
    encoder(torch.randn(2, 30, 6)).states.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.any() or "k_proj.bias" in name, name  # a bias on all keys cancels in the softmax


def test_refusals():
    with pytest.raises(UnsupportedError, match="reads whole recordings: one built with causal=True"):
        small().memory(2)
    with pytest.raises(UnsupportedError, match="\"local\" does and 'full' does not"):
        small(chunk=4)
    with pytest.raises(UnsupportedError, match="choose one of them"):
        small("local", chunk=4, causal=True)
    with pytest.raises(ValueError, match="chunk=0 and history=1"):
        small("local", chunk=0)
    with pytest.raises(UnsupportedError, match="linformer cannot be causal"):
        small("linformer", causal=True)
    with pytest.raises(TypeError, match="multi_head has no option 'heads'"):
        small(heads=3)
