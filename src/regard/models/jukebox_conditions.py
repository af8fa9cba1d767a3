"""What a Jukebox prior is told beside its codes: labels and time, the codes of the level above, and lyrics.

Dhariwal et al. 2020, arXiv:2005.00341, section 4. Labels are rows of integers, as in the authors' code::

    [total length, offset, length, artist, genre, ..., genre, lyric token, ..., lyric token]

with lengths in samples of sound and -1 for a genre that is not there.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.models.code_prior import CodePrior
from regard.models.sound_blocks import Residual, Upsampler

LENGTHS = 4
"""Columns before the genres: three lengths and the artist."""


class TimeSignal(NamedTuple):
    """How a prior tells where in its piece it is.

    Attributes:
        positions: codes in a whole window.
        bins: of each of the three embeddings.
        total: from which to which (exclusive) length pieces are, in samples.
        absolute: from which to which sample a window may stand.
        relative: the same as a share of its piece.
    """

    positions: int
    bins: int
    total: tuple[float, float]
    absolute: tuple[float, float]
    relative: tuple[float, float] = (0.0, 1.0)


class LabelEmbedding(nn.Module):
    """Artist and genres as the start of a sequence, and the time as a condition of each position.

    The start is the artist's embedding and the sum of those of the genres. Position t of a window of T is told the sum
    of three embeddings, of the bins of the piece's length, of offset + length t / T, and of that divided by the piece's
    length; bin = floor(bins (value - least) / (greatest - least)).

    Args:
        num_artists, num_genres: how many there are.
        dim: C.
        max_genres: how many a piece may have.
        time: None: positions are told nothing, as in upsamplers.
        init_scale: embeddings start from N(0, (0.01 init_scale)^2).

    Example:
        >>> labels = LabelEmbedding(3, 4, 8, max_genres=2, time=TimeSignal(6, 5, (10.0, 100.0), (0.0, 100.0)))
        >>> start, signal = labels(torch.tensor([[50, 10, 20, 2, 3, -1]]))
        >>> start.shape, signal.shape
        (torch.Size([1, 8]), torch.Size([1, 6, 8]))
    """

    def __init__(
        self,
        num_artists: int,
        num_genres: int,
        dim: int,
        *,
        max_genres: int = 5,
        time: TimeSignal | None = None,
        init_scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.max_genres, self.time, self.init_scale = max_genres, time, init_scale
        self.artist, self.genre = nn.Embedding(num_artists, dim, **factory), nn.Embedding(num_genres, dim, **factory)
        self.total, self.absolute, self.relative = (
            None if time is None else nn.Embedding(time.bins, dim, **factory) for _ in range(3)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See ``init_scale``."""
        for table in (self.artist, self.genre, self.total, self.absolute, self.relative):
            if table is not None:
                nn.init.normal_(table.weight, std=0.01 * self.init_scale)

    def forward(self, labels: Int[Tensor, "B L"]) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B T C"] | None]:
        """The start (B, C), and the time signal (B, T, C) or None.

        Args:
            labels: rows as at the head of this file, without lyrics: L is 4 + max_genres.

        Raises:
            ValueError: rows of another length, or a number out of its range.
        """
        if labels.ndim != 2 or labels.shape[1] != LENGTHS + self.max_genres:
            expected = f"(batch, {LENGTHS} + {self.max_genres} genres)"
            raise ValueError(f"labels have shape {tuple(labels.shape)}, expected {expected}")
        total, offset, length = labels[:, :3].float().split(1, 1)
        artist, genres = labels[:, 3], labels[:, LENGTHS:]
        _within("artist", artist, 0, self.artist.num_embeddings)
        _within("genre", genres, -1, self.genre.num_embeddings)
        there = (genres >= 0)[..., None].to(self.genre.weight.dtype)
        start = self.artist(artist) + (self.genre(genres.clamp(min=0)) * there).sum(1)
        if self.time is None or self.total is None or self.absolute is None or self.relative is None:
            return start, None
        time, end = self.time, offset + length
        _within("total length", total, *time.total)
        _within("offset", offset, *time.absolute)
        _within("end of the window", end, time.absolute[0], math.nextafter(time.absolute[1], math.inf))
        _within("offset / total length", offset / total, *time.relative)
        steps = torch.arange(time.positions, device=labels.device, dtype=torch.float32)[None] / time.positions
        last = (end / total).clamp(*time.relative)
        signal = (
            self.total(_bin(total, time.bins, time.total))
            + self.absolute(_bin(offset + (end - offset) * steps, time.bins, time.absolute))
            + self.relative(_bin(offset / total + (last - offset / total) * steps, time.bins, time.relative))
        )
        return start, signal


def _bin(value: Tensor, bins: int, reach: tuple[float, float]) -> Tensor:
    return (bins * ((value - reach[0]) / (reach[1] - reach[0]))).floor().long()


