"""Where a model has heads: every attention, found by how it is built, with the projections that its heads share.

What is looked for is a module that knows its number of heads, or the width of one, beside projections under the usual
names, and whose heads stand one after the other in the input of its output projection. So are MultiHead and our layers
on sequences, and in Hugging Face's transformers the attentions of BERT and its relatives, GPT-2, Llama, Mistral, Qwen,
OPT, BART, DistilBERT, ALBERT, ViT and others.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from regard.registry import Layer, UnsupportedError

_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_WIDTHS = ("head_dim", "attention_head_size")
_INPUTS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
_FUSED = "c_attn"
_OUTPUTS = ("out_proj", "o_proj", "out_lin", "c_proj", "dense")
_ELSEWHERE = {  # registry name -> why a gate before the output projection would not be a gate on a head
    "memformer": "its far memory joins the heads behind the output projection",
    "talk_convolutions": "it convolves instead of attending, and folds its output projection into that",
}


@dataclasses.dataclass(frozen=True)
class Headed:
    """One attention of a model.

    Attributes:
        name: where it stands in the model, "" for the model itself.
        module: the attention.
        output: its output projection, whose input holds the heads one after the other.
        num_heads: H, as it is now.
        inputs: the projections to queries, keys and values, or a single one to all of them; empty where unknown.
    """

    name: str
    module: nn.Module
    output: nn.Module
    num_heads: int
    inputs: tuple[nn.Module, ...]

    @property
    def width(self) -> int:
        """D of the values: features of the output projection's input for each head."""
        return widths(self.output)[0] // self.num_heads

    @property
    def label(self) -> str:
        """Its name for messages."""
        return self.name or type(self.module).__name__


def attentions(model: nn.Module) -> dict[str, Headed]:
    """Every attention of a model by its name, in the order of the model.

    Raises:
        UnsupportedError: there is none whose heads could be told apart.

    Example:
        >>> import regard
        >>> model = regard.models.TransformerLM(256, 16, 2, 4, 64)
        >>> {name: found.num_heads for name, found in attentions(model).items()}
        {'blocks.0.attention': 4, 'blocks.1.attention': 4}
    """
    modules = dict(model.named_modules())
    parts = ((name, module, modules.get(name.rpartition(".")[0])) for name, module in modules.items())
    refused = [name for name, module in modules.items() if getattr(module, "mechanism", "") in _ELSEWHERE]
    inside = tuple(f"{name}." if name else "" for name in refused)
    parts = (part for part in parts if not part[0].startswith(inside))
    found = [headed for name, module, parent in parts if (headed := _headed(name, module, parent if name else None))]
    if not found:
        raise UnsupportedError(f"{type(model).__name__} has no attention whose heads can be told apart{_advice(model)}")
    return {headed.name: headed for headed in found}


def check_heads(headed: Headed, heads: Iterable[int], there: Iterable[int]) -> list[int]:
    """The heads that were asked for, sorted; those that do not exist are refused.

    Args:
        headed: the attention.
        heads: their numbers.
        there: those that it has.

    Raises:
        ValueError: a head that does not exist.
    """
    asked, known = sorted(set(heads)), sorted(there)
    if missing := [head for head in asked if head not in known]:
        which = ", ".join(map(str, missing))
        raise ValueError(f"{headed.label} has no head {which}: its heads are {', '.join(map(str, known))}")
    return asked


def widths(linear: nn.Module) -> tuple[int, int]:
    """Features that a linear map takes and gives; GPT-2's Conv1D holds its matrix the other way round."""
    rows, columns = cast(Tensor, linear.weight).shape
    return (rows, columns) if transposed(linear) else (columns, rows)


def transposed(linear: nn.Module) -> bool:
    """Whether the weight is (in, out)."""
    return not isinstance(linear, nn.Linear)


def _headed(name: str, module: nn.Module, parent: nn.Module | None) -> Headed | None:
    if isinstance(module, Layer) and (module.card.data == "map" or module.mechanism in _ELSEWHERE):
        return None
    output = _child(module, _OUTPUTS)
    inputs = _inputs(module)
    if output is None and inputs and parent is not None:  # BERT's stands beside it
        output = _child(getattr(parent, "output", None), ("dense",))
    count, width = _number(module, _COUNTS), _number(module, _WIDTHS)
    if output is None or isinstance(module, nn.MultiheadAttention) or not (inputs or isinstance(module, Layer)):
        return None
    size = widths(output)[0]
    count = size // width if count is None and width else count
    if not count or size % count:
        return None
    return Headed(name, module, output, count, inputs)


def _inputs(module: nn.Module) -> tuple[nn.Module, ...]:
    fused = _child(module, (_FUSED,))
    if fused is not None:
        query = _child(module, ("q_attn",))
        return (fused,) if query is None else (query, fused)
    for names in _INPUTS:
        parts = [_child(module, (name,)) for name in names]
        if all(part is not None for part in parts):
            return cast(tuple[nn.Module, ...], tuple(parts))
    return ()


def _child(module: Any, names: Iterable[str]) -> nn.Module | None:
    """The first of these parts that is a linear map."""
    for name in names:
        part = getattr(module, name, None)
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Module) and hasattr(part, "nf")):
            return part
    return None


def _number(module: nn.Module, names: Iterable[str]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(module, name, None), int)), None)


def _advice(model: nn.Module) -> str:
    """What stood in the way, where something did."""
    parts = list(model.modules())
    for part in parts:
        if isinstance(part, Layer) and part.mechanism in _ELSEWHERE:
            return f": {part.mechanism} is none, as {_ELSEWHERE[part.mechanism]}"
    if any(isinstance(part, nn.MultiheadAttention) for part in parts):
        return (
            ": torch.nn.MultiheadAttention never calls its output projection; put our layer with its weights in its "
            'place: regard.swap_attention(model, "full")'
        )
    return ""
