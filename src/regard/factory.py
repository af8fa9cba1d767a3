"""Mechanisms by name: a file ``mechanisms/**/<name>.py`` is found by its name and imported when it is asked for."""

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Sequence
from typing import Any, cast

from regard import mechanisms
from regard.layers import MultiHead, head_width
from regard.registry import Card, Causality, Core, Data, Entry, Layer, UnsupportedError, entry, registered

_AROUND = ("dim", "qkv_bias", "qk_norm", "rotary", "proj_drop")  # options of MultiHead only
_BOTH = ("num_kv_heads", "head_dim", "attn_drop", "device", "dtype")  # of MultiHead and of the cores that have them
_EVERY_CORE = ("num_heads", "causal", "max_length", *_BOTH)
_EVERY_LAYER = ("dim", "num_heads", "causal", "max_length", "device", "dtype")
_EVERY_MAP = ("dim", "num_heads", "device", "dtype")
_OUR_WORDS: dict[str, tuple[str, ...]] = {
    theirs: ours
    for ours, words in {
        ("dim",): "embed_dim d_model hidden_size hidden_dim n_embd embedding_dim",
        ("num_heads",): "heads n_heads n_head nhead num_attention_heads",
        ("head_dim",): "dim_head dim_heads d_head d_k attn_head_dim",
        ("num_kv_heads",): "kv_heads n_kv_heads num_key_value_heads",
        ("attn_drop", "proj_drop"): "dropout attn_dropout attention_dropout dropout_p dropout_rate",
        ("causal",): "is_causal autoregressive unidirectional",
        ("max_length",): "max_len max_seq_len seq_len sequence_length max_position_embeddings n_ctx",
        ("qkv_bias",): "bias add_bias use_bias",
    }.items()
    for theirs in words.split()
}


def names(data: Data | None = None, causal: bool | Causality | None = None, family: str | None = None) -> list[str]:
    """All mechanisms, sorted; this imports their files.

    Args:
        data: only those that run on "sequence", "map", "set" or "pair".
        causal: True: only those that can be causal; "strict" or "selection": only those that are so; False: the rest.
        family: only those of one family, e.g. "linear".

    Example:
        >>> "linear_transformer" in names(data="sequence", causal="strict")
        True
    """
    for module in _files().values():
        importlib.import_module(module)
    return [
        name
        for name, record in sorted(registered().items())
        if name == record.name
        and data in (None, record.card.data)
        and family in (None, record.card.family)
        and (causal is None or causal == (record.card.causal if isinstance(causal, str) else bool(record.card.causal)))
    ]


def card(name: str) -> Card:
    """What a mechanism is and what it promises.

    Example:
        >>> card("linear_transformer").paper
        'arXiv:2006.16236'
    """
    return find(name).card


def core(name: str, **options: Any) -> Core:
    """What a mechanism does between the projections: ``core(q, k, v)`` on heads-first tensors.

    Args:
        name: the mechanism.
        options: those of its class. ``num_heads``, ``head_dim``, ``num_kv_heads``, ``causal``, ``max_length``,
            ``attn_drop``, ``device`` and ``dtype`` may be given for every mechanism, and reach those that need them.

    Raises:
        TypeError: an option that the class does not have, or one that it needs and was not given.
        UnsupportedError: an option that the mechanism cannot honour, or a mechanism without a core.

    Example:
        >>> core("linear_transformer", head_dim=64, causal=True)
        LinearTransformer(causal=True, eps=1e-06)
    """
    record = find(name)
    if not issubclass(record.cls, Core):
        raise UnsupportedError(f"{record.name} has no core, it owns its projections: use regard.create")
    _check(record, options.items(), _EVERY_CORE)
    return cast(Core, _make(record, options))


