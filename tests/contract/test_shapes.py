"""Shapes, dtypes, devices, gradients and initialisation of every registered mechanism."""

import pytest
import torch

from tests.contract.cases import CORES, LAYERS, SEQUENCES, first_of_each

TINY = 5
"""Tokens for gradcheck, whose cost grows with their number."""


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


@each(SEQUENCES)
def test_a_layer_keeps_shape_and_dtype(case):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        layer = case.build(dtype=dtype)
        assert {parameter.dtype for parameter in layer.parameters()} <= {dtype}
        for length in (1, 9, 16):
            x = torch.randn(3, length, layer.dim, dtype=dtype)
            y = layer(x)
            assert (y.shape, y.dtype) == (x.shape, dtype)


@each(LAYERS)
def test_parameters_are_made_where_asked(case):
    layer = case.build(device="meta")
    assert {tensor.device.type for tensor in layer.state_dict().values()} <= {"meta"}


@pytest.mark.parametrize(
    "case", [param for cases in (LAYERS, CORES) for param in first_of_each([c for c in cases if c.card.smooth])]
)
def test_gradcheck(case):
    module = case.build().double()
    subject = case.subject(module)
    short = {name: subject.cut(subject.length(name) - TINY, [name])[name] for name in subject.axes}
    given = {**subject.inputs, **short}
    inputs = {name: value.double().requires_grad_() for name, value in given.items() if value.is_floating_point()}
    others = {name: value for name, value in given.items() if name not in inputs}
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    keep = torch.arange(TINY) < torch.tensor([[TINY], [TINY - 2]])
    mask = others | ({subject.mask_name: subject._mask(keep)} if subject.takes_mask else {})

    def run(*values):
        parameters = dict(zip(names, values[len(inputs) :], strict=True))
        arguments = dict(zip(inputs, values, strict=False))
        return torch.func.functional_call(module, parameters, (), arguments | mask)

    values = (*inputs.values(), *(module.get_parameter(name) for name in names))
    assert torch.autograd.gradcheck(run, values, fast_mode=True)


@each(LAYERS)
def test_reset_parameters_draws_everything_as_the_constructor_does(case):
    fresh, again = case.build(), case.build()
    for parameter in again.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(1)
    if list(again.parameters()):
        again.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in fresh.parameters())
    for (name, first), second in zip(fresh.named_parameters(), again.parameters(), strict=True):
        assert second.isfinite().all(), f"reset_parameters leaves {name} as it was"
        if first.numel() > 1:
            spread, count = float(first.detach().std()), first.numel()
            # what n draws tell about the spread and the mean
            assert abs(float(second.detach().std()) - spread) <= 4 * spread / (2 * count) ** 0.5
            assert abs(float((second - first).detach().mean())) <= 6 * spread / count**0.5 + 1e-6


@each(SEQUENCES)
def test_initialisation_keeps_signals_in_range(case):
    layer = case.build()
    y = layer(torch.randn(4, 17, layer.dim))
    assert 1e-3 < y.std() < 10
