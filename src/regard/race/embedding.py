"""Bytes as n-grams: what a byte-level model reads at the input before any attention looks at anything."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class NgramEmbedding(nn.Embedding):
    """y_i = E_0[t_i] + E_1[t_{i-1}] + ... + E_{n-1}[t_{i-n+1}]: a causal convolution over one-hot bytes.

    A byte alone says little, and the first thing that every attention would have to learn is to look at the byte
    before. In half a minute on a laptop none gets further than that. With n-grams at the input, the same for everybody,
    the race is about the rest. (Convolutions under byte-level Transformers: Clark et al. 2022, arXiv:2103.06874; Tay
    et al. 2022, arXiv:2106.12672.)

    Args:
        vocab_size, dim: as of the embedding that it replaces; ``weight`` is E_0, so an output matrix can be tied to it.
        ngram: n.
        std: of the initial weights. Tied to the output they must not begin small: the first steps, which learn how
            frequent each byte is, move all rows the same way, and rows that begin at 0.02 then look alike for long.

    Example:
        >>> NgramEmbedding(256, 8, 4)(Tensor([[7, 7, 7]]).long()).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, vocab_size: int, dim: int, ngram: int, *, std: float = 0.2) -> None:
        super().__init__(vocab_size, dim)
        self.before = nn.ModuleList(nn.Embedding(vocab_size, dim) for _ in range(ngram - 1))
        for table in self.parameters():
            nn.init.normal_(table, std=std)

    def forward(self, input: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """Embed each position together with the bytes before it; before the first there is nothing."""
        y = super().forward(input)
        for distance, table in enumerate(self.before, start=1):
            y = y + F.pad(table(input), (0, 0, distance, 0))[:, : input.shape[1]]
        return y
