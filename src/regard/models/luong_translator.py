"""Luong's translator: stacked LSTMs read the source and write the target, attention on top.

Luong et al. 2015, arXiv:1508.04025, section 4.1: the source is read backwards, the decoder starts from the encoder's
last states in every layer, see :class:`regard.models.luong_decoder.LuongDecoder`, and logits = W_s y. Dropout acts on
the input of every LSTM; everything is drawn uniformly between -0.1 and 0.1, and nothing has a bias.

Without biases an LSTM that holds 0 stays at 0 while its input is 0: padding, moved in front of the real words with an
embedding of 0, leaves no trace, wherever it stood. The states are put back to the places of their words, so attention
counts places as the sentence does.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.mechanisms.pairs.luong import Alignment, Score
from regard.models.luong_decoder import DecoderState, LuongDecoder
from regard.ops.masks import check_mask, hide

__all__ = ["LuongTranslator", "TranslatorMemory"]


class TranslatorMemory(NamedTuple):
    """What :meth:`LuongTranslator.step` goes on from."""

    context: Float[Tensor, "B S C"]
    mask: Bool[Tensor, "B S"]
    state: DecoderState


class LuongTranslator(nn.Module):
    """From source and target tokens to the logits of each target token's successor; see the head of this file.

    Args:
        vocab_size: number of source tokens, and of target tokens without ``target_vocab_size``.
        target_vocab_size: number of target tokens; both sides have embeddings of their own.
        dim, depth: C and the LSTMs on each side.
        score, alignment, half_window: of :class:`regard.mechanisms.pairs.luong.Luong`.
        input_feeding: the attentional state goes into the next step, which then waits for it.
        reverse_source: read the source backwards.
        dropout: on the input of every LSTM.
        max_length: the longest source, for ``score="location"``.

    Example:
        >>> model = LuongTranslator(14, dim=8, depth=2)
        >>> model(torch.randint(14, (2, 7)), torch.randint(14, (2, 5))).shape
        torch.Size([2, 5, 14])
    """

    def __init__(
        self,
        vocab_size: int,
        target_vocab_size: int | None = None,
        *,
        dim: int = 1000,
        depth: int = 4,
        score: Score = "general",
        alignment: Alignment = "local-p",
        half_window: int = 10,
        input_feeding: bool = True,
        reverse_source: bool = True,
        dropout: float = 0.2,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        attention: dict[str, Any] = {"score": score, "alignment": alignment, "half_window": half_window}
        words = vocab_size if target_vocab_size is None else target_vocab_size
        self.reverse_source, self.drop = reverse_source, nn.Dropout(dropout)
        self.embedding = nn.Embedding(vocab_size, dim, **factory)
        self.target_embedding = nn.Embedding(words, dim, **factory)
        between = dropout if depth > 1 else 0.0  # torch warns of a dropout that has nothing to act on
        self.encoder = nn.LSTM(dim, dim, depth, bias=False, batch_first=True, dropout=between, **factory)
        self.decoder = LuongDecoder(
            dim,
            dim,
            depth,
            input_feeding=input_feeding,
            dropout=dropout,
            max_length=max_length,
            **attention,
            **factory,
        )
        self.output = nn.Linear(dim, words, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Everything uniform between -0.1 and 0.1."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def forward(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        *,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each target token; masks are Bool, True for real tokens."""
        return self.output(self._decode(src, tgt, src_mask, tgt_mask)[0])

    def align(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        *,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
    ) -> Float[Tensor, "B T S"]:
        """The weights over source tokens when the token after each target token is predicted."""
        return hide(self._decode(src, tgt, src_mask, tgt_mask)[1], tgt_mask)

    def begin(self, src: Int[Tensor, "B S"], src_mask: Tensor | None = None) -> TranslatorMemory:
        """What :meth:`step` goes on from: a translation of which no token is there."""
        context, state = self._encode(src, src_mask)
        mask = torch.ones_like(src, dtype=torch.bool) if src_mask is None else src_mask
        return TranslatorMemory(context, mask, state)

    def step(
        self, tokens: Int[Tensor, " B"], memory: TranslatorMemory
    ) -> tuple[Float[Tensor, "B V"], TranslatorMemory]:
        """Logits of the token after these, and the memory that holds them."""
        embedded = self.target_embedding(tokens)
        _, state = self.decoder.step(embedded, memory.context, memory.state, key_mask=memory.mask)
        return self.output(state.attentional), memory._replace(state=state)

    def _encode(self, src: Tensor, src_mask: Tensor | None) -> tuple[Float[Tensor, "B S C"], DecoderState]:
        """The states of the words, 0 where masked, and what the decoder starts from."""
        check_mask(src_mask, *src.shape, name="src_mask")
        order = _reading_order(src, src_mask, self.reverse_source)
        embedded = hide(self.embedding(src), src_mask).take_along_dim(order[..., None], 1)
        states, (hidden, cell) = self.encoder(self.drop(embedded))
        context = hide(states.take_along_dim(order.argsort(-1)[..., None], 1), src_mask)
        return context, self.decoder.start_from(hidden.transpose(0, 1), cell.transpose(0, 1))

    def _decode(
        self, src: Tensor, tgt: Tensor, src_mask: Tensor | None, tgt_mask: Tensor | None
    ) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B T S"]]:
        """The attentional states of all steps and their weights; real target tokens come first while it runs."""
        context, state = self._encode(src, src_mask)
        check_mask(tgt_mask, *tgt.shape, name="tgt_mask")
        if tgt_mask is None:
            decoded = self.decoder(self.target_embedding(tgt), context, state, key_mask=src_mask)
            return decoded.attentional, decoded.weights
        order = (~tgt_mask).long().argsort(dim=-1, stable=True)
        decoded = self.decoder(self.target_embedding(tgt.gather(1, order)), context, state, key_mask=src_mask)
        back = order.argsort(-1)[..., None]
        return decoded.attentional.take_along_dim(back, 1), decoded.weights.take_along_dim(back, 1)


def _reading_order(src: Tensor, mask: Tensor | None, reverse: bool) -> Int[Tensor, "B S"]:
    """The places of the tokens as they are read: padding first, then the real ones, from the last to the first or on.

    Example:
        >>> _reading_order(torch.zeros(1, 4), torch.tensor([[True, True, True, False]]), True).tolist()
        [[3, 2, 1, 0]]
    """
    places = torch.arange(src.shape[1], device=src.device).expand(src.shape[:2])
    rank = -places if reverse else places
    return rank.argsort(-1) if mask is None else torch.where(mask, rank, -src.shape[1]).argsort(dim=-1, stable=True)
