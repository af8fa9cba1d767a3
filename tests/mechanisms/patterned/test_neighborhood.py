import itertools

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.neighborhood import Neighborhood, neighborhood_attention
from regard.registry import UnsupportedError


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def along(i, length, kernel, stride, dilation, causal):
    """The keys of place i along one axis, by the rules of the reference implementation."""
    group, place = i % dilation, i // dilation
    members = range(group, length, dilation)
    if causal:
        leader = min(place // stride * stride + stride - 1, len(members) - 1)
        return members[max(leader - kernel + 1, 0) : place + 1]
    leader = min(place // stride * stride + stride // 2, len(members) - 1)
    start = min(max(leader - kernel // 2, 0), len(members) - kernel)
    return members[start : start + kernel]


def equations(q, k, v, kernel, stride, dilation, causal, bias, extra):
    """Pixel by pixel; a bias has an entry for each offset, counted in steps of the dilation."""
    grid, rep = q.shape[2:-1], q.shape[1] // k.shape[1]
    out, lse = random(*q.shape[:-1], v.shape[-1]), random(*q.shape[:-1])
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        for place in itertools.product(*map(range, grid)):
            axes = [along(*each) for each in zip(place, grid, kernel, stride, dilation, causal, strict=True)]
            seen = list(itertools.product(*axes))
            keys = torch.stack([k[b, h // rep][key] for key in seen])
            values = torch.stack([v[b, h // rep][key] for key in seen])
            scores = keys @ q[b, h][place] / q.shape[-1] ** 0.5
            if bias is not None:
                offsets = [[(j - i) // d + c - 1 for i, j, d, c in zip(place, key, dilation, kernel, strict=True)]
                           for key in seen]  # fmt: skip
                scores = scores + torch.stack([bias[h][tuple(offset)] for offset in offsets])
            if extra is not None:
                scores = torch.cat((scores, extra[0][b, h // rep] @ q[b, h][place] / q.shape[-1] ** 0.5))
                values = torch.cat((values, extra[1][b, h // rep]))
            out[b, h][place] = scores.softmax(0) @ values
            lse[b, h][place] = scores.logsumexp(0)
    return out, lse


CASES = [  # grid, kernel, stride, dilation, causal
    ((11,), (4,), (1,), (1,), (False,)),
    ((11,), (5,), (2,), (2,), (False,)),
    ((11,), (3,), (3,), (1,), (True,)),
    ((11,), (4,), (3,), (2,), (True,)),
    ((6, 5), (3, 4), (1, 2), (2, 1), (False, False)),
    ((5, 4), (2, 3), (2, 1), (1, 1), (True, False)),
    ((3, 4, 5), (3, 2, 2), (1, 1, 2), (1, 2, 1), (False, False, True)),
]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("grid", "kernel", "stride", "dilation", "causal"), CASES)
def test_matches_the_equations(grid, kernel, stride, dilation, causal, full):
    """Alone, and with shared key heads, a bias and additional keys."""
    groups = 1 if full else 2
    q, k, v = random(1, 2, *grid, 3), random(1, groups, *grid, 3), random(1, groups, *grid, 2)
    bias = random(2, *(2 * c - 1 for c in kernel)) if full else None
    extra = (random(1, groups, 3, 3), random(1, groups, 3, 2)) if full else None
    options = {"stride": stride, "dilation": dilation, "causal": causal, "bias": bias, "extra": extra}
    found = neighborhood_attention(q, k, v, kernel, **options)
    assert_close(found, equations(q, k, v, kernel, stride, dilation, causal, bias, extra), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sides", "kernel"), [((7,), (3,)), ((4, 5), (3, 2)), ((3, 2, 4), (3, 2, 3))])
def test_the_layer_projects_and_attends(sides, kernel):
    layer = Neighborhood(6, 2, kernel, num_axes=len(sides), num_kv_heads=1, relative_bias=True, scale=0.3).double()
    torch.nn.init.normal_(layer.bias)
    x = random(2, 6, *sides)
    q, k, v = (linear(x.movedim(1, -1)).unflatten(-1, (-1, 3)).movedim(-2, 1)
               for linear in (layer.q_proj, layer.k_proj, layer.v_proj))  # fmt: skip
    once = (1,) * len(sides)
    rules = (kernel, once, once, (False,) * len(sides), layer.bias, None)
    out = equations(q * 0.3 * 3**0.5, k, v, *rules)[0]
    assert_close(layer(x), layer.out_proj(out.movedim(1, -2).flatten(-2)).movedim(-1, 1), rtol=0, atol=1e-12)


def test_windows_beyond_the_sides_are_cut_to_what_fits():
    q, k, v = (random(1, 2, 3, 4, 5) for _ in range(3))
    full = regard.attend(*(t.flatten(2, 3) for t in (q, k, v))).unflatten(2, (3, 4))
    assert_close(neighborhood_attention(q, k, v, 9)[0], full)
    lines = neighborhood_attention(q, k, v, (1, 9))[0]
    assert_close(neighborhood_attention(q, k, v, 9, dilation=(7, 1))[0], lines, msg="each row is a class of its own")
    bias = random(2, 17, 17)
    middle = bias[:, 6:11, 5:12]
    assert_close(
        neighborhood_attention(q, k, v, 9, bias=bias)[0], neighborhood_attention(q, k, v, (3, 4), bias=middle)[0]
    )


def test_no_pixel_sees_a_later_one_along_a_causal_axis():
    layer, x = Neighborhood(4, 2, 3, causal=(True, False)).double(), random(1, 4, 5, 6)
    y = layer(x)
    for row in range(5):
        changed = x.clone()
        changed[:, :, row:] += 1
        moved = (layer(changed) - y).abs().amax((0, 1, 3))
        assert not moved[:row].any()
        assert moved[row:].all()


def test_every_window_holds_its_kernel():
    layer = Neighborhood(4, 2, (3, 4)).double()
    weights = regard.inspect.attention_map(layer, random(1, 4, 6, 5)).tensor
    assert ((weights > 0).sum(-1) == 12).all()


def test_gradients():
    q, k, v = (random(1, 2, 5, 4, 3).requires_grad_() for _ in range(3))
    bias = random(2, 5, 3).requires_grad_()

    def run(q, k, v, bias):
        return neighborhood_attention(q, k, v, (3, 2), dilation=(1, 2), bias=bias)

    assert torch.autograd.gradcheck(run, (q, k, v, bias), fast_mode=True)


def test_dropout_comes_from_the_generator():
    layer, x = Neighborhood(4, 2, 3, attn_drop=0.5), torch.randn(1, 4, 5, 6)
    first, again, other = (layer(x, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_it_starts_as_in_the_authors_code():
    layer = Neighborhood(64, 8, relative_bias=True)
    assert abs(float(layer.bias.detach().std()) / 0.02 - 1) < 0.1
    bound = 64**-0.5
    for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj):
        assert 0.9 * bound < linear.weight.abs().max() <= bound


def test_refusals():
    layer, x = regard.create("neighborhood", dim=6, num_heads=2, kernel=3), torch.randn(2, 6, 3, 4)
    with pytest.raises(UnsupportedError, match="takes no masks: windows shift"):
        layer(x, key_mask=torch.ones(2, 3, 4, dtype=torch.bool))
    for options, message in (
        ({"kernel": 0}, "kernel"),
        ({"kernel": (3, 3, 3)}, r"3 numbers for a grid of 2 axes"),
        ({"kernel": 3, "stride": 4}, "stride 4 is larger than the kernel 3"),
        ({"num_axes": 4}, "one to three axes"),
        ({"num_kv_heads": 4}, "num_heads=2 is no multiple of num_kv_heads=4"),
        ({"causal": (True,)}, r"1 entries for a grid of 2 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            Neighborhood(6, 2, **options)
    q = random(1, 2, 5, 6, 3)
    with pytest.raises(ValueError, match=r"bias has shape \(2, 3, 3\), expected \(heads or 1, 5, 5\)"):
        neighborhood_attention(q, q, q, 3, bias=random(2, 3, 3))
