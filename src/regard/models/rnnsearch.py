"""RNNsearch: a translator whose decoder searches the source for each word that it writes.

Bahdanau et al. 2014, arXiv:1409.0473, appendix A. E are embeddings, * is elementwise, and a gated step is ::

    z = sigmoid(a_z + U_z s)    r = sigmoid(a_r + U_r s)    s' = (1 - z) * s + z * tanh(a + U (r * s))

for three contributions a. Two encoders read the source, one of them backwards; h_j holds both states at word j. Then,
for the token y that comes after s::

    s_0 = tanh(W_s h_1 + b)             of the encoder that ends at the first word
    c = what s sees of all h_j          see regard.mechanisms.pairs.bahdanau
    t = U_o s + V_o E y + C_o c + b     2 l units, of which the larger of each pair stays
    logits = W_o t                      of the token after y
    s' = a gated step with W_z E y + C_z c, W_r E y + C_r c, W E y + C c + b

Both the search and the logits know the state before the step, as in the paper; in the authors' code, whose order is one
word later, s already holds y. Masked tokens leave every state as it was, so padding may stand anywhere.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.mechanisms.pairs.bahdanau import Bahdanau
from regard.ops.masks import check_mask, hide

__all__ = ["GatedEncoder", "RNNsearch", "SearchDecoder", "SearchMemory", "Searched"]


class GatedEncoder(nn.Module):
    """Gated steps from one end of a sequence to the other; only the candidate has a bias.

    Args:
        input_dim, dim: widths of the tokens and of the state.
        backwards: read the last token first.
    """

    def __init__(self, input_dim: int, dim: int, *, backwards: bool = False, **factory: Any) -> None:
        super().__init__()
        self.backwards = backwards
        self.word_gates = nn.Linear(input_dim, 2 * dim, bias=False, **factory)
        self.word_candidate = nn.Linear(input_dim, dim, **factory)
        self.state_gates = nn.Linear(dim, 2 * dim, bias=False, **factory)
        self.state_candidate = nn.Linear(dim, dim, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What acts on the state is orthogonal, the rest N(0, 0.01^2), the bias 0."""
        for linear in (self.word_gates, self.word_candidate):
            nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(self.word_candidate.bias)
        _orthogonal(self.state_gates, self.state_candidate)

    def forward(self, x: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B S C"]:
        """The state at each token; where a token is masked, that of the token before."""
        below = torch.cat((self.word_gates(x), self.word_candidate(x)), -1).unbind(1)
        state = x.new_zeros(x.shape[0], self.state_candidate.in_features)
        states: list[Tensor] = []
        places = range(x.shape[1])
        for j in reversed(places) if self.backwards else places:
            after = gated_step(below[j], state, self.state_gates, self.state_candidate)
            state = after if mask is None else torch.where(mask[:, j, None], after, state)
            states.append(state)
        return torch.stack(states[::-1] if self.backwards else states, 1)


class Searched(NamedTuple):
    """Of all steps: the states after them, what was seen before them, and with which weights."""

    states: Float[Tensor, "B T C"]
    seen: Float[Tensor, "B T Cc"]
    weights: Float[Tensor, "B T S"]


class SearchDecoder(nn.Module):
    """Gated steps, before each of which the state searches the annotations of the source.

    Args:
        dim, context_dim: widths of the state and of the annotations.
        hidden_dim: n' of the attention; None: dim.
    """

    def __init__(self, dim: int, context_dim: int, hidden_dim: int | None = None, **factory: Any) -> None:
        super().__init__()
        self.dim = dim
        self.attention = Bahdanau(dim, context_dim, hidden_dim=hidden_dim, **factory)
        self.context_maps = nn.Linear(context_dim, 3 * dim, bias=False, **factory)
        self.state_gates = nn.Linear(dim, 2 * dim, bias=False, **factory)
        self.state_candidate = nn.Linear(dim, dim, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What acts on the state is orthogonal, what the context contributes N(0, 0.01^2)."""
        self.attention.reset_parameters()
        nn.init.normal_(self.context_maps.weight, std=0.01)
        _orthogonal(self.state_gates, self.state_candidate)

    def step(
        self,
        below: Float[Tensor, "B G"],
        state: Float[Tensor, "B C"],
        annotations: Float[Tensor, "B S Cc"],
        keys: Float[Tensor, "B S P"],
        key_mask: Bool[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B Cc"], Float[Tensor, "B S"]]:
        """The state after one step, what was seen before it, and the weights.

        Args:
            below: what the word contributes to z, r and the candidate, G = 3 C.
            state: before the step.
            annotations: the h_j, finite where masked.
            keys: U_a h_j, made once by ``attention.key_proj``.
            key_mask: True for real words of the source.
        """
        weights = self.attention.weights(state[:, None], keys, key_mask=key_mask)
        seen = (weights.to(annotations.dtype) @ annotations)[:, 0]
        after = gated_step(below + self.context_maps(seen), state, self.state_gates, self.state_candidate)
        return after, seen, weights[:, 0]

    def forward(
        self,
        below: Float[Tensor, "B T G"],
        annotations: Float[Tensor, "B S Cc"],
        state: Float[Tensor, "B C"],
        *,
        key_mask: Bool[Tensor, "B S"] | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Searched:
        """All steps; a masked one leaves the state as it was."""
        keys = self.attention.key_proj(annotations)
        told: list[tuple[Tensor, Tensor, Tensor]] = []
        for t, word in enumerate(below.unbind(1)):
            after, seen, weights = self.step(word, state, annotations, keys, key_mask)
            state = after if mask is None else torch.where(mask[:, t, None], after, state)
            told.append((state, seen, weights))
        return Searched(*(torch.stack(rows, 1) for rows in zip(*told, strict=True)))


class SearchMemory(NamedTuple):
    """What :meth:`RNNsearch.step` goes on from."""

    annotations: Float[Tensor, "B S Cc"]
    keys: Float[Tensor, "B S P"]
    mask: Bool[Tensor, "B S"]
    state: Float[Tensor, "B C"]


class RNNsearch(nn.Module):
    """From source and target tokens to the logits of each target token's successor; see the head of this file.

    Args:
        vocab_size: number of source tokens, and of target tokens without ``target_vocab_size``.
        target_vocab_size: number of target tokens; both sides have embeddings of their own.
        dim: n, of all states.
        embedding_dim: m.
        maxout_dim: l.
        hidden_dim: n' of the attention; None: n.

    Example:
        >>> model = RNNsearch(14, dim=8, embedding_dim=6, maxout_dim=5)
        >>> model(torch.randint(14, (2, 7)), torch.randint(14, (2, 5))).shape
        torch.Size([2, 5, 14])
    """

    def __init__(
        self,
        vocab_size: int,
        target_vocab_size: int | None = None,
        *,
        dim: int = 1000,
        embedding_dim: int = 620,
        maxout_dim: int = 500,
        hidden_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        words = vocab_size if target_vocab_size is None else target_vocab_size
        self.embedding = nn.Embedding(vocab_size, embedding_dim, **factory)
        self.target_embedding = nn.Embedding(words, embedding_dim, **factory)
        self.forwards = GatedEncoder(embedding_dim, dim, **factory)
        self.backwards = GatedEncoder(embedding_dim, dim, backwards=True, **factory)
        self.first = nn.Linear(dim, dim, **factory)
        self.word_gates = nn.Linear(embedding_dim, 2 * dim, bias=False, **factory)
        self.word_candidate = nn.Linear(embedding_dim, dim, **factory)
        self.decoder = SearchDecoder(dim, 2 * dim, hidden_dim, **factory)
        self.readout = nn.Linear(dim + embedding_dim + 2 * dim, 2 * maxout_dim, **factory)
        self.output = nn.Linear(maxout_dim, words, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.01^2) with biases 0, but for what acts on states and for the attention."""
        for encoder in (self.forwards, self.backwards):
            encoder.reset_parameters()
        self.decoder.reset_parameters()
        for part in (self.embedding, self.target_embedding, self.word_gates, self.output):
            nn.init.normal_(part.weight, std=0.01)
        for part in (self.first, self.word_candidate, self.readout):
            nn.init.normal_(part.weight, std=0.01)
            nn.init.zeros_(part.bias)

    def forward(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        *,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each target token; masks are Bool, True for real tokens."""
        embedded, before, searched = self._decode(src, tgt, src_mask, tgt_mask)
        return self._logits(before, embedded, searched.seen)

    def align(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        *,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
    ) -> Float[Tensor, "B T S"]:
        """The weights over source tokens when the token after each target token is predicted."""
        return hide(self._decode(src, tgt, src_mask, tgt_mask)[2].weights, tgt_mask)

    def begin(self, src: Int[Tensor, "B S"], src_mask: Tensor | None = None) -> SearchMemory:
        """What :meth:`step` goes on from: a translation of which no token is there."""
        check_mask(src_mask, *src.shape, name="src_mask")
        annotations, state = self._encode(src, src_mask)
        mask = torch.ones_like(src, dtype=torch.bool) if src_mask is None else src_mask
        return SearchMemory(annotations, self.decoder.attention.key_proj(annotations), mask, state)

    def step(self, tokens: Int[Tensor, " B"], memory: SearchMemory) -> tuple[Float[Tensor, "B V"], SearchMemory]:
        """Logits of the token after these, and the memory that holds them."""
        embedded = self.target_embedding(tokens)
        after, seen, _ = self.decoder.step(
            self._below(embedded), memory.state, memory.annotations, memory.keys, memory.mask
        )
        return self._logits(memory.state, embedded, seen), memory._replace(state=after)

    def _encode(self, src: Tensor, src_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Annotations, finite where masked, and s_0."""
        x = self.embedding(src)
        backwards = self.backwards(x, src_mask)
        annotations = torch.cat((self.forwards(x, src_mask), backwards), -1)
        return annotations, self.first(backwards[:, 0]).tanh()

    def _decode(
        self, src: Tensor, tgt: Tensor, src_mask: Tensor | None, tgt_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Searched]:
        """Embeddings of the target, the states before its steps, and what was searched."""
        check_mask(src_mask, *src.shape, name="src_mask")
        check_mask(tgt_mask, *tgt.shape, name="tgt_mask")
        annotations, state = self._encode(src, src_mask)
        embedded = self.target_embedding(tgt)
        searched = self.decoder(self._below(embedded), annotations, state, key_mask=src_mask, mask=tgt_mask)
        return embedded, torch.cat((state[:, None], searched.states[:, :-1]), 1), searched

    def _below(self, embedded: Tensor) -> Tensor:
        """What words contribute to z, r and the candidate."""
        return torch.cat((self.word_gates(embedded), self.word_candidate(embedded)), -1)

    def _logits(self, before: Tensor, embedded: Tensor, seen: Tensor) -> Tensor:
        units = self.readout(torch.cat((before, embedded, seen), -1))
        return self.output(units.unflatten(-1, (-1, 2)).amax(-1))


def gated_step(
    below: Float[Tensor, "B G"], state: Float[Tensor, "B C"], state_gates: nn.Linear, state_candidate: nn.Linear
) -> Float[Tensor, "B C"]:
    """s' of a gated step.

    Args:
        below: a_z, a_r and a, side by side: G = 3 C.
        state: s.
        state_gates, state_candidate: U_z and U_r in one, and U.
    """
    size = state.shape[-1]
    update, reset = (below[:, : 2 * size] + state_gates(state)).sigmoid().chunk(2, -1)
    candidate = (below[:, 2 * size :] + state_candidate(reset * state)).tanh()
    return torch.lerp(state, candidate, update)


def _orthogonal(*linears: nn.Linear) -> None:
    """Each square block of each matrix is orthogonal."""
    for linear in linears:
        for block in linear.weight.detach().split(linear.in_features):
            precise = torch.promote_types(block.dtype, torch.float32)  # there is no QR in half precision
            block.copy_(nn.init.orthogonal_(torch.empty_like(block, dtype=precise)))
