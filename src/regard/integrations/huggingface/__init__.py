"""Attention of ours in models of transformers: ``register()``, then ``attn_implementation="regard:..."``.

Why your mask got lost: transformers keeps attention functions and mask functions in two registries, and a function
whose name has no mask function is handed no mask, without a word, so that padding and even the future are seen.
``register`` adds both under every name, and ours never relies on a mask that is missing.

What there is after ``register()``:

- ``regard``, and ``regard:full``: the model's own mask, exact, equal to ``eager``;
- ``regard:<expression>``: the same over fewer pairs, for each expression given to :func:`register`;
- ``regard:<mechanism>``: a core of the registry instead of softmax attention; what it learns is put on the model by
  :func:`attach`, as are options.

transformers only warns, and keeps the old attention, where a model ignores its interface (Longformer, BigBird,
Reformer, Nystromformer and others). No implementation is asked then, so that none can raise: :func:`use` and
:func:`attach` do, and :func:`sites` is the check.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import nn

from regard.integrations.huggingface.attention import exact_attention
from regard.integrations.huggingface.cores import attached_attention, core_names, make_core, named_attention
from regard.integrations.huggingface.masks import describe_mask
from regard.integrations.huggingface.sites import Site, sites
from regard.integrations.pattern_words import pattern_from_words
from regard.patterns import Pattern
from regard.registry import Core

__all__ = ["Site", "attach", "detach", "register", "sites", "use"]

ATTACHED = "regard:attached"


def register(*expressions: str) -> list[str]:
    """Add our attention to transformers, each name with its mask function; calling it again is harmless.

    What it honours: causality, sliding windows, softcap, T5's position bias, sinks, grouped heads, dropout, padding on
    either side, 4-D masks, dynamic, static and sliding caches, ``generate()``, ``output_attentions=True``, and
    ``torch.compile``. A query that may look at nothing, as in padding on the left, gets 0, where ``eager`` gives an
    average; anything else that would change the result and is not known is refused.

    What it costs: causal, sliding and full masks with padding are never drawn, and time and memory follow the allowed
    pairs. Packed sequences, chunked masks and mask functions of your own are drawn at B L S bytes. A pattern that
    counts from the start (``global``, ``blocks``, ``fixed``, ``summary``) is asked for every pair, tile by tile, where
    there is padding on the left or a sliding cache. T5's bias, and maps that are asked for, are B H L S numbers anyway.
    In a compiled graph the model's mask is drawn.

    Args:
        expressions: patterns in words, such as ``"causal&(window-512|global-4)"``: names of :mod:`regard.patterns` in
            lower case, their numbers behind hyphens, the sides of a grid joined by an x (``rows-14x14``); & binds
            before |, ~ before both. The pattern is ANDed with the model's own mask, so nothing can leak. Position 0 is
            the first real token of each sequence. Cross attention keeps the model's mask.

    Returns:
        All names that can now be given as ``attn_implementation``.

    Raises:
        ImportError: transformers is missing, or too old.
        ValueError: an expression that cannot be read; the place, and the nearest word.

    Example:
        >>> register("causal&(window-512|global-4)")[:3]
        ['regard', 'regard:full', 'regard:bigbird']
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(hidden_size=16, num_attention_heads=4, num_hidden_layers=1, vocab_size=9)
        >>> model = LlamaForCausalLM(config)
        >>> model.set_attn_implementation("regard:causal&(window-512|global-4)")
    """
    attention, masks = _interfaces()
    functions: dict[str, tuple[Callable[..., Any], Pattern | None]] = {
        "regard": (exact_attention, None),
        "regard:full": (exact_attention, None),
        **{f"regard:{name}": (functools.partial(named_attention, name=name), None) for name in core_names()},
        ATTACHED: (attached_attention, None),
    }
    for expression in map("".join, map(str.split, expressions)):
        if f"regard:{expression}" not in functions:
            pattern = pattern_from_words(expression)
            functions[f"regard:{expression}"] = (functools.partial(exact_attention, pattern=pattern), pattern)
    for name, (function, pattern) in functions.items():
        attention.register(name, function)
        exact = name in ("regard", "regard:full") or pattern is not None
        masks.register(name, functools.partial(describe_mask, ours=pattern, step_drawn=exact))
    return list(functions)


def use(model: nn.Module, implementation: str) -> None:
    """Set an implementation, or raise: ``model.set_attn_implementation`` alone may warn and change nothing.

    Args:
        model: of transformers.
        implementation: a name, registered here if it is one of ours.

    Raises:
        UnsupportedError: the model, or a part of it, ignores the attention interface.
        ValueError: an unknown name.
    """
    sites(model)
    prefix, _, word = implementation.partition(":")
    register(*([word] if prefix == "regard" and word and word not in (*core_names(), "attached") else []))
    cast(Any, model).set_attn_implementation(implementation)


def attach(
    model: nn.Module,
    mechanism: str | Callable[[Site], Core],
    *,
    only: Iterable[str] | None = None,
    selection: bool = False,
    **options: Any,
) -> dict[str, Core]:
    """Put a core on attention modules as their submodule ``regard_core``, and let the model use it.

    It is then in ``parameters()`` and ``state_dict()`` and follows the model's device and dtype. Attentions without a
    core stay exact. Cores with a loss of their own (head_pruning) tell it by ``core.aux()``: add it to yours.

    Args:
        model: of transformers.
        mechanism: a registry name; or a function that makes the core of a :class:`Site`.
        only: the paths of the attentions, see :func:`sites`; all that look at their own sequence by default. Called
            again, it adds cores, or replaces those of the same places.
        selection: accept cores in which later tokens decide which keys are chosen (``card.causal == "selection"``).
        options: of the mechanism, as in :func:`regard.core`; heads, widths, causality and the longest sequence are
            taken from the model.

    Returns:
        The cores by path.

    Raises:
        UnsupportedError: a model that ignores the interface, or a core that cannot do what the model asks for.
        ValueError: a path under which there is no attention.
        TypeError: options that the mechanism does not have, or options for a function.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=12, num_attention_heads=3, num_hidden_layers=1, vocab_size=9))
        >>> attach(model, "local", window=64)
        {'encoder.layer.0.attention.self': Local(Window(64, 64), attn_drop=0.0)}
    """
    if options and not isinstance(mechanism, str):
        raise TypeError(f"options {', '.join(options)} are for mechanisms by name: a function makes its core itself")
    chosen = _chosen(model, only)
    cores = {name: make_core(mechanism, site, selection, options) for name, site in chosen.items()}
    for name, core in cores.items():
        module = chosen[name].module
        weight = next(module.parameters(), None)
        if weight is not None:
            core.to(weight.device, weight.dtype)
        module.regard_core = core.train(module.training)
    register()
    cast(Any, model).set_attn_implementation(ATTACHED)
    return cores


def detach(model: nn.Module, *, only: Iterable[str] | None = None) -> list[str]:
    """Take the cores off again; where none is left the model's attention is exact (``regard``).

    Args:
        model: of transformers.
        only: paths of attentions; all that have a core by default.

    Returns:
        The paths of the attentions that had one.

    Raises:
        ValueError: a path under which there is no attention.
    """
    everywhere = sites(model)
    chosen = everywhere if only is None else _chosen(model, only)
    held = [name for name, site in chosen.items() if hasattr(site.module, "regard_core")]
    for name in held:
        del chosen[name].module.regard_core
    if held and not any(hasattr(site.module, "regard_core") for site in everywhere.values()):
        cast(Any, model).set_attn_implementation("regard")
    return held


def _chosen(model: nn.Module, only: Iterable[str] | None) -> dict[str, Site]:
    found = sites(model)
    if only is None:
        return {name: site for name, site in found.items() if not site.cross}
    names = [only] if isinstance(only, str) else list(only)
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"there is no attention at {missing[0]!r}; there are {', '.join(found)}")
    return {name: found[name] for name in names}


def _interfaces() -> tuple[Any, Any]:
    """transformers' two registries, checked for what is built on them."""
    try:
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
        from transformers.modeling_utils import AttentionInterface
    except ImportError as error:
        raise ImportError("this needs transformers: pip install 'regard[transformers]'") from error
    if "q_offset" not in sdpa_mask.__code__.co_varnames:
        raise ImportError("this needs a newer transformers: pip install --upgrade 'regard[transformers]'")
    return AttentionInterface, AttentionMaskInterface
