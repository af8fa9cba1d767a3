"""Random feature attention of Noahs-ARK/RFA: the causal layer, the pair for cross attention, and the equations.

Its features are 0.1 [sin, cos] and no denominator is below 1; R^(-1/2) [sin, cos] and 100 / R are the same. Random rows
are an input of their forward, and stand in for our buffer.
"""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.linear.random_feature import RandomFeature
from regard.memory import LinearState
from regard.registry import UnsupportedError

SCALE, EPS, NORM_OFFSET = 0.1, 1.0, 1e-3
"""Theirs: of the features, of the denominators, and added to the lengths."""


def _layer(out_bias: bool = True, **options: Any) -> RandomFeature:
    """Rows come with each call, so they are no part of the state."""
    layer = RandomFeature(**options)
    layer.register_buffer("projection", layer.projection, persistent=False)
    if not out_bias:
        layer.out_proj = nn.Linear(layer.num_heads * layer.head_dim, layer.dim, bias=False)
    return layer


def _run(
    layer: RandomFeature,
    rows: Tensor,
    x: Tensor,
    source: Tensor,
    key_mask: Tensor | None = None,
    before: LinearState | None = None,
) -> tuple[Tensor, LinearState]:
    """The layer's output and sums by these rows; padded tokens still ask."""
    q, k, v = (layer._heads(p(t)) for p, t in ((layer.q_proj, x), (layer.k_proj, source), (layer.v_proj, source)))
    out, sums = layer._look(q, k, v, layer._gate(source), rows, key_mask=key_mask, before=before)
    return layer._join(out), sums


def _arguments(config: Config, causal: bool) -> dict[str, Any]:
    dim, heads, width = config["embed_dim"], config["num_heads"], config["head_dim"]
    if heads * width != dim:
        raise UnsupportedError(
            f"embed_dim={dim} is not num_heads={heads} times head_dim={width}, which theirs asks for"
        )
    return {
        "dim": dim,
        "num_heads": heads,
        "head_dim": width,
        "num_rows": config["proj_dim"],
        "causal": causal,
        "learn_widths": config.get("reparam_proj", True),
        "temperature": config.get("tau", 1.0),
        "eps": EPS / (SCALE**2 * config["proj_dim"]),
        "norm_offset": NORM_OFFSET,
    }


def _weights(state: State) -> State:
    """Their sigma is (H, 1, D)."""
    named = renamed(state, {r"^(project|attend)\.": ""})
    return {name: t.flatten(1) if name == "sigma" else t for name, t in named.items()}


def _scale(layer: RandomFeature) -> float:
    """From our features to theirs."""
    return SCALE * layer.num_rows**0.5


def _causal_call(module: RandomFeature, inputs: Inputs, call: Call) -> Outputs:
    """Theirs is (N, B, C), and True in their mask is padding; with a state it is one step of decoding."""
    given = bind(inputs, call, "x", "random_matrices", "key_padding_mask", "attn_mask", "prev_s", "prev_z")
    x, before = given["x"].transpose(0, 1), None
    if "attn_mask" in given:
        later = torch.ones_like(given["attn_mask"], dtype=torch.bool).triu(1)
        if not torch.equal(given["attn_mask"] < 0, later):
            raise UnsupportedError("attn_mask: random_feature is causal here and takes no other mask")
    if "prev_s" in given:
        before = LinearState(given["prev_s"] / _scale(module), given["prev_z"] / _scale(module))
    y, sums = _run(module, given["random_matrices"], x, x, _real(given.get("key_padding_mask")), before)
    states = {"prev_s": sums.state * _scale(module), "prev_z": sums.normaliser * _scale(module)}
    return {"out": y.transpose(0, 1), **states}


def _cross_call(module: RandomFeature, inputs: Inputs, call: Call) -> Outputs:
    """Their mask is (B, M), or (M, B, 1, 1) under the name that the inner layer has for it."""
    given = bind(inputs, call, "query", "encoder_output", "random_matrices", "key_padding_mask", "mask")
    padding = given.get("key_padding_mask", given["mask"].flatten(1).mT if "mask" in given else None)
    x, context = given["query"].transpose(0, 1), given["encoder_output"].transpose(0, 1)
    y, sums = _run(module, given["random_matrices"], x, context, _real(padding))
    states = {"state_s": sums.state * _scale(module), "state_z": sums.normaliser * _scale(module)}
    return {"out": y.transpose(0, 1), **states}


def _real(padding: Tensor | None) -> Tensor | None:
    return None if padding is None or padding.ndim == 0 else ~padding.bool()


# the equations: (B, N, C), no biases but the gate's


def _equation_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["C"],
        "num_heads": config["H"],
        "head_dim": config["d"],
        "num_rows": config["D"],
        "features": config.get("feature", "gaussian"),
        "causal": True,
        "gate": config.get("gate", True),
        "temperature": config.get("tau", 1.0),
        "eps": config.get("eps", 1e-3),
        "qkv_bias": False,
        "out_bias": False,
    }


def _equation_weights(state: State) -> State:
    rules = {
        r"^w([qkv])$": r"\1_proj.weight",
        "^wo$": "out_proj.weight",
        "^wg$": "gate_proj.weight",
        "^bg$": "gate_proj.bias",
    }
    return renamed(state, rules)


def _equation_call(module: RandomFeature, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "x", "random_matrices", "key_mask")
    y, sums = _run(module, given["random_matrices"], given["x"], given["x"], given.get("key_mask"))
    return {"out": y, "state_s": sums.state, "state_z": sums.normaliser}


_PATH = "Noahs-ARK/RFA:random_feature_attention"
_CROSS = Importer(_layer, lambda config: _arguments(config, causal=False), _cross_call, _weights)
IMPORTERS = {
    f"{_PATH}/causal_attention.py:CausalAttention": Importer(
        _layer, lambda config: _arguments(config, causal=True), _causal_call, _weights
    ),
    f"{_PATH}/cross_attention.py:CrossAttentionProjectLayer": _CROSS,
    f"{_PATH}/cross_attention.py:CrossAttention": _CROSS,
    "equations": Importer(_layer, _equation_arguments, _equation_call, _equation_weights),
}
