"""A layer of LSTM cells that look at annotations before each step: the decoder of "Show, Attend and Tell"."""

from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from regard.mechanisms.pairs.show_attend_tell import ShowAttendTell, draw_matrix_


class Seen(NamedTuple):
    """An image, as a decoder needs it; batch first, so that beam search can pick rows.

    Attributes:
        annotations: (B, L, D).
        mask: Bool (B, L), True for places that can be looked at.
        keys: of each layer, what its scores need of the annotations.
    """

    annotations: Tensor
    mask: Tensor
    keys: tuple[Tensor, ...]


class AttentiveLSTM(nn.Module):
    """One layer of the decoder: an LSTM whose state looks at the annotations before each step.

    Args:
        input_dim, dim, context_dim: of what comes from below, of the state, and of the annotations.
        gate_dropout: on the inputs of three gates: a half of them, in the authors' way.
        options: those of the attention.
    """

    def __init__(self, input_dim: int, dim: int, context_dim: int, *, gate_dropout: bool, **options: Any) -> None:
        super().__init__()
        factory: dict[str, Any] = {name: options.get(name) for name in ("device", "dtype")}
        self.gate_dropout = gate_dropout
        self.attention = ShowAttendTell(dim, context_dim, **options)
        self.from_below = nn.Linear(input_dim, 4 * dim, **factory)
        self.from_state = nn.Linear(dim, 4 * dim, bias=False, **factory)
        self.from_context = nn.Linear(context_dim, 4 * dim, bias=False, **factory)
        self.start_state, self.start_cell = (nn.Linear(context_dim, dim, **factory) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each square matrix orthogonal, one a gate; the others N(0, 0.01^2); biases 0."""
        for linear in (self.from_below, self.from_state):
            for gate in linear.weight.chunk(4):
                draw_matrix_(gate)
        for linear in (self.from_context, self.start_state, self.start_cell):
            draw_matrix_(linear.weight)
        for linear in (self.from_below, self.start_state, self.start_cell):
            nn.init.zeros_(linear.bias)
        self.attention.reset_parameters()

    def step(
        self, below: Tensor, state: Tensor, cell: Tensor, seen: Seen, layer: int, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One word: projected input (B, 4 n), h, c, the image -> h, c, z, log alpha and what z was summed with."""
        log_weights, chosen = self.attention.look(state[:, None], seen.keys[layer], key_mask=seen.mask, **options)
        z = self.attention.select(state, (chosen.to(state.dtype) @ seen.annotations)[:, 0])
        gates = below + self.from_state(state) + self.from_context(z)
        *sigmoids, candidate = gates.chunk(4, -1)
        if self.gate_dropout:
            sigmoids = [scaled_drop(gate, 0.5, self.training, options.get("generator")) for gate in sigmoids]
        enter, keep, leave = (gate.sigmoid() for gate in sigmoids)
        cell = keep * cell + enter * candidate.tanh()
        return leave * cell.tanh(), cell, z, log_weights[:, 0], chosen[:, 0]


def scaled_drop(x: Tensor, p: float, training: bool, generator: Generator | None = None) -> Tensor:
    """Dropout as it was in 2015: in training kept numbers stay as they are, in evaluation all are times 1 - p.

    Example:
        >>> scaled_drop(torch.ones(2), 0.25, training=False)
        tensor([0.7500, 0.7500])
    """
    if not p:
        return x
    if not training:
        return x * (1 - p)
    return x * torch.empty_like(x).bernoulli_(1 - p, generator=generator)
