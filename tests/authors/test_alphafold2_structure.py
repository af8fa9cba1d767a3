import json
import math

import pytest
import torch
from torch.testing import assert_close

from regard.authors import alphafold2_structure
from regard.authors.alphafold2_structure import structure_weights
from regard.authors.haiku import of_module
from regard.models.structure_module import StructureModule
from regard.registry import UnsupportedError

FOLDING = "google-deepmind/alphafold:alphafold/model/folding.py"
MODULES = "google-deepmind/alphafold:alphafold/model/modules.py"
SIZES = {"num_channel": 10, "num_head": 3, "num_point_qk": 2, "num_point_v": 4, "num_scalar_qk": 5, "num_scalar_v": 6}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loaded(source, config, state):
    importer = alphafold2_structure.IMPORTERS[source]
    module = importer.module(**importer.arguments(config))
    weights = importer.weights(state)
    module.load_state_dict({name: t.detach() for name, t in weights.items()})
    return module, weights, importer


def attention_state(pair_dim=7, path="invariant_point_attention"):
    heads, p, pv, c, cv = list(SIZES.values())[1:]
    maps = {
        "q_scalar": (10, heads * c),
        "kv_scalar": (10, heads * (c + cv)),
        "q_point_local": (10, 3 * heads * p),
        "kv_point_local": (10, 3 * heads * (p + pv)),
        "attention_2d": (pair_dim, heads),
        "output_projection": (heads * (cv + 4 * pv + pair_dim), 10),
    }
    state = {f"{path}//trainable_point_weights": draw(heads)}
    for number, (name, shape) in enumerate(maps.items()):
        state[f"{path}/{name}//weights"] = 0.4 * draw(*shape, seed=number + 1)
        state[f"{path}/{name}//bias"] = 0.4 * draw(shape[1], seed=number + 11)
    return state


def turned(quaternion):
    """Rotation matrices, from the unit quaternion's action on the axes."""
    w, v = quaternion[:, :1], quaternion[:, 1:]
    axes = []
    for axis in torch.eye(3, dtype=quaternion.dtype).expand(len(quaternion), 3, 3).unbind(1):
        cross = 2 * torch.linalg.cross(v, axis)
        axes.append(axis + w * cross + torch.linalg.cross(v, cross))
    return torch.stack(axes, -1)


def authors_attention(state, inputs):
    """Their arithmetic: sums of squared differences, with all biases, masked pairs 1e5 lower."""
    heads, p, pv, c, cv = list(SIZES.values())[1:]
    x, z, mask, affine = (inputs[name] for name in ("inputs_1d", "inputs_2d", "mask", "affine"))
    rotation = turned(affine[:, :4] / affine[:, :4].norm(dim=-1, keepdim=True))
    place, length = affine[:, 4:], len(x)

    def linear(name, y):
        path = f"invariant_point_attention/{name}"
        return y @ state[f"{path}//weights"] + state[f"{path}//bias"]

    q = linear("q_scalar", x).view(length, heads, c)
    k, v = linear("kv_scalar", x).view(length, heads, c + cv).split((c, cv), -1)
    qp = linear("q_point_local", x).view(length, 3, heads, p).permute(0, 2, 3, 1)
    kvp = linear("kv_point_local", x).view(length, 3, heads, p + pv).permute(0, 2, 3, 1)

    def out_of_frames(points):
        return torch.einsum("nij,nhpj->nhpi", rotation, points) + place[:, None, None]

    qp, (kp, vp) = out_of_frames(qp), out_of_frames(kvp).split((p, pv), 2)
    squared = (qp[:, None] - kp[None]).square().sum(-1).sum(-1)
    weight = torch.nn.functional.softplus(state["invariant_point_attention//trainable_point_weights"])
    logits = math.sqrt(1 / (3 * c)) * torch.einsum("nhc,mhc->nmh", q, k)
    logits = logits - 0.5 * math.sqrt(1 / (13.5 * p)) * weight * squared + math.sqrt(1 / 3) * linear("attention_2d", z)
    a = (logits - 1e5 * (1 - mask * mask.T)[..., None]).softmax(1)
    points = torch.einsum("nji,nhpj->nhpi", rotation, torch.einsum("nmh,mhpi->nhpi", a, vp) - place[:, None, None])
    norms = (points.square().sum(-1) + 1e-8).sqrt()
    parts = [torch.einsum("nmh,mhc->nhc", a, v), *points.unbind(-1), norms, torch.einsum("nmh,nmc->nhc", a, z)]
    return linear("output_projection", torch.cat([part.flatten(1) for part in parts], -1))


def test_masked_attention_with_gradients_of_frames_weights_and_inputs():
    state = attention_state()
    inputs = {
        "inputs_1d": draw(8, 10, seed=30),
        "inputs_2d": draw(8, 8, 7, seed=31),
        "affine": draw(8, 7, seed=32),
        "mask": (torch.arange(8) < 6).double()[:, None],
    }
    given = [t for name, t in inputs.items() if name != "mask"]
    leaves = [t.requires_grad_() for t in (*given, *state.values())]
    module, weights, importer = loaded(f"{FOLDING}:InvariantPointAttention", SIZES, state)
    module.double()

    named = {f"module.{name}": tensor for name, tensor in weights.items()}
    found = torch.func.functional_call(_Call(module, importer), named, (inputs,))
    ours, theirs = found["out"], authors_attention(state, inputs)
    real = inputs["mask"][:, 0] > 0
    assert_close(ours[real], theirs[real], rtol=0, atol=1e-10)
    cotangent = draw(8, 10, seed=40) * inputs["mask"]
    grads = [torch.autograd.grad((out * cotangent).sum(), leaves) for out in (ours, theirs)]
    assert_close(grads[0], grads[1], rtol=0, atol=1e-9)
    quaternion = inputs["affine"][:, :4]
    assert_close(found["rotation"], turned(quaternion / quaternion.norm(dim=-1, keepdim=True)))


