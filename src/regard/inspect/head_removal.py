"""Heads taken out of a model for good: smaller matrices, the same outputs.

What is left of a layer with gates g is ``sum_h (g_h W_o,h) head_h + b_o`` over the open heads: a gate is multiplied
into the columns of the output projection that read its head, and a closed head goes with its columns there and its rows
in the projections to queries, keys and values (Voita et al. 2019, arXiv:1905.09418).

Where query heads share keys and values, what stays must still divide: every group of query heads that stays keeps the
same number of them, so a group is removed as a whole, or as many heads from each group. A closed head that has to stay
for that reason has zeros in the output projection. So has the single head (the group, where keys are shared) that stays
in a layer all of whose heads are closed: the layer gives its output bias, and its caches and masks go on working.

The numbers of the heads that are still there, as they were in the whole model, are the buffer ``heads_left`` of each
attention, so that a ``state_dict`` says what it is of: :func:`load_pruned` cuts a whole model to it.
"""

import inspect
from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from regard.inspect.head_gates import HeadGates, gate_of, take_off
from regard.inspect.headed import Headed, attentions, check_heads, transposed, widths
from regard.layers import MultiHead
from regard.mechanisms.gates.head_pruning import HeadPruning
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.registry import Core, Layer, UnsupportedError

_NOTE = "heads_left"


def prune_heads(
    model: nn.Module, heads: "HeadGates | Mapping[str, Collection[int]] | None" = None
) -> dict[str, list[int]]:
    """Remove heads from a model, in place; see the head of this file.

    Args:
        model: ours with MultiHead layers, or one of transformers (BERT and its relatives, GPT-2, Llama and alike).
        heads: the gates of the model, whose closed heads go and whose open ones are multiplied in; or the numbers of
            the heads to remove by the name of their attention. None: by the gates that the model carries, also those of
            "head_pruning".

    Returns:
        The heads that still do something, by attention, for all attentions of which any was asked for. Numbers are
        those of the whole model, also when it is pruned again.

    Raises:
        ValueError: an attention or a head that does not exist, or numbers of heads for a model with gates.
        UnsupportedError: an attention whose heads cannot be taken apart, or heads that share keys with one that stays.
            The model is then as it was.

    Example:
        >>> import regard
        >>> model = regard.models.TransformerLM(256, 16, 2, 4, 64)
        >>> prune_heads(model, {"blocks.0.attention": [0, 3], "blocks.1.attention": [2]})
        {'blocks.0.attention': [1, 2], 'blocks.1.attention': [0, 1, 3]}
        >>> model.blocks[0].attention.q_proj
        Linear(in_features=16, out_features=8, bias=True)
    """
    found = attentions(model)
    cuts = _asked(found, heads) if isinstance(heads, Mapping) else _closed(found, heads or HeadGates(model))
    for name in cuts:
        _check_removable(found[name])
    for name, (kept, scale) in cuts.items():
        _cut(found[name], kept, scale)
    left = {name: zip(there(found[name]), scale.tolist(), strict=True) for name, (_, scale) in cuts.items()}
    return {name: [head for head, factor in pairs if factor] for name, pairs in left.items()}


