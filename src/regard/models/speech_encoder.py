"""Frames of speech in, one state for every four of them out: subsampling, positions, and blocks over any mechanism.

The blocks are those of :mod:`regard.models.transformer`, behind each of them a Conformer's convolution module where it
is wanted; sinusoids (Vaswani et al. 2017, arXiv:1706.03762) say where a frame stands, so there is no longest recording
but the mechanism's own.

Streams. ``causal=True``: no state reads a later frame, the mechanism is causal, and states come out one by one.
``chunk=w``: attention also looks ahead, as far as the end of its chunk of w states, and back over ``history`` chunks
(:mod:`regard.models.chunked_attention`); all else is causal, and states come out chunk
by chunk. A window of states is carried along, so that the memory does not grow.
"""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.factory import create
from regard.layers import MultiHead
from regard.models.chunked_attention import chunk_memory, chunk_options, stream_chunk
from regard.models.convolution_module import ConvolutionModule
from regard.models.subsampling import FramesSoFar, Subsampling
from regard.models.transformer import Block
from regard.models.transformer_2017 import sinusoids
from regard.ops.masks import hide
from regard.registry import UnsupportedError


class Encoded(NamedTuple):
    """What an encoder makes of recordings.

    Attributes:
        states: (B, S, C), 0 where padded.
        mask: (B, S), True for real states; None: all are.
        told: what the layers have to tell, as "loss/blocks.0.attention/..." and so on.
    """

    states: Float[Tensor, "B S C"]
    mask: Bool[Tensor, "B S"] | None
    told: dict[str, Tensor]


class StatesSoFar(NamedTuple):
    """What :meth:`SpeechEncoder.stream` carries along.

    Attributes:
        frames: what the subsampling will read again.
        waiting: (B, n, C), states of an incomplete chunk, before the blocks.
        position: (B,), of the next of them.
        layers: of each attention.
        convolutions: of each convolution module.
    """

    frames: FramesSoFar
    waiting: Float[Tensor, "B n C"]
    position: Int[Tensor, " B"]
    layers: tuple[Any, ...]
    convolutions: tuple[Float[Tensor, "B k C"], ...]


