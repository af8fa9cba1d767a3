"""Mechanisms of ours between the projections of a model of transformers: a core on each attention module."""

import functools
import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regard.factory as factory
from regard.integrations.huggingface.attention import (
    Allowed,
    allowed_pairs,
    exact_attention,
    is_cross,
    refuse_unknown,
    wants_weights,
)
from regard.integrations.huggingface.sites import Site
from regard.patterns import Causal, Full, Pattern, Window
from regard.patterns.algebra import And
from regard.registry import Core, UnsupportedError

__all__ = ["attached_attention", "core_attention", "core_names", "is_causal_core", "make_core", "named_attention"]

_MADE = "_regard_made"


@functools.cache
def core_names() -> list[str]:
    """Registry names of mechanisms that have a core, read off their files: importing all of them takes seconds."""
    registered = re.compile(r'^@register\(\s*"(\w+)".*?^class \w+\((\w+)\):', re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for module in factory._files().values():
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            text = Path(spec.origin).read_text(encoding="utf-8")
            found += [name for name, base in registered.findall(text) if base == "Core"]
    return sorted(found)


def is_causal_core(core: Core) -> bool:
    """Whether the core, as it was made, hides later keys."""
    return bool(getattr(core, "causal", core.card.causal is not None))


def make_core(mechanism: str | Callable[[Site], Core], site: Site, selection: bool, options: dict[str, Any]) -> Core:
    """A core for one attention of a model, from a registry name or from a function.

    Raises:
        TypeError: not a core.
        UnsupportedError: a core that looks at later keys where the model hides them, or the other way round.
    """
    if isinstance(mechanism, str):
        sizes: dict[str, Any] = {"num_heads": site.num_heads, "head_dim": site.head_dim, "causal": site.causal}
        sizes |= {} if site.num_kv_heads == site.num_heads else {"num_kv_heads": site.num_kv_heads}
        sizes |= {} if site.max_length is None else {"max_length": site.max_length}
        return _checked(factory.core(mechanism, **(sizes | options)), site, selection)
    return _checked(mechanism(site), site, selection)


def _checked(core: Any, site: Site, selection: bool) -> Core:
    if not isinstance(core, Core):
        raise TypeError(f"{site.name} needs a Core of regard, and was given a {type(core).__name__}")
    if is_causal_core(core) != site.causal:
        raise UnsupportedError(
            f"{site.name} {'hides' if site.causal else 'shows'} later tokens, and {_label(core)} "
            f"{'shows' if site.causal else 'hides'} them: make it with causal={site.causal}"
        )
    if site.causal and core.card.causal == "selection" and not selection:
        raise UnsupportedError(
            f"{_label(core)} lets later tokens decide which keys are chosen, and {site.name} is causal: pass "
            "selection=True to accept that, or a strict form where it has one (informer: strict=True)"
        )
    return core


def attached_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The core that :func:`attach` put on the module; exact attention where it put none."""
    core = getattr(module, "regard_core", None)
    if core is None:
        return exact_attention(module, query, key, value, attention_mask, **options)
    return core_attention(module, query, key, value, attention_mask, core=core, **options)


def named_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    name: str,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The mechanism of this name: the core that was attached, or one made at the first call where nothing is learnt."""
    core = getattr(module, "regard_core", None)
    if core is None:
        core = _made(module, name, query, key)
    if core.mechanism != name:
        raise UnsupportedError(
            f'{_kind(module)} holds a core of {core.mechanism!r}, and "regard:{name}" was set: detach(model) first, or '
            f'attach(model, "{name}")'
        )
    return core_attention(module, query, key, value, attention_mask, core=core, **options)


def core_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    core: Core,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """A core in the place of softmax attention; arguments and shapes as in :func:`exact_attention`.

    A core takes a mask of padding and is causal or not; whatever else a model asks for is refused. Queries are scaled
    so that the core's own 1 / sqrt(D) gives the model's scores.

    With a cache there are fewer queries than keys. Cores with ``card.cross`` take that as it is; for the other causal
    ones the queries before are filled with 0 and their rows dropped, so that a step costs what a whole pass costs.

    Raises:
        UnsupportedError: a mask, a term or a dropout that the core cannot honour.
    """
    refuse_unknown(module, others)
    terms = {"position_bias": position_bias, "softcap": softcap, "s_aux": s_aux}
    if asked := [name for name, given in terms.items() if given is not None]:
        raise UnsupportedError(f"{_kind(module)} has {asked[0]} in its scores, which {_label(core)} does not form")
    allowed = allowed_pairs(module, query, key, attention_mask, is_causal, sliding_window, None)
    causal, places = _causality(module, core, allowed, query.shape[2], key.shape[2])
    key, value = key[:, :, :places], value[:, :, :places]
    key_mask = None if allowed.key_mask is None else allowed.key_mask[:, :places]
    queries, before = query.shape[2], 0
    if not core.card.gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    if scaling is not None and scaling * math.sqrt(query.shape[-1]) != 1.0:
        query = query * (scaling * math.sqrt(query.shape[-1]))
    if queries != places and not core.card.cross:
        if not causal:
            raise UnsupportedError(f"{_label(core)} attends within one sequence, not from {queries} to {places} tokens")
        before = places - queries
        query = nn.functional.pad(query, (0, 0, before, 0))
    masks: dict[str, Any] = {"key_mask": key_mask}
    masks["query_mask"] = None if key_mask is None or is_cross(module) else key_mask[:, -query.shape[2] :]
    _set_dropout(module, core, dropout if module.training else 0.0)
    out = core(query, key, value, **masks)[:, :, before:]
    weights = _weights(core, query, key, value, masks)[:, :, before:] if wants_weights(others) else None
    return out.transpose(1, 2).contiguous(), weights


def _made(module: nn.Module, name: str, query: Tensor, key: Tensor) -> Core:
    """The core of a mechanism that has nothing to learn and nothing to save; one for each module and name."""
    made: dict[str, Core] = module.__dict__.setdefault(_MADE, {})
    if name not in made:
        config: Any = getattr(module, "config", None)
        if is_cross(module) or getattr(config, "is_encoder_decoder", False):
            raise UnsupportedError(
                f'a model of two sequences needs attach(model, "{name}"), which leaves the cross ones'
            )
        causal = bool(getattr(module, "is_causal", True) and getattr(config, "is_causal", True))
        longest = getattr(config, "max_position_embeddings", None)
        heads, groups, width = query.shape[1], key.shape[1], query.shape[-1]
        site = Site(_kind(module), module, heads, groups, width, causal, False, longest)
        core = make_core(name, site, False, {})
        if next(core.parameters(), None) is not None or next(core.buffers(), None) is not None:
            raise UnsupportedError(
                f"{name} has parameters or buffers, which an optimizer or a checkpoint would miss: call "
                f'regard.integrations.huggingface.attach(model, "{name}") before'
            )
        made[name] = core
    return made[name].train(module.training)


def _causality(module: nn.Module, core: Core, allowed: Allowed, queries: int, keys: int) -> tuple[bool, int]:
    """Whether the mask is causal, and how many keys there are up to the last query.

    Raises:
        UnsupportedError: any other mask than causal or full, or one that the core was not made for.
    """
    offset = keys - queries if allowed.q_offset is None else allowed.q_offset
    causal = _is_causal_mask(allowed.pattern, offset + queries - 1)
    if allowed.attn_mask is not None or causal is None:
        what = "a mask of its own for each pair" if allowed.attn_mask is not None else repr(allowed.pattern)
        way = "; in a compiled graph give an attention_mask: without one transformers masks as for packed sequences"
        raise UnsupportedError(
            f"{_kind(module)} masks by {what}; {_label(core)} is causal or not, and takes a mask of padding, no more"
            + (way if torch.compiler.is_compiling() else "")
        )
    if causal != is_causal_core(core):
        raise UnsupportedError(
            f"{_kind(module)} is called with a {'causal' if causal else 'full'} mask, and {_label(core)} is "
            f"{'not causal' if causal else 'causal'}"
        )
    return causal, offset + queries if causal else keys


def _is_causal_mask(pattern: Pattern, last: int) -> bool | None:
    """True for causal, False for full, None for all else; a window that reaches everywhere is as good as none."""
    parts = pattern.parts if isinstance(pattern, And) else (pattern,)
    left = [
        part
        for part in parts
        if not isinstance(part, Full) and not (isinstance(part, Window) and min(part.before, part.after) >= last)
    ]
    if not left:
        return False
    return True if all(isinstance(part, Causal) for part in left) else None


def _set_dropout(module: nn.Module, core: Core, dropout: float) -> None:
    if hasattr(core, "attn_drop"):
        core.attn_drop = dropout
    elif dropout:
        reason = core.card.refuses.get("attn_drop", "it has no dropout on its weights")
        raise UnsupportedError(
            f"{_kind(module)} drops {dropout} of its weights in training, which {_label(core)} cannot: {reason}; set "
            "the attention dropout of the model's config to 0"
        )


def _weights(core: Core, query: Tensor, key: Tensor, value: Tensor, masks: dict[str, Any]) -> Tensor:
    """The A with out = A v: what the core makes of the columns of the identity, without dropout."""
    if not core.weighs_values:
        raise UnsupportedError(f"{_label(core)} has no weights: its output is no weighted sum of its values")
    identity = torch.eye(key.shape[2], dtype=value.dtype, device=value.device).expand(*value.shape[:2], -1, -1)
    training = core.training
    try:
        core.eval()
        columns = [core(query, key, part, **masks) for part in identity.split(value.shape[-1], -1)]
    finally:
        core.train(training)
    return torch.cat(columns, -1)


def _label(core: Core) -> str:
    return core.mechanism or type(core).__name__


def _kind(module: nn.Module) -> str:
    return type(module).__name__
