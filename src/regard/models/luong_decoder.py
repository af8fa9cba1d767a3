"""The decoder of Luong et al. 2015: stacked LSTMs without biases, attention on top, its answer fed back below.

arXiv:1508.04025, sections 3 and 3.3. With h_t the top state of the LSTMs after step t and y_t the attentional state::

    input of step t = [embedding_t; y_{t-1}]     with input feeding, y_{-1} = 0; else embedding_t
    y_t = tanh(W_c [c_t; h_t])                   see regard.mechanisms.pairs.luong

Without input feeding no step waits for attention: the LSTM runs through all of them, and attention follows at once.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.mechanisms.pairs.luong import Luong

__all__ = ["Decoded", "DecoderState", "LuongDecoder"]


class DecoderState(NamedTuple):
    """What a decoder carries from step to step: L layers' states and cells, y, and how many steps there were."""

    hidden: Float[Tensor, "B L C"]
    cell: Float[Tensor, "B L C"]
    attentional: Float[Tensor, "B C"]
    step: Int[Tensor, " B"]


class Decoded(NamedTuple):
    """Of all steps: h, y, the weights over the source, and the state after the last step."""

    states: Float[Tensor, "B T C"]
    attentional: Float[Tensor, "B T C"]
    weights: Float[Tensor, "B T S"]
    after: DecoderState


class LuongDecoder(nn.Module):
    """From embeddings of the target and the encoder's states to attentional states.

    Args:
        input_dim: width of the embeddings.
        dim, depth: C and the number of LSTMs.
        input_feeding: feed y back; the steps then follow one another.
        dropout: on the input of every LSTM.
        attention: options of :class:`regard.mechanisms.pairs.luong.Luong`.

    Example:
        >>> decoder = LuongDecoder(6, 8, 2, alignment="local-m", half_window=2)
        >>> decoder(torch.randn(3, 5, 6), torch.randn(3, 7, 8)).attentional.shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        input_dim: int,
        dim: int,
        depth: int,
        *,
        input_feeding: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **attention: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.depth, self.input_feeding = dim, depth, input_feeding
        self.lstm = nn.LSTM(input_dim + dim * input_feeding, dim, depth, bias=False, batch_first=True, **factory)
        self.attention = Luong(dim, **attention, **factory)
        self.drop = nn.Dropout(dropout)
        self.lstm.dropout = dropout if depth > 1 else 0.0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Everything uniform between -0.1 and 0.1."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def start(self, like: Float[Tensor, "B ..."]) -> DecoderState:
        """Before the first step, with zeros in all layers."""
        layers = like.new_zeros(like.shape[0], self.depth, self.dim)
        return self.start_from(layers, layers)

    def start_from(self, hidden: Float[Tensor, "B L C"], cell: Float[Tensor, "B L C"]) -> DecoderState:
        """Before the first step, with an encoder's last states in the layers."""
        steps = torch.zeros(hidden.shape[0], dtype=torch.long, device=hidden.device)
        return DecoderState(hidden, cell, torch.zeros_like(hidden[:, 0]), steps)

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        context: Float[Tensor, "B S C"],
        state: DecoderState | None = None,
        *,
        key_mask: Tensor | None = None,
    ) -> Decoded:
        """All steps.

        Args:
            x: embeddings of the target; padding stands behind the last token.
            context: the encoder's states, 0 where masked.
            state: to go on from; None: zeros.
            key_mask: Bool (B, S), True for real words of the source.
        """
        state = self.start(x) if state is None else state
        if not self.input_feeding:
            return self._at_once(x, context, state, key_mask)
        states: list[Tensor] = []
        answers: list[Tensor] = []
        weights: list[Tensor] = []
        for embedding in x.unbind(1):
            shares, state = self.step(embedding, context, state, key_mask=key_mask)
            states.append(state.hidden[:, -1])
            answers.append(state.attentional)
            weights.append(shares)
        return Decoded(torch.stack(states, 1), torch.stack(answers, 1), torch.stack(weights, 1), state)

    def step(
        self, x: Float[Tensor, "B E"], context: Tensor, state: DecoderState, *, key_mask: Tensor | None = None
    ) -> tuple[Float[Tensor, "B S"], DecoderState]:
        """One step: the weights over the source, and the state after it, which holds y."""
        below = torch.cat((x, state.attentional), -1) if self.input_feeding else x
        hidden: list[Tensor] = []
        cells: list[Tensor] = []
        for layer in range(self.depth):
            maps = getattr(self.lstm, f"weight_ih_l{layer}"), getattr(self.lstm, f"weight_hh_l{layer}")
            below, cell = torch.lstm_cell(self.drop(below), [state.hidden[:, layer], state.cell[:, layer]], *maps)
            hidden.append(below)
            cells.append(cell)
        query = below[:, None]
        shares = self.attention.weights(query, context, key_mask=key_mask, start=state.step[:, None])
        answer = self.attention.answer(query, shares.to(context.dtype) @ context)
        after = DecoderState(torch.stack(hidden, 1), torch.stack(cells, 1), answer[:, 0], state.step + 1)
        return shares[:, 0], after

    def _at_once(self, x: Tensor, context: Tensor, state: DecoderState, key_mask: Tensor | None) -> Decoded:
        before = (state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous())
        states, (hidden, cell) = self.lstm(self.drop(x), before)
        weights = self.attention.weights(states, context, key_mask=key_mask, start=state.step[:, None])
        answers = self.attention.answer(states, weights.to(context.dtype) @ context)
        after = DecoderState(hidden.transpose(0, 1), cell.transpose(0, 1), answers[:, -1], state.step + x.shape[1])
        return Decoded(states, answers, weights, after)
