"""Head pruning: the gated layer of lena-voita/the-story-of-heads, and what its paper counts about heads."""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.gates.head_pruning import gated_heads
from regard.ops import head_roles
from regard.ops.hard_concrete import EPS, STRETCH, check_hard_concrete, gates, hardened, open_probability, sampled_gates
from regard.registry import UnsupportedError


class GatedLayer(nn.Module):
    """The authors' layer: any widths, a mask of pairs, gates that are learned or given.

    Args:
        query_dim, context_dim, key_width, value_width, out_dim: features of both inputs, of all keys and of all values
            together, and of the output.
        num_heads: H.
        fixed: the gates, where they are not learned.
        temperature, stretch, eps, hard: of the gates, see :mod:`regard.ops.hard_concrete`.
        l0, l2: coefficients of the penalty.
        attn_drop, value_drop: dropout on the weights, and on the gated heads.
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        key_width: int,
        value_width: int,
        out_dim: int,
        num_heads: int,
        *,
        fixed: list[float] | None = None,
        temperature: float = 0.33,
        stretch: tuple[float, float] = STRETCH,
        eps: float = EPS,
        hard: bool = False,
        l0: float = 1.0,
        l2: float = 0.0,
        attn_drop: float = 0.0,
        value_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_hard_concrete(temperature, stretch)
        self.num_heads, self.hard, self.l0, self.l2, self.fixed = num_heads, hard, l0, l2, fixed
        self.noisy: dict[str, Any] = {"temperature": temperature, "stretch": stretch, "eps": eps}
        self.q_proj, self.k_proj = nn.Linear(query_dim, key_width), nn.Linear(context_dim, key_width)
        self.v_proj, self.out_proj = nn.Linear(context_dim, value_width), nn.Linear(value_width, out_dim)
        self.log_alpha = None if fixed else nn.Parameter(torch.zeros(num_heads))
        self.attn_drop, self.value_drop = attn_drop, nn.Dropout(value_drop)

    def gates(self, noise: Tensor | None) -> Tensor:
        """g of each head: by noise, which is drawn in training if it is not given."""
        if self.log_alpha is None:
            return self.q_proj.weight.new_tensor(self.fixed)
        if noise is None and self.training:
            noise = torch.rand_like(self.log_alpha)
        if noise is None:
            g = gates(self.log_alpha, stretch=self.noisy["stretch"])
        else:
            g = sampled_gates(self.log_alpha, noise.flatten(), **self.noisy)
        return hardened(g) if self.hard else g

    def heads(self, x: Tensor, context: Tensor, allowed: Tensor | None, gate: Tensor) -> Tensor:
        """What each head makes of the values, times its gate: (B, H, N, Dv)."""
        q, k, v = (
            linear(t).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, t in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        if allowed is not None:  # the same amount off every score changes nothing, so theirs sees all keys
            allowed = allowed | ~allowed.any(-1, keepdim=True)
        return gated_heads(q, k, v, gate, attn_mask=allowed, attn_drop=self.attn_drop * self.training)

    def penalty(self, opened: Tensor, heads: Tensor) -> Tensor:
        """Theirs, (1,): the second term is over the squares of all heads together, for each gate's P."""
        return (self.l0 * opened.sum() + 0.5 * self.l2 * (opened * heads.square().sum()).mean())[None]


def _gate_arguments(given: Config) -> dict[str, Any]:
    """The gate's own options, by the names of the class and by the short ones of the recorded cases."""
    if given.get("local_rep"):
        raise UnsupportedError("local_rep draws a gate for each activation, which cannot remove heads: only False")
    words = {
        "temperature": ("temperature", "temp"),
        "stretch": ("stretch_limits", "stretch"),
        "eps": ("eps",),
        "hard": ("hard",),
        "l0": ("l0_penalty", "l0"),
        "l2": ("l2_penalty", "l2"),
    }
    found = {ours: given[word] for ours, theirs in words.items() for word in theirs if word in given}
    return found | ({"stretch": tuple(found["stretch"])} if "stretch" in found else {})


def _recorded_arguments(config: Config) -> dict[str, Any]:
    """Of the equations: all widths are that of the queries where nothing else is said."""
    width = config["c"]
    return {
        "query_dim": width,
        "context_dim": config.get("ckv") or width,
        "key_width": config.get("dk", width),
        "value_width": config.get("dv", width),
        "out_dim": config.get("cout", width),
        "num_heads": config["h"],
        **_gate_arguments(config),
    }


def _layer_arguments(config: Config) -> dict[str, Any]:
    """Of the authors' classes."""
    own = config.get("gate_hp", {"l0_penalty": 1.0}) if "head_gate" not in config else {}
    return {
        "query_dim": config["inp_size"],
        "context_dim": config.get("kv_inp_size") or config["inp_size"],
        "key_width": config["key_depth"],
        "value_width": config["value_depth"],
        "out_dim": config["output_depth"],
        "num_heads": config["num_heads"],
        "fixed": config.get("head_gate"),
        "attn_drop": config.get("attn_dropout", 0.0),
        "value_drop": config.get("attn_value_dropout", 0.0),
        **({"l0": 0.0} | _gate_arguments(own)),
    }