def _within(name: str, value: Tensor, least: float, limit: float) -> None:
    """Refuse labels out of range; on a device and in a graph the tables themselves complain."""
    if torch.compiler.is_compiling() or value.device.type != "cpu" or not value.numel():
        return
    low, high = float(value.min()), float(value.max())
    if low < least or high >= limit:
        raise ValueError(f"labels: {name} {low if low < least else high:g} is not from {least:g} to below {limit:g}")


class UpperCodes(nn.Module):
    """The codes of the level above as one vector for each code below: the conditioner of an upsampler.

    Args:
        num_codes, dim: V and C.
        up, stride: the level above is stride ** up times slower.
        residual: the stacks of convolutions.
        reverse: largest dilation first.
        init_scale: the embedding starts from N(0, (0.02 init_scale)^2), the convolutions as torch does.

    Example:
        >>> upper = UpperCodes(11, 8, 2, 2, Residual(6, 1))
        >>> upper(torch.randint(11, (1, 5))).shape
        torch.Size([1, 20, 8])
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        up: int,
        stride: int,
        residual: Residual,
        *,
        reverse: bool = False,
        init_scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.factor, self.init_scale = stride**up, init_scale
        self.embedding = nn.Embedding(num_codes, dim, **factory)
        self.upsampler = Upsampler(dim, dim, up, stride, residual, reverse=reverse, **factory)
        self.norm = nn.LayerNorm(dim, **factory)
        nn.init.normal_(self.embedding.weight, std=0.02 * init_scale)

    def reset_parameters(self) -> None:
        """See ``init_scale``."""
        nn.init.normal_(self.embedding.weight, std=0.02 * self.init_scale)
        self.upsampler.reset_parameters()
        self.norm.reset_parameters()

    def forward(self, codes: Int[Tensor, "B n"]) -> Float[Tensor, "B N C"]:
        """(B, n) -> (B, n stride ** up, C)."""
        return self.norm(self.upsampler(self.embedding(codes).mT).mT)


class LyricsEncoder(nn.Module):
    """Lyrics as states to attend to: a small prior over their tokens, whose last layer is projected and normed.

    It is causal and reads its tokens one place to the right, as in the authors' code: state t knows the tokens before t
    and predicts token t, and nobody ever reads the last one.

    Args:
        prior: without a head, of any width.
        dim: C of the prior that attends.
        init_scale: of that prior; the projection starts with the scale of this one.

    Raises:
        ValueError: a prior with a head.
    """

    def __init__(
        self,
        prior: CodePrior,
        dim: int,
        *,
        init_scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if prior.head != "none":
            raise ValueError(f'the prior over lyrics gives states, so it is built with head="none", not {prior.head!r}')
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.prior, self.init_scale = prior, init_scale
        self.projection, self.norm = nn.Linear(prior.dim, dim, **factory), nn.LayerNorm(dim, **factory)
        self.out = nn.Linear(dim, prior.num_codes, bias=False, **factory)
        self._reset_ends()

    def reset_parameters(self) -> None:
        """N(0, (0.02 init_scale)^2) and biases 0; the prior as it says."""
        self._reset_ends()
        self.prior.reset_parameters()

    def _reset_ends(self) -> None:
        nn.init.normal_(self.projection.weight, std=0.02 * self.prior.init_scale)
        nn.init.zeros_(self.projection.bias)
        self.norm.reset_parameters()
        nn.init.normal_(self.out.weight, std=0.02 * self.init_scale)

    def forward(self, tokens: Int[Tensor, "B M"]) -> Float[Tensor, "B M C"]:
        """(B, M) -> (B, M, C)."""
        return self.norm(self.projection(self.prior(tokens)))

    def loss(self, states: Float[Tensor, "B M C"], tokens: Int[Tensor, "B M"]) -> Float[Tensor, ""]:
        """Cross entropy in nats of the tokens, given what ``forward`` made of them."""
        return F.cross_entropy(self.out(states).flatten(0, 1), tokens.flatten())


def lyric_window(tokens: Sequence[int], count: int, total: int, offset: int, length: int) -> list[int]:
    """The ``count`` tokens of a whole text that are likely sung in a window, as if it were sung at an even pace.

    Args:
        tokens: of the whole text; shorter ones get 0 in front.
        total, offset, length: of the piece and of the window, in samples.

    Example:
        >>> lyric_window(range(100), 4, 1000, 480, 40), lyric_window([7, 8], 4, 1000, 0, 10)
        ([48, 49, 50, 51], [0, 0, 7, 8])
    """
    tokens = list(tokens)
    if len(tokens) < count:
        return [0] * (count - len(tokens)) + tokens
    middle = int(len(tokens) * (offset + length / 2.0) / total)
    first = min(max(middle - count // 2, 0), len(tokens) - count)
    return tokens[first : first + count]
