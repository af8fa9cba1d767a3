"""Convolutions that make one vector of every four frames: the entrance of hybrid CTC and attention recognisers.

Two convolutions of 3 x 3 over time and frequency with stride 2, each followed by a ReLU, and a linear map, as ESPnet's
``Conv2dSubsampling`` (Watanabe et al. 2018, arXiv:1804.00015). There nothing is padded and very short recordings have
no frame left; here zeros stand around the frames::

    T' = ceil(ceil(T / 2) / 2)        output t reads the frames 4 t - 3 .. 4 t + 3; causal: 4 t - 6 .. 4 t

and output t is real where frame 4 t is.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.masks import check_mask, check_tokens, hide

FACTOR = 4
"""Frames to a vector."""


class FramesSoFar(NamedTuple):
    """The last frames that each convolution will read again.

    Attributes:
        frames: (B, n, M).
        maps: (B, K, n', M').
    """

    frames: Float[Tensor, "B n M"]
    maps: Float[Tensor, "B K m F"]


class Subsampling(nn.Module):
    """Frames (B, T, M) in, vectors (B, T', dim) out; see the head of this file.

    Args:
        num_mels: M.
        dim: width of the vectors.
        channels: K of both convolutions. ESPnet has as many as ``dim``; most of the work is theirs.
        causal: no output reads a later frame, so that it can be streamed.

    Example:
        >>> x, mask = Subsampling(40, 16)(torch.randn(2, 13, 40))
        >>> x.shape
        torch.Size([2, 4, 16])
    """

    def __init__(
        self,
        num_mels: int,
        dim: int,
        *,
        channels: int = 32,
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_mels, self.causal = num_mels, causal
        self.first = nn.Conv2d(1, channels, 3, 2, (0, 1), **factory)
        self.second = nn.Conv2d(channels, channels, 3, 2, (0, 1), **factory)
        self.out = nn.Linear(channels * (-(-num_mels // FACTOR)), dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He-normal convolutions and a map of variance 1 / fan-in: frames of variance 1 stay about as large."""
        for convolution in (self.first, self.second):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.out.weight, nonlinearity="linear")
        for part in (self.first, self.second, self.out):
            assert part.bias is not None
            nn.init.zeros_(part.bias)

    def forward(
        self, frames: Float[Tensor, "B T M"], mask: Bool[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B S C"], Bool[Tensor, "B S"] | None]:
        """Whole recordings.

        Args:
            frames: as :class:`regard.models.log_mel.LogMel` makes them.
            mask: True for real frames; padding stands at the end.

        Returns:
            Vectors, 0 where padded, and which of them are real (None: all).
        """
        check_tokens(frames, self.num_mels, "frames")
        check_mask(mask, *frames.shape[:2], name="mask")
        around = (2, 0) if self.causal else (1, 1)
        half, quarter = (None, None) if mask is None else (mask[:, ::2], mask[:, ::FACTOR])
        if not frames.shape[1]:
            return frames.new_zeros(len(frames), 0, self.out.out_features), quarter
        maps = self.first(F.pad(hide(frames, mask), (0, 0, *around))[:, None]).relu()
        if half is not None:
            maps = maps.masked_fill(~half[:, None, :, None], 0.0)
        return hide(self._read(self.second(F.pad(maps, (0, 0, *around)))), quarter), quarter

    def memory(self, batch: int) -> FramesSoFar:
        """Of recordings of which nothing has been seen: the zeros before their first frames."""
        weight, narrow = self.first.weight, -(-self.num_mels // 2)
        return FramesSoFar(weight.new_zeros(batch, 2, self.num_mels), weight.new_zeros(batch, len(weight), 2, narrow))

    def stream(self, frames: Float[Tensor, "B T M"], memory: FramesSoFar) -> tuple[Float[Tensor, "B S C"], FramesSoFar]:
        """The vectors that the next frames complete: a fourth as many, more or less."""
        frames = torch.cat((memory.frames, frames), 1)
        count = (frames.shape[1] - 1) // 2
        maps = memory.maps
        if count:
            maps = torch.cat((maps, self.first(frames[:, None, : 2 * count + 1]).relu()), 2)
        steps = (maps.shape[2] - 1) // 2
        x = frames.new_zeros(len(frames), 0, self.out.out_features)
        if steps:
            x = self._read(self.second(maps[:, :, : 2 * steps + 1]))
        return x, FramesSoFar(frames[:, 2 * count :].clone(), maps[:, :, 2 * steps :].clone())

    def _read(self, maps: Float[Tensor, "B K S F"]) -> Float[Tensor, "B S C"]:
        return self.out(maps.relu().transpose(1, 2).flatten(2))
