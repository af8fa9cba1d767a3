"""The rule on memories: a sequence in pieces yields what it yields whole."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from regard.inspect.measure import compare, limit_of, scale, skip
from regard.inspect.networks import as_network
from regard.inspect.report import Row
from regard.inspect.subject import Subject
from regard.inspect.tensors import first_tensor
from regard.registry import Core

NAME = "memory = full"


def streaming(subject: Subject) -> Row:
    """A first piece, then tokens one by one, each with the memory of those before, yield what the whole yields."""
    module: Any = subject.module
    network = as_network(module)
    if network and network.cache_name and subject.claim == "strict" and subject.rows(subject()) is not None:
        return _with_cache(subject, network.cache_name)
    if subject.card is not None and not subject.card.streaming:
        return skip(NAME, "the card does not claim streaming")
    if not (callable(getattr(module, "memory", None)) and callable(getattr(module, "stream", None))):
        return skip(NAME, "offers no memory and stream")
    if subject.claim != "strict":
        return skip(NAME, "not claimed to be strictly causal")
    if not subject.axes or subject.rows(subject()) is None or subject.span != subject.length():
        return skip(NAME, "the inputs are not one sequence")
    size = subject.length()
    one_by_one = [size - size // 2] + [1] * (size // 2)
    in_lumps = [1, min(4, size - 1), max(0, size - 5)]
    statics = (None, size) if subject.card is not None else (None,)
    rows = [
        _pieces(subject, [piece for piece in pieces if piece], static)
        for pieces in (one_by_one, in_lumps)
        for static in statics
    ]
    return next((row for row in rows if row.verdict == "FAIL"), rows[0])


def _with_cache(subject: Subject, name: str) -> Row:
    """A model of transformers with its own cache: half of the tokens at once, then one by one, as generate() does."""
    size, axis = subject.length(), subject.axes[subject.first]
    outs: list[Tensor] = []
    cache, start = None, 0
    for piece in [size - size // 2] + [1] * (size // 2):
        tokens = {key: subject.inputs[key].narrow(subject.axes[key], start, piece) for key in subject.ordered}
        found = subject.run({**subject.inputs, **tokens, "use_cache": True, name: cache})
        cache, start = found[name], start + piece
        outs.append(first_tensor(found))
    whole, got = subject(), torch.cat(outs, axis)
    gaps = (got - whole).abs().movedim(axis, 0).flatten(1).amax(1)
    far = (gaps > limit_of(whole) * scale(whole)).nonzero()
    where = f"; the first one that differs is at position {int(far[0])}" if len(far) else ""
    how = f"{size - size // 2} tokens and then {size // 2} one by one, with {name}"
    return compare(NAME, got, whole, kept=f"{how}: the same", broken=f"{how}: other outputs than at once{where}")


def _pieces(subject: Subject, pieces: Sequence[int], static: int | None) -> Row:
    module: Any = subject.module
    memory, start = _empty(subject, static), 0
    outs: list[Tensor] = []
    for piece in pieces:
        tokens = [subject.inputs[name].narrow(axis, start, piece) for name, axis in subject.axes.items()]
        before = [leaf.clone() for leaf in _tensors(memory)]
        out, grown = module.stream(*tokens, memory)
        kept = all(torch.equal(old, leaf) for old, leaf in zip(before, _tensors(memory), strict=True))
        if static is None and not kept:
            text = f"stream overwrites the memory that it was given, in the piece from token {start} on"
            return Row(name=NAME, verdict="FAIL", explanation=text)
        memory, start = grown, start + piece
        outs.append(out)
    whole = subject()
    axis = subject.rows(whole) or 0
    how = f"a piece of {pieces[0]} and then {len(pieces) - 1} more" + (f", static={static}" if static else "")
    got = torch.cat(outs, axis)
    return compare(NAME, got, whole, kept=f"{how}: the same", broken=f"{how}: other outputs than at once")


def _empty(subject: Subject, static: int | None) -> Any:
    module: Any = subject.module
    options: dict[str, Any] = {} if static is None else {"static": static}
    value = subject.inputs[subject.first]
    if subject.card is not None and value.is_floating_point():
        options |= {"device": value.device, "dtype": value.dtype}
    if isinstance(module, Core):
        key, value = subject.inputs["k"], subject.inputs["v"]
        return module.memory(subject.batch, key.shape[1], key.shape[-1], value.shape[-1], **options)
    return module.memory(subject.batch, **options)


def _tensors(memory: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(memory) if isinstance(leaf, Tensor)]
