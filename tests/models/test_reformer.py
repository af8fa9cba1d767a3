import pytest
import torch
from torch.testing import assert_close

from regard.models import Reformer
from regard.models.reformer import AxialPositions


def model(depth=2, **options):
    return Reformer(20, 12, depth, 3, axial_shape=(4, 8), chunk_length=4, mlp_chunk=5, **options)


def test_positions_are_two_tables_side_by_side():
    places = AxialPositions((4, 8), (2, 4))
    first, second = places.tables
    assert_close(places(torch.tensor([[19]]))[0, 0], torch.cat((first[2], second[3])))


@pytest.mark.parametrize("attention", [("lsh",), ("local", "lsh")])
def test_padding_changes_nothing(attention):
    reformer, x = model(attention=attention).eval(), torch.randint(20, (2, 13))
    for real in (slice(0, 13), slice(4, 17)):
        mask = torch.zeros(2, 17, dtype=torch.bool)
        mask[:, real] = True
        padded = torch.randint(20, (2, 17))
        padded[:, real] = x
        assert_close(reformer(padded, key_mask=mask)[:, real], reformer(x), rtol=0, atol=1e-5)


def test_strict_is_causal_for_good():
    reformer, x = model(strict=True, num_buckets=4).eval(), torch.randint(20, (2, 20))
    for place in (5, 12, 19):
        other = x.clone()
        other[:, place:] = (x[:, place:] + 7) % 20
        assert_close(reformer(other)[:, :place], reformer(x)[:, :place], rtol=0, atol=1e-5)


def kept(depth):
    """Bytes of activations that are kept for the backward pass."""
    reformer = model(depth)
    weights = {parameter.data_ptr() for parameter in reformer.parameters()}
    sizes = []

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        reformer(torch.randint(20, (2, 32)), generator=torch.Generator().manual_seed(0))
    return sum(sizes)


def test_what_is_kept_does_not_grow_with_the_depth():
    assert kept(6) == kept(2)


def test_every_parameter_learns():
    reformer = model(attention=("local", "lsh"), dropout=0.1)
    reformer(torch.randint(20, (2, 32)), generator=torch.Generator().manual_seed(0)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in reformer.parameters())


def test_refusals():
    with pytest.raises(ValueError, match=r"33 tokens, but axial_shape=\(4, 8\) has 32"):
        model()(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match=r"axial_dims=\(5, 5\)"):
        model(axial_dims=(5, 5))
    with pytest.raises(ValueError, match=r"attention=\('hash',\)"):
        model(attention=("hash",))