class _Call(torch.nn.Module):
    def __init__(self, module, importer):
        super().__init__()
        self.module, self.importer = module, importer

    def forward(self, inputs):
        return self.importer.call(self.module, inputs, {})


def test_the_distogram_and_its_loss():
    config = {"first_break": 2.0, "last_break": 20.0, "num_bins": 12, "weight": 0.3}
    state = {"distogram_head/half_logits//weights": draw(6, 12), "distogram_head/half_logits//bias": draw(12, seed=1)}
    module, _, importer = loaded(f"{MODULES}:DistogramHead", config, state)
    pair, points, mask = draw(5, 5, 6, seed=2), 8 * draw(5, 3, seed=3), torch.tensor([1.0, 1, 0, 1, 1]).double()
    with torch.no_grad():
        out = importer.call(module.double(), {"pair": pair, "pseudo_beta": points, "pseudo_beta_mask": mask}, {})
    half = pair @ state["distogram_head/half_logits//weights"] + state["distogram_head/half_logits//bias"]
    assert_close(out["logits"], half + half.transpose(0, 1))
    edges, total = torch.linspace(2.0, 20.0, 11), 0.0
    for i in range(5):
        for j in range(5):
            bin_ = int((edges.double() ** 2 < ((points[i] - points[j]) ** 2).sum()).sum())
            total += float(mask[i] * mask[j] * -out["logits"][i, j].log_softmax(-1)[bin_])
    assert_close(float(out["loss"]), total / 16)
    alone, _, importer = loaded(f"{MODULES}:_distogram_log_loss", {"num_bins": 12}, {})
    given = {"logits": out["logits"], "bin_edges": edges, "pseudo_beta": points, "pseudo_beta_mask": mask}
    assert_close(importer.call(alone, given, {})["loss"], out["loss"])


STRUCTURE = {
    **SIZES,
    "num_scalar_v": 5,
    "num_layer": 2,
    "num_layer_in_transition": 3,
    "position_scale": 10.0,
    "sidechain": {"num_channel": 8, "num_residual_block": 2},
}


def released(module):
    """The parameters of ours under the names of the released files."""
    step = "fold_iteration"
    paths = {
        "single_norm": "single_layer_norm",
        "pair_norm": "pair_layer_norm",
        "enter": "initial_projection",
        "attention_norm": f"{step}/attention_layer_norm",
        "transition.layers.0": f"{step}/transition",
        "transition.layers.1": f"{step}/transition_1",
        "transition.last": f"{step}/transition_2",
        "transition_norm": f"{step}/transition_layer_norm",
        "backbone_update": f"{step}/affine_update",
        "torsions.now": f"{step}/rigid_sidechain/input_projection",
        "torsions.start": f"{step}/rigid_sidechain/input_projection_1",
        "torsions.inner.0": f"{step}/rigid_sidechain/resblock1",
        "torsions.outer.0": f"{step}/rigid_sidechain/resblock2",
        "torsions.inner.1": f"{step}/rigid_sidechain/resblock1_1",
        "torsions.outer.1": f"{step}/rigid_sidechain/resblock2_1",
        "torsions.output": f"{step}/rigid_sidechain/unnormalized_angles",
    }
    for ours, theirs in alphafold2_structure._MAPS.items():
        paths[f"attention.{ours}"] = f"{step}/invariant_point_attention/{theirs}"
    state = {}
    for name, tensor in module.state_dict().items():
        if name == "attention.point_weights":
            state[f"structure_module/{step}/invariant_point_attention//trainable_point_weights"] = tensor
            continue
        part, kind = name.rsplit(".", 1)
        path = f"structure_module/{paths[part]}"
        if "norm" in part:
            state[path + ("//scale" if kind == "weight" else "//offset")] = tensor
        else:
            state[path + ("//weights" if kind == "weight" else "//bias")] = tensor.mT if tensor.ndim == 2 else tensor
    return state


def test_the_structure_module_under_its_released_names():
    torch.manual_seed(0)
    ours = StructureModule(
        10, 7, 2, num_heads=3, head_dim=5, query_points=2, value_points=4, torsion_dim=8, dropout=0.1
    ).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    state = released(ours)
    assert {name: t.shape for name, t in structure_weights(of_module(state)).items()} == {
        name: t.shape for name, t in ours.state_dict().items()
    }
    module, _, importer = loaded(f"{FOLDING}:StructureModule", STRUCTURE, state)
    inputs = {"single": draw(6, 10), "pair": draw(6, 6, 7), "aatype": torch.arange(6), "seq_mask": torch.ones(6)}
    out = importer.call(module.eval(), inputs, {})
    made = ours.eval()(inputs["single"][None], inputs["pair"][None], inputs["aatype"][None])
    assert_close(out["final_atom_positions"], made.atoms[0])
    assert_close(out["out"], made.single[0])


@pytest.mark.parametrize(
    ("change", "reason"), [({"num_scalar_v": 6}, "one width"), ({"position_scale": 20}, "10 Angstrom")]
)
def test_what_cannot_be_honoured_is_refused(change, reason):
    importer = alphafold2_structure.IMPORTERS[f"{FOLDING}:StructureModule"]
    config = json.loads(json.dumps({**STRUCTURE, **change}))
    with pytest.raises(UnsupportedError, match=reason):
        importer.module(**importer.arguments(config))
