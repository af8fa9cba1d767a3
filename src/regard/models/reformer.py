"""Reformer: hashed attention in reversible layers, for sequences of tens of thousands of tokens on one device.

Kitaev et al. 2020, arXiv:2001.04451. Four parts: attention among tokens of one hash (section 2), residual layers whose
inputs are computed from their outputs in the backward pass (section 3), a feed-forward that is computed a slice of the
sequence at a time, and factorised positions (as in trax): position p has the two vectors T1[p // n2] and T2[p % n2]
side by side. The two streams end side by side too, as in trax's language model.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from regard.factory import create
from regard.models.reversible import ChunkedFeedForward, PreNorm, ReversibleBlock, ReversibleSequence
from regard.ops.masks import check_mask, check_segments, positions

Kind = Literal["lsh", "local"]


class AxialPositions(nn.Module):
    """[T1[p // n2], T2[p % n2]]: n1 n2 positions out of n1 + n2 rows.

    Args:
        shape: n1 and n2.
        dims: the widths of T1 and T2, C in sum.

    Example:
        >>> AxialPositions((4, 8), (2, 6))(torch.arange(32)).shape
        torch.Size([32, 8])
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dims: tuple[int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.tables = nn.ParameterList(
            nn.Parameter(torch.empty(rows, width, device=device, dtype=dtype))
            for rows, width in zip(shape, dims, strict=True)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 1), in units of the embeddings' 0.02."""
        for table in self.tables:
            nn.init.normal_(table, std=0.02)

    def forward(self, places: Int[Tensor, "..."]) -> Float[Tensor, "... C"]:
        """The vectors of these positions."""
        first, second = self.tables
        return torch.cat((first[places // self.shape[1]], second[places % self.shape[1]]), -1)

    def extra_repr(self) -> str:
        return f"shape={self.shape}"


class Reformer(nn.Module):
    """Logits of the token after each (causal), or of each token itself (a masked language model).

    The activations kept for the backward pass do not grow with the depth. In the causal form no gradient flows back
    from later tokens, but which earlier ones are looked at depends on them; ``strict=True`` is causal for good.

    Args:
        vocab_size, dim, depth, num_heads: sizes.
        axial_shape: n1 and n2; their product is the longest sequence.
        axial_dims: the widths of the two position tables; by default a quarter and the rest.
        head_dim: D, C / H by default.
        attention: the kind of each layer, repeated to the depth: hashed ("lsh") or a window of neighbours ("local").
        causal: no token sees a later one.
        chunk_length: L, of hashed attention; also the window of local attention.
        num_hashes: rounds.
        num_buckets: by default it follows from the length.
        strict: needs ``num_buckets``; see :class:`regard.mechanisms.chosen.reformer.Reformer`.
        mlp_dim: the hidden width of the feed-forward, 4 C by default.
        mlp_chunk: tokens in a slice of it.
        dropout: on every branch.

    Raises:
        ValueError: sizes that do not fit, or an unknown kind of attention.

    Example:
        >>> model = Reformer(256, 16, 2, 2, axial_shape=(8, 16), chunk_length=8)
        >>> model(torch.randint(256, (3, 100))).shape
        torch.Size([3, 100, 256])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        axial_shape: tuple[int, int] = (256, 256),
        axial_dims: tuple[int, int] | None = None,
        head_dim: int | None = None,
        attention: Sequence[Kind] = ("lsh",),
        causal: bool = True,
        chunk_length: int = 64,
        num_hashes: int = 4,
        num_buckets: int | Sequence[int] | None = None,
        strict: bool = False,
        mlp_dim: int | None = None,
        mlp_chunk: int = 1024,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dims = axial_dims or (dim // 4, dim - dim // 4)
        if sum(dims) != dim:
            raise ValueError(f"axial_dims={dims} stand side by side: their sum must be dim={dim}")
        unknown = set(attention) - set(get_args(Kind))
        if unknown or not attention:
            raise ValueError(f"attention={tuple(attention)}: each layer is one of {', '.join(get_args(Kind))}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.max_length, self.causal = dim, axial_shape[0] * axial_shape[1], causal
        self.token_embedding = nn.Embedding(vocab_size, dim, **factory)
        self.positions = AxialPositions(axial_shape, dims, **factory)
        self.dropout = nn.Dropout(dropout)
        shared: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "head_dim": head_dim, "causal": causal}
        shared |= {"proj_drop": dropout, **factory}
        hashed = {"chunk_length": chunk_length, "num_hashes": num_hashes, "num_buckets": num_buckets, "strict": strict}
        kinds: dict[str, tuple[str, dict[str, Any]]] = {
            "lsh": ("reformer", hashed),
            "local": ("local", {"window": chunk_length}),
        }

        def block(number: int) -> ReversibleBlock:
            name, options = kinds[attention[number % len(attention)]]
            hidden = mlp_dim or 4 * dim
            mlp = nn.Sequential(
                nn.Linear(dim, hidden, **factory), nn.GELU(), nn.Linear(hidden, dim, **factory), nn.Dropout(dropout)
            )
            return ReversibleBlock(
                PreNorm(dim, create(name, **shared, **options), **factory),
                PreNorm(dim, ChunkedFeedForward(mlp, mlp_chunk), **factory),
            )

        self.layers = ReversibleSequence([block(number) for number in range(depth)])
        self.norm = nn.LayerNorm(2 * dim, **factory)
        self.logits = nn.Linear(2 * dim, vocab_size, **factory)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        *,
        key_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Logits (B, N, vocab_size).

        Args:
            tokens: Int (B, N), ids below ``vocab_size``.
            key_mask: Bool (B, N), True for real tokens.
            segments: Int (B, N), one id a packed document, which then sees only itself, from position 0.
            generator: draws the hashes.

        Raises:
            ValueError: more tokens than the product of ``axial_shape``, or shapes that do not fit.
        """
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens, but axial_shape={self.positions.shape} has {self.max_length} positions"
            )
        check_mask(key_mask, len(tokens), tokens.shape[1])
        check_segments(segments, len(tokens), tokens.shape[1])
        x = self.token_embedding(tokens) + self.positions(positions(tokens, key_mask, segments))
        options = {"key_mask": key_mask, "segments": segments, "generator": generator}
        return self.logits(self.norm(self.layers(self.dropout(x), **options)))
