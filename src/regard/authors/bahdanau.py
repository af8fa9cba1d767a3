"""lisa-groundhog/GroundHog, the authors' code: the decoder's recurrent layer that searches; and OpenNMT's attention."""

from typing import Any

import torch

from regard.authors import Call, Config, Importer, Inputs, Outputs, State
from regard.authors.opennmt import OPENNMT
from regard.models.rnnsearch import SearchDecoder
from regard.registry import UnsupportedError


def _arguments(config: Config) -> dict[str, Any]:
    """Gates are not to be left out in their code either; functions are told by their last name."""
    for key, usual in (("activation", "tanh"), ("gater_activation", "sigmoid"), ("reseter_activation", "sigmoid")):
        value = str(config.get(key, usual))
        if usual not in value:
            raise UnsupportedError(f"{key}={value!r}: only {usual} is computed")
    return {"dim": config["n_hids"], "context_dim": config["c_dim"]}


def _weights(state: State) -> State:
    """Their matrices multiply on the right; A and A_cp, W and W_hh are two names for one."""
    found = {name.split("_")[0] if name not in ("C_r", "C_z") else name: tensor.mT for name, tensor in state.items()}
    return {
        "attention.key_proj.weight": found["A"],
        "attention.query_proj.weight": found["B"],
        "attention.vector.weight": found["D"],
        "context_maps.weight": torch.cat((found["C_z"], found["C_r"], found["C"])),
        "state_gates.weight": torch.cat((found["G"], found["R"])),
        "state_candidate.weight": found["W"],
    }


def _call(module: SearchDecoder, inputs: Inputs, call: Call) -> Outputs:
    """Time comes first; what words contribute is given."""
    below = torch.cat([inputs[name].transpose(0, 1) for name in ("x_z", "x_r", "x")], -1)
    annotations, state = inputs["memory"].transpose(0, 1), inputs.get("h0")
    key_mask, mask = (inputs[name].mT > 0 if name in inputs else None for name in ("memory_mask", "y_mask"))
    if key_mask is not None:
        annotations = annotations.masked_fill(~key_mask[..., None], 0.0)
    state = annotations.new_zeros(annotations.shape[0], module.dim) if state is None else state
    searched = module(below, annotations, state, key_mask=key_mask, mask=mask)
    contexts, alignment = searched.seen.transpose(0, 1), searched.weights.permute(1, 2, 0)
    return {"out": searched.states.transpose(0, 1), "contexts": contexts, "alignment": alignment}


IMPORTERS = {
    "lisa-groundhog/GroundHog:experiments/nmt/encdec.py:RecurrentLayerWithSearch*": Importer(
        SearchDecoder, _arguments, _call, _weights
    ),
    **OPENNMT,
}
