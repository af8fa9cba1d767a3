"""How far one sound is from another: Jukebox's losses in time and in spectra.

Dhariwal et al. 2020, arXiv:2005.00341, section 3.2. For each level of a reconstruction y of x, all added up::

    l1 mean|x - y| / b1  +  l2 mean(x - y)^2 / b2  +  linf mean(the ``peaks`` largest (x - y)^2) / b2
    +  multispectral mean over resolutions of || |STFT x| - |STFT y| ||_2 / bs  +  spectral (one resolution alone)

The bandwidths b1, b2 and bs are the mean |x|, the variance and the mean norm of the spectra of the data: they make the
weights mean the same for any music. The STFT has a Hann window, centred frames and reflected ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SILENCE = 2e-3
"""Spectra with a smaller norm have no relative distance: it counts as 0."""


@dataclass(frozen=True)
class Resolution:
    """An STFT: numbers of the transform, samples from frame to frame, samples of the window."""

    n_fft: int
    hop: int
    window: int


ALONE = Resolution(2048, 256, 1536)
"""Of the spectral loss alone, of the spectral convergence and of the bandwidth."""
SEVERAL = (Resolution(2048, 240, 1200), Resolution(1024, 120, 600), Resolution(512, 50, 240))
"""Of the multispectral loss."""


@dataclass(frozen=True)
class Bandwidth:
    """Scales of the data: mean |x|, variance, and mean norm of the magnitudes of a piece's STFT."""

    l1: float = 1.0
    l2: float = 1.0
    spec: float = 1.0


