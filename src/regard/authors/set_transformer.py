"""Set Transformer by its authors: the blocks of modules.py, and the networks of models.py and the point clouds."""

import re
from functools import partial
from typing import Any

from torch import nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.lowrank.set_transformer import ISAB, MAB, PMA, SAB
from regard.models.deep_sets import DeepSets
from regard.models.set_transformer import SetTransformer

_RULES = {
    r"\bfc_([qkv])\.": r"\1_proj.",
    r"\bfc_o\.": "feed_forward.",
    r"\bln0\.": "norm1.",
    r"\bln1\.": "norm2.",
    r"\bmab0\.": "gather.",
    r"\bmab1\.": "spread.",
    r"\bmab\.": "block.",
    r"\bI$": "inducing",
    r"\bS$": "seeds",
    r"^enc\.": "encoder.",
}
"""Names inside of the blocks, and the encoder."""


def _arguments(config: Config, **names: str) -> dict[str, Any]:
    """Ours by their names; both norms are one switch."""
    known = {"num_heads": "num_heads", "layer_norm": "ln", **names}
    return {ours: config[theirs] for ours, theirs in known.items() if theirs in config}


def _block(module: type[nn.Module], *inputs: str, **names: str) -> Importer:
    def call(block: nn.Module, given: Inputs, notes: Call) -> Outputs:
        bound = bind(given, notes, *inputs)
        return {"out": block(*(bound[name] for name in inputs))}

    return Importer(module, partial(_arguments, **names), call, partial(renamed, rules=_RULES))


# whole networks: their decoder is a row of modules, of which the first pools and the last reads out


def _network_weights(state: State) -> State:
    """The one with the seeds pools, the last one is a matrix, those between are SABs."""
    places = {name: int(found[1]) for name in state if (found := re.match(r"dec\.(\d+)\.", name))}
    pool = next(place for name, place in places.items() if name.endswith(".S"))
    last = max(places.values())
    found = dict(renamed(state, _RULES))
    for name in list(found):
        if match := re.match(r"dec\.(\d+)\.", name):
            place = int(match[1])
            part = {pool: "pool", last: "output"}.get(place, f"blocks.{place - pool - 1}")
            found[f"decoder.{part}.{name[match.end() :]}"] = found.pop(name)
    return found


_MAXIMUM: dict[str, Any] = {"dim_input": 1, "num_outputs": 1, "dim_output": 1, "dim": 64}
_SIZES = {"dim_input": "dim_input", "num_outputs": "num_outputs", "dim_output": "dim_output", "dim": "dim_hidden"}


def _network_arguments(config: Config) -> dict[str, Any]:
    return _arguments(config, num_inducing="num_inds", **_SIZES)


def _cloud_arguments(config: Config) -> dict[str, Any]:
    """Everything has a default; their dropout is one half."""
    usual: dict[str, Any] = {"dim_input": 3, "num_outputs": 1, "dim_output": 40}
    return usual | {"decoder_depth": 0, "dropout": 0.5} | _network_arguments(config)


def _maximum_arguments(config: Config) -> dict[str, Any]:
    """Their notebook's network takes no arguments."""
    return _MAXIMUM | {"num_heads": 4, "num_inducing": None, "decoder_depth": 0}


def _network_call(network: nn.Module, inputs: Inputs, call: Call) -> Outputs:
    return {"out": network(_points(inputs, call))}


def _squeezed_call(network: nn.Module, inputs: Inputs, call: Call) -> Outputs:
    """They drop every axis of size 1, that of a batch of one too."""
    return {"out": network(_points(inputs, call)).squeeze()}


def _pooled_maximum_arguments(config: Config) -> dict[str, Any]:
    """Nor does its rival, but for the pooling."""
    return _MAXIMUM | {"pool": config.get("pool", "max"), "depth": 4, "decoder_depth": 2}


def _maximum_call(network: nn.Module, inputs: Inputs, call: Call) -> Outputs:
    """The one number of each set."""
    return {"out": network(_points(inputs, call)).squeeze(-1)}


def _points(inputs: Inputs, call: Call) -> Any:
    """Named X, or x in the notebook."""
    bound = bind(inputs, call, "X" if "X" in inputs else "x")
    return next(iter(bound.values()))


def _deep_sets_arguments(config: Config) -> dict[str, Any]:
    return {ours: config[theirs] for ours, theirs in _SIZES.items() if theirs in config}


def _deep_sets_weights(state: State) -> State:
    return renamed(state, {"^enc": "encoder", "^dec": "decoder"})


_NETWORK = Importer(SetTransformer, _network_arguments, _network_call, _network_weights)
_MODULES, _MODELS, _NOTEBOOK = (
    f"juho-lee/set_transformer:{file}" for file in ("modules.py", "models.py", "max_regression_demo.ipynb")
)
IMPORTERS = {
    f"{_MODULES}:MAB": _block(MAB, "Q", "K", query_dim="dim_Q", key_dim="dim_K", dim="dim_V"),
    f"{_MODULES}:SAB": _block(SAB, "X", input_dim="dim_in", dim="dim_out"),
    f"{_MODULES}:ISAB": _block(ISAB, "X", input_dim="dim_in", dim="dim_out", num_inducing="num_inds"),
    f"{_MODULES}:PMA": _block(PMA, "X", dim="dim", num_seeds="num_seeds"),
    f"{_MODELS}:SetTransformer": _NETWORK,
    f"{_MODELS}:DeepSet": Importer(DeepSets, _deep_sets_arguments, _network_call, _deep_sets_weights),
    "juho-lee/set_transformer:main_pointcloud.py:SetTransformer": Importer(
        SetTransformer, _cloud_arguments, _squeezed_call, _network_weights
    ),
    f"{_NOTEBOOK}:SmallSetTransformer": Importer(SetTransformer, _maximum_arguments, _maximum_call, _network_weights),
    f"{_NOTEBOOK}:SmallDeepSet": Importer(DeepSets, _pooled_maximum_arguments, _maximum_call, _deep_sets_weights),
}
