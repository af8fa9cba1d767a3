"""One recording, heard: the text, its words with their times, and what there is to draw of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from regard.cli.speech_model import Recogniser
from regard.models.transcribing import Method, timed_labels, timed_words, transcribe
from regard.ops.ctc_loss import infeasible
from regard.tasks.audio import SILENT, Sound, read_audio
from regard.tasks.documents import InputError, printable
from regard.tasks.speech_picture import SaidWord, speech_picture
from regard.train.fitting import sentence

Decoder = Literal["ctc", "attention", "joint"]

BLANK, END = "∅", "■"
"""As they are written beside a picture: the label that is none, and the end of the text."""

LONGEST = 300.0
"""Seconds of one recording."""


@dataclass(frozen=True)
class Heard:
    """What a recogniser makes of a recording.

    Attributes:
        sound: what was read.
        labels, text: what is said.
        words: with their times and certainties.
        score: of the text, as the search has it: a natural logarithm.
        frames, posteriors, attention: of the picture; no attention without a decoder, or without a text.
        remarks: on the sound and on the text, in words.
    """

    path: Path
    sound: Sound
    labels: tuple[int, ...]
    text: str
    words: tuple[SaidWord, ...]
    score: float
    frames: Float[Tensor, "T M"]
    posteriors: Float[Tensor, "S V"]
    attention: Float[Tensor, "L S"] | None
    remarks: tuple[str, ...]

    def told(self, recogniser: Recogniser, decoder: Decoder, beams: int) -> dict[str, Any]:
        """Everything but the pictures, as JSON."""
        words = [
            {"text": one.text, "start": round(one.start, 3), "end": round(one.end, 3), "confidence": one.confidence}
            for one in self.words
        ]
        return {
            "file": printable(str(self.path)),
            "text": self.text,
            "words": words,
            "seconds": self.sound.seconds,
            "source_rate": self.sound.source_rate,
            "channels": self.sound.channels,
            "clipped": self.sound.clipped,
            "remarks": list(self.remarks),
            "score": self.score,
            "decoder": decoder,
            "beams": beams,
            "model": recogniser.facts,
        }


@torch.no_grad()
def hear(recogniser: Recogniser, path: Path, *, decoder: Decoder, beams: int) -> Heard:
    """Read a file, search for its text, and align the two.

    Args:
        recogniser: a trained one.
        path: of the recording.
        decoder: "ctc", the attention decoder, or both together.
        beams: of the search; 1 with "ctc" reads greedily.

    Raises:
        InputError: a file that cannot be read, or that is longer than ``LONGEST``.
    """
    sound = read_audio(path, recogniser.sample_rate)
    if sound.seconds > LONGEST:
        raise InputError(f"{printable(str(path))} is {sound.seconds:.0f} s long: cut it, {LONGEST:g} s are the most")
    model, remarks = recogniser.model, list(sound.remarks)
    frames, _ = model.log_mel(sound.waveform[None])
    posteriors = model(frames)[0].exp()
    methods: dict[Decoder, Method] = {"ctc": "beam" if beams > 1 else "greedy", "attention": "attention"}
    labels: tuple[int, ...] = ()
    score = 0.0
    if float(sound.waveform.abs().max()) >= SILENT:
        (found,) = transcribe(model, frames, method=methods.get(decoder, "joint"), beams=beams)
        labels, score = found.labels, found.score
    given = torch.tensor([labels], dtype=torch.long)
    words: tuple[SaidWord, ...] = ()
    if labels and bool(infeasible(given, frames=len(posteriors))):
        remarks.append("the text is too long for the recording, so its words have no times")
    elif labels:
        timed = timed_words(timed_labels(model, frames, given)[0], recogniser.alphabet.space)
        words = tuple(
            SaidWord(
                recogniser.alphabet.decode(word.labels), word.start, min(word.end, sound.seconds), word.probability
            )
            for word in timed
        )
    attention = model.attention(frames, given)[0] if labels and model.decoder is not None else None
    text = " ".join(recogniser.alphabet.decode(labels).split())
    return Heard(path, sound, labels, text, words, score, frames[0], posteriors, attention, tuple(remarks))


def draw(recogniser: Recogniser, heard: Heard, form: Literal["png", "svg"]) -> bytes:
    """The picture of a recording; see :func:`regard.tasks.speech_picture.speech_picture`."""
    log_mel, signs = recogniser.model.log_mel, recogniser.alphabet.signs
    return speech_picture(
        heard.frames,
        heard.posteriors,
        [BLANK, *signs],
        heard.words,
        frame_seconds=log_mel.hop / log_mel.sample_rate,
        state_seconds=recogniser.model.frame_seconds,
        attention=heard.attention,
        spelled=[*(signs[label - 1] for label in heard.labels), END],
        title=f"{heard.path.name}: {heard.text}\n{sentence(recogniser.facts)}",
        form=form,
    )
