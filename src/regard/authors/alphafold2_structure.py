"""DeepMind's structure module, its attention, and the distogram: names as in the released parameters.

The widths that their configuration leaves open are read off the weights (:mod:`regard.authors.haiku`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.authors.haiku import linear, made_for_weights, named, norm, of_module, within
from regard.models.alphafold_heads import DistogramHead
from regard.models.invariant_point import InvariantPointAttention
from regard.models.structure_losses import distogram_edges, distogram_loss
from regard.models.structure_module import StructureModule
from regard.ops.frames import Frames, quaternion_to_rotation
from regard.registry import UnsupportedError

UNIT = 10.0


def _sizes(config: Config) -> dict[str, Any]:
    """The widths of invariant point attention that their configuration has."""
    return {
        "num_heads": config["num_head"],
        "head_dim": config["num_scalar_qk"],
        "query_points": config["num_point_qk"],
        "value_points": config["num_point_v"],
    }


def _attention(config: Config) -> nn.Module:
    def make(state: State) -> nn.Module:
        dim, pair_dim = state["output.weight"].shape[0], state["pair_bias.weight"].shape[1]
        return InvariantPointAttention(dim, pair_dim, value_dim=config["num_scalar_v"], **_sizes(config))

    return made_for_weights(make)


_MAPS = {
    "query": "q_scalar",
    "key_value": "kv_scalar",
    "query_points": "q_point_local",
    "key_value_points": "kv_point_local",
    "pair_bias": "attention_2d",
    "output": "output_projection",
}


def attention_weights(state: State) -> State:
    """Those of invariant point attention, from a state by paths within it."""
    parts: dict[str, State] = {ours: linear(state, theirs) for ours, theirs in _MAPS.items()}
    return {**named(parts), "point_weights": state["//trainable_point_weights"]}


def _attend(module: InvariantPointAttention, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "inputs_1d", "inputs_2d", "mask", "affine")
    affine = given["affine"]
    frames = Frames(quaternion_to_rotation(affine[:, :4]), affine[:, 4:])
    mask = given["mask"][:, 0] > 0 if "mask" in given else None
    out = module.update(  # without our door: their masked residues take part in their own rows
        given["inputs_1d"][None],
        given["inputs_2d"][None],
        Frames(frames.rotation[None], frames.translation[None]),
        None if mask is None else mask[None],
    )
    return {"out": out[0], "rotation": frames.rotation, "translation": frames.translation}


def _structure(config: Config) -> nn.Module:
    if config.get("num_scalar_v", config["num_scalar_qk"]) != config["num_scalar_qk"]:
        raise UnsupportedError("num_scalar_v differs from num_scalar_qk: our structure module has one width for both")
    if config.get("position_scale", UNIT) != UNIT:
        raise UnsupportedError(f"position_scale={config['position_scale']}: the unit of length is {UNIT:g} Angstrom")

    def make(state: State) -> nn.Module:
        return StructureModule(
            state["enter.weight"].shape[0],
            state["pair_norm.weight"].shape[0],
            config["num_layer"],
            **_sizes(config),
            transition_layers=config["num_layer_in_transition"],
            torsion_dim=config["sidechain"]["num_channel"],
            torsion_blocks=config["sidechain"]["num_residual_block"],
            dropout=config.get("dropout", 0.1),
        )

    return made_for_weights(make)


def _numbered(state: State, path: str) -> list[str]:
    """A map and those of the same name that follow it: "transition", "transition_1", ..."""
    names = [path]
    while f"{path}_{len(names)}//weights" in state:
        names.append(f"{path}_{len(names)}")
    return names


def structure_weights(state: State) -> State:
    """Those of the structure module, from a state by paths within it."""
    step = within(state, "fold_iteration")
    torsions = within(step, "rigid_sidechain")
    *layers, last = _numbered(step, "transition")
    parts: dict[str, State] = {
        "single_norm": norm(state, "single_layer_norm"),
        "pair_norm": norm(state, "pair_layer_norm"),
        "enter": linear(state, "initial_projection"),
        "attention": attention_weights(within(step, "invariant_point_attention")),
        "attention_norm": norm(step, "attention_layer_norm"),
        "transition.last": linear(step, last),
        "transition_norm": norm(step, "transition_layer_norm"),
        "backbone_update": linear(step, "affine_update"),
        "torsions.now": linear(torsions, "input_projection"),
        "torsions.start": linear(torsions, "input_projection_1"),
        "torsions.output": linear(torsions, "unnormalized_angles"),
    }
    parts |= {f"transition.layers.{number}": linear(step, path) for number, path in enumerate(layers)}
    for ours, theirs in (("inner", "resblock1"), ("outer", "resblock2")):
        paths = enumerate(_numbered(torsions, theirs))
        parts |= {f"torsions.{ours}.{number}": linear(torsions, path) for number, path in paths}
    return named(parts)


def _fold(module: StructureModule, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "single", "pair", "aatype", "seq_mask")
    mask = given["seq_mask"] > 0 if "seq_mask" in given else torch.ones_like(given["aatype"], dtype=torch.bool)
    made = module(given["single"][None], given["pair"][None], given["aatype"][None].long(), mask=mask[None])
    return {"out": made.single[0], "act": made.single[0], "final_atom_positions": made.atoms[0]}


class _Distogram(nn.Module):
    """Their head with its edges."""

    def __init__(self, pair_dim: int, first_break: float, last_break: float, num_bins: int) -> None:
        super().__init__()
        self.head = DistogramHead(pair_dim, num_bins)
        self.breaks = (first_break, last_break, num_bins)


def _distogram(config: Config) -> nn.Module:
    breaks = {name: config[name] for name in ("first_break", "last_break", "num_bins")}
    return made_for_weights(lambda state: _Distogram(state["head.logits.weight"].shape[1], **breaks))


def _distances(module: _Distogram, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "pair", "pseudo_beta", "pseudo_beta_mask")
    logits, edges = module.head(given["pair"][None]), distogram_edges(*module.breaks, device=given["pair"].device)
    return _with_loss({"logits": logits[0], "bin_edges": edges}, logits, edges, given)


def _with_loss(found: Outputs, logits: Tensor, edges: Tensor, given: dict[str, Tensor]) -> Outputs:
    if "pseudo_beta" not in given:
        return found
    points = given["pseudo_beta"]
    mask = given["pseudo_beta_mask"] > 0 if "pseudo_beta_mask" in given else torch.ones_like(points[:, 0]) > 0
    squared = (points[:, None] - points[None]).square().sum(-1)
    loss = distogram_loss(logits, points[None], mask[None], edges)[0]
    return {**found, "loss": loss, "true_dist": (squared + 1e-6).sqrt()}


class _Loss(nn.Module):
    """Nothing but the number of bins: their loss has no parameters."""

    def __init__(self, num_bins: int, first_break: float, last_break: float) -> None:
        super().__init__()
        self.breaks = (first_break, last_break, num_bins)


def _loss_arguments(config: Config) -> dict[str, Any]:
    default = {"num_bins": 64, "first_break": 2.3125, "last_break": 21.6875}
    return {name: config.get(name, value) for name, value in default.items()}


def _loss(module: _Loss, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "logits", "bin_edges", "pseudo_beta", "pseudo_beta_mask")
    edges = given.get("bin_edges", distogram_edges(*module.breaks, device=given["logits"].device))
    return _with_loss({}, given["logits"][None], edges, given)


def _whole(config: Config) -> dict[str, Any]:
    return {"config": config}


IMPORTERS = {
    "google-deepmind/alphafold:alphafold/model/folding.py:InvariantPointAttention": Importer(
        _attention, _whole, _attend, lambda state: attention_weights(of_module(state))
    ),
    "google-deepmind/alphafold:alphafold/model/folding.py:StructureModule": Importer(
        _structure, _whole, _fold, lambda state: structure_weights(of_module(state))
    ),
    "google-deepmind/alphafold:alphafold/model/modules.py:DistogramHead": Importer(
        _distogram,
        _whole,
        _distances,
        lambda state: named({"head.logits": linear(of_module(state), "")}),
    ),
    "google-deepmind/alphafold:alphafold/model/modules.py:_distogram_log_loss": Importer(_Loss, _loss_arguments, _loss),
}
