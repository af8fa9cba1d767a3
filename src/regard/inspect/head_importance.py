"""How much each head matters: by the slope of the loss, or by how sure the head is.

- By gradient (Michel et al. 2019, arXiv:1905.10650, eq. 2): with a factor xi_h = 1 on each head before the output
  projection, ``I_h = mean over sequences |d loss / d xi_h|``: 0 where a removal changes nothing to first order.
- By confidence (Voita et al. 2019, arXiv:1905.09418): the mean over tokens of a row's largest weight.

A third measure is what gates say after training (:func:`regard.inspect.gate_heads`). The relevance propagation of Voita
et al. is not here: it needs a rule for every operation of a model.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regard.inspect.headed import Headed, attentions
from regard.inspect.maps import _evaluated
from regard.inspect.model_maps import maps_of
from regard.ops.head_roles import strongest

Batch = TypeVar("Batch")


def head_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    normalise: bool = False,
) -> dict[str, Float[Tensor, " H"]]:
    """The importance of every head by gradient; see the head of this file.

    The model is in eval mode for it and keeps its own; nothing is added to the gradients of its parameters.

    Args:
        model: any with attentions that :func:`regard.inspect.headed.attentions` finds.
        batches: whatever the loss reads, sequences along the first axis.
        loss: (model, batch) -> the mean loss of the batch, of no dimensions.
        normalise: divide each layer's importances by their Euclidean norm, as the paper does before it compares layers.

    Returns:
        (H,) for each attention that ran, by its name.

    Raises:
        UnsupportedError: a model without heads that could be told apart.
        ValueError: no batches, or a loss that is no single number or does not depend on any head.

    Example:
        >>> import regard
        >>> model = regard.models.TransformerLM(256, 16, 2, 4, 64)
        >>> tokens = torch.randint(256, (3, 10))
        >>> found = head_importance(model, [tokens], lambda model, tokens: model(tokens).logsumexp(-1).mean())
        >>> {name: tuple(importance.shape) for name, importance in found.items()}
        {'blocks.0.attention': (4,), 'blocks.1.attention': (4,)}
    """
    with _evaluated(model):
        measured = [_slopes(model, batch, loss) for batch in batches]
    if not measured:
        raise ValueError("there are no batches to measure the importance of heads on")
    found: dict[str, Tensor] = {}
    for slopes in measured:
        for name, slope in slopes.items():
            found[name] = found.get(name, 0.0) + slope.abs().sum(0) / len(measured)
    if normalise:
        return {name: each / each.norm().clamp(min=torch.finfo(each.dtype).tiny) for name, each in found.items()}
    return found


def head_confidence(
    model: nn.Module,
    batches: Iterable[Batch],
    run: Callable[[nn.Module, Batch], Any],
    words: Callable[[Batch], Bool[Tensor, "B N"]] | None = None,
) -> dict[str, Float[Tensor, " H"]]:
    """How sure every head is: the largest weight of a row, in the mean over all rows.

    Args:
        model: one whose maps :func:`regard.inspect.attention_maps` can see.
        batches: whatever ``run`` reads.
        run: runs the model on a batch; what it returns does not matter.
        words: of a batch, what counts as a query and as a key; None: every token.

    Returns:
        (H,) for each attention, by its name.

    Raises:
        ValueError: no batches, or words for an attention between two sequences.

    Example:
        >>> import regard
        >>> model = regard.models.TransformerLM(256, 16, 1, 4, 64)
        >>> head_confidence(model, [torch.randint(256, (3, 10))], lambda model, tokens: model(tokens)).keys()
        dict_keys(['blocks.0.attention'])
    """
    totals: dict[str, Tensor] = {}
    rows: dict[str, int] = defaultdict(int)
    for batch in batches:
        real = None if words is None else words(batch)
        for name, found in maps_of(model, partial(run, model, batch)).items():
            largest = found.tensor.amax(-1) if real is None else _largest(name, found.tensor, real)
            totals[name] = totals.get(name, 0.0) + largest.sum((0, 2))
            rows[name] += largest[:, 0].numel() if real is None else int(real.sum())
    if not totals:
        raise ValueError("there are no batches to measure the confidence of heads on")
    return {name: total / max(1, rows[name]) for name, total in totals.items()}


def _largest(name: str, maps: Float[Tensor, "B H N M"], words: Bool[Tensor, "B N"]) -> Float[Tensor, "B H N"]:
    if maps.shape[0] != words.shape[0] or maps.shape[2:] != (words.shape[1], words.shape[1]):
        raise ValueError(f"{name} has maps {tuple(maps.shape)}, to which words of {tuple(words.shape)} do not fit")
    return strongest(maps, words)[0]


def _slopes(
    model: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]
) -> dict[str, Float[Tensor, "B H"]]:
    """d loss / d xi of every attention that ran, for each sequence; of one that ran several times the sum."""
    factors: dict[str, list[Tensor]] = defaultdict(list)

    def watch(headed: Headed) -> RemovableHandle:
        def multiply(output: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            heads: Tensor = inputs[0].unflatten(-1, (headed.num_heads, -1))
            shape = (heads.shape[0], *(1,) * (heads.ndim - 3), headed.num_heads, 1)
            factors[headed.name].append(torch.ones(shape, device=heads.device, dtype=heads.dtype, requires_grad=True))
            return ((heads * factors[headed.name][-1]).flatten(-2), *inputs[1:])

        return headed.output.register_forward_pre_hook(multiply)

    handles = [watch(headed) for headed in attentions(model).values()]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            value = loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    every = [factor for several in factors.values() for factor in several]
    if value.ndim or not value.requires_grad or not every:
        raise ValueError(f"the loss has shape {tuple(value.shape)}: it must be one number that depends on the heads")
    found = iter(torch.autograd.grad(value, every, allow_unused=True, materialize_grads=True))
    slopes = {name: torch.stack([next(found) for _ in several]).sum(0) for name, several in factors.items()}
    return {
        name: slope.flatten(1).to(torch.promote_types(slope.dtype, torch.float32)) for name, slope in slopes.items()
    }