def _gate_weights(state: State) -> State:
    """Matrices are (in, out); ``mem_conv`` holds keys and values, before them the queries if it is all there is."""
    state = {name.rpartition(":")[0] or name: tensor for name, tensor in state.items()}
    state = {name.replace("/", "_").removeprefix("gate_"): tensor for name, tensor in state.items()}
    value_width = state["out_conv_W"].shape[0]
    found: State = {}
    for kind, ours in (("W", "weight"), ("b", "bias")):
        memory = state[f"mem_conv_{kind}"]
        keys = memory[..., : memory.shape[-1] - value_width]
        query = state.get(f"query_conv_{kind}")
        if query is None:
            query, keys = keys.tensor_split(2, -1)
        parts = {"q": query, "k": keys, "v": memory[..., -value_width:], "out": state[f"out_conv_{kind}"]}
        found |= {f"{name}_proj.{ours}": tensor.T if kind == "W" else tensor for name, tensor in parts.items()}
    return found | ({"log_alpha": state["log_a"].flatten()} if "log_a" in state else {})


def _gate_call(module: GatedLayer, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "query_inp", "attn_mask", "kv_inp", "kv", "noise")
    if "kv" in given:
        raise UnsupportedError("kv holds projected keys and values: pass kv_inp, from which they are made")
    x = given["query_inp"]
    context, allowed = given.get("kv_inp", x), given.get("attn_mask")
    allowed = None if allowed is None else allowed != 0
    gate = module.gates(given.get("noise"))
    joined = module.heads(x, context, allowed, gate).transpose(1, 2).flatten(2)
    y = module.out_proj(module.value_drop(joined))
    shape = (1, -1, 1, 1)
    if module.log_alpha is None:
        return {"out": y, "gates": gate.view(shape)}
    opened = open_probability(module.log_alpha, **module.noisy)
    ungated = module.heads(x, context, allowed, torch.ones_like(gate)) if module.l2 else gate.new_zeros(1)
    penalty = module.penalty(opened, ungated)
    return {"out": y, "gates": gate.view(shape), "p_open": opened.view(shape), "penalty": penalty}


def _recorded_call(module: GatedLayer, inputs: Inputs, call: Call) -> Outputs:
    """The main output is the layer's and three times the penalty, one after the other."""
    told = _gate_call(module, inputs, call)
    return told | {"out": torch.cat([told["out"].flatten(), 3 * told["penalty"]])}


class Roles(nn.Module):
    """What each head does, from its maps.

    Args:
        relations: R, how many kinds of arcs there are.
        offsets: o of the shares.
        threshold, margin, common: of :mod:`regard.ops.head_roles`.
    """

    def __init__(self, relations: int, offsets: list[int], threshold: float, margin: float, common: int) -> None:
        super().__init__()
        self.relations, self.offsets = relations, offsets
        self.threshold, self.margin, self.common = threshold, margin, common

    def forward(self, attention: Tensor, length: Tensor, head_of: Tensor, relation: Tensor, rank: Tensor) -> Outputs:
        """(B, H, N, N) and four properties of words -> all numbers."""
        words = head_roles.words_of(length, attention.shape[-1])
        weight, place = head_roles.strongest(attention, words)
        shares = head_roles.offset_shares(place, words, torch.tensor(self.offsets, device=place.device))
        accuracy = head_roles.syntactic_accuracy(place, words, head_of, relation, self.relations)
        baseline = head_roles.arc_baseline(words, head_of, relation, self.relations)
        rarest, rarest2 = head_roles.rare_shares(place, words, rank, self.common)
        return {
            "out": head_roles.confidence(weight, words),
            "relative_position_fraction": shares,
            "positional": head_roles.positional(shares, self.threshold),
            "syntactic_accuracy": accuracy,
            "syntactic_baseline": baseline,
            "syntactic": head_roles.syntactic(accuracy, baseline, self.margin),
            "rarest_fraction": rarest,
            "rarest2_fraction": rarest2,
        }


def _roles_arguments(config: Config) -> dict[str, Any]:
    return {
        "relations": len(config["relations"]),
        "offsets": config.get("offsets", [-1, 1]),
        "threshold": config.get("positional_threshold", 0.9),
        "margin": config.get("syntactic_margin", 0.1),
        "common": config.get("rare_rank", 500),
    }


def _roles_call(module: Roles, inputs: Inputs, call: Call) -> Outputs:
    names = ("attention", "length", "head_of", "relation", "frequency_rank")
    given = bind(inputs, call, *names)
    return module(*(given[name] for name in names))


# One source, "equations", stands for both: the configuration tells them apart.


def _equations(**arguments: Any) -> Roles | GatedLayer:
    return Roles(**arguments) if "relations" in arguments else GatedLayer(**arguments)


def _equations_arguments(config: Config) -> dict[str, Any]:
    return (_roles_arguments if "relations" in config else _recorded_arguments)(config)


def _equations_weights(state: State) -> State:
    return _gate_weights(state) if state else {}


def _equations_call(module: Roles | GatedLayer, inputs: Inputs, call: Call) -> Outputs:
    return _roles_call(module, inputs, call) if isinstance(module, Roles) else _recorded_call(module, inputs, call)


_LAYER = Importer(GatedLayer, _layer_arguments, _gate_call, _gate_weights)
_CODE = "lena-voita/the-story-of-heads:lib/layers/attn.py"
IMPORTERS = {
    "equations": Importer(_equations, _equations_arguments, _equations_call, _equations_weights),
    f"{_CODE}:MultiHeadAttnConcrete": _LAYER,
    f"{_CODE}:MultiHeadAttnFixedAliveHeads": _LAYER,
}
