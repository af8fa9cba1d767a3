"""Jukebox's VQ-VAE: sound as codes, at several rates, each with an autoencoder and a codebook of its own.

Dhariwal et al. 2020, arXiv:2005.00341, section 3 and appendix B.1. Level l halves the time (or divides it by its
stride) down_0 + ... + down_l times; its decoder mirrors its encoder, and decodes from its own codes alone. The upper
levels hear less; priors write their codes first, and those of the lower levels upon them.

Departure: the codebooks' averages are saved with the model (theirs are not, and have to be restored by a guess).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from regard.models.sound_blocks import Downsampler, Residual, Upsampler
from regard.ops.codebook import Codebook, Draw, Quantised
from regard.registry import UnsupportedError


class VQVAE(nn.Module):
    """Codes of sound (B, T, channels) in [-1, 1], and sound of codes.

    In training each call takes a step of the codebooks. In eval mode no gradient goes through the codes: the encoder
    hears of its commitment only.

    Args:
        downs, strides: for each level, how often the time is divided by how much; the hop of level l is the product of
            strides[i] ** downs[i] for i <= l.
        residual: the stacks of each step; None: those of the paper, 4 blocks of 32 channels.
        channels: of the sound.
        multipliers: of width and depth of each level's stacks; None: 1 each.
        codes, code_width: of each codebook.
        decay, threshold: of its moving averages, as in :class:`regard.ops.codebook.Codebook`.
        commit: weight of the commitment in "loss/commit".
        reverse: the decoders' stacks begin with the largest dilation.
        quantise: False: a plain autoencoder, whose codes are its vectors.
        device, dtype: of parameters and buffers.

    Raises:
        ValueError: levels without a stride, an odd stride, or numbers out of range.

    Example:
        >>> model = VQVAE((2, 1), (2, 4), Residual(8, 1), codes=16, code_width=4).eval()
        >>> codes = model.encode(torch.randn(1, 160, 1))
        >>> model.hops, [tuple(level.shape) for level in codes], tuple(model.decode(codes[1], 1).shape)
        ((4, 16), [(1, 40), (1, 10)], (1, 160, 1))
    """

    def __init__(
        self,
        downs: Sequence[int] = (3, 2, 2),
        strides: Sequence[int] = (2, 2, 2),
        residual: Residual | None = None,
        *,
        channels: int = 1,
        multipliers: Sequence[int] | None = None,
        codes: int = 2048,
        code_width: int = 64,
        decay: float = 0.99,
        threshold: float = 1.0,
        commit: float = 0.02,
        reverse: bool = True,
        quantise: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        levels = len(downs)
        residual = residual or Residual()
        multipliers = [1] * levels if multipliers is None else multipliers
        if not levels or len(strides) != levels or len(multipliers) != levels:
            raise ValueError(
                f"{levels} downs, {len(strides)} strides, {len(multipliers)} multipliers: one each for every level"
            )
        if not downs[0] and channels != code_width:
            raise ValueError(f"a first level without a step leaves {channels} channels: code_width is {code_width}")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels, self.commit, self.quantise = channels, commit, quantise
        factors = [stride**down for stride, down in zip(strides, downs, strict=True)]
        self.hops = tuple(int(torch.tensor(factors[: level + 1]).prod()) for level in range(levels))
        stacks = [replace(residual, width=residual.width * m, depth=residual.depth * m) for m in multipliers]
        self.encoders, self.decoders, self.leave = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, stack in enumerate(stacks):
            sizes = list(zip(downs, strides, strict=True))[: level + 1]
            into = [channels] + [code_width] * level
            self.encoders.append(
                nn.Sequential(
                    *(Downsampler(c, code_width, *s, stack, **where) for c, s in zip(into, sizes, strict=True))
                )
            )
            ups = (Upsampler(code_width, code_width, *s, stack, reverse=reverse, **where) for s in reversed(sizes))
            self.decoders.append(nn.Sequential(*ups))
            self.leave.append(nn.Conv1d(code_width, channels, 3, padding=1, **where))
        books = [Codebook(codes, code_width, decay, threshold, **where) for _ in range(levels if quantise else 0)]
        self.codebooks = nn.ModuleList(books)

    @property
    def levels(self) -> int:
        """How many."""
        return len(self.hops)

    def reset_parameters(self) -> None:
        """As torch does; the codebooks wait for their first batch."""
        for module in (*self.encoders, *self.decoders):
            for block in module:  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
                block.reset_parameters()  # pyright: ignore[reportUnknownMemberType]
        for module in (*self.leave, *self.codebooks):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]

    def latents(self, x: Float[Tensor, "B T C"], level: int) -> Float[Tensor, "B t D"]:
        """What the encoder of a level makes of sound, before it is quantised.

        Raises:
            ValueError: another number of channels, no sample, or a length that is no multiple of the hop.
            TypeError: whole numbers.
        """
        self._check_level(level)
        hop = self.hops[level]
        if not x.is_floating_point():
            raise TypeError(f"sound is of floating point, in [-1, 1]; x is {x.dtype}")
        if x.ndim != 3 or x.shape[2] != self.channels or not x.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}: sound is (B, T, {self.channels}), at least one sample")
        if x.shape[1] % hop:
            raise ValueError(
                f"{x.shape[1]} samples, but a code of level {level} stands for {hop}: cut or pad to a multiple of {hop}"
            )
        return self.encoders[level](x.mT).mT

    def sound(self, vectors: Float[Tensor, "B t D"], level: int) -> Float[Tensor, "B T C"]:
        """What the decoder of a level makes of vectors."""
        return self.leave[level](self.decoders[level](vectors.mT)).mT

    def encode(self, x: Float[Tensor, "B T C"]) -> tuple[Tensor, ...]:
        """The codes of all levels, (B, T / hop) each; of a plain autoencoder, the vectors (B, T / hop, D)."""
        latents = [self.latents(x, level) for level in range(self.levels)]
        if not self.quantise:
            return tuple(latents)
        return tuple(self._book(level).encode(vectors) for level, vectors in enumerate(latents))

    def decode(self, codes: Int[Tensor, "B t"] | Float[Tensor, "B t D"], level: int = 0) -> Float[Tensor, "B T C"]:
        """Sound of the codes of one level.

        Raises:
            ValueError: a code or a level that there is not.
        """
        self._check_level(level)
        return self.sound(self._book(level).look_up(codes) if self.quantise else codes, level)

    @overload
    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        key_mask: None = None,
        draws: Sequence[tuple[Draw | None, Draw]] | None = None,
        generator: Generator | None = None,
        return_aux: Literal[False] = False,
    ) -> Float[Tensor, "B L T C"]: ...

    @overload
    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        key_mask: None = None,
        draws: Sequence[tuple[Draw | None, Draw]] | None = None,
        generator: Generator | None = None,
        return_aux: Literal[True],
    ) -> tuple[Float[Tensor, "B L T C"], dict[str, Tensor]]: ...

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        key_mask: Tensor | None = None,
        draws: Sequence[tuple[Draw | None, Draw]] | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Any:
        """Reconstruct sound from the codes of every level by itself.

        Args:
            x: sound; T is a multiple of the largest hop.
            key_mask: refused: convolutions would hear the padding, so cut pieces of equal length.
            draws: for each level (of the first batch, of this step); None: drawn here, in training.
            generator: the source of the draws.
            return_aux: also "loss/commit", and of each level "metric/<level>/...": figures of its codebook.

        Raises:
            UnsupportedError: a mask.
        """
        if key_mask is not None:
            raise UnsupportedError("a VQ-VAE takes no mask: its convolutions hear padding; cut pieces of equal length")
        outs: list[Tensor] = []
        commit, told = x.new_zeros(()), dict[str, Tensor]()
        for level in range(self.levels):
            vectors = self.latents(x, level)
            if self.quantise:
                first, restart = draws[level] if draws is not None else (None, None)
                book: Quantised = self._book(level)(vectors, first=first, restart=restart, generator=generator)
                vectors = book.vectors if self.training else book.vectors.detach()
                commit = commit + book.commit
                told |= {f"metric/{level}/{name}": value for name, value in book.figures.items()}
            outs.append(self.sound(vectors, level))
        out = torch.stack(outs, 1)
        return (out, {"loss/commit": self.commit * commit} | told) if return_aux else out

    def _book(self, level: int) -> Codebook:
        book = self.codebooks[level]
        assert isinstance(book, Codebook)
        return book

    def _check_level(self, level: int) -> None:
        if not 0 <= level < self.levels:
            raise ValueError(f"level {level}: this VQ-VAE has levels 0 to {self.levels - 1}")