def load_pruned(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Cut a whole model to what a ``state_dict`` of the same model says is left of it, and load that.

    Args:
        model: as it was before any head was removed; of its parameters only the shapes matter.
        state: what ``state_dict`` gave after :func:`prune_heads`.

    Raises:
        ValueError: heads that the model does not have.
        RuntimeError: other tensors that do not fit.

    Example:
        >>> import regard
        >>> pruned, whole = (regard.models.TransformerLM(256, 16, 1, 4, 64) for _ in range(2))
        >>> left = prune_heads(pruned, {"blocks.0.attention": [0, 1]})
        >>> load_pruned(whole, pruned.state_dict())
        >>> whole.blocks[0].attention.num_heads
        2
    """
    found = attentions(model)
    notes = {name: state[key] for name in found if (key := f"{name}.{_NOTE}".lstrip(".")) in state}
    for name, note in notes.items():
        headed = found[name]
        _check_removable(headed)
        left = check_heads(headed, note.tolist(), there(headed))
        _cut(headed, [there(headed).index(head) for head in left], torch.ones(len(left)))
    model.load_state_dict(dict(state))


def there(headed: Headed) -> list[int]:
    """The numbers in the whole model of the heads that an attention has."""
    note = getattr(headed.module, _NOTE, None)
    return note.tolist() if isinstance(note, Tensor) else list(range(headed.num_heads))


Cut = tuple[list[int], Tensor]
"""The places of the heads that stay, and what each is multiplied with."""


def _asked(found: dict[str, Headed], heads: Mapping[str, Collection[int]]) -> dict[str, Cut]:
    """What stays when these numbers go."""
    cuts: dict[str, Cut] = {}
    for name, numbers in heads.items():
        if name not in found:
            raise ValueError(f"no attention is called {name!r}: there are {', '.join(map(repr, found))}")
        headed = found[name]
        if gate_of(headed) is not None:
            raise ValueError(f"{headed.label} has gates: prune by them, or take them off first")
        known = there(headed)
        gone = check_heads(headed, numbers, known)
        scale = torch.tensor([float(head not in gone) for head in known])
        kept = _kept(headed, scale)
        if scale.any() and len(kept) > scale.sum():
            size = headed.num_heads // _groups(headed)
            raise UnsupportedError(
                f"{headed.label} cannot lose the heads {gone}: each {size} share keys and values, so whole groups go, "
                "or as many heads of every group that stays"
            )
        cuts[name] = kept, scale[kept]
    return cuts


def _closed(found: dict[str, Headed], gates: HeadGates) -> dict[str, Cut]:
    """What stays when the closed gates go; a closed head that shares keys with an open one may have to stay."""
    cuts: dict[str, Cut] = {}
    for name, scale in gates.gates().items():
        kept = _kept(found[name], scale)
        cuts[name] = kept, scale[kept]
    return cuts


def _kept(headed: Headed, scale: Tensor) -> list[int]:
    """The places of the heads that stay: the open ones, and closed ones so that groups are of one size."""
    groups = scale.view(_groups(headed), -1)
    most = int((groups != 0).sum(1).max())
    kept: list[int] = []
    for number, group in enumerate(groups):
        if group.any() or (most == 0 and number == 0):
            opened = (group == 0).long().argsort(stable=True)[: max(1, most)].sort().values
            kept += (number * group.numel() + opened).tolist()
    return kept


def _groups(headed: Headed) -> int:
    """Heads of keys and values."""
    if len(headed.inputs) != 3:
        return headed.num_heads
    return headed.num_heads * widths(headed.inputs[2])[1] // widths(headed.output)[0]


def _check_removable(headed: Headed) -> None:
    """Refuse attentions that know their heads by number."""
    module = headed.module
    core = getattr(module, "core", None)
    if type(module) is not MultiHead and (isinstance(module, Layer) or not headed.inputs):
        name = getattr(module, "mechanism", "") or type(module).__name__
        raise UnsupportedError(f"{headed.label} cannot lose heads: {name} can only have gates put on them")
    if isinstance(core, HeadPruning):
        return
    if isinstance(core, Core) and "num_heads" in inspect.signature(type(core)).parameters:
        name = core.mechanism or type(core).__name__
        raise UnsupportedError(f"{headed.label} cannot lose heads: {name} is built for their number")
    shared = {id(tensor) for linear in (*headed.inputs, headed.output) for tensor in linear.parameters()}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        known = id(tensor) in shared or name.endswith(_NOTE) or headed.num_heads == headed.width
        if not known and headed.num_heads in tensor.shape:
            raise UnsupportedError(f"{headed.label} cannot lose heads: it has numbers for each in {name}")


def _cut(headed: Headed, kept: list[int], scale: Tensor) -> None:
    """Leave only these heads, each multiplied into the output projection."""
    module, heads, groups = headed.module, headed.num_heads, _groups(headed)
    left, width = [there(headed)[place] for place in kept], headed.width
    kept_groups = sorted({place * groups // heads for place in kept})
    take_off(headed.output)
    if len(headed.inputs) == 3:
        query, *others = headed.inputs
        _take(query, kept, heads)
        for linear in others:
            _take(linear, kept_groups, groups)
    else:  # the projections to queries, keys and values stand in one matrix, or in one and another
        for linear in headed.inputs:
            parts = widths(linear)[1] // (heads * width)
            _take(linear, [part * heads + place for part in range(parts) for place in kept], parts * heads)
    _take(headed.output, kept, heads, inputs=True)
    columns = scale.repeat_interleave(width).to(cast(Tensor, headed.output.weight))
    cast(Tensor, headed.output.weight.data).mul_(columns[:, None] if transposed(headed.output) else columns)
    _tell(module, len(kept), len(kept_groups), width)
    module.register_buffer(_NOTE, torch.tensor(left, device=columns.device))


def _take(linear: nn.Module, places: list[int], blocks: int, *, inputs: bool = False) -> None:
    """Leave some of the blocks of outputs, or of inputs, that a linear map has."""
    axis = int(inputs != transposed(linear))
    tensors = {"weight": axis} if inputs else {"weight": axis, "bias": 0}
    for name, side in tensors.items():
        old = getattr(linear, name)
        if old is not None:
            index = torch.tensor(places, device=old.device)
            new = old.detach().unflatten(side, (blocks, -1)).index_select(side, index).flatten(side, side + 1)
            setattr(linear, name, nn.Parameter(new.contiguous(), requires_grad=old.requires_grad))
    taken, given = widths(linear)
    for name, number in {"in_features": taken, "out_features": given, "nx": taken, "nf": given}.items():
        if hasattr(linear, name):
            setattr(linear, name, number)


def _tell(module: nn.Module, heads: int, groups: int, width: int) -> None:
    """Correct what the attention remembers of its sizes."""
    numbers = dict.fromkeys(("num_heads", "num_attention_heads", "n_heads", "n_head"), heads)
    numbers |= dict.fromkeys(("num_kv_heads", "num_key_value_heads"), groups)
    numbers |= dict.fromkeys(("all_head_size", "split_size"), heads * width) | {"num_key_value_groups": heads // groups}
    for name, number in numbers.items():
        if name in vars(module):
            setattr(module, name, number)
    core = getattr(module, "core", None)
    if isinstance(core, HeadPruning):  # its gates have been multiplied in
        layer, plain = cast(MultiHead, module), ScaledDotProduct(core.causal, attn_drop=core.attn_drop)
        layer.core, layer._core_has_aux = plain.train(core.training), False
        layer.card, layer.mechanism = plain.card, plain.mechanism
