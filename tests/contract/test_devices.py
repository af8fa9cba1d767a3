"""Every registered mechanism on a CUDA device: the numbers of the CPU, and no tensor left behind on it."""

import inspect

import pytest
import torch
from torch.testing import assert_close

from regard.memory import named_tensors
from tests.contract.cases import CASES
from tests.contract.test_memories import STREAMING

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    """Convolutions in float32, not in TF32, which has three digits; and whatever kernels a user's call would take."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.use_deterministic_algorithms(False)


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def moved(values, place):
    return {name: value.to(place) if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def first_tensor(out):
    return out[0] if isinstance(out, tuple) else out


@each(CASES)
def test_outputs_and_gradients_are_those_of_the_cpu(case):
    module, found = case.build(), {}
    inputs = case.inputs(module)
    for place in ("cpu", "cuda"):
        module = module.to(place)
        given = moved(inputs, place)
        leaves = [value.requires_grad_() for value in given.values() if torch.is_floating_point(value)]
        leaves += [parameter for parameter in module.parameters() if parameter.requires_grad]
        y = first_tensor(module(**given))
        assert y.device.type == place
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(place)
        grads = torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True, materialize_grads=True)
        found[place] = [y.detach().cpu(), *(grad.cpu() for grad in grads)]
    for on_device, on_cpu in zip(found["cuda"], found["cpu"], strict=True):
        largest = max(1.0, float(on_cpu.detach().to_dense().abs().max())) if on_cpu.numel() else 1.0
        assert_close(on_device.to_dense(), on_cpu.to_dense(), rtol=0, atol=5e-5 * largest)


@each(CASES)
def test_padding_changes_nothing_there_either(case):
    module = case.build().cuda()
    if "key_mask" not in inspect.signature(module.forward).parameters or case.sample.inputs is not None:
        pytest.skip("takes no mask, or inputs of its own")
    inputs = moved(case.inputs(module), "cuda")
    first = next(iter(inputs.values()))
    axis = 2 if case.kind == "core" else 1
    if case.card.data != "sequence":
        pytest.skip("no sequence")
    n = first.shape[axis]
    mask = (torch.arange(n, device="cuda") < n - 4).expand(len(first), -1)
    short = {name: value.narrow(axis, 0, n - 4) for name, value in inputs.items()}
    masks = {"key_mask": mask} if case.kind == "layer" else {"key_mask": mask, "query_mask": mask}
    y, whole = first_tensor(module(**inputs, **masks)), first_tensor(module(**short))
    assert_close(y.narrow(axis, 0, n - 4), whole, rtol=0, atol=5e-5)


@each(STREAMING)
def test_a_stream_stays_on_its_device(case):
    layer = case.build().cuda()
    x = torch.randn(2, 9, layer.dim, device="cuda")
    with torch.no_grad():
        memory, parts = layer.memory(2), []
        for part in x.split((5, 1, 1, 2), 1):
            y, memory = layer.stream(part, memory)
            parts.append(y)
        assert {tensor.device.type for tensor in named_tensors(memory).values()} == {"cuda"}
        assert_close(torch.cat(parts, 1), layer(x), rtol=0, atol=2e-5)
