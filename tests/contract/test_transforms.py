"""torch.func and gradients of gradients, for every mechanism that is smooth.

Tangents and second derivatives are held to differences of values: an operator that drops a tangent gives zeros without
a word. Mapped functions are held to the loop.
"""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from tests.contract.cases import LAYERS, first_of_each
from tests.contract.graphs import answers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script"),  # torch's own forward-mode rules use it
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # where torch maps an operator by a loop
]
TINY = 5
"""Tokens."""

STEP = 1e-6
"""Of central differences, whose error is its square in float64."""

UNABLE = {}
"""(mechanism, test) -> why torch cannot; what is listed here and works is an error."""

SMOOTH = [*first_of_each([case for case in LAYERS if case.card.smooth])]


class Function:
    """A module as a function of one list of tensors: its inputs, then its parameters."""

    def __init__(self, case):
        self.module = case.build().double()
        subject = case.subject(self.module)
        short = {name: subject.cut(subject.length(name) - TINY, [name])[name] for name in subject.axes}
        given = {name: value.double() for name, value in {**subject.inputs, **short}.items()}
        parameters = {name: value.detach() for name, value in self.module.named_parameters() if value.requires_grad}
        self.inputs, self.parameters = [*given], [*parameters]
        self.values = [*given.values(), *parameters.values()]

    def __call__(self, *values):
        count = len(self.inputs)
        parameters = dict(zip(self.parameters, values[count:], strict=True))
        out = functional_call(self.module, parameters, (), dict(zip(self.inputs, values[:count], strict=True)))
        return torch.cat([y.flatten() for y in answers(out)])

    def loss(self, *values):
        return self(*values).sin().sum()

    def directions(self, seed=0):
        make = torch.Generator().manual_seed(seed)
        return [torch.randn(value.shape, generator=make, dtype=torch.float64) for value in self.values]

    def difference(self, function, directions):
        """How a function of the values changes in these directions, by central differences."""
        ahead, behind = (
            function(*(value + step * way for value, way in zip(self.values, directions, strict=True)))
            for step in (STEP, -STEP)
        )
        pairs = zip(ahead, behind, strict=True) if isinstance(ahead, tuple) else [(ahead, behind)]
        return [(after - before) / (2 * STEP) for after, before in pairs]


def close(found, expected):
    """Equal up to the error of differences, relative to the largest number."""
    for one, other in zip(found, expected, strict=True):
        largest = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        assert_close(one, other, rtol=0, atol=2e-6 * largest)


def held_to(transform):
    """A test that runs where it can, and must fail where the table says that it cannot."""

    @pytest.mark.parametrize("case", SMOOTH)
    def test(case):
        reason = UNABLE.get((case.name, transform.__name__))
        if reason is None:
            transform(Function(case))
        else:
            with pytest.raises((RuntimeError, NotImplementedError)):
                transform(Function(case))

    test.__doc__ = transform.__doc__
    return test


def tangents(function):
    """jvp, and forward-mode autograd on ordinary tensors, give the directional derivative."""
    directions = function.directions()
    expected = function.difference(function, directions)
    found = jvp(function, tuple(function.values), tuple(directions))[1]
    close([found], expected)
    assert expected[0].abs().max() > 1e-3
    with forward_ad.dual_level():
        dual = function(*map(forward_ad.make_dual, function.values, directions))
        assert_close(forward_ad.unpack_dual(dual).tangent, found)


def maps(function):
    """vmap over inputs and parameters gives what the loop gives, and so do the gradients of samples."""
    stacks = [torch.stack([value, value * 0.5, -value]) for value in function.values]
    places = tuple(range(len(stacks)))
    loop = [[stack[number] for stack in stacks] for number in range(3)]
    assert_close(vmap(function)(*stacks), torch.stack([function(*values) for values in loop]))
    found = vmap(grad(function.loss, places))(*stacks)
    expected = [grad(function.loss, places)(*values) for values in loop]
    assert_close(found, tuple(torch.stack(each) for each in zip(*expected, strict=True)))


def columns(function):
    """jacfwd, a mapped jvp, is jacrev, a mapped gradient: over the features of the first input."""
    first, *rest = function.values

    def scaled(factors):
        return function.loss(first * factors, *rest)[None]

    ones = torch.ones(first.shape[-1], dtype=torch.float64)
    assert_close(jacfwd(scaled)(ones), jacrev(scaled)(ones))


def curvature(function):
    """Gradients of gradients give the change of the gradient."""
    directions = function.directions()
    places = tuple(range(len(function.values)))
    expected = function.difference(grad(function.loss, places), directions)
    leaves = [value.clone().requires_grad_() for value in function.values]
    first = torch.autograd.grad(function.loss(*leaves), leaves, create_graph=True)
    along = sum((slope * way).sum() for slope, way in zip(first, directions, strict=True))
    found = torch.autograd.grad(along, leaves, materialize_grads=True)
    close(found, expected)
    assert max(slope.abs().max() for slope in expected) > 1e-3


test_tangents, test_maps, test_columns, test_curvature = map(held_to, (tangents, maps, columns, curvature))
