"""Music as sound: songs that are cut into parts, and the task of a VQ-VAE, to give back a second that it never heard.

Songs come from files or folders of sound, or from the Debian package asterisk-moh-opsound-wav: five songs, 18.4
minutes, CC-BY-SA 3.0. Of each song a tenth that begins at 30 % is for validation, and a tenth that begins at 60 % for
the test, with a second on either side that nobody hears; the rest is learned from. So the held-out passages lie apart,
but in songs that are known and that repeat themselves: that is easier than a new song. Beginnings and ends, where music
fades, hold nothing out; songs of less than 45 seconds are all for training.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.models.sound_blocks import Residual
from regard.models.sound_loss import ALONE, Resolution, SoundLoss, bandwidth, magnitudes, spectral_distance
from regard.models.vqvae import VQVAE
from regard.registry import UnsupportedError
from regard.tasks.audio import SILENT, read_audio
from regard.tasks.documents import LARGEST, InputError, printable
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

RATE = 8000
"""Samples per second."""

PACKAGE = Path("/usr/share/asterisk/moh")
"""Where asterisk-moh-opsound-wav puts its songs."""

ENDINGS = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}
VALIDATION, TEST, GAP, SHORT = (0.3, 0.4), (0.6, 0.7), 1.0, 45.0
"""Where in a song the held-out passages lie, seconds around them, and seconds of a song that is cut."""

DOWNS, STRIDES = (2, 1), (4, 4)
"""Of the two levels: a code for 16 samples, and one for 64."""
CODES, CODE_WIDTH = 512, 32

RESOLUTIONS = (Resolution(1024, 256, 1024), Resolution(512, 128, 512), Resolution(256, 64, 256))
"""Of the multispectral loss: as fine in time as in frequency at this rate, and a quarter of the frames of the paper's,
which are for 44,100 samples a second."""


TINY = 1e-20
"""Instead of a power of 0."""


@dataclass(frozen=True)
class Song:
    """One piece of music, one channel at ``RATE``."""

    name: str
    waveform: Float[Tensor, " N"]

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.waveform) / RATE


@dataclass(frozen=True)
class Songs:
    """The parts of all songs, and what a listener should know of the files.

    Attributes:
        train, validation, test: pieces; those held out are whole passages.
        remarks: in words.
    """

    train: tuple[Song, ...]
    validation: tuple[Song, ...]
    test: tuple[Song, ...]
    remarks: tuple[str, ...] = ()

    def part(self, part: Part) -> tuple[Song, ...]:
        """Of this name."""
        return self.validation if part == "validation" else self.test

    @property
    def digest(self) -> str:
        """sha256 of all samples: the same data, or not."""
        total = hashlib.sha256()
        for song in (*self.train, *self.validation, *self.test):
            total.update(song.waveform.numpy().tobytes())
        return total.hexdigest()

    def describe(self) -> str:
        """In words.

        Example:
            >>> Songs((Song("a", torch.zeros(80_000)),), (), ()).describe()
            '1 song, 0.2 minutes to learn from, at 8,000 Hz'
        """
        minutes, count = sum(song.seconds for song in self.train) / 60, len({song.name for song in self.train})
        many = "" if count == 1 else "s"
        return f"{count} song{many}, {minutes:.1f} minutes to learn from, at {RATE:,} Hz"


def read_songs(paths: Sequence[str | Path] | None = None) -> Songs:
    """Read files and all sound below folders; without any, the installed package.

    Raises:
        InputError: nothing there, a file that cannot be read, nothing but silence, more than 2 GiB, or too little to
            hold any of it out.
    """
    if not paths:
        if not PACKAGE.is_dir():
            raise InputError(
                f"no music in {PACKAGE}: apt-get install asterisk-moh-opsound-wav, or give --data with files or a "
                "folder of sound"
            )
        paths = [PACKAGE]
    files = [file for path in paths for file in _files(Path(path))]
    songs, remarks, total = list[Song](), list[str](), 0
    for file in files:
        sound = read_audio(file, RATE)
        name = printable(file.name)
        remarks += [f"{name}: {remark}" for remark in sound.remarks]
        if float(sound.waveform.abs().max()) >= SILENT:
            songs.append(Song(name, sound.waveform))
        total += 4 * len(sound.waveform)
        if total > LARGEST:
            raise InputError(f"more than {LARGEST:,} bytes of sound: all of it is held in memory, so give fewer files")
    if not songs:
        raise InputError(f"nothing but silence in {', '.join(map(str, paths))}")
    return split_songs(songs, tuple(remarks))


def _files(path: Path) -> list[Path]:
    """A named file, or all sound below a folder."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_dir():
        return [path]
    try:
        found = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in ENDINGS and file.is_file()]
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}") from error
    if not found:
        raise InputError(f"no sound in {path}: it is looked for in files ending in {', '.join(sorted(ENDINGS))}")
    return found


def split_songs(songs: Sequence[Song], remarks: tuple[str, ...] = ()) -> Songs:
    """Two passages of each song held out, and what is around them to learn from.

    Raises:
        InputError: no song is long enough to be cut.
    """
    train, validation, test = list[Song](), list[Song](), list[Song]()
    gap = round(GAP * RATE)
    for song in songs:
        if song.seconds < SHORT:
            train.append(song)
            continue
        start = 0
        for part, shares in ((validation, VALIDATION), (test, TEST)):
            first, last = (round(share * len(song.waveform)) for share in shares)
            train.append(Song(song.name, song.waveform[start : first - gap]))
            part.append(Song(song.name, song.waveform[first:last]))
            start = last + gap
        train.append(Song(song.name, song.waveform[start:]))
    if not validation:
        raise InputError(f"no song of {SHORT:g} seconds at least, of which a part can be held out: give longer music")
    return Songs(tuple(train), tuple(validation), tuple(test), remarks)


