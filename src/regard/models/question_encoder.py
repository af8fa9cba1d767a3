"""Words of a question, each with what surrounds it, and the question as one vector: an LSTM in both directions.

As in MAC (Hudson & Manning 2018, arXiv:1803.03067, section 3.1): w_s = [forward state; backward state] at word s, and q
the last states of both directions. Padding may stand anywhere: both directions read the real words alone, in order.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.ops.masks import check_mask


class QuestionEncoder(nn.Module):
    """Token numbers (B, S) -> contextual words (B, S, C), 0 at padding, and the whole question (B, C).

    Args:
        vocab_size: kinds of words.
        embedding_dim: of the words before anything is known of their neighbours.
        dim: C, half of it for each direction.
        word_drop: dropout on the embeddings.
        question_drop: dropout on the whole question.

    Raises:
        ValueError: an odd width.

    Example:
        >>> encoder = QuestionEncoder(30, 16, 8)
        >>> words, question = encoder(torch.randint(30, (2, 5)))
        >>> words.shape, question.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        dim: int,
        *,
        word_drop: float = 0.0,
        question_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim={dim} is odd: each direction has half of it")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(vocab_size, embedding_dim, **factory)
        self.forwards = nn.LSTM(embedding_dim, dim // 2, batch_first=True, **factory)
        self.backwards = nn.LSTM(embedding_dim, dim // 2, batch_first=True, **factory)
        self.word_drop, self.question_drop = nn.Dropout(word_drop), nn.Dropout(question_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the authors' code: embeddings uniform in -1 .. 1, Xavier-uniform matrices, forget gates open by 1."""
        nn.init.uniform_(self.embedding.weight, -1, 1)
        for name, parameter in (*self.forwards.named_parameters(), *self.backwards.named_parameters()):
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih"):
                    size = parameter.shape[0] // 4
                    nn.init.ones_(parameter[size : 2 * size])

    def forward(
        self, tokens: Int[Tensor, "B S"], key_mask: Bool[Tensor, "B S"] | None = None
    ) -> tuple[Float[Tensor, "B S C"], Float[Tensor, "B C"]]:
        """A mask is True for real words; a question without any is 0."""
        check_mask(key_mask, tokens.shape[0], tokens.shape[1])
        real = torch.ones_like(tokens, dtype=torch.bool) if key_mask is None else key_mask
        count = real.sum(-1, keepdim=True)
        rank = real.long().cumsum(-1) - 1
        embedded = self.word_drop(self.embedding(tokens.masked_fill(~real, 0)))
        words: list[Tensor] = []
        ends: list[Tensor] = []
        for lstm, place in ((self.forwards, rank), (self.backwards, count - 1 - rank)):
            place = torch.where(real, place, tokens.shape[1] - 1)  # padding comes last, and is read by nobody
            order = place.sort(dim=-1, stable=True).indices
            states = lstm(_taken(embedded, order))[0]
            ends.append(_taken(states, (count - 1).clamp(min=0))[:, 0].masked_fill(count == 0, 0.0))
            words.append(_taken(states, place))
        return torch.cat(words, -1).masked_fill(~real[..., None], 0.0), self.question_drop(torch.cat(ends, -1))


def _taken(rows: Float[Tensor, "B S C"], numbers: Int[Tensor, "B K"]) -> Float[Tensor, "B K C"]:
    return rows.gather(1, numbers[..., None].expand(-1, -1, rows.shape[-1]))
