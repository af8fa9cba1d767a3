"""AlphaFold 2 by its authors, part by part: what each haiku module of the Evoformer is called and how it is laid out.

Attention is (in, head, width) and (head, width, out). A part knows how to rename its parameters, and to build our
module from their configuration and the widths of its weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regard.authors import Config, State
from regard.authors.haiku import linear, named, norm, of_module, projection_in, projection_out, within
from regard.ops.gated_attention import GatedAttention, GlobalAttention
from regard.ops.msa_attention import MsaColumnAttention, MsaGlobalColumnAttention, MsaRowAttention
from regard.ops.outer_product_mean import OuterProductMean
from regard.ops.transition import Transition
from regard.ops.triangle_attention import TriangleAttention
from regard.ops.triangle_multiplication import TriangleMultiplication
from regard.registry import UnsupportedError

__all__ = ["PARTS", "Part", "part_weights"]


class Part(NamedTuple):
    """A module of theirs.

    Attributes:
        names: their parameters, by their path in the module -> ours.
        make: their configuration and our parameters -> our module, as wide as these.
    """

    names: Callable[[State], State]
    make: Callable[[Config, State], nn.Module]


def part_weights(part: Part) -> Callable[[State], State]:
    """The ``weights`` of an importer: of the module alone, whatever it is called."""
    return lambda state: part.names(of_module(state))


def _attention_names(state: State) -> State:
    """Of both kinds of attention; the second kind has keys and values of one head only."""

    def wide(name: str) -> Tensor:
        tensor = state[f"//{name}_w"]
        return projection_in(tensor) if tensor.ndim == 3 else tensor.mT

    gate = {"weight": wide("gating"), "bias": state["//gating_b"].flatten()} if "//gating_w" in state else {}
    out = {"weight": projection_out(state["//output_w"]), "bias": state["//output_b"]}
    maps = {name: {"weight": wide(name)} for name in ("query", "key", "value")}
    return named({**maps, "gate": gate, "out": out})


def _heads(config: Config, ours: State, prefix: str = "attention.", *, shared: bool = False) -> dict[str, Any]:
    """num_heads, head_dim, value_dim and gated of an attention; ``shared``: one head of keys and values for all."""
    heads, gated = config["num_head"], config.get("gating", True)
    query, value, out = (ours[f"{prefix}{name}.weight"] for name in ("query", "value", "out"))
    if len(query) % heads or out.shape[1] % heads:
        raise UnsupportedError(f"num_head={heads}, but queries of width {len(query)} and values of {out.shape[1]}")
    if gated != (f"{prefix}gate.weight" in ours):
        raise UnsupportedError(f"gating={gated}, but the weights say otherwise")
    widths = {"head_dim": len(query) // heads, "value_dim": len(value) // (1 if shared else heads)}
    return {"num_heads": heads, **widths, "gated": gated}


def _oriented(config: Config, *allowed: str) -> str:
    """The orientation of a configuration."""
    found = config.get("orientation", allowed[0])
    if found not in allowed:
        raise UnsupportedError(
            f"orientation={found!r} does not work in the authors' code either: {' or '.join(allowed)}"
        )
    return found


def _make_attention(config: Config, ours: State) -> nn.Module:
    context = ours["key.weight"].shape[1]
    options = _heads(config, ours, "")
    return GatedAttention(ours["query.weight"].shape[1], context_dim=context, out_dim=len(ours["out.bias"]), **options)


def _make_global_attention(config: Config, ours: State) -> nn.Module:
    return GlobalAttention(ours["query.weight"].shape[1], **_heads(config, ours, "", shared=True))


def _row_names(state: State) -> State:
    return named(
        {
            "norm": norm(state, "query_norm"),
            "pair_norm": norm(state, "feat_2d_norm"),
            "bias": {"weight": state["//feat_2d_weights"].mT},
            "attention": _attention_names(within(state, "attention")),
        }
    )


def _make_row(config: Config, ours: State) -> nn.Module:
    _oriented(config, "per_row")
    return MsaRowAttention(len(ours["norm.bias"]), len(ours["pair_norm.bias"]), **_heads(config, ours))


def _column_names(state: State) -> State:
    return named({"norm": norm(state, "query_norm"), "attention": _attention_names(within(state, "attention"))})


def _make_column(config: Config, ours: State) -> nn.Module:
    _oriented(config, "per_column")
    return MsaColumnAttention(len(ours["norm.bias"]), **_heads(config, ours))


def _make_global_column(config: Config, ours: State) -> nn.Module:
    _oriented(config, "per_column")
    return MsaGlobalColumnAttention(len(ours["norm.bias"]), **_heads(config, ours, shared=True))


def _triangle_attention_names(state: State) -> State:
    return named(
        {
            "norm": norm(state, "query_norm"),
            "bias": {"weight": state["//feat_2d_weights"].mT},
            "attention": _attention_names(within(state, "attention")),
        }
    )


def _make_triangle_attention(config: Config, ours: State) -> nn.Module:
    ending = _oriented(config, "per_row", "per_column") == "per_column"
    return TriangleAttention(len(ours["norm.bias"]), ending=ending, **_heads(config, ours))


_EQUATIONS = {
    "ikc,jkc->ijc": (False, False),
    "jkc,ikc->ijc": (False, True),
    "kic,kjc->ijc": (True, True),
    "kjc,kic->ijc": (True, False),
}
"""Incoming edges, and whether their left side is our right one."""


def _equation(config: Config) -> tuple[bool, bool]:
    equation = config["equation"].replace(" ", "")
    if equation not in _EQUATIONS:
        raise UnsupportedError(f"equation={equation!r} is no triangle multiplication; known: {', '.join(_EQUATIONS)}")
    return _EQUATIONS[equation]


def _multiplication_names(state: State) -> State:
    """Of both forms: two sides of their own, or fused ones as in AlphaFold-Multimer 2.3; left first."""
    fused = "projection//weights" in state
    if fused:
        sides, gates = linear(state, "projection"), linear(state, "gate")
    else:
        sides, gates = (
            {key: torch.cat([linear(state, f"{side}_{kind}")[key] for side in ("left", "right")]) for key in _LINEAR}
            for kind in ("projection", "gate")
        )
    return named(
        {
            "norm": norm(state, "left_norm_input" if fused else "layer_norm_input"),
            "out_norm": norm(state, "center_norm" if fused else "center_layer_norm"),
            "sides": sides,
            "side_gates": gates,
            "gate": linear(state, "gating_linear"),
            "out": linear(state, "output_projection"),
        }
    )


_LINEAR = ("weight", "bias")


class SidesSwapped(TriangleMultiplication):
    """Triangle multiplication with left in the place of right."""

    def _side(self, x: Tensor, mask: Tensor | None, number: int) -> Tensor:
        return super()._side(x, mask, 1 - number)


def _make_multiplication(config: Config, ours: State) -> nn.Module:
    incoming, swapped = _equation(config)
    cls = SidesSwapped if swapped else TriangleMultiplication
    return cls(len(ours["norm.bias"]), len(ours["out_norm.bias"]), incoming=incoming)


def _outer_names(state: State) -> State:
    return named(
        {
            "norm": norm(state, "layer_norm_input"),
            "left": linear(state, "left_projection"),
            "right": linear(state, "right_projection"),
            "out": {"weight": projection_out(state["//output_w"]), "bias": state["//output_b"]},
        }
    )


def _make_outer(config: Config, ours: State) -> nn.Module:
    return OuterProductMean(len(ours["norm.bias"]), len(ours["out.bias"]), len(ours["left.bias"]))


def _transition_names(state: State) -> State:
    return named(
        {
            "norm": norm(state, "input_layer_norm"),
            "inner": linear(state, "transition1"),
            "out": linear(state, "transition2"),
        }
    )


def _make_transition(config: Config, ours: State) -> nn.Module:
    dim = len(ours["norm.bias"])
    return Transition(dim, len(ours["inner.bias"]) / dim)


PARTS: Mapping[str, Part] = {
    "Attention": Part(_attention_names, _make_attention),
    "GlobalAttention": Part(_attention_names, _make_global_attention),
    "MSARowAttentionWithPairBias": Part(_row_names, _make_row),
    "MSAColumnAttention": Part(_column_names, _make_column),
    "MSAColumnGlobalAttention": Part(_column_names, _make_global_column),
    "TriangleAttention": Part(_triangle_attention_names, _make_triangle_attention),
    "TriangleMultiplication": Part(_multiplication_names, _make_multiplication),
    "OuterProductMean": Part(_outer_names, _make_outer),
    "Transition": Part(_transition_names, _make_transition),
}
"""By the name of their class."""
