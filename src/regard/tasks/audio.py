"""Sound as a waveform: any file that libsndfile reads, as one channel in float32 at the rate that is wanted; and back.

What the listener should know of a file (clipped, silent, resampled, mixed down) is told in words beside the waveform.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from regard.tasks.documents import LARGEST, InputError, printable, read_file
from regard.tasks.writing import write_file

if TYPE_CHECKING:
    from types import ModuleType

SILENT = 1e-4
"""A peak of less, -80 decibels below full scale, is silence."""

FULL, RUN = 0.999, 3
"""So many neighbours at full scale, on the same side, are a cut-off peak; single ones occur in whole recordings too."""

FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
"""What is written, by the ending of the name."""

BLOCK = 1 << 16
"""Samples written at once: given minutes in one piece, the Vorbis encoder overruns its stack and ends the process."""


@dataclass(frozen=True)
class Sound:
    """A waveform and where it came from.

    Attributes:
        waveform: one channel, from -1 to 1.
        rate: its samples per second.
        source_rate, channels: of the file.
        clipped: the share of the file's samples that lie in cut-off peaks.
        remarks: what a listener should know, in words.
    """

    waveform: Float[Tensor, " N"]
    rate: int
    source_rate: int
    channels: int
    clipped: float
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.waveform) / self.rate


def read_audio(path: str | Path, rate: int | None = None) -> Sound:
    """Read a file; channels are averaged, and another rate is made by a band-limited filter (soxr, high quality).

    Args:
        path: wav, flac, ogg, mp3, aiff, or what else libsndfile knows by its content.
        rate: samples per second that are wanted; None: those of the file.

    Raises:
        InputError: the file is missing, empty, no audio, damaged, without samples or with samples that are no numbers.
    """
    soundfile = _library("soundfile")
    named = Path(path)
    name = printable(str(path))
    data = read_file(named)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames * file.channels * 4 > LARGEST:
                raise InputError(f"{name} takes {file.frames * file.channels * 4:,} bytes as numbers: over {LARGEST:,}")
            source_rate = int(file.samplerate)
            samples = torch.from_numpy(file.read(dtype="float32", always_2d=True))
    except (soundfile.LibsndfileError, TypeError) as error:
        told = str(error).rstrip(".")
        raise InputError(f"{name} is no audio that libsndfile can read ({told}): give wav, flac, ogg or mp3") from error
    if not len(samples):
        raise InputError(f"{name} is 0 seconds long: there is nothing to hear in it")
    if not samples.isfinite().all():
        raise InputError(f"{name} has samples that are no numbers: it is damaged, record or convert it again")
    waveform = samples.mean(1)
    remarks = _heard(samples, waveform)
    if rate is not None and rate != source_rate:
        waveform = resample(waveform, source_rate, rate)
        remarks.append(f"resampled from {source_rate:,} to {rate:,} Hz")
        if not len(waveform):
            raise InputError(f"{name} is shorter than one sample at {rate:,} Hz")
    waveform = waveform / waveform.abs().max().clamp(min=1.0)
    return Sound(waveform, rate or source_rate, source_rate, samples.shape[1], clipped_share(samples), tuple(remarks))


def write_audio(path: str | Path, waveform: Float[Tensor, " N"], rate: int) -> tuple[str, ...]:
    """Write one channel: under a temporary name, then renamed, so that no half file is ever seen.

    Args:
        path: its ending says the format: .wav and .flac (16 bits) or .ogg.
        waveform: from -1 to 1; what is louder is made softer as a whole, not cut off.
        rate: samples per second.

    Returns:
        Remarks: by how much it was made softer.

    Raises:
        InputError: another ending, no sample, samples that are no numbers, or a folder that cannot be written to.
    """
    soundfile = _library("soundfile")
    named, name = Path(path), printable(str(path))
    if named.suffix.lower() not in FORMATS:
        raise InputError(f"{name}: sound is written as {', '.join(FORMATS)}; name one of these")
    if not len(waveform) or not waveform.isfinite().all():
        what = "no sample" if not len(waveform) else "samples that are no numbers"
        raise InputError(f"{name} was not written: the sound has {what}")
    form, subtype = FORMATS[named.suffix.lower()]
    peak = float(waveform.abs().max())
    remarks = (f"peaks of {peak:.2f}: made softer by that factor",) if peak > 1 else ()
    buffer = io.BytesIO()
    samples = (waveform.detach().float().cpu() / max(1.0, peak)).numpy()
    with soundfile.SoundFile(buffer, "w", rate, 1, subtype=subtype, format=form) as file:
        for first in range(0, len(samples), BLOCK):
            file.write(samples[first : first + BLOCK])
    try:
        write_file(named, buffer.getvalue())
    except OSError as error:
        raise InputError(f"cannot write {name}: {error.strerror}") from error
    return remarks


def resample(waveform: Float[Tensor, " N"], source_rate: int, rate: int) -> Float[Tensor, " M"]:
    """The same sound with another number of samples per second; what the new rate cannot hold is filtered out first.

    Example:
        >>> resample(torch.sin(torch.arange(8000) / 3), 8000, 16000).shape
        torch.Size([16000])
    """
    if rate == source_rate:
        return waveform
    found = _library("soxr").resample(waveform.float().numpy(), source_rate, rate, quality="HQ")
    return torch.from_numpy(found)


def clipped_share(samples: Float[Tensor, "N C"]) -> float:
    """The share of samples that lie in runs at full scale: peaks that the recording cut off.

    Example:
        >>> clipped_share(torch.tensor([[0.2], [1.0], [1.0], [1.0], [0.1], [1.0], [-1.0], [0.0]]))
        0.375
    """
    cut = torch.zeros_like(samples, dtype=torch.bool)
    for side in (samples >= FULL, samples <= -FULL):
        if len(side) < RUN or not side.any():
            continue
        whole = side.unfold(0, RUN, 1).all(-1)  # does a run begin here?
        for ahead in range(RUN):
            cut[ahead : len(whole) + ahead] |= whole
    return float(cut.double().mean())


def _heard(samples: Float[Tensor, "N C"], mixed: Float[Tensor, " N"]) -> list[str]:
    """Remarks on a file's own samples, and on what remains of them when channels are averaged."""
    remarks: list[str] = []
    channels, peak = samples.shape[1], float(samples.abs().max())
    if channels > 1:
        remarks.append(f"{channels} channels mixed down to one")
    if peak > 1:
        remarks.append(f"peaks of {peak:.2f}: made softer by that factor")
    if clipped := clipped_share(samples):
        remarks.append(f"clipped: {max(clipped, 1e-4):.2%} of the samples are cut-off peaks")
    if peak < SILENT:
        remarks.append("silent: no sample above -80 dB")
    elif float(mixed.abs().max()) < SILENT:
        remarks.append("silent: the channels cancel each other out")
    return remarks


def _library(name: str) -> "ModuleType | Any":
    import importlib

    try:
        return cast("Any", importlib.import_module(name))
    except ImportError as error:
        raise InputError(f"sound is read and written by {name}: pip install 'regard[race]'") from error
