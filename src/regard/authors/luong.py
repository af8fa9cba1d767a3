"""lmthang/nmt.matlab, the authors' code: their layer alone or on top of their LSTM; and the paper's own scores."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.authors.opennmt import OPENNMT
from regard.mechanisms.pairs.luong import Luong
from regard.models.luong_decoder import LuongDecoder
from regard.registry import UnsupportedError

_ALIGNMENTS = {
    "global": "global",
    "1": "global",
    "local-m": "local-m",
    "2": "local-m",
    "local-p": "local-p",
    "4": "local-p",
}
_SCORES = {"dot": "dot", "1": "dot", "general": "general", "2": "general", "concat": "concat", "3": "concat"}
"""Their names for both, and their numbers."""


def _known(config: Config, key: str, table: dict[str, str]) -> Any:
    value = str(config[key])
    if value not in table:
        raise UnsupportedError(
            f"{key}={value!r}: their released code computes {', '.join(dict.fromkeys(table.values()))}"
        )
    return table[value]


def _attention(config: Config) -> dict[str, Any]:
    """Their "concat" has no matrix on the source, and both later variants are switches of local-p."""
    score, alignment = _known(config, "attnOpt", _SCORES), _known(config, "attnFunc", _ALIGNMENTS)
    found: dict[str, Any] = {"score": score, "alignment": alignment, "source_proj": score != "concat"}
    if alignment != "global":
        found["half_window"] = config.get("posWin", 10)
    if alignment == "local-p":
        found |= {"sigma": config.get("sigma") or None, "normalise": bool(config.get("normLocalAttn", 0))}
    return found


def _build(dim: int, lstm_layers: int, feed_input: bool, attention: dict[str, Any]) -> nn.Module:
    if not lstm_layers:
        return Luong(dim, **attention)
    return LuongDecoder(dim, dim, lstm_layers, input_feeding=feed_input, **attention)


def _arguments(config: Config) -> dict[str, Any]:
    if config.get("lstmOpt", 0):
        raise UnsupportedError(
            f"lstmOpt={config['lstmOpt']} leaves out the tanh of the cell: only lstmOpt=0 is computed"
        )
    layers, feeds = config.get("lstm_layers", 0), bool(config.get("feedInput", 0))
    if feeds and not layers:
        raise UnsupportedError("feedInput=1 feeds the attentional state to an LSTM: with lstm_layers=0 there is none")
    return {"dim": config["dim"], "lstm_layers": layers, "feed_input": feeds, "attention": _attention(config)}


_NAMES = {"W_a": "query_proj", "v_a": "vector", "W_pos": "place_proj", "v_pos": "place_vector", "W_h": "out_proj"}


def _weights(state: State) -> State:
    """Their matrices by our names; the numbered ones are the layers of the LSTM, from below."""
    layers = sorted((name for name in state if name not in _NAMES), key=_number)
    prefix = "attention." if layers else ""
    found = {f"{prefix}{ours}.weight": state[theirs] for theirs, ours in _NAMES.items() if theirs in state}
    for layer, name in enumerate(layers):
        rows, columns = state[name].shape
        inputs, recurrent = _gates(state[name]).split((columns - rows // 4, rows // 4), 1)
        found |= {f"lstm.weight_ih_l{layer}": inputs, f"lstm.weight_hh_l{layer}": recurrent}
    return found


def _number(name: str) -> int:
    digits = re.findall(r"\d+", name)
    if not digits:
        raise UnsupportedError(f"{name!r} is none of {', '.join(_NAMES)} and no numbered layer of the LSTM")
    return int(digits[-1])


def _gates(matrix: Tensor) -> Tensor:
    """Input, forget, output gate, candidate -> torch's order, with the candidate before the output gate."""
    gate_i, gate_f, gate_o, candidate = matrix.chunk(4)
    return torch.cat((gate_i, gate_f, candidate, gate_o))


def _call(module: nn.Module, inputs: Inputs, call: Call) -> Outputs:
    """The states are given, or the words that make them; lengths count real words."""
    query = "query" if "query" in inputs else "emb"
    bound = bind(inputs, call, "memory", query, "lens")
    memory, x = bound["memory"], bound[query]
    mask = torch.arange(memory.shape[1], device=memory.device) < bound["lens"][:, None]
    told: Outputs = {}
    if isinstance(module, LuongDecoder):
        decoded = module(x, memory.masked_fill(~mask[..., None], 0.0), key_mask=mask)
        y, weights = decoded.attentional, decoded.weights
        told["h"] = decoded.states
        states, attention = decoded.states, module.attention
    else:
        assert isinstance(module, Luong)
        y, states, attention = module(x, memory, key_mask=mask), x, module
        weights = module.weights(x, memory.masked_fill(~mask[..., None], 0.0), key_mask=mask)
    if attention.alignment == "local-p":
        told["mu"] = attention.centre(states, memory, key_mask=mask)
    return told | {"out": y, "weights": weights}


class _Scores(nn.Module):
    """Both scores that the released code lacks or changes, with one output matrix for both."""

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__()
        self.location = Luong(dim, score="location", max_length=max_length)
        self.concat = Luong(dim, score="concat")


def _equation_arguments(config: Config) -> dict[str, Any]:
    return {"dim": config["dim"], "max_length": config["max_source"]}


def _equation_weights(state: State) -> State:
    query, key = state["W"].chunk(2, -1)
    return {
        "location.query_proj.weight": state["W_a"],
        "location.out_proj.weight": state["W_c"],
        "concat.query_proj.weight": query,
        "concat.key_proj.weight": key,
        "concat.vector.weight": state["v"],
        "concat.out_proj.weight": state["W_c"],
    }


def _equation_call(module: _Scores, inputs: Inputs, call: Call) -> Outputs:
    location, concat = (_call(layer, inputs, call) for layer in (module.location, module.concat))
    told = {"location_weights": location["weights"], "concat_weights": concat["weights"]}
    return told | {"out": location["out"], "concat": concat["out"]}


IMPORTERS = {
    "lmthang/nmt.matlab:code/layers/attnLayerForward.m": Importer(_build, _arguments, _call, _weights),
    "equations": Importer(_Scores, _equation_arguments, _equation_call, _equation_weights),
    **OPENNMT,
}
