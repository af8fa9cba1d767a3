"""Log-mel spectrograms: what a network hears of a waveform, as a module that can be trained through and streamed.

Davis and Mermelstein 1980, doi:10.1109/TASSP.1980.1163420. Frame t reads the samples t hop .. t hop + window - 1, zeros
where the recording has ended, under a Hann window::

    y[t, m] = log(floor + sum_f filter[f, m] |DFT(hann * frame_t)[f]|^2)            T = ceil(N / hop) frames

Every sample belongs to a frame, so any recording that is not empty has one; frame t is real where sample t hop is. The
filters are HTK's triangles, of height 1, with equally spaced corners on mel(f) = 2595 log10(1 + f / 700) (Slaney's
scale, which librosa has by default, is another). The transform is long enough that no filter falls between two of its
bins. Each of the M mels is then normalised, see :mod:`regard.models.frame_norm`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.models.frame_norm import FrameNorm, Normalise, SumsSoFar
from regard.ops.masks import check_mask


def mel_filters(
    sample_rate: float, transform: int, num_mels: int, lowest: float, highest: float
) -> Float[Tensor, "F M"]:
    """HTK's triangles over the F = transform / 2 + 1 bins of a transform, in float64.

    Args:
        sample_rate: in Hz.
        transform: its length in samples.
        num_mels: M.
        lowest, highest: the outermost corners in Hz.

    Example:
        >>> mel_filters(8000, 256, 3, 0, 4000).shape
        torch.Size([129, 3])
    """
    mels = torch.linspace(_mel(lowest), _mel(highest), num_mels + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.arange(transform // 2 + 1, dtype=torch.float64) * (sample_rate / transform)
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (bins[:, None] - left) / (middle - left), (right - bins[:, None]) / (right - middle)
    return torch.minimum(rising, falling).clamp(min=0)


class HeardSoFar(NamedTuple):
    """What :meth:`LogMel.stream` carries along.

    Attributes:
        samples: (B, n), those that frames to come will read.
        sums: of the frames so far.
    """

    samples: Float[Tensor, "B n"]
    sums: SumsSoFar


class LogMel(nn.Module):
    """Waveforms (B, N) in, frames (B, T, M) out; see the head of this file.

    Args:
        sample_rate: of the waveforms, in Hz; samples lie between -1 and 1.
        num_mels: M.
        window, hop: in seconds.
        lowest, highest: the outermost corners of the filters in Hz; None: half the sample rate.
        floor: what silence has in each mel.
        normalise: "utterance", "running", "global" or "none".
        device, dtype: of the buffers; half precision keeps them in float32.

    Raises:
        ValueError: sizes that make no filters or no frames.

    Example:
        >>> frames, mask = LogMel(8000, 40)(torch.randn(2, 1000))
        >>> frames.shape
        torch.Size([2, 13, 40])
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        num_mels: int = 80,
        *,
        window: float = 0.025,
        hop: float = 0.01,
        lowest: float = 0.0,
        highest: float | None = None,
        floor: float = 1e-6,
        normalise: Normalise = "utterance",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        highest = sample_rate / 2 if highest is None else highest
        self.sample_rate, self.num_mels, self.floor = sample_rate, num_mels, floor
        self.size, self.hop, self.edges = round(window * sample_rate), round(hop * sample_rate), (lowest, highest)
        if not 1 <= self.hop <= self.size:
            raise ValueError(f"hop={hop} and window={window} seconds at {sample_rate} Hz: 0 < hop <= window must hold")
        if num_mels < 1 or not 0 <= lowest < highest <= sample_rate / 2 or floor <= 0:
            raise ValueError(
                f"num_mels={num_mels}, lowest={lowest}, highest={highest}, floor={floor}: at {sample_rate} Hz there "
                f"must be a mel, 0 <= lowest < highest <= {sample_rate / 2}, and a floor above 0"
            )
        self.register_buffer("window", None, persistent=False)
        self.register_buffer("filters", None, persistent=False)
        self._make(device, dtype or torch.get_default_dtype())
        self.norm = FrameNorm(num_mels, normalise, device=device, dtype=self.window.dtype)

    def frame_count(self, samples: int) -> int:
        """T of so many samples."""
        return -(-samples // self.hop)

    def forward(
        self, waveforms: Float[Tensor, "B N"], key_mask: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B T M"], Bool[Tensor, "B T"] | None]:
        """Whole recordings.

        Args:
            waveforms: mono.
            key_mask: True for real samples; padding stands at the end.

        Returns:
            Frames, 0 where padded, and which of them are real (None: all).

        Raises:
            TypeError, ValueError: no waveforms, or a mask that does not fit.
        """
        self._check(waveforms)
        check_mask(key_mask, waveforms.shape[0], waveforms.shape[1])
        check_end(key_mask)
        sounds = self._precise(waveforms if key_mask is None else waveforms.masked_fill(~key_mask, 0.0))
        mask = None if key_mask is None else key_mask[:, :: self.hop]
        return self.norm(self._frames(sounds), mask).to(waveforms.dtype), mask

    def memory(self, batch: int) -> HeardSoFar:
        """Of recordings of which nothing has been heard.

        Raises:
            UnsupportedError: a normalisation that needs whole recordings.
        """
        return HeardSoFar(self.window.new_zeros(batch, 0), self.norm.memory(batch))

    def stream(
        self, samples: Float[Tensor, "B N"], memory: HeardSoFar, *, last: bool = False
    ) -> tuple[Float[Tensor, "B T M"], HeardSoFar]:
        """The frames that are complete with the next samples; with ``last`` also those that reach over the end."""
        self._check(samples)
        sounds = torch.cat((memory.samples, self._precise(samples)), 1)
        count = self.frame_count(sounds.shape[1]) if last else max(0, (sounds.shape[1] - self.size) // self.hop + 1)
        frames, sums = self.norm.stream(self._frames(sounds, count), memory.sums)
        return frames.to(samples.dtype), HeardSoFar(sounds[:, count * self.hop :].clone(), sums)

    @torch.no_grad()
    def calibrate(self, waveforms: Float[Tensor, "B N"], key_mask: Bool[Tensor, "B N"] | None = None) -> None:
        """Take the mean and deviation of "global" and "running" from recordings: those of all their real frames."""
        sounds = waveforms if key_mask is None else waveforms.masked_fill(~key_mask, 0.0)
        self.norm.calibrate(self._frames(self._precise(sounds)), None if key_mask is None else key_mask[:, :: self.hop])

    def _frames(self, sounds: Float[Tensor, "B N"], count: int | None = None) -> Float[Tensor, "B T M"]:
        """The first frames, or all, as they are."""
        count = self.frame_count(sounds.shape[1]) if count is None else count
        if not count:
            return sounds.new_zeros(len(sounds), 0, self.num_mels)
        windows = F.pad(sounds, (0, self.size)).unfold(1, self.size, self.hop)[:, :count]
        spectrum = torch.fft.rfft(windows * self.window, self.transform)
        with torch.autocast(sounds.device.type, enabled=False):  # half precision does not hear what is soft
            return ((spectrum.real.square() + spectrum.imag.square()) @ self.filters + self.floor).log()

    def _make(self, device: torch.device | str | None, dtype: torch.dtype) -> None:
        """The window and the filters, in single precision at least."""
        self.transform = 1 << (self.size - 1).bit_length()
        filters = mel_filters(self.sample_rate, self.transform, self.num_mels, *self.edges)
        while not filters.any(0).all():
            self.transform *= 2
            filters = mel_filters(self.sample_rate, self.transform, self.num_mels, *self.edges)
        window = torch.hann_window(self.size, dtype=torch.float64)
        precise = torch.promote_types(dtype, torch.float32)
        self.window, self.filters = window.to(device, precise), filters.to(device, precise)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LogMel":
        """Moved and cast as any module, but made anew: rounded filters would hear badly."""
        super()._apply(fn, recurse)
        self._make(self.window.device, self.window.dtype)
        self.norm.mean, self.norm.deviation = self._precise(self.norm.mean), self._precise(self.norm.deviation)
        return self

    def _precise(self, x: Tensor) -> Tensor:
        return x.to(self.window.dtype)

    def _check(self, waveforms: Tensor) -> None:
        if not waveforms.is_floating_point():
            raise TypeError(
                f"waveforms are {waveforms.dtype}: pass floats between -1 and 1, e.g. 16-bit samples / 32768"
            )
        if waveforms.ndim != 2:
            raise ValueError(f"waveforms have shape {tuple(waveforms.shape)}: expected (batch, samples), mono")

    def extra_repr(self) -> str:
        return f"{self.sample_rate}, {self.num_mels}, window={self.size}, hop={self.hop}, normalise={self.norm.kind!r}"


def check_end(mask: Tensor | None) -> None:
    """Refuse padding that does not stand at the end; on a device, where reading a value means waiting, it is believed.

    Raises:
        ValueError: a real place behind a masked one.
    """
    if mask is None or torch.compiler.is_compiling() or mask.device.type != "cpu":
        return
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("key_mask has real samples or frames behind masked ones: padding stands at the end")


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)
