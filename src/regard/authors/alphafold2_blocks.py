"""AlphaFold 2 by its authors, block by block: where the parts stand, and blocks and stacks as wide as their weights."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from torch import nn

from regard.authors import Config, State
from regard.authors.alphafold2_parts import PARTS
from regard.authors.haiku import made_for_weights, named, of_module, within
from regard.mechanisms.pairs.alphafold2 import AlphaFold2, Drops
from regard.models.template_pairs import TemplatePairBlock, TemplatePairStack
from regard.registry import UnsupportedError

__all__ = [
    "BLOCK",
    "TEMPLATE",
    "Place",
    "block_names",
    "block_options",
    "fill",
    "make_block",
    "make_template_stack",
    "of_block",
    "stacked",
    "template_weights",
]


class Place(NamedTuple):
    """Where a part of a block stands: its name in ours, its class and its name in theirs; ``columns``: which rows
    share a draw of dropout.
    """

    ours: str
    cls: str
    theirs: str
    columns: bool = False


_MSA = (
    Place("row", "MSARowAttentionWithPairBias", "msa_row_attention_with_pair_bias"),
    Place("column", "MSAColumnAttention", "msa_column_attention", columns=True),
    Place("global_column", "MSAColumnGlobalAttention", "msa_column_global_attention", columns=True),
    Place("msa_transition", "Transition", "msa_transition"),
    Place("outer", "OuterProductMean", "outer_product_mean"),
)
_TRIANGLES = (
    Place("outgoing", "TriangleMultiplication", "triangle_multiplication_outgoing"),
    Place("incoming", "TriangleMultiplication", "triangle_multiplication_incoming"),
    Place("starting", "TriangleAttention", "triangle_attention_starting_node"),
    Place("ending", "TriangleAttention", "triangle_attention_ending_node", columns=True),
)
BLOCK = (*_MSA, *_TRIANGLES, Place("pair_transition", "Transition", "pair_transition"))
TEMPLATE = (*_TRIANGLES, Place("transition", "Transition", "pair_transition"))


def block_names(places: tuple[Place, ...], state: State) -> State:
    """Of a block, under our names; parts that it does not have are left out."""
    parts = {place.ours: (place.cls, within(state, place.theirs)) for place in places}
    return named({name: PARTS[cls].names(found) for name, (cls, found) in parts.items() if found})


def fill(block: nn.Module, places: tuple[Place, ...], config: Config, ours: State) -> nn.Module:
    """Put parts as wide as the weights in their places."""
    for place in places:
        found = {
            name.removeprefix(f"{place.ours}."): t for name, t in ours.items() if name.startswith(f"{place.ours}.")
        }
        if found:
            key = "msa_column_attention" if place.ours == "global_column" else place.theirs
            setattr(block, place.ours, PARTS[place.cls].make(config[key], found))
    return block


def _rates(places: tuple[Place, ...], config: Config) -> dict[str, float]:
    """Dropout of each part of ours; shared along the axis that we share it along, or refused."""
    found: dict[str, float] = {}
    for place in places:
        name = "column" if place.ours == "global_column" else place.ours
        options = config["msa_column_attention" if name == "column" else place.theirs]
        rate = options.get("dropout_rate", 0.0)
        usual = "per_column" if place.columns else "per_row"
        if rate and not (options.get("shared_dropout") and options.get("orientation", usual) == usual):
            raise UnsupportedError(f"{place.theirs}: dropout is one draw for all (shared_dropout=true, {usual})")
        found[name] = rate
    return found


_SMALLEST: dict[str, Any] = {
    "num_heads": 1,
    "head_dim": 1,
    "pair_heads": 1,
    "pair_head_dim": 1,
    "triangle_width": 1,
    "outer_width": 1,
}
"""Of parts that are replaced at once."""


def block_options(config: Config, ours: State) -> dict[str, Any]:
    """Those of :class:`AlphaFold2` that no part of it has."""
    return {
        "dim": len(ours["row.norm.bias"]),
        "pair_dim": len(ours["outer.out.bias"]),
        "global_columns": "global_column.norm.bias" in ours,
        "outer_first": config["outer_product_mean"].get("first", False),
        "drops": Drops(**_rates(BLOCK, config)),
        **_SMALLEST,
    }


def make_block(config: Config) -> nn.Module:
    """The module of an importer: a block, once its weights come."""

    def make(ours: State) -> nn.Module:
        extra = config.get("is_extra_msa", "global_column.norm.bias" in ours)
        if extra != ("global_column.norm.bias" in ours):
            raise UnsupportedError(f"is_extra_msa={extra}, but the weights say otherwise")
        return fill(AlphaFold2(**block_options(config, ours)), BLOCK, config, ours)

    return made_for_weights(make)


def make_template_stack(config: Config) -> nn.Module:
    """The module of an importer: the stack, once its weights come."""

    def make(ours: State) -> nn.Module:
        rates = _rates(TEMPLATE, config)
        if rates.pop("transition") or len(set(rates.values())) > 1:
            raise UnsupportedError(
                f"dropout has one rate for the triangle updates and none in transitions, not {rates}"
            )
        blocks = 1 + max(int(name.split(".")[1]) for name in ours)
        dim = len(ours["blocks.0.outgoing.norm.bias"])
        stack = TemplatePairStack(blocks, dim, 1, 1, triangle_width=1, drop=max(rates.values()))
        for number, block in enumerate(cast(Iterable[TemplatePairBlock], stack.blocks)):
            fill(block, TEMPLATE, config, of_block(ours, number))
        return stack

    return made_for_weights(make)


def of_block(ours: State, number: int) -> State:
    """The parameters of one block of a stack, by their names in it."""
    start = f"blocks.{number}."
    return {name.removeprefix(start): tensor for name, tensor in ours.items() if name.startswith(start)}


def stacked(names: Callable[[State], State], state: State) -> State:
    """Blocks along the first axis as "blocks.0" and so on."""
    count = len(next(iter(state.values())))
    each = [names({name: tensor[number] for name, tensor in state.items()}) for number in range(count)]
    return named({f"blocks.{number}": found for number, found in enumerate(each)})


def template_weights(state: State) -> State:
    """Of the template stack, under our names."""
    plain = {name.replace("__layer_stack_no_state/", ""): tensor for name, tensor in state.items()}
    return stacked(lambda block: block_names(TEMPLATE, block), of_module(plain))
