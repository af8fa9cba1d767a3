"""Frames with mean 0 and variance 1, feature by feature: by their recording, by what has been heard so far, or by rule.

    y[t, m] = (x[t, m] - mean[m]) / sqrt(variance[m])

- "utterance": mean and variance of the real frames of the recording;
- "running": of the frames up to this one, and of ``PRIOR`` more that have the buffers' mean and deviation;
- "global": the buffers ``mean`` and ``deviation`` alone, see :meth:`FrameNorm.calibrate`;
- "none": frames stay as they are.

All but the first can be streamed.
"""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.masks import hide
from regard.registry import UnsupportedError

Normalise = Literal["utterance", "running", "global", "none"]

PRIOR = 50
"""Frames of ``mean`` and ``deviation`` that a running normalisation starts from: half a second."""

MEAN, DEVIATION = -5.0, 4.0
"""Of log-mels of recorded speech, roughly: where the buffers start."""

SMALLEST = 1e-5
"""Added to each variance."""


class SumsSoFar(NamedTuple):
    """What :meth:`FrameNorm.stream` carries along.

    Attributes:
        heard: (B,), frames so far.
        total, squares: (B, M), sums of the frames' distances from ``mean``, and of their squares.
    """

    heard: Float[Tensor, " B"]
    total: Float[Tensor, "B M"]
    squares: Float[Tensor, "B M"]


class FrameNorm(nn.Module):
    """Frames (B, T, M), normalised; see the head of this file.

    Args:
        features: M.
        kind: "utterance", "running", "global" or "none".

    Raises:
        ValueError: another kind.

    Example:
        >>> FrameNorm(2, "utterance")(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]))[0, 0].round().tolist()
        [-1.0, 0.0]
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        features: int,
        kind: Normalise,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(Normalise):
            raise ValueError(f"normalise={kind!r} is none of {', '.join(map(repr, get_args(Normalise)))}")
        self.kind = kind
        self.register_buffer("mean", torch.full((features,), MEAN, device=device, dtype=dtype))
        self.register_buffer("deviation", torch.full((features,), DEVIATION, device=device, dtype=dtype))

    def forward(
        self, frames: Float[Tensor, "B T M"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T M"]:
        """Whole recordings; masked frames, True being real, count nowhere and become 0."""
        if self.kind == "utterance":
            real = frames.shape[1] if mask is None else mask.sum(1).clamp(min=1)[:, None, None]
            centred = hide(frames - hide(frames, mask).sum(1, keepdim=True) / real, mask)
            return centred / (centred.square().sum(1, keepdim=True) / real + SMALLEST).sqrt()
        return hide(self.stream(frames, self.memory(len(frames)))[0], mask)

    def memory(self, batch: int) -> SumsSoFar:
        """Of recordings of which nothing has been heard.

        Raises:
            UnsupportedError: a kind that needs whole recordings.
        """
        if self.kind == "utterance":
            raise UnsupportedError(
                'normalise="utterance" needs whole recordings: a stream needs "running", "global" or "none"'
            )
        sums = self.mean.new_zeros(batch, len(self.mean))
        return SumsSoFar(sums[:, 0], sums, sums)

    def stream(self, frames: Float[Tensor, "B T M"], memory: SumsSoFar) -> tuple[Float[Tensor, "B T M"], SumsSoFar]:
        """The next frames, and the sums after them."""
        if self.kind == "none" or not frames.shape[1]:
            return frames, memory
        away = frames - self.mean  # sums of distances lose less than sums of what is far from 0
        if self.kind == "global":
            return away / self.deviation, memory
        steps = torch.arange(1, frames.shape[1] + 1, device=frames.device, dtype=frames.dtype)
        seen = (PRIOR + memory.heard[:, None] + steps)[..., None]
        totals = memory.total[:, None] + away.cumsum(1)
        squares = memory.squares[:, None] + away.square().cumsum(1)
        mean = totals / seen
        variance = (squares + PRIOR * self.deviation.square()) / seen - mean.square()
        after = SumsSoFar(memory.heard + frames.shape[1], totals[:, -1], squares[:, -1])
        return (away - mean) / (variance.clamp(min=0) + SMALLEST).sqrt(), after

    @torch.no_grad()
    def calibrate(self, frames: Float[Tensor, "B T M"], mask: Bool[Tensor, "B T"] | None = None) -> None:
        """Take ``mean`` and ``deviation`` from frames that are not normalised: those of all real ones."""
        real = frames.flatten(0, 1) if mask is None else frames[mask]
        self.mean.copy_(real.mean(0))
        self.deviation.copy_((real.var(0, correction=0) + SMALLEST).sqrt())