def create(
    name: str,
    *,
    dim: int | None = None,
    num_heads: int | None = None,
    causal: bool | None = None,
    max_length: int | None = None,
    **options: Any,
) -> Layer:
    """A mechanism as a layer: ``layer(x)`` on (B, N, dim), or on maps (B, dim, H, W).

    Args:
        name: the mechanism, see :func:`names`.
        dim: C, the width of the layer.
        num_heads: H.
        causal: no output depends on a later input.
        max_length: the longest sequence, for mechanisms whose parameters depend on it; idle for the others.
        options: those of the mechanism's class; where it is a core, also those of :class:`regard.layers.MultiHead`.

    Raises:
        TypeError: an option that nobody takes, or one that is needed and was not given.
        UnsupportedError: an option that the mechanism cannot honour.
        ValueError: an unknown name.

    Example:
        >>> import torch
        >>> layer = create("linear_transformer", dim=12, num_heads=3, causal=True)
        >>> layer(torch.randn(2, 5, 12)).shape
        torch.Size([2, 5, 12])
    """
    record = find(name)
    common = {"dim": dim, "num_heads": num_heads, "causal": causal, "max_length": max_length}
    options |= {option: value for option, value in common.items() if value is not None}
    if not issubclass(record.cls, Core):
        _check(record, options.items(), _EVERY_MAP if record.card.data == "map" else _EVERY_LAYER)
        return cast(Layer, _make(record, options))
    _check(record, options.items(), (*_AROUND, *_EVERY_CORE))
    if dim is None or num_heads is None:
        raise TypeError(f"{record.name} needs dim and num_heads, got dim={dim} and num_heads={num_heads}")
    around = {option: options.pop(option) for option in _AROUND if option in options}
    around |= {option: options[option] for option in _BOTH if option in options}
    options["head_dim"] = head_width(dim, num_heads, options.get("head_dim"))
    layer = cast(type[MultiHead], record.cls.layer or MultiHead)
    return layer(num_heads=num_heads, core=cast(Core, _make(record, options)), **around)


def find(name: str) -> Entry:
    """The registry's entry of a name or alias; its file is imported first if need be.

    Raises:
        ValueError: an unknown name; the message lists the nearest ones.
    """
    files = _files()
    # an alias stands in some file: they are imported one by one, those outside the rooms first, until one claims it
    for module in [files[name]] if name in files else sorted(files.values(), key=lambda path: path.count(".")):
        if name in registered():
            break
        importlib.import_module(module)
    if name not in registered():
        near = difflib.get_close_matches(name, registered(), n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(names())}"
        raise ValueError(f"no mechanism is called {name!r}: {advice}")
    return entry(name)


@functools.cache
def _files() -> dict[str, str]:
    """File name -> module, of every mechanism; none of them is imported."""
    found = pkgutil.walk_packages(mechanisms.__path__, f"{mechanisms.__name__}.")
    return {info.name.rpartition(".")[2]: info.name for info in found if not info.ispkg}


def _check(record: Entry, options: Iterable[tuple[str, Any]], words: Sequence[str]) -> None:
    """Refuse options that nobody takes, and those that the mechanism cannot honour.

    Args:
        record: the mechanism.
        options: what was asked for.
        words: options that may be given whether the class has them or not.
    """
    parameters = inspect.signature(record.cls).parameters
    for option, value in options:
        if reason := _refusal(record, option, value, option in parameters):
            raise UnsupportedError(f"{record.name} {reason}")
        if option not in parameters and option not in words and option not in record.card.refuses:
            known = list(dict.fromkeys((*words, *parameters)))
            near = [word for word in _OUR_WORDS.get(option, ()) if word in known]
            near = near or difflib.get_close_matches(option, known, n=1)
            advice = f"the word is {' or '.join(near)}" if near else f"it takes {', '.join(known)}"
            raise TypeError(f"{record.name} has no option {option!r}: {advice}")


def _make(record: Entry, options: dict[str, Any]) -> Core | Layer:
    """An instance, from those of the options that its class has."""
    parameters = inspect.signature(record.cls).parameters
    missing = [key for key, slot in parameters.items() if slot.default is slot.empty and key not in options]
    if missing:
        raise TypeError(f"{record.name} needs {', '.join(missing)}")
    return record.cls(**{option: value for option, value in options.items() if option in parameters})


def _refusal(record: Entry, option: str, value: Any, taken: bool) -> str:
    """Why the mechanism cannot do what the option asks for; empty where it can. False, 0 and None ask for nothing."""
    reason = record.card.refuses.get(option, "")
    if option == "causal" and value and (reason or not record.card.causal):
        return "cannot be causal" + (f": {reason}" if reason else "")
    if option == "causal" and not value and record.card.causal and not taken:
        return "is always causal"
    if option == "attn_drop" and value and not taken:
        reason = reason or "it has no dropout on its weights"
    return f"cannot honour {option}={value!r}: {reason}" if reason and value else ""
