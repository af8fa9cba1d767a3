import contextlib

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import regard
from regard.models.memformer import Memformer
from regard.train.memory_replay import memory_replay


def through_time(step, segments, memory):
    losses = []
    for segment in segments:
        loss, memory = step(segment, memory)
        losses.append(loss)
    torch.stack(losses).sum().backward()
    return losses, memory


def slopes(model):
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def same(first, second):
    for name, slope in first.items():
        assert (slope is None) == (second[name] is None), name
        if slope is not None:
            assert_close(second[name], slope, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("update", ["normalised", "gru"])
def test_gradients_are_those_of_the_whole_stream(update):
    """Also of the slots' start, on which the first memory depends."""
    model = Memformer(11, dim=8, num_heads=2, depth=2, num_slots=3, update=update, dropout=0.3, dtype=torch.float64)
    segments = torch.randint(11, (2, 18)).split(5, 1)

    def step(segment, memory):
        y, memory = model.stream(segment, memory)
        return y[..., 0].sin().mean(), memory

    torch.manual_seed(3)
    losses, memory = through_time(step, segments, model.memory(2))
    drawn, expected = torch.rand(1), slopes(model)
    assert expected["slots.start"].abs().max() > 1e-6
    torch.manual_seed(3)
    replayed, after = memory_replay(step, segments, model.memory(2))
    assert_close(torch.rand(1), drawn, rtol=0, atol=0)  # random numbers go on where the stream ended
    same(expected, slopes(model))
    assert_close(torch.stack(replayed), torch.stack(losses).detach(), rtol=0, atol=1e-12)
    assert_close(after.slots, memory.slots.detach(), rtol=0, atol=1e-12)
    assert not after.slots.requires_grad
    assert not any(loss.requires_grad for loss in replayed)


@pytest.mark.parametrize("mechanism", ["linear_transformer", "memformer", "multi_head"])
def test_any_model_that_carries_a_memory(mechanism):
    """Memories that grow, that hold positions, and those of several layers."""
    layer = regard.create(mechanism, dim=8, num_heads=2, causal=True, dtype=torch.float64)
    segments = torch.randn(2, 9, 8, dtype=torch.float64).split(3, 1)

    def step(segment, memory):
        y, memory = layer.stream(segment, memory)
        return y.square().mean(), memory

    through_time(step, segments, layer.memory(2))
    expected = slopes(layer)
    memory_replay(step, segments, layer.memory(2))
    same(expected, slopes(layer))


def test_only_one_graph_is_alive_at_a_time():
    layer, alive, most = nn.GRUCell(4, 4), set(), [0]

    def step(segment, memory):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda handle: handle.tensor):
            memory = layer(segment, memory)
            return memory.square().mean(), memory

    class Handle:
        def __init__(self, tensor):
            self.tensor = tensor
            alive.add(id(self))
            most[0] = max(most[0], len(alive))

        def __del__(self):
            alive.discard(id(self))

    def keep(tensor):
        return Handle(tensor)

    peaks = []
    for length in (2, 20):
        most[0] = 0
        memory_replay(step, torch.randn(length, 1, 4).unbind(), torch.zeros(1, 4))
        peaks.append(most[0])
    assert peaks[0] == peaks[1] > 0


def test_all_backward_passes_but_the_last_are_without_synchronisation():
    cell, entered = nn.GRUCell(4, 4), []

    @contextlib.contextmanager
    def no_sync():
        entered.append(True)
        yield

    def step(segment, memory):
        memory = cell(segment, memory)
        return memory.sum(), memory

    memory_replay(step, torch.randn(5, 1, 4).unbind(), torch.zeros(1, 4), no_sync=no_sync)
    assert len(entered) == 4
    start = nn.Parameter(torch.zeros(1, 4))  # then the last pass is the one into the start
    memory_replay(step, torch.randn(5, 1, 4).unbind(), start * 1, no_sync=no_sync)
    assert len(entered) == 9
    assert start.grad.abs().max() > 0