def draw_places(sizes: Float[Tensor, " S"], count: int, generator: Generator) -> list[tuple[int, int]]:
    """Windows drawn uniformly from several songs: the number of the song, and where in it the window begins.

    Args:
        sizes: of each song, at how many places a window may begin.
        count: of windows.
        generator: the source of the draws.

    Example:
        >>> draw_places(torch.tensor([1.0, 0.0]), 2, torch.Generator().manual_seed(0))
        [(0, 0), (0, 0)]
    """
    songs = torch.multinomial(sizes, count, replacement=True, generator=generator).tolist()
    places = torch.rand(count, generator=generator).tolist()
    return [(song, int(place * float(sizes[song]))) for song, place in zip(songs, places, strict=True)]


class Music(Task):
    """Give back a window of sound from its codes; quality is the spectral convergence of the lowest level.

    That is the norm of the difference of the two magnitude spectra, summed over all windows, divided by the sum of the
    norms of the sound's own: 0 is perfect, silence has 1, and soft passages count as little as they are heard. Told as
    well: the same for each level, and signal to noise of the whole part in decibels.

    Args:
        songs: what there is.
        length: samples of a window.
        batch: windows per step.
        seed: of the order of the windows.

    Raises:
        InputError: no piece is longer than a window.
    """

    metric = Metric("spectral convergence", lower_is_better=True, digits=3, items="songs")
    unit = "samples"
    num_classes = 0

    def __init__(self, songs: Songs, *, length: int = 8192, batch: int = 4, seed: int = 0) -> None:
        self.songs, self.length, self.rows, self.seed = songs, length, batch, seed
        self.train = [song.waveform for song in songs.train if len(song.waveform) > length]
        if not self.train or not all(
            any(len(song.waveform) >= length for song in part) for part in (songs.validation, songs.test)
        ):
            raise InputError(f"no song is longer than a window of {length:,} samples in every part: give longer music")
        if not all(any(float(s.waveform.abs().max()) >= SILENT for s in p) for p in (songs.validation, songs.test)):
            raise InputError("a held-out part is nothing but silence: give other music")
        self.sizes = torch.tensor([float(len(waveform) - length) for waveform in self.train])
        windows = [w[first : first + length] for w in self.train for first in range(0, len(w) - length, length)]
        self.judge = SoundLoss(peaks=length // 16, bandwidth=bandwidth(windows), several=RESOLUTIONS)

    def model(
        self, dim: int = 32, depth: int = 3, num_heads: int = 1, mechanism: str = "vqvae", **options: Any
    ) -> nn.Module:
        """A VQ-VAE of two levels; ``dim`` and ``depth`` are those of its stacks.

        Raises:
            UnsupportedError: a mechanism of attention, or several heads.
        """
        if mechanism != "vqvae" or num_heads != 1:
            raise UnsupportedError(
                f"{mechanism} with {num_heads} heads makes no codes of sound: this task is for a vqvae"
            )
        return build_vqvae(dim, depth, **options)

    def batch(self, step: int) -> Batch:
        """Windows drawn uniformly by a generator that depends on seed and step alone."""
        places = draw_places(self.sizes, self.rows, step_generator(self.seed, step))
        windows = torch.stack([self.train[song][start : start + self.length] for song, start in places])[..., None]
        return Batch(windows, windows)

    def held_out(self, part: Part) -> Iterator[Batch]:
        """All whole windows of the held-out passages, in order."""
        for song in self.songs.part(part):
            count = len(song.waveform) // self.length
            windows = song.waveform[: count * self.length].view(count, self.length, 1)
            for rows in windows.split(self.rows):
                if len(rows):
                    sizes = torch.linalg.vector_norm(magnitudes(rows[..., 0], ALONE), dim=(-2, -1)).tolist()
                    yield Batch(rows, rows, units=(song.name,) * len(rows), amounts=tuple(sizes))

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """That of Jukebox."""
        return self.judge(batch.targets, prediction)["loss"]

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, "B K"]:
        """For each window the distances of all levels, the size of its own spectra, and powers of errors and sound."""
        x, y = batch.targets, prediction
        distances = spectral_distance(x.mean(-1), y.mean(-1), ALONE)
        size = spectral_distance(x.mean(-1), torch.zeros_like(x.mean(-1)), ALONE)
        errors, power = (x[:, None] - y).square().sum((-2, -1)), x.square().sum((-2, -1))
        return torch.cat((distances, size[:, None], errors, power[:, None]), -1)

    def tally(self, scores: Float[Tensor, "S K"]) -> tuple[Float[Tensor, " S"], dict[str, float]]:
        """The distances of the lowest level, and both figures of each level."""
        levels = scores.shape[1] // 2 - 1
        sums = scores.sum(0).tolist()
        told: dict[str, float] = {}
        for level in range(levels):
            told[f"spectral convergence, level {level}"] = sums[level] / sums[levels]
            decibels = 10 * math.log10(max(sums[-1], TINY) / max(sums[levels + 1 + level], TINY))
            told[f"signal to noise in dB, level {level}"] = decibels
        return scores[:, 0], told


def build_vqvae(dim: int = 32, depth: int = 3, **options: Any) -> VQVAE:
    """The VQ-VAE of this task; ``dim`` and ``depth`` are those of its stacks, ``options`` further ones of its own."""
    sizes: dict[str, Any] = {"codes": CODES, "code_width": CODE_WIDTH}
    return VQVAE(DOWNS, STRIDES, Residual(dim, depth), **sizes | options)
