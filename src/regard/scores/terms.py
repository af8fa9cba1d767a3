"""The score terms: one broadcasting function each."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from regard.scores.index import Index, as_index
from regard.scores.products import products

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Term:
    """A change of the scores: ``term(score, b, h, i, j, tensors)``, elementwise but for broadcasting.

    Attributes:
        spec: canonical text, independent of lengths and tensors.
        tensors: what it learns or reads.
        row_tensors: for each tensor whether it has one row per query, (..., H or 1, N, D); engines hand over the rows
            in question only.
    """

    spec: str
    tensors: tuple[Tensor, ...] = ()
    row_tensors: tuple[bool, ...] = ()

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The changed scores.

        Args:
            score: (R, rep, T, C) inside engines, any shape else.
            b, h, i, j: int64 batch entry, query head and positions, broadcasting to ``score``.
            tensors: this term's, row tensors reduced to the rows of ``score``: (R, rep, T, D).
        """
        raise NotImplementedError

    def check(self, query: tuple[int, ...]) -> None:
        """Refuse a query of a shape (..., H, N, D) that the term was not made for.

        Raises:
            ValueError: heads, rows or leading dimensions differ.
        """

    def bind(self, num_heads: int) -> "Term":
        """The same term with everything settled that depends on the number of query heads."""
        return self

    def score_mod(self, tensors: Sequence[Tensor] | None = None, q_offset: int = 0) -> ScoreMod:
        """FlexAttention's ``score_mod(score, b, h, q_idx, kv_idx)``; the indices are rows, not positions."""
        found = self.tensors if tensors is None else tensors

        def changed(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return self(score, b, h, q_idx + q_offset, kv_idx, found)

        return changed

    def __repr__(self) -> str:
        shapes = "".join(f", {list(tensor.shape)}" for tensor in self.tensors)
        return f"{self.spec.removesuffix(')')}{shapes})"


class Bias(Term):
    """score + table[h, index(i, j)]: T5's buckets, relative tables in one, two and three dimensions.

    Args:
        table: (H or 1, R), learnt.
        index: (i, j) -> entry of the table.

    Example:
        >>> import regard
        >>> q, k, v = torch.randn(3, 1, 8, 6, 4)
        >>> term = Bias(torch.zeros(8, 32), regard.scores.T5Buckets(32, 128))
        >>> regard.attend(q, k, v, score=term).shape
        torch.Size([1, 8, 6, 4])
    """

    def __init__(self, table: Float[Tensor, "#H R"], index: Index) -> None:
        if table.ndim != 2:
            raise ValueError(f"the table of Bias is (H or 1, R), not {tuple(table.shape)}")
        self.index = as_index(index)
        _check_size(self.index, table.shape[1], "Bias")
        self.tensors, self.row_tensors = (table,), (False,)
        self.spec = f"Bias({self.index.spec})"

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        table, entry = tensors[0].to(score.dtype), self.index(i, j)
        return score + (table[0][entry] if len(table) == 1 else table[h, entry])

    def check(self, query: tuple[int, ...]) -> None:
        _check_heads("the table of Bias", len(self.tensors[0]), query[-3])


class Dot(Term):
    """score + query_i . table[h, index(i, j)], with a query of its own: Transformer-XL, SASA, HaloNet, BPT, ETC.

    Nothing of size N x M is formed: each tile makes its own products. The scale of the main scores does not apply.

    Args:
        query: (..., H or 1, N, D), leading dimensions broadcasting to the main query's.
        table: (H or 1, R, D).
        index: (i, j) -> row of the table.
    """

    def __init__(self, query: Float[Tensor, "... #H N D"], table: Float[Tensor, "#H R D"], index: Index) -> None:
        if table.ndim != 3 or query.ndim < 3 or table.shape[-1] != query.shape[-1]:
            raise ValueError(
                f"Dot takes a query (..., H or 1, N, D) and a table (H or 1, R, D), not {tuple(query.shape)} and "
                f"{tuple(table.shape)}"
            )
        self.index = as_index(index)
        _check_size(self.index, table.shape[1], "Dot")
        self.tensors, self.row_tensors = (query, table), (True, False)
        self.spec = f"Dot({self.index.spec})"

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        rows, table = (tensor.to(score.dtype) for tensor in tensors)
        return score + products(rows, table, h, self.index(i, j))

    def check(self, query: tuple[int, ...]) -> None:
        own = tuple(self.tensors[0].shape)
        _check_heads("the table of Dot", len(self.tensors[1]), query[-3])
        lead = zip(reversed(own[:-2]), reversed(query[:-2]), strict=False)
        if own[-2] != query[-2] or len(own) > len(query) or any(size != 1 and size != whole for size, whole in lead):
            raise ValueError(
                f"the query of Dot, {own}, is (..., H or 1, N, D) with a row for each of the query's: {query}"
            )

    def score_mod(self, tensors: Sequence[Tensor] | None = None, q_offset: int = 0) -> ScoreMod:
        """As for every term; the products of all queries with the table are made first, (B, H, N, R) numbers."""
        query, table = self.tensors if tensors is None else tensors
        whole = query @ table.mT

        def changed(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score + whole[b, h, q_idx, self.index(q_idx + q_offset, kv_idx)]

        return changed


class Slope(Term):
    """score - slope_h |i - j|: ALiBi (Press et al. 2022, arXiv:2108.12409, section 3).

    Args:
        slopes: (H,), may be learnt; by default :func:`alibi_slopes` of the number of query heads.
    """

    def __init__(self, slopes: Float[Tensor, " H"] | None = None) -> None:
        if slopes is not None and slopes.ndim != 1:
            raise ValueError(f"the slopes are one number for each head, (H,), not {tuple(slopes.shape)}")
        self.tensors = () if slopes is None else (slopes,)
        self.row_tensors = (False,) * len(self.tensors)
        self.spec = "Slope()"
        self.num_heads: int | None = None

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        if tensors:
            slopes = tensors[0].to(score.dtype)
        elif self.num_heads is not None:
            slopes = alibi_slopes(self.num_heads).to(score)
        else:
            raise ValueError("Slope() does not know the number of heads yet: bind(num_heads) it first, as attend does")
        return score - slopes[h] * (i - j).abs()

    def check(self, query: tuple[int, ...]) -> None:
        if self.tensors and len(self.tensors[0]) != query[-3]:
            raise ValueError(f"there are {len(self.tensors[0])} slopes, and the query has {query[-3]} heads")

    def bind(self, num_heads: int) -> "Term":
        if self.tensors:
            return self
        bound = Slope()
        bound.num_heads = num_heads
        return bound


class SoftCap(Term):
    """cap * tanh(score / cap): scores stay within +-cap (Gemma 2, arXiv:2408.00118).

    Args:
        cap: the bound, positive.
    """

    def __init__(self, cap: float) -> None:
        if not cap > 0:
            raise ValueError(f"a cap is positive, and {cap} is not")
        self.cap = float(cap)
        self.spec = f"SoftCap({self.cap})"

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        return self.cap * torch.tanh(score / self.cap)


def _check_heads(what: str, found: int, num_heads: int) -> None:
    if found != 1 and found != num_heads:  # not a membership test, which dynamo does by identity
        raise ValueError(f"{what} has {found} heads, and the query has {num_heads}")


def _check_size(index: object, found: int, term: str) -> None:
    size = getattr(index, "size", None)
    if size is not None and found != size:
        raise ValueError(f"{index!r} has {size} entries, and the table of {term} has {found}")


def alibi_slopes(num_heads: int) -> Float[Tensor, " H"]:
    """ALiBi's slopes: 2^(-8h/H) for h = 1 ... H; p < H < 2p mixes the p slopes with every second of 2p.

    Example:
        >>> alibi_slopes(4).tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]
        >>> alibi_slopes(3).tolist()
        [0.0625, 0.00390625, 0.25]
    """
    if num_heads < 1:
        raise ValueError(f"there is no slope for {num_heads} heads")
    power = 2 ** (num_heads.bit_length() - 1)
    whole = [2 ** (-8 * head / power) for head in range(1, power + 1)]
    between = [2 ** (-8 * head / (2 * power)) for head in range(1, 2 * power, 2)]
    return torch.tensor((whole + between)[:num_heads])
