"""Attention logits that no key is asked for: predicted from the query's token alone, or simply learned.

Tay et al. 2020, "Synthesizer", arXiv:2005.00743, section 3. Each part gives the logits of some rows (queries) over the
first so many columns (keys); a table has a row and a column for each position up to its length L, and is cut to what
is asked for. Where the logits are products of two sides, as those of queries and keys are, it gives these, and they are
never formed.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Rows = slice | Int[Tensor, "B N"]
"""Which positions ask: the same in all sequences, or of each sequence its own."""


class Sides(NamedTuple):
    """Logits that are products, left right^T.

    Attributes:
        left: (B or 1, H, N, R), of the rows.
        right: (H, M, R), of the columns.
    """

    left: Tensor
    right: Tensor


def dense_sides(
    hidden: Float[Tensor, "B H N d"], table: Float[Tensor, "H L d"], bias: Float[Tensor, "H L"], columns: int
) -> Sides:
    """Those of W_2 relu(h_i) + b_2, where h_i = W_1 x_i + b_1: the bias belongs to a feature that is always 1."""
    left, right = hidden.relu(), table[:, :columns]
    return Sides(F.pad(left, (0, 1), value=1.0), torch.cat((right, bias[:, :columns, None]), -1))


def outer_logits(a: Float[Tensor, "B H N A"], b: Float[Tensor, "B H N E"], columns: int) -> Float[Tensor, "B H N M"]:
    """a_i[j // E] b_i[j mod E]: every pair of entries stands for one column.

    Example:
        >>> a, b = torch.tensor([[[[1.0, 10.0]]]]), torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> outer_logits(a, b, 5).flatten().tolist()
        [1.0, 2.0, 3.0, 10.0, 20.0]
    """
    return (a[..., None] * b[..., None, :]).flatten(-2)[..., :columns]


def rows_of(table: Float[Tensor, "H L R"], rows: Rows) -> Float[Tensor, "#B H N R"]:
    """These rows of a table, of each sequence its own or the same for all."""
    return table[:, rows][None] if isinstance(rows, slice) else table[:, rows].transpose(0, 1)


class Dense(nn.Module):
    """:func:`dense_sides` of the tokens; two layers a head, of width d.

    Args:
        dim, num_heads, length: C, H and L.
        width: d.
    """

    def __init__(self, dim: int, num_heads: int, length: int, width: int, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.hidden = nn.Linear(dim, num_heads * width, **factory)
        self.table = nn.Parameter(torch.empty(num_heads, length, width, **factory))
        self.bias = nn.Parameter(torch.empty(num_heads, length, **factory))

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, biases 0."""
        _draw(self.hidden.weight, *self.table)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, rows: Rows, columns: int) -> Sides:
        """Both sides for the tokens x (B, N, C)."""
        return dense_sides(_heads(self.hidden(x), self.num_heads), self.table, self.bias, columns)


class Random(nn.Module):
    """A table R (H, L, L), the same for all sequences; learned, or left as it was drawn.

    Args:
        num_heads, length: H and L.
        learned: it is a parameter rather than a buffer.
    """

    def __init__(self, num_heads: int, length: int, learned: bool = True, **factory: Any) -> None:
        super().__init__()
        table = torch.empty(num_heads, length, length, **factory)
        self.table: Tensor
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def reset_parameters(self) -> None:
        """Xavier-uniform, each head by itself."""
        _draw(*self.table)

    def forward(self, x: Tensor, rows: Rows, columns: int) -> Tensor:
        """Logits (B or 1, H, N, columns)."""
        return rows_of(self.table, rows)[..., :columns]


class FactorisedDense(nn.Module):
    """:func:`outer_logits` of two affine maps of the tokens, of about sqrt(L) outputs each.

    Args:
        dim, num_heads, length: C, H and L.
    """

    def __init__(self, dim: int, num_heads: int, length: int, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        first = math.isqrt(length)
        self.first = nn.Linear(dim, num_heads * first, **factory)
        self.second = nn.Linear(dim, num_heads * -(-length // first), **factory)

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, biases 0."""
        for linear in (self.first, self.second):
            _draw(linear.weight)
            nn.init.zeros_(linear.bias)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of the tokens x (B, N, C), heads first."""
        first, second = (_heads(linear(x), self.num_heads) for linear in (self.first, self.second))
        return first, second

    def forward(self, x: Tensor, rows: Rows, columns: int) -> Tensor:
        """Logits (B, H, N, columns) of the tokens x (B, N, C)."""
        return outer_logits(*self.factors(x), columns)


class FactorisedRandom(nn.Module):
    """R_1 R_2^T, both (H, L, rank), the same for all sequences.

    Args:
        num_heads, length: H and L.
        rank: the paper's k.
    """

    def __init__(self, num_heads: int, length: int, rank: int, **factory: Any) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(torch.empty(num_heads, length, rank, **factory)) for _ in range(2))

    def reset_parameters(self) -> None:
        """Xavier-uniform, each head by itself."""
        _draw(*self.left, *self.right)

    def forward(self, x: Tensor, rows: Rows, columns: int) -> Sides:
        """Both sides."""
        return Sides(rows_of(self.left, rows), self.right[:, :columns])


def _draw(*matrices: Tensor) -> None:
    for matrix in matrices:
        nn.init.xavier_uniform_(matrix)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
