"""AlphaFold 2 by its authors (google-deepmind/alphafold): the Evoformer's block, its parts, and the template stack.

Their modules take one protein, without a batch axis. Whole released files: :mod:`regard.authors.alphafold2_released`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, alphafold2_structure, bind
from regard.authors.alphafold2_blocks import BLOCK, block_names, make_block, make_template_stack, template_weights
from regard.authors.alphafold2_parts import PARTS, part_weights
from regard.authors.haiku import made_for_weights, of_module
from regard.mechanisms.pairs.alphafold2 import AlphaFold2
from regard.models.template_pairs import TemplatePairBlock, TemplatePairStack
from regard.registry import UnsupportedError

__all__ = ["IMPORTERS"]


def _mask(given: Mapping[str, Tensor], *names: str) -> Tensor | None:
    """Theirs are numbers."""
    mask = _first(given, *names)
    if mask is not None and bool(((mask != 0) & (mask != 1)).any()):
        raise UnsupportedError("a mask of the authors' is 1 where something takes part and 0 elsewhere")
    return None if mask is None else mask[None] != 0


def _first(given: Mapping[str, Tensor], *names: str) -> Tensor | None:
    return next((given[name] for name in names if name in given), None)


def _tensor(given: Mapping[str, Tensor], *names: str) -> Tensor:
    """Under whichever of its names it was recorded."""
    found = _first(given, *names)
    if found is None:
        raise UnsupportedError(f"the recorded inputs hold none of {', '.join(names)}")
    return found


def _call_block(block: AlphaFold2, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "msa", "pair", "msa_mask", "pair_mask")
    seen, pairs = _mask(given, "msa_mask"), _mask(given, "pair_mask")
    msa, pair = (t[0] for t in block.update(given["msa"][None], given["pair"][None], seen, pairs))
    return {"msa": msa, "pair": pair, "sum_rep": torch.cat((msa.flatten(), pair.flatten()))}


def _call_template_stack(stack: TemplatePairStack, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "pair_act", "pair", "pair_mask", "mask")
    pair, mask = _tensor(given, "pair_act", "pair")[None], _mask(given, "pair_mask", "mask")
    for block in cast(Iterable[TemplatePairBlock], stack.blocks):
        pair = block.update(pair, mask)
    return {"out": pair[0]}


def _part(cls: str, call: Callable[[Any, Inputs, Call], Outputs]) -> Importer:
    """An importer of a single part; it returns the update alone."""
    part = PARTS[cls]

    def module(config: Config) -> nn.Module:
        return made_for_weights(lambda ours: part.make(config, ours))

    return Importer(module, lambda config: {"config": config}, call, part_weights(part))


def _on(*names: str, mask: tuple[str, ...] = ("mask",)) -> Callable[[Any, Inputs, Call], Outputs]:
    """A call with one tensor and its mask."""

    def call(module: Any, inputs: Inputs, call: Call) -> Outputs:
        given = bind(inputs, call, *names, *mask)
        x = _tensor(given, *names)
        return {"out": module(x[None], _mask(given, *mask))[0]}

    return call


def _call_row(module: Any, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "msa", "msa_act", "pair", "pair_act", "mask", "msa_mask")
    msa, pair = _tensor(given, "msa", "msa_act"), _tensor(given, "pair", "pair_act")
    return {"out": module(msa[None], pair[None], _mask(given, "mask", "msa_mask"))[0]}


def _call_transition(module: Any, inputs: Inputs, call: Call) -> Outputs:
    x = _tensor(bind(inputs, call, "act", "msa", "pair"), "act", "msa", "pair")
    return {"out": module(x[None])[0]}


def _call_attention(module: Any, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "q_data", "m_data", "mask", "nonbatched_bias")
    mask = _mask(given, "mask")
    if mask is not None:  # (batch, 1, 1, keys) or (batch, queries, keys) with equal rows
        mask = mask[0].flatten(1, -2)
        if bool((mask != mask[:, :1]).any()):
            raise UnsupportedError("a mask that differs between queries: the modules of the authors mask keys only")
        mask = mask[:, 0].expand(given["m_data"].shape[:2])
    bias = given.get("nonbatched_bias")
    return {"out": module(given["q_data"], given["m_data"], bias=bias, key_mask=mask)}


def _call_global_attention(module: Any, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "q_data", "q_mask")
    mask = _mask(given, "q_mask")
    return {"out": module(given["q_data"], key_mask=None if mask is None else mask[0, ..., 0])}


_MODULES = "google-deepmind/alphafold:alphafold/model/modules.py"
_PAIRS, _ALIGNMENT = (
    _on("pair", "pair_act", "left_act", mask=("mask", "pair_mask", "left_mask")),
    _on("msa", "msa_act", "act", mask=("mask", "msa_mask")),
)
_CALLS: dict[str, Callable[[Any, Inputs, Call], Outputs]] = {
    "MSARowAttentionWithPairBias": _call_row,
    "MSAColumnAttention": _ALIGNMENT,
    "MSAColumnGlobalAttention": _ALIGNMENT,
    "TriangleAttention": _PAIRS,
    "TriangleMultiplication": _PAIRS,
    "OuterProductMean": _ALIGNMENT,
    "Transition": _call_transition,
    "Attention": _call_attention,
    "GlobalAttention": _call_global_attention,
}

IMPORTERS: dict[str, Importer] = {
    f"{_MODULES}:EvoformerIteration": Importer(
        make_block, lambda config: {"config": config}, _call_block, lambda state: block_names(BLOCK, of_module(state))
    ),
    f"{_MODULES}:TemplatePairStack": Importer(
        make_template_stack, lambda config: {"config": config}, _call_template_stack, template_weights
    ),
    **{f"{_MODULES}:{cls}": _part(cls, call) for cls, call in _CALLS.items()},
    **alphafold2_structure.IMPORTERS,
}
