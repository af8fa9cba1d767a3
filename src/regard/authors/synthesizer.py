"""Synthesizer: the paper's equations, and leaderj1001's single heads without an output projection."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.lowrank.synthesizer import Synthesizer
from regard.ops.synthetic_logits import dense_sides
from regard.registry import UnsupportedError

# The paper's equations

_PARTS = {
    "dense": "dense",
    "random": "random",
    "dot": "dot",
    "vanilla": "dot",
    **dict.fromkeys(("factorized_random", "factorised_random", "fact_random"), "factorised_random"),
}


def _equations_arguments(config: Config) -> dict[str, Any]:
    parts = config["parts"]
    if unknown := sorted(set(parts) - set(_PARTS)):
        raise UnsupportedError(f"parts {', '.join(unknown)}: the recorded layouts are those of {', '.join(_PARTS)}")
    return {
        "dim": config["C"],
        "num_heads": config["H"],
        "head_dim": config["d"],
        "max_length": config["Lmax"],
        "parts": [_PARTS[part] for part in parts],
        "rank": config.get("k", 8),
    }


def _equations_weights(state: State) -> State:
    """Their projections have a matrix for each head, and no biases but those inside of the dense part."""
    flat = {
        "wv": "v_proj.weight",
        "wq": "q_proj.weight",
        "wk": "k_proj.weight",
        "w1": "parts.dense.hidden.weight",
        "b1": "parts.dense.hidden.bias",
    }
    rules = {
        "^wo$": "out_proj.weight",
        "^w2$": "parts.dense.table",
        "^b2$": "parts.dense.bias",
        "^R$": "parts.random.table",
        "^R1$": "parts.factorised_random.left",
        "^R2$": "parts.factorised_random.right",
        f"^({'|'.join(flat)})$": "",
    }
    found = {**renamed(state, rules), "out_proj.bias": state["wo"].new_zeros(len(state["wo"]))}
    if state.get("mix") is not None and state["mix"].numel() == 1:
        del found["mix"]
    return found | {ours: state[name].flatten(0, 1) for name, ours in flat.items() if name in state}


def _equations_call(module: Synthesizer, inputs: Inputs, call: Call) -> Outputs:
    """Causality is an argument of their call."""
    module.causal = "causal=True" in str(call.get("forward", "")) or bool(call.get("causal", False))
    x = inputs["x"]
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[None, None]
    return {"out": module(x), "attention": module.weigh(x, identity)}


# leaderj1001

Kind = Literal["vanilla", "dense", "random", "factorised_dense", "factorised_random", "mixture"]


class SingleHead(nn.Module):
    """Every class of that file: one head on (B, N, C) that returns A v and A, without an output projection.

    Their random part is not put through the softmax, their factorised random one is a dot product of width 8, their
    mixture is a plain sum without a scale, and their factorised dense one repeats both factors in step.

    Args:
        dim: C.
        kind: which class.
        length: their sentence length; no other one can be computed, except by the two that have no table.
    """

    def __init__(self, dim: int, kind: Kind, length: int) -> None:
        super().__init__()
        self.kind, self.scale = kind, dim**-0.5 if kind == "vanilla" else 1.0
        self.value_fc = nn.Linear(dim, dim)
        if kind == "dense":
            self.dense = nn.Sequential(nn.Linear(dim, length), nn.ReLU(), nn.Linear(length, length))
        if kind in ("random", "mixture"):
            self.attention = nn.Parameter(torch.zeros(1, length, length))
        if kind == "factorised_dense":
            self.a_proj, self.b_proj = nn.Linear(dim, 4), nn.Linear(dim, length // 4)
        if kind in ("vanilla", "mixture", "factorised_random"):
            width = 8 if kind == "factorised_random" else dim
            self.query_fc, self.key_fc = nn.Linear(dim, width), nn.Linear(dim, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, C) -> out (B, N, C) and the weights (B or 1, N, N)."""
        weights = self.attention if self.kind == "random" else self._logits(x).softmax(-1)
        return weights @ self.value_fc(x), weights

    def _logits(self, x: Tensor) -> Tensor:
        if self.kind == "dense":
            table: Any = self.dense[2]
            hidden = self.dense[0](x)[:, None]
            left, right = dense_sides(hidden, table.weight[None], table.bias[None], len(table.bias))
            return (left @ right.mT)[:, 0]
        if self.kind == "factorised_dense":
            a, b = self.a_proj(x), self.b_proj(x)
            return a.repeat(1, 1, b.shape[-1]) * b.repeat(1, 1, a.shape[-1])
        dot = (self.query_fc(x) * self.scale) @ self.key_fc(x).mT
        return dot + self.attention if self.kind == "mixture" else dot


def _single(kind: Kind) -> Importer:
    def arguments(config: Config) -> dict[str, Any]:
        return {"dim": config["in_dims"], "kind": kind, "length": config.get("sentence_length", 0)}

    return Importer(SingleHead, arguments, _single_call)


def _single_call(module: SingleHead, inputs: Inputs, call: Call) -> Outputs:
    out, weights = module(bind(inputs, call, "x")["x"])
    return {"out": out, "attention": weights}


_FILE = "leaderj1001/Synthesizer-Rethinking-Self-Attention-Transformer-Models:synthesizer.py"
_CLASSES: dict[str, Kind] = {
    "Transformer": "vanilla",
    "SynthesizerDense": "dense",
    "SynthesizerRandom": "random",
    "FactorizedSynthesizerDense": "factorised_dense",
    "FactorizedSynthesizerRandom": "factorised_random",
    "MixtureSynthesizers": "mixture",
}
IMPORTERS = {
    "equations": Importer(Synthesizer, _equations_arguments, _equations_call, _equations_weights),
    **{f"{_FILE}:{name}": _single(kind) for name, kind in _CLASSES.items()},
}
