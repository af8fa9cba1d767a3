import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.invariant_point import InvariantPointAttention
from regard.ops.frames import Frames, quaternion_to_rotation


def attention(seed=0, **options):
    torch.manual_seed(seed)
    module = InvariantPointAttention(10, 6, 3, 4, value_dim=5, query_points=2, value_points=3, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def inputs(length=7, batch=2, far=1.0, dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    single, pair = draw(batch, length, 10), draw(batch, length, length, 6)
    rotation, translation = quaternion_to_rotation(draw(batch, length, 4)), far * draw(batch, length, 3)
    return single.to(dtype), pair.to(dtype), Frames(rotation.to(dtype), translation.to(dtype))


def moved(frames, seed=5, far=100.0):
    """The same frames, turned and shifted as one body."""
    make = torch.Generator().manual_seed(seed)
    turn = quaternion_to_rotation(torch.randn(4, generator=make, dtype=torch.float64)).to(frames.rotation.dtype)
    shift = far * torch.randn(3, generator=make, dtype=torch.float64).to(turn.dtype)
    return Frames(turn @ frames.rotation, frames.translation @ turn.T + shift)


def equations(module, single, pair, frames, b, mask):
    """Algorithm 22 for one protein, residue by residue."""
    heads, length = module.num_heads, single.shape[1]
    (c, cv), (p, pv) = module.scalars, module.points
    s, z, rotation, place = single[b], pair[b], frames.rotation[b], frames.translation[b]
    q = module.query(s).view(length, heads, c)
    k, v = module.key_value(s).view(length, heads, c + cv).split((c, cv), -1)
    qp = module.query_points(s).view(length, 3, heads, p)
    kp, vp = module.key_value_points(s).view(length, 3, heads, p + pv).split((p, pv), -1)
    bias = module.pair_bias(z)
    out = []
    for i in range(length):
        scalars, points, pairs = [], [], []
        for h in range(heads):
            logits = []
            for j in range(length):
                squared = sum(
                    ((rotation[i] @ qp[i, :, h, n] + place[i] - rotation[j] @ kp[j, :, h, n] - place[j]) ** 2).sum()
                    for n in range(p)
                )
                weight = torch.nn.functional.softplus(module.point_weights[h]) / 2 * math.sqrt(2 / (9 * p))
                logit = q[i, h] @ k[j, h] / math.sqrt(c) + bias[i, j, h] - weight * squared
                logits.append(math.sqrt(1 / 3) * logit - 1e5 * (1 - float(mask[b, i] & mask[b, j])))
            a = torch.stack(logits).softmax(0)
            scalars.append(sum(a[j] * v[j, h] for j in range(length)))
            pairs.append(sum(a[j] * z[i, j] for j in range(length)))
            whole = sum(a[j] * (rotation[j] @ vp[j, :, h] + place[j][:, None]) for j in range(length))
            points.append(rotation[i].T @ (whole - place[i][:, None]))
        local = torch.stack(points)  # (H, 3, Pv)
        norms = (local.square().sum(1) + 1e-8).sqrt()
        parts = [
            torch.cat(scalars),
            *(local[:, axis].flatten() for axis in range(3)),
            norms.flatten(),
            torch.cat(pairs),
        ]
        out.append(module.output(torch.cat(parts)))
    return torch.stack(out)


@pytest.mark.parametrize("keep", [7, 4])
def test_matches_the_equations(keep):
    module = attention().double()
    single, pair, frames = inputs()
    mask = torch.arange(7).expand(2, 7) < torch.tensor([[7], [keep]])
    out = module(single, pair, frames, mask=mask)
    for b in range(2):
        real = mask[b]
        assert_close(out[b, real], equations(module, single, pair, frames, b, mask)[real], rtol=0, atol=1e-10)
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moving_everything_changes_nothing(dtype):
    module = attention().to(dtype)
    single, pair, frames = inputs(length=20, far=30.0, dtype=dtype)
    assert_close(module(single, pair, moved(frames)), module(single, pair, frames), rtol=0, atol=1e-4)
    mirror = Frames(frames.rotation * torch.tensor([1.0, 1, -1], dtype=dtype)[:, None], frames.translation)
    assert (module(single, pair, mirror) - module(single, pair, frames)).abs().max() > 1e-2


def test_close_points_far_from_the_origin_keep_their_digits():
    single, pair, frames = inputs(length=30)
    side = torch.where(torch.arange(30) < 15, 100.0, -100.0).double()  # two crowds, far from each other
    frames = Frames(frames.rotation, (frames.translation + side[:, None]).float().double())
    exact = attention().double()(single, pair, frames)
    narrow = attention()(single.float(), pair.float(), Frames(*(t.float() for t in frames)))
    assert_close(narrow.double(), exact, rtol=0, atol=1e-4)


def test_gradients_also_of_the_frames():
    module = attention().double()
    single, pair, frames = inputs(length=3, batch=1)
    tensors = [t.requires_grad_() for t in (single, pair, *frames)]
    assert torch.autograd.gradcheck(lambda s, z, r, t: module(s, z, Frames(r, t)), tensors)


def test_padding_changes_nothing_even_if_it_is_no_number():
    module = attention().double()
    single, pair, frames = inputs()
    mask = torch.tensor([[False, True, True, True, True, False, False]] * 2)
    kept = slice(1, 5)
    short = module(single[:, kept], pair[:, kept, kept], Frames(*(t[:, kept] for t in frames)))
    garbage = [t.clone().requires_grad_() for t in (single, pair, *frames)]
    with torch.no_grad():
        for tensor in garbage:
            tensor[:, ~mask[0]] = torch.nan
        garbage[1][:, :, ~mask[0]] = torch.nan
    out = module(garbage[0], garbage[1], Frames(*garbage[2:]), mask=mask)
    assert_close(out[:, kept], short, rtol=0, atol=1e-10)
    out.sum().backward()
    assert all(t.grad.isfinite().all() for t in garbage)
    nobody = module(single, pair, frames, mask=torch.zeros_like(mask))
    assert (nobody == 0).all()


def test_half_precision_and_autocast_keep_places_in_float32():
    module = attention()
    single, pair, frames = inputs(dtype=torch.float32, far=30.0)
    exact = module(single, pair, frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(single, pair, moved(frames))
    assert (out - exact).abs().max() < 0.05 * exact.abs().max()
    half = module.bfloat16()(single.bfloat16(), pair.bfloat16(), frames)
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.slow
def test_compiles_for_any_length_and_exports():
    module = attention()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (7, 9):
        given = inputs(length, dtype=torch.float32)
        assert_close(compiled(*given), module(*given))
    given = inputs(dtype=torch.float32)
    assert_close(torch.export.export(module, given).module()(*given), module(*given))


def test_starts_as_the_paper_says():
    torch.manual_seed(0)
    module = InvariantPointAttention(384, 64, 4)
    assert_close(torch.nn.functional.softplus(module.point_weights), torch.ones(4))
    assert module.output.weight.abs().max() == 0
    assert module.query.bias.abs().max() == 0
    assert abs(float(module.query.weight.detach().std()) * math.sqrt(384) - 1) < 0.03


def test_refusals():
    module = attention()
    single, pair, frames = inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"pair has shape \(2, 7, 6, 6\), expected \(2, 7, 7, 6\)"):
        module(single, pair[:, :, :6], frames)
    with pytest.raises(ValueError, match=r"frames have shapes .* 2 x 7 residues"):
        module(single, pair, frames.at(slice(None), slice(6)))
    with pytest.raises(TypeError, match=r"mask is torch\.float32"):
        module(single, pair, frames, mask=torch.ones(2, 7))
    with pytest.raises(ValueError, match="must be positive"):
        InvariantPointAttention(8, 6, 0)


def test_equals_hugging_faces_module_with_the_same_weights():
    esmfold = pytest.importorskip("transformers.models.esm.modeling_esmfold")
    rigid = pytest.importorskip("transformers.models.esm.openfold_utils")
    config = pytest.importorskip("transformers.models.esm.configuration_esm").StructureModuleConfig
    torch.manual_seed(0)
    theirs = esmfold.EsmFoldInvariantPointAttention(config(sequence_dim=12, pairwise_dim=6, num_heads_ipa=3))
    ours = InvariantPointAttention(12, 6, 3, 16)
    names = {
        "query": "linear_q",
        "key_value": "linear_kv",
        "query_points": "linear_q_points",
        "key_value_points": "linear_kv_points",
        "pair_bias": "linear_b",
        "output": "linear_out",
    }
    with torch.no_grad():
        theirs.linear_out.weight.normal_()
        theirs.head_weights.normal_()
        ours.point_weights.copy_(theirs.head_weights)
    for our_name, their_name in names.items():
        getattr(ours, our_name).load_state_dict(getattr(theirs, their_name).state_dict())
    _, pair, frames = inputs(9, dtype=torch.float32)
    single = torch.randn(2, 9, 12)
    mask = torch.arange(9).expand(2, 9) < torch.tensor([[9], [5]])
    body = rigid.Rigid(rigid.Rotation(rot_mats=frames.rotation), frames.translation)
    out = ours(single, pair, frames, mask=mask)
    assert_close(out[mask], theirs(single, pair, body, mask.float())[mask], rtol=1e-5, atol=1e-5)
