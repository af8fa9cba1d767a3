"""What can be done with a memory, for every registered mechanism that streams."""

import pytest
import torch
from torch.testing import assert_close

from regard.memory import detach, load, named_tensors, reorder, save, truncate
from tests.contract.cases import LAYERS

STREAMING = [case for case in LAYERS if case.card.streaming and case.causal == "strict" and case.sample.inputs is None]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def begun(case, *, tokens=6, more=3):
    """A layer, two sequences, and the memory of all but the last few tokens."""
    layer = case.build()
    x = torch.randn(2, tokens + more, layer.dim)
    _, memory = layer.stream(x[:, :tokens], layer.memory(2))
    return layer, x, memory


@each(STREAMING)
def test_a_memory_holds_tensors_with_the_batch_first(case):
    _, _, memory = begun(case)
    for name, tensor in named_tensors(memory).items():
        assert tensor.shape[0] == 2, name


@each(STREAMING)
def test_beams_branch_off_without_disturbing_each_other(case):
    layer, x, memory = begun(case)
    order = torch.tensor([1, 1, 0])
    ends = torch.randn(3, 3, layer.dim)
    beams = reorder(memory, order)
    whole = layer(torch.cat((x[order, :6], ends), 1))[:, 6:]
    for _ in range(2):  # the second time shows whether the first one changed anything
        y, _ = layer.stream(ends, beams)
        assert_close(y, whole, rtol=0, atol=1e-5)


@each(STREAMING)
def test_a_memory_survives_a_file(case, tmp_path):
    layer, x, memory = begun(case)
    save(memory, tmp_path / "memory.safetensors")
    found = load(tmp_path / "memory.safetensors", layer.memory(2))
    assert type(found) is type(memory)
    assert_close(layer.stream(x[:, 6:], found)[0], layer.stream(x[:, 6:], memory)[0], rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["memory.safetensors"]


@each(STREAMING)
def test_a_detached_memory_has_no_graph(case):
    _, _, memory = begun(case)
    assert not any(tensor.requires_grad for tensor in named_tensors(detach(memory)).values())


@each(STREAMING)
def test_tokens_are_taken_back_or_refused(case):
    """What is returned is the memory from before those tokens; what cannot be had is refused in words."""
    layer, x, memory = begun(case)
    _, further = layer.stream(x[:, 6:], memory)
    try:
        back = truncate(further, 6)
    except ValueError as error:
        assert "keep the memory from" in str(error)  # noqa: PT017 -- both ends are right
        return
    assert_close(layer.stream(x[:, 6:], back)[0], layer.stream(x[:, 6:], memory)[0], rtol=0, atol=1e-6)


@each(STREAMING)
def test_a_foreign_memory_is_refused(case):
    layer, x, memory = begun(case)
    with pytest.raises(ValueError, match="memory"):
        layer.stream(x[:1, 6:], memory)
    with pytest.raises(ValueError, match="meta"):
        layer.stream(x[:, 6:], layer.memory(2, device="meta"))
    with pytest.raises(TypeError, match=r"layer\.memory\(batch\)"):
        layer.stream(x[:, 6:], (memory,))