def magnitudes(x: Float[Tensor, "B T"], resolution: Resolution) -> Float[Tensor, "B F S"]:
    """|STFT x|: n_fft / 2 + 1 frequencies, 1 + T // hop frames.

    Raises:
        ValueError: a sound too short for its ends to be reflected.

    Example:
        >>> magnitudes(torch.randn(2, 2000), Resolution(512, 50, 240)).shape
        torch.Size([2, 257, 41])
    """
    n_fft = resolution.n_fft
    if x.shape[-1] <= n_fft // 2:
        raise ValueError(
            f"{x.shape[-1]} samples: an STFT of {n_fft} reflects {n_fft // 2} at either end, so it takes "
            f"{n_fft // 2 + 1} at least; give longer pieces or smaller resolutions"
        )
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    window = torch.hann_window(resolution.window, device=x.device, dtype=x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        found = torch.stft(x, n_fft, resolution.hop, resolution.window, window, return_complex=True)
    return found.abs()


def spectral_distance(
    target: Float[Tensor, "B T"], y: Float[Tensor, "B *L T"], resolution: Resolution, *, relative: bool = False
) -> Float[Tensor, "B *L"]:
    """|| |STFT x| - |STFT y| ||_2, or the same divided by || |STFT x| ||_2: the spectral convergence.

    Args:
        target: x, whose spectra are formed once.
        y: one or several for each x.
        resolution: of the STFT.
        relative: divided; a target that is all but silent then has distance 0.
    """
    whole = magnitudes(target, resolution)
    parts = magnitudes(y.reshape(-1, y.shape[-1]), resolution).view(*y.shape[:-1], *whole.shape[1:])
    apart = parts - whole.view(len(whole), *[1] * (y.ndim - 2), *whole.shape[1:])
    distance = torch.linalg.vector_norm(apart, dim=(-2, -1))
    if not relative:
        return distance
    size = torch.linalg.vector_norm(whole, dim=(-2, -1)).view(-1, *[1] * (y.ndim - 2))
    return torch.where(size > SILENCE, distance / size.clamp(min=SILENCE), 0.0)


@torch.no_grad()
def bandwidth(pieces: Iterable[Float[Tensor, " _"]]) -> Bandwidth:
    """The scales of a set of pieces of sound, each longer than 1024 samples, and all about as long as in training.

    Raises:
        ValueError: no piece, or nothing but silence.

    Example:
        >>> found = bandwidth([torch.randn(4096) * 0.1 for _ in range(3)])
        >>> 0.09 < found.l2 ** 0.5 < 0.11
        True
    """
    count, absolute, total, squares, norms = 0, 0.0, 0.0, 0.0, list[float]()
    for piece in pieces:
        piece = piece.double()
        count += piece.numel()
        absolute, total = absolute + float(piece.abs().sum()), total + float(piece.sum())
        squares += float(piece.square().sum())
        norms.append(float(torch.linalg.vector_norm(magnitudes(piece[None], ALONE))))
    if not count or not absolute:
        raise ValueError(f"{len(norms)} pieces, {count} samples: silence has no bandwidth; give sound to measure")
    return Bandwidth(absolute / count, squares / count - (total / count) ** 2, sum(norms) / len(norms))


@dataclass(frozen=True)
class SoundLoss:
    """The weights of all parts; calling it gives each part and their weighted sum.

    Attributes:
        l1, l2, linf: weights in time; "lmix" of the paper is l2 = 1, linf = 0.02.
        peaks: how many of the largest squared errors of a piece ``linf`` takes the mean of.
        spectral, multispectral: weights in spectra.
        relative: ``spectral`` is relative to the target's norm instead of to the bandwidth.
        bandwidth: scales of the data.
        alone, several: the resolutions.
    """

    l1: float = 0.0
    l2: float = 1.0
    linf: float = 0.02
    peaks: int = 2048
    spectral: float = 0.0
    multispectral: float = 1.0
    relative: bool = False
    bandwidth: Bandwidth = Bandwidth()
    alone: Resolution = ALONE
    several: tuple[Resolution, ...] = SEVERAL

    def __call__(
        self, target: Float[Tensor, "B T C"], y: Float[Tensor, "B L T C"], *, every: bool = False
    ) -> dict[str, Tensor]:
        """The mean over the batch of each part, summed over levels: "loss" of all, and those that have a weight.

        Args:
            target, y: the sound, and its reconstructions at L levels; spectra are those of the mean of its channels.
            every: parts without a weight as well.

        Raises:
            ValueError: shapes that do not fit, or pieces shorter than ``peaks`` or than an STFT takes.

        Example:
            >>> x = torch.zeros(2, 1100, 1)
            >>> {name: float(value) for name, value in SoundLoss(peaks=10)(x, x[:, None]).items()}
            {'loss': 0.0, 'l2': 0.0, 'linf': 0.0, 'multispectral': 0.0}
        """
        if y.ndim != 4 or y.shape[::2] != target.shape[:2] or y.shape[-1] != target.shape[-1]:
            raise ValueError(f"target {tuple(target.shape)}, reconstructions {tuple(y.shape)}: (B, T, C), (B, L, T, C)")
        parts: dict[str, tuple[float, Tensor]] = {}
        if every or self.l1 or self.l2 or self.linf:
            parts |= self._in_time((y - target[:, None]).flatten(2), every)
        mono, monos = target.mean(-1), y.mean(-1)
        if every or self.spectral:
            scale = 1.0 if self.relative else self.bandwidth.spec
            distance = spectral_distance(mono, monos, self.alone, relative=self.relative)
            parts["spectral"] = self.spectral, distance / scale
        if every or self.multispectral:
            distances = [spectral_distance(mono, monos, resolution) for resolution in self.several]
            mean = torch.stack(distances).mean(0)
            parts["multispectral"] = self.multispectral, mean / self.bandwidth.spec
        summed = {name: (weight, value.mean(0).sum()) for name, (weight, value) in parts.items()}
        total = sum((weight * value for weight, value in summed.values() if weight), y.new_zeros(()))
        return {"loss": total} | {name: value for name, (_, value) in summed.items()}

    def _in_time(self, apart: Float[Tensor, "B L N"], every: bool) -> dict[str, tuple[float, Tensor]]:
        """Weight and value (B, L) of each part."""
        squares, scale, found = apart.square(), self.bandwidth, dict[str, tuple[float, Tensor]]()
        if every or self.l1:
            found["l1"] = self.l1, apart.abs().mean(-1) / scale.l1
        if every or self.l2:
            found["l2"] = self.l2, squares.mean(-1) / scale.l2
        if every or self.linf:
            if not 1 <= self.peaks <= squares.shape[-1]:
                raise ValueError(f"peaks={self.peaks} of {squares.shape[-1]} numbers: at least 1, at most all")
            found["linf"] = self.linf, squares.topk(self.peaks, -1).values.mean(-1) / scale.l2
        return found
