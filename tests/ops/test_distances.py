import pytest
import torch
from torch.testing import assert_close

from regard.ops.distances import euclidean, manhattan

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward-mode rules use it


def points(*leading, n=5, m=7, width=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (*leading, n, width), (*leading, m, width)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def plain(a, b):
    return (a[..., :, None, :] - b[..., None, :, :]).abs().sum(-1)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
@pytest.mark.parametrize(("n", "m"), [(5, 7), (1, 1), (3, 0), (30, 40)])
def test_matches_the_plain_formula(leading, n, m):
    a, b = points(*leading, n=n, m=m)
    slope = torch.randn(*leading, n, m, dtype=torch.float64)
    assert_close(manhattan(a, b), plain(a, b))
    assert_close(torch.autograd.grad(manhattan(a, b), (a, b), slope), torch.autograd.grad(plain(a, b), (a, b), slope))


def test_equal_numbers_have_no_gradient():
    a = torch.ones(3, 2, requires_grad=True)
    b = torch.ones(4, 2, requires_grad=True)
    slopes = torch.autograd.grad(manhattan(a, b).sum(), (a, b))
    assert not slopes[0].any()
    assert not slopes[1].any()


def test_many_gradients_at_once_are_those_of_one_at_a_time():
    """Those of torch.cdist are all the first one."""
    a, b = points(2)
    distances = manhattan(a, b)
    slopes = torch.randn(6, *distances.shape, dtype=torch.float64)

    def gradients(slope):
        return torch.autograd.grad(distances, (a, b), slope, retain_graph=True)

    together = torch.func.vmap(gradients)(slopes)
    for number, slope in enumerate(slopes):
        assert_close(tuple(t[number] for t in together), gradients(slope))


def test_only_what_is_asked_for_gets_a_gradient():
    a, b = points()
    manhattan(a, b.detach()).sum().backward()
    assert a.grad is not None
    assert b.grad is None


def plain_l2(a, b):
    squares = (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)
    return squares.masked_fill(squares == 0, 1.0).sqrt().masked_fill(squares == 0, 0.0)


@pytest.mark.parametrize(("distances", "formula"), [(manhattan, plain), (euclidean, plain_l2)])
@pytest.mark.parametrize(("n", "m"), [(5, 7), (1, 1), (30, 40)])
def test_derivatives_of_every_kind_are_those_of_the_formula(distances, formula, n, m):
    a, b = points(2, n=n, m=m)
    with torch.no_grad():
        b[:, 0] = a[:, 0]  # equal points
    ways = tuple(t.detach().sin() for t in (a, b))
    results = []
    for function in (distances, formula):
        first = torch.autograd.grad(function(a, b).sin().sum(), (a, b), create_graph=True)
        second = torch.autograd.grad(sum(t.sin().sum() for t in first), (a, b), materialize_grads=True)
        tangent = torch.func.jvp(function, (a.detach(), b.detach()), ways)
        mapped = torch.func.vmap(torch.func.grad(lambda x, y, f=function: f(x, y).sin().sum()))(a, b)
        results.append([*first, *second, *tangent, mapped])
    assert_close(*results)
