"""The pyramid pooling module of hszhao/semseg, and spatial pyramid pooling by its paper."""

from typing import Any

from torch import nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.gates.pyramid_pooling import PyramidPooling, SpatialPyramid
from regard.registry import UnsupportedError


def _module_arguments(config: Config) -> dict[str, Any]:
    return {"dim": config["in_dim"], "width": config["reduction_dim"], "bins": tuple(config["bins"])}


def _module_weights(state: State) -> State:
    """Convolutions of one pixel are matrices."""
    rules = {r"^features\.(\d+)\.1\.": r"branches.\1.linear.", r"^features\.(\d+)\.2\.": r"branches.\1.norm."}
    return {name: t.flatten(1) if t.ndim == 4 else t for name, t in renamed(state, rules).items()}


def _vector_arguments(config: Config) -> dict[str, Any]:
    pool = {"max": "max", "avg": "avg", "mean": "avg", "average": "avg"}.get(config.get("pool", "max"))
    if pool is None:
        raise UnsupportedError(f"pool={config['pool']!r}: bins are pooled by max or avg")
    return {"levels": tuple(config["levels"]), "pool": pool}


def _call(module: nn.Module, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


IMPORTERS = {
    "hszhao/semseg:*:PPM": Importer(PyramidPooling, _module_arguments, _call, _module_weights),
    "equations": Importer(SpatialPyramid, _vector_arguments, _call),
}
