"""Gates on the heads of any model, so that fine-tuning finds out which heads it can do without.

Voita et al. 2019, arXiv:1905.09418, section 6: between the heads and the output projection stands a factor for each
head, a hard concrete number (``ops/hard_concrete.py``) that is drawn in training and fixed in evaluation::

    gates = gate_heads(model, weight=0.05)                   # a model that has been trained
    groups = [{"params": gates.others()}, {"params": gates.parameters(), "weight_decay": 0.0, "lr": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    loss = task_loss(model(batch)) + gates.penalty()          # in every step
    prune_heads(model, gates)                                 # afterwards: see regard.inspect.head_removal

Gates want no weight decay, which would pull each towards one half, and a larger step than the weights: log alpha has a
long way to go. Their parameters are part of the model's ``state_dict``, beside each output projection, so a checkpoint
keeps them: to continue, put gates on the model and then load it. They are computed in float32 at least.
"""

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from regard.inspect.headed import Headed, attentions
from regard.ops.hard_concrete import STRETCH, HardConcrete

_NAME = "head_gate"


class HeadGate(HardConcrete):
    """The gates of one attention, which multiply what its output projection reads."""

    def hook(self, output: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The input of the output projection, (..., H D), each head times its gate; the rest as it was."""
        joined: Tensor = inputs[0]
        gate = self().to(joined.dtype)
        return ((joined.unflatten(-1, (len(gate), -1)) * gate[:, None]).flatten(-2), *inputs[1:])


class HeadGates:
    """The gates of a whole model, as :func:`gate_heads` returns them.

    Args:
        model: a model with gates.
        weight: of the penalty.
    """

    def __init__(self, model: nn.Module, weight: float = 1.0) -> None:
        self.model, self.weight = model, weight
        self.layers = gates_of(model)

    def penalty(self) -> Tensor:
        """weight sum_h P(g_h != 0) over all layers, to be added to the loss; the authors take the mean of layers."""
        return self.weight * torch.stack([gate.expected_open() for gate in self.layers.values()]).sum()

    def gates(self) -> dict[str, Tensor]:
        """g of each head in evaluation, (H,) a layer."""
        return {name: gate.settled().detach() for name, gate in self.layers.items()}

    def open(self) -> dict[str, list[int]]:
        """The numbers of the heads whose gate is not 0 in evaluation, layer by layer."""
        return {name: gate.nonzero().flatten().tolist() for name, gate in self.gates().items()}

    def parameters(self) -> list[nn.Parameter]:
        """The gates' own parameters, one a layer."""
        return [gate.log_alpha for gate in self.layers.values()]

    def others(self) -> list[nn.Parameter]:
        """All other parameters of the model."""
        own = set(self.parameters())
        return [parameter for parameter in self.model.parameters() if parameter not in own]

    def remove(self) -> None:
        """Take the gates off; the model is what it would be with all of them wide open."""
        for headed in attentions(self.model).values():
            take_off(headed.output)

    def __repr__(self) -> str:
        heads = sum(map(len, self.parameters()))
        return f"HeadGates({sum(map(len, self.open().values()))} of {heads} heads open, weight={self.weight})"


def gate_heads(
    model: nn.Module,
    *,
    weight: float = 0.1,
    start: float | Literal["glorot"] = 2.0,
    temperature: float = 0.33,
    stretch: tuple[float, float] = STRETCH,
    hard: bool = False,
    layers: Iterable[str] | None = None,
) -> HeadGates:
    """Put a gate on every head of a model, in place; see the head of this file.

    Args:
        model: any with attentions that :func:`regard.inspect.headed.attentions` finds: ours, and those of transformers.
        weight: of the penalty for each head that is open; the more data, the less. The paper takes 0.01 to 0.3.
        start: log alpha of every gate at first; 2 is a gate of 0.957 that opens with probability 0.94.
        temperature, stretch, hard: see :class:`regard.ops.hard_concrete.HardConcrete`.
        layers: names of the attentions that get gates; None: all.

    Returns:
        What to add to the loss, and what the gates say.

    Raises:
        UnsupportedError: no attention whose heads could be told apart.
        ValueError: a layer that does not exist, or a model that has gates already.

    Example:
        >>> import regard
        >>> model = regard.models.TransformerLM(256, 16, 2, 4, 64)
        >>> gates = gate_heads(model, weight=0.05)
        >>> gates
        HeadGates(8 of 8 heads open, weight=0.05)
        >>> loss = model(torch.randint(256, (3, 10))).logsumexp(-1).mean() + gates.penalty()
    """
    found = attentions(model)
    names = list(found) if layers is None else list(layers)
    for name in names:
        if name not in found:
            raise ValueError(f"no attention is called {name!r}: there are {', '.join(map(repr, found))}")
        if gate_of(found[name]) is not None:
            raise ValueError(f"{found[name].label} has gates already: take them off with HeadGates(model).remove()")
    options: dict[str, Any] = {"start": start, "temperature": temperature, "stretch": stretch, "hard": hard}
    for name in names:
        headed = found[name]
        gate = HeadGate(headed.num_heads, **options, device=cast(Tensor, headed.output.weight).device)
        headed.output.add_module(_NAME, gate.train(headed.output.training))
        headed.output.register_forward_pre_hook(gate.hook)
    return HeadGates(model, weight)


def gate_of(headed: Headed) -> HardConcrete | None:
    """The gates on an attention, those that were put there or those of its core, "head_pruning"."""
    own = getattr(getattr(headed.module, "core", None), "gate", None)
    put = getattr(headed.output, _NAME, own)
    return put if isinstance(put, HardConcrete) else None


def gates_of(model: nn.Module) -> dict[str, HardConcrete]:
    """The gates of all attentions that have any, by the attention's name.

    Raises:
        ValueError: a model without gates.
    """
    found = {name: gate for name, headed in attentions(model).items() if (gate := gate_of(headed)) is not None}
    if not found:
        raise ValueError(f"{type(model).__name__} has no gates: put some on with gate_heads(model)")
    return found


def take_off(output: nn.Module) -> None:
    """Remove the gates that were put before an output projection, where there are any."""
    gate = getattr(output, _NAME, None)
    if isinstance(gate, HeadGate):
        hooks = output._forward_pre_hooks
        for number in [number for number, hook in hooks.items() if getattr(hook, "__self__", None) is gate]:
            del hooks[number]
        delattr(output, _NAME)
