"""Recordings as the frames that a recogniser reads, computed once; and how they are varied from step to step."""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from regard.models.log_mel import LogMel
from regard.tasks.audio import read_audio
from regard.tasks.cache import cached
from regard.tasks.documents import read_file
from regard.tasks.speech_data import Prompt

HOP = 0.01
"""Seconds of a frame."""


def frames_of(
    prompts: tuple[Prompt, ...], sample_rate: int, num_mels: int, longest: float
) -> list[Float[Tensor, "T M"]]:
    """Log-mel frames of all recordings, each of mean 0 and variance 1, from the cache folder where they are there.

    Those of a recording of more than ``longest`` seconds are on the meta device: a length, and no numbers.

    Raises:
        InputError: a recording that cannot be read.
    """
    total = hashlib.sha256(f"{sample_rate} {num_mels} {longest}".encode())
    for prompt in prompts:
        total.update(hashlib.sha256(read_file(prompt.path)).digest())
    found = cached(f"speech-{total.hexdigest()[:24]}", lambda: _computed(prompts, sample_rate, num_mels, longest))
    lengths: list[int] = found["lengths"].tolist()
    most = round(longest / HOP)
    kept = iter(found["frames"].float().split([length for length in lengths if length <= most]))
    return [next(kept) if length <= most else torch.empty(length, num_mels, device="meta") for length in lengths]


@dataclass(frozen=True)
class Variation:
    """Tempo, and masks in frequency and time: SpecAugment (Park et al. 2019, arXiv:1904.08779) on stretched frames.

    Attributes:
        tempo: the greatest change, as a share: between 1 - tempo and 1 + tempo times as long, at the same pitch.
        bands, band: how many stripes of mels are hidden, each of less than so large a share of all.
        gaps, gap: how many stretches of time are hidden, each shorter than so large a share of the recording.
    """

    tempo: float = 0.15
    bands: int = 2
    band: float = 0.2
    gaps: int = 2
    gap: float = 0.1

    def apply(self, frames: Float[Tensor, "T M"], least: int, generator: Generator) -> Float[Tensor, "S M"]:
        """One recording anew; what is hidden becomes 0, which is the mean.

        Args:
            frames: of mean 0.
            least: frames that its labels need.
            generator: the source of all draws.
        """
        stretch = 1 + self.tempo * (2 * torch.rand((), generator=generator) - 1)
        length = max(least, round(len(frames) * float(stretch)))
        varied = F.interpolate(frames.T[None], length, mode="linear", align_corners=False)[0].T.contiguous()
        for count, share, axis in ((self.gaps, self.gap, 0), (self.bands, self.band, 1)):
            for width, place in torch.rand(count, 2, generator=generator).tolist():
                size = int(width * share * varied.shape[axis])
                varied.narrow(axis, int(place * (varied.shape[axis] - size + 1)), size).zero_()
        return varied


def _computed(prompts: tuple[Prompt, ...], sample_rate: int, num_mels: int, longest: float) -> dict[str, Tensor]:
    log_mel = LogMel(sample_rate, num_mels, hop=HOP)
    lengths, kept = list[int](), list[Tensor]()
    with torch.no_grad():
        for prompt in prompts:
            waveform = read_audio(prompt.path, sample_rate).waveform
            lengths.append(log_mel.frame_count(len(waveform)))
            if lengths[-1] <= round(longest / HOP):
                kept.append(log_mel(waveform[None])[0][0].half())
    frames = torch.cat(kept) if kept else torch.empty(0, num_mels).half()
    return {"lengths": torch.tensor(lengths), "frames": frames}