class SpeechEncoder(nn.Module):
    """Frames (B, T, M) in, states (B, T', dim) out, T' = ceil(ceil(T / 2) / 2).

    Args:
        num_mels, dim, depth, num_heads: M and sizes.
        mechanism: the registry name of the attention.
        max_length: the most states, for mechanisms that must know.
        channels: of the subsampling.
        convolution: the kernel of the convolution modules; None: there are none.
        causal, chunk: see the head of this file.
        history: chunks that attention looks back over.
        mlp_ratio: the hidden width of the MLPs, in multiples of ``dim``.
        dropout: on the subsampled frames and on all branches.
        mechanism_options: what else :func:`regard.create` shall pass on.

    Raises:
        UnsupportedError: something that the mechanism cannot do.

    Example:
        >>> SpeechEncoder(40, 16, 2, 4, "linear_transformer")(torch.randn(2, 13, 40)).states.shape
        torch.Size([2, 4, 16])
    """

    def __init__(
        self,
        num_mels: int,
        dim: int,
        depth: int,
        num_heads: int,
        mechanism: str = "full",
        *,
        max_length: int = 1500,
        channels: int = 32,
        convolution: int | None = 15,
        causal: bool = False,
        chunk: int | None = None,
        history: int = 1,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mechanism_options: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"max_length": max_length, "causal": causal, **factory, **mechanism_options}
        if chunk is not None:
            options |= chunk_options(mechanism, chunk, history, causal)
        self.dim, self.chunk, self.history, self.streams = dim, chunk, history, causal or chunk is not None
        self.subsampling = Subsampling(num_mels, dim, channels=channels, causal=self.streams, **factory)
        self.drop = nn.Dropout(dropout)
        self.blocks, self.convolutions = nn.ModuleList(), nn.ModuleList()
        for _ in range(depth):
            attention = create(mechanism, dim=dim, num_heads=num_heads, **options)
            self.blocks.append(Block(attention, dim, mlp_ratio=mlp_ratio, dropout=dropout, **factory))
            if convolution is not None:
                near = {"causal": self.streams, "dropout": dropout}
                self.convolutions.append(ConvolutionModule(dim, convolution, **near, **factory))
        self.norm = nn.LayerNorm(dim, **factory)

    def forward(
        self,
        frames: Float[Tensor, "B T M"],
        mask: Bool[Tensor, "B T"] | None = None,
        *,
        generator: Generator | None = None,
    ) -> Encoded:
        """Whole recordings.

        Args:
            frames: as :class:`regard.models.log_mel.LogMel` makes them.
            mask: True for real frames; padding stands at the end.
            generator: the source of everything random in the mechanism.
        """
        x, mask = self.subsampling(frames, mask)
        x = self._placed(x, torch.zeros(len(x), dtype=torch.long, device=x.device))
        told: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x, aux = block(x, key_mask=mask, generator=generator)
            if self.convolutions:
                x = self.convolutions[number](x, mask)
            for name, value in aux.items():
                kind, _, rest = name.partition("/")
                told[f"{kind}/blocks.{number}.attention/{rest}"] = value
        return Encoded(hide(self.norm(x), mask), mask, told)

    def memory(self, batch: int) -> StatesSoFar:
        """Of recordings of which nothing has been heard.

        Raises:
            UnsupportedError: an encoder that reads ahead, or a mechanism that needs the whole sequence.
        """
        if not self.streams:
            raise UnsupportedError(
                "this encoder reads whole recordings: one built with causal=True, or with chunk= for some look-ahead, "
                "can be streamed"
            )
        weight = self.norm.weight
        layers = [cast(MultiHead, cast(Block, block).attention) for block in self.blocks]
        return StatesSoFar(
            self.subsampling.memory(batch),
            weight.new_zeros(batch, 0, self.dim),
            torch.zeros(batch, dtype=torch.long, device=weight.device),
            tuple(
                layer.memory(batch) if self.chunk is None else chunk_memory(layer, batch, self.chunk * self.history)
                for layer in layers
            ),
            tuple(cast(ConvolutionModule, near).memory(batch) for near in self.convolutions),
        )

    def stream(
        self, frames: Float[Tensor, "B T M"], memory: StatesSoFar, *, last: bool = False
    ) -> tuple[Float[Tensor, "B S C"], StatesSoFar]:
        """The states that the next frames complete; with ``last`` also those of a chunk that stays incomplete."""
        x, seen = self.subsampling.stream(frames, memory.frames)
        x, position = self._placed(x, memory.position), memory.position + x.shape[1]
        memory = memory._replace(frames=seen, position=position)
        if self.chunk is None:
            return self._through(x, memory)
        x = torch.cat((memory.waiting, x), 1)
        ready = x.shape[1] if last else x.shape[1] // self.chunk * self.chunk
        states = [x[:, :0]]
        for piece in x[:, :ready].split(self.chunk, 1) if ready else ():
            y, memory = self._through(piece, memory)
            states.append(y)
        return torch.cat(states, 1), memory._replace(waiting=x[:, ready:].clone())

    def _placed(self, x: Tensor, first: Tensor) -> Tensor:
        places = first[:, None] + torch.arange(x.shape[1], device=x.device)
        return self.drop(x + sinusoids(places, self.dim).to(x.dtype))

    def _through(self, x: Tensor, memory: StatesSoFar) -> tuple[Tensor, StatesSoFar]:
        """The next states through all blocks; within chunks, one chunk at most."""
        if not x.shape[1]:
            return x, memory
        layers, convolutions = list[Any](), list[Tensor]()
        for number, block in enumerate(cast(list[Block], self.blocks)):
            asked, before = block.norm1(x), memory.layers[number]
            layer = cast(MultiHead, block.attention)
            out, after = layer.stream(asked, before) if self.chunk is None else stream_chunk(layer, asked, before)
            x = block._think(x + block.dropout(out))
            layers.append(after)
            if self.convolutions:
                x, near = cast(ConvolutionModule, self.convolutions[number]).stream(x, memory.convolutions[number])
                convolutions.append(near)
        return self.norm(x), memory._replace(layers=tuple(layers), convolutions=tuple(convolutions))
