"""Where a model of transformers calls the attention interface, and what is known of each such place."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from regard.inspect.headed import attentions
from regard.integrations.huggingface.attention import is_cross
from regard.registry import UnsupportedError

__all__ = ["Site", "sites"]

_INTERFACE = {"ALL_ATTENTION_FUNCTIONS", "get_interface"}
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim", "qk_head_dim")


@dataclass(frozen=True)
class Site:
    """One attention of a model that calls transformers' attention interface.

    Attributes:
        name: its path in the model.
        module: the attention.
        num_heads, num_kv_heads, head_dim: of its queries and keys.
        causal: it is masked causally unless the caller says otherwise.
        cross: it looks at another sequence.
        max_length: positions that the model knows; None where it does not say.
    """

    name: str
    module: nn.Module
    num_heads: int
    num_kv_heads: int
    head_dim: int
    causal: bool
    cross: bool
    max_length: int | None


def sites(model: nn.Module) -> dict[str, Site]:
    """Every attention that calls the interface, by its path in the model.

    Raises:
        UnsupportedError: some attention of the model, or all of it, ignores the interface. transformers itself only
            warns when an implementation is set on such a model, and keeps the old one.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=12, num_attention_heads=3, num_hidden_layers=1, vocab_size=9)
        >>> list(sites(BertModel(config)))
        ['encoder.layer.0.attention.self']
    """
    found = {name: _site(name, part) for name, part in model.named_modules() if _calls_interface(type(part))}
    if not found:
        raise UnsupportedError(_ignores(model, "its attention"))
    for name in _headed(model):
        if not any(name == site or name.startswith(f"{site}.") or site.startswith(f"{name}.") for site in found):
            raise UnsupportedError(_ignores(model, name))
    return found


def _headed(model: nn.Module) -> list[str]:
    try:
        return list(attentions(model))
    except UnsupportedError:  # its projections have unusual names
        return []


def _ignores(model: nn.Module, what: str) -> str:
    return (
        f"{type(model).__name__}: {what} does not call transformers' attention interface, so that no implementation "
        "can be set; regard.authors.load has Longformer, BigBird, Reformer and Nystromformer as models of ours"
    )


@functools.cache
def _calls_interface(kind: type[nn.Module]) -> bool:
    """Whether a method of the class, wrapped or not, names the interface."""
    methods = (inspect.unwrap(found) for name in dir(kind) if inspect.isfunction(found := getattr(kind, name)))
    return any(_INTERFACE.issubset(method.__code__.co_names) for method in methods if hasattr(method, "__code__"))


def _site(name: str, module: nn.Module) -> Site:
    config: Any = getattr(module, "config", None)
    heads = _number(module, _HEADS) or _number(config, _HEADS)
    if heads is None:
        raise UnsupportedError(f"{name} ({type(module).__name__}) does not say how many heads it has")
    width = _number(module, _WIDTHS) or _number(config, ("head_dim",)) or config.hidden_size // heads
    groups = _number(module, ("num_key_value_groups",)) or 1
    cross = is_cross(module)
    causal = getattr(module, "is_causal", True) and getattr(config, "is_causal", True) and not cross
    decoder = "max_target_positions" if getattr(module, "is_decoder", False) else "max_source_positions"
    longest = _number(config, ("max_position_embeddings", decoder))
    return Site(name, module, heads, heads // groups, width, bool(causal), cross, longest)


def _number(part: Any, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(part, name, None), int)), None)
