"""DeepMind's released parameters of AlphaFold 2, from their .npz files: the stacks that do the attention.

A file holds every array under "alphafold/alphafold_iteration/.../module//parameter"; a stack is stored once, with its
blocks along the first axis. Sizes and numbers of heads are read off the arrays.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from regard.authors import Config, State
from regard.authors.alphafold2_blocks import (
    BLOCK,
    TEMPLATE,
    Place,
    block_names,
    block_options,
    fill,
    of_block,
    stacked,
    template_weights,
)
from regard.authors.alphafold2_parts import PARTS
from regard.authors.haiku import within
from regard.models.evoformer import EvoformerStack
from regard.models.template_pairs import TemplateAttention, TemplatePairBlock, TemplatePairStack
from regard.registry import UnsupportedError

__all__ = ["Trunk", "read_released", "released_trunk"]

_ROOT = "alphafold/alphafold_iteration/evoformer"
_EQUATIONS = {"outgoing": "ikc,jkc->ijc", "incoming": "kjc,kic->ijc"}


class Trunk(NamedTuple):
    """What a released file holds of the Evoformer.

    Attributes:
        extra_msa: the stack of the extra MSA.
        evoformer: the trunk.
        template_pairs, template_attention: for known structures; None in models without templates.
    """

    extra_msa: EvoformerStack
    evoformer: EvoformerStack
    template_pairs: TemplatePairStack | None
    template_attention: TemplateAttention | None


def read_released(path: str | Path) -> dict[str, Tensor]:
    """All arrays of an .npz file by their names; nothing in it is executed.

    Raises:
        ValueError: an array that is no plain numbers.
    """
    import numpy

    with numpy.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def released_trunk(
    params: str | Path | Mapping[str, Tensor], *, outer_first: bool | None = None, **options: Any
) -> Trunk:
    """The stacks of a released model with their weights.

    Args:
        params: an .npz file, or what :func:`read_released` made of it.
        outer_first: the outer product mean comes first, as in AlphaFold-Multimer; None: where the file is of that kind.
        options: ``chunk_size`` and ``checkpoint`` of the stacks.

    Raises:
        UnsupportedError: no parameters of AlphaFold 2.

    Example:
        >>> released_trunk({})
        Traceback (most recent call last):
        regard.registry.UnsupportedError: no parameters of AlphaFold 2: no evoformer/extra_msa_stack among 0 names
    """
    state = dict(params) if isinstance(params, Mapping) else read_released(params)
    if outer_first is None:
        outer_first = any("~_relative_encoding" in name for name in state)
    extra = _stack(_part(state, "extra_msa_stack"), outer_first, options)
    evoformer = _stack(_part(state, "evoformer_iteration"), outer_first, options)
    templates = within(state, f"{_ROOT}/template_embedding")
    attention = within(templates, "attention")
    if not attention:  # none, or the summing kind of AlphaFold-Multimer
        return Trunk(extra, evoformer, None, None)
    pairs = within(templates, "single_template_embedding/template_pair_stack")
    return Trunk(extra, evoformer, _template_pairs(pairs, options), _template_attention(attention))


def _part(state: State, name: str) -> State:
    found = within(state, f"{_ROOT}/{name}")
    if not found:
        raise UnsupportedError(f"no parameters of AlphaFold 2: no evoformer/{name} among {len(state)} names")
    return found


def _stack(state: State, outer_first: bool, options: Mapping[str, Any]) -> EvoformerStack:
    ours = stacked(lambda block: block_names(BLOCK, block), state)
    first = of_block(ours, 0)
    config = _config(BLOCK, state) | {"outer_product_mean": {"first": outer_first}}
    blocks = 1 + max(int(name.split(".")[1]) for name in ours)
    stack = EvoformerStack(blocks, **(block_options(config, first) | {"drops": None}), **options)
    return cast(EvoformerStack, _filled(stack, BLOCK, config, ours))


def _template_pairs(state: State, options: Mapping[str, Any]) -> TemplatePairStack:
    ours = template_weights(state)
    blocks, dim = 1 + max(int(name.split(".")[1]) for name in ours), len(ours["blocks.0.outgoing.norm.bias"])
    stack = TemplatePairStack(blocks, dim, 1, 1, triangle_width=1, **options)
    plain = {name.replace("__layer_stack_no_state/", ""): tensor for name, tensor in state.items()}
    return cast(TemplatePairStack, _filled(stack, TEMPLATE, _config(TEMPLATE, plain), ours))


def _template_attention(state: State) -> TemplateAttention:
    ours = PARTS["Attention"].names(state)
    found = TemplateAttention(1, 1, 1, 1)
    found.attention = cast(Any, PARTS["Attention"].make(_heads(state), ours))
    found.to(ours["out.bias"]).attention.load_state_dict(dict(ours))
    return found


def _filled(stack: nn.Module, places: tuple[Place, ...], config: Config, ours: State) -> nn.Module:
    """With parts as wide as the weights, and the weights."""
    blocks = cast(Iterable[TemplatePairBlock], stack.blocks)
    for number, block in enumerate(blocks):
        fill(block, places, config, of_block(ours, number))
    stack.to(next(iter(ours.values()))).load_state_dict(dict(ours))
    return stack


def _config(places: tuple[Place, ...], state: State) -> Config:
    """What the importers of single parts need to know, from the arrays."""
    found: dict[str, Any] = {}
    for place in places:
        name = "msa_column_attention" if place.ours == "global_column" else place.theirs
        attention = within(state, f"{place.theirs}/attention")
        if attention:
            orientation = "per_column" if place.columns else "per_row"
            found[name] = _heads(attention) | {"orientation": orientation}
        else:
            found.setdefault(name, {"equation": _EQUATIONS.get(place.ours)})
    return found


def _heads(attention: State) -> dict[str, Any]:
    return {"num_head": attention["//query_w"].shape[-2], "gating": "//gating_w" in attention}
