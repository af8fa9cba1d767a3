"""Recognition of recorded speech, character by character; quality is the character error rate of the greedy reading.

A recording is read as log-mel frames. What a step learns from is varied in tempo and masked (:class:`.Variation`);
what is judged is not. Split by the text: what is said in the test part is said nowhere else.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from regard.models.speech_recognizer import SpeechRecognizer, real_frames
from regard.ops.ctc_loss import ctc_loss
from regard.ops.ctc_search import greedy_labels
from regard.tasks.alphabet import Alphabet
from regard.tasks.documents import InputError
from regard.tasks.error_rates import edits
from regard.tasks.like_length import batches_of_like_length
from regard.tasks.speech_data import Prompt, Prompts
from regard.tasks.speech_frames import HOP, Variation, frames_of
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

STRIDE = 4
"""Frames to one state of the recogniser."""

JITTER = 50.0
"""Recordings whose lengths differ by less than half a second change places from one pass to the next."""

JUDGED_FRAMES = 20_000
"""A batch when judging, padding included."""

DEFAULT = Variation()


class Speech(Task):
    """Which characters are said in a recording.

    Args:
        prompts: recordings and texts, see :mod:`regard.tasks.speech_data`.
        sample_rate, num_mels: of the frames.
        seconds: of sound that a step learns from, about.
        seed: of the order and of all variation.
        longest: recordings of more seconds are left out; ``remarks`` tells.
        variation: how the training part is varied; None: not at all.
        ctc_weight: of CTC in the loss; the decoder has the rest.
        alphabet: None: the characters of the training part.

    Attributes:
        alphabet: what can be written.
        parts: the prompts of each part, in a fixed order.
        remarks: what was left out, in words.

    Raises:
        InputError: a part without recordings, or one that cannot be read.
    """

    metric = Metric("character error rate", lower_is_better=True, digits=3, items="recordings")
    unit = "frames"
    loss_unit = "nats per character"

    def __init__(
        self,
        prompts: Prompts,
        *,
        sample_rate: int = 8000,
        num_mels: int = 40,
        seconds: float = 60.0,
        seed: int = 0,
        longest: float = 20.0,
        variation: Variation | None = DEFAULT,
        ctc_weight: float = 0.5,
        alphabet: Alphabet | None = None,
    ) -> None:
        self.sample_rate, self.num_mels, self.seed = sample_rate, num_mels, seed
        self.variation, self.ctc_weight = variation, ctc_weight
        self.length = round(longest / HOP)
        self.remarks = list(prompts.remarks)
        frames = frames_of(prompts.prompts, sample_rate, num_mels, longest)
        kept = self._kept(prompts, frames)
        self._frames = {prompt.name: one for prompt, one in kept}
        self._texts = {prompt.name: prompt.text for prompt, _ in kept}
        self.parts: dict[str, tuple[Prompt, ...]] = {
            part: tuple(prompt for prompt, _ in kept if prompt.part == part) for part in ("train", "validation", "test")
        }
        for part, some in self.parts.items():
            if not some:
                raise InputError(f"{prompts.title}: no recording of the {part} part is left")
        self.alphabet = alphabet or Alphabet.of(prompt.text for prompt in self.parts["train"])
        self.vocab_size = self.num_classes = len(self.alphabet)
        self._lengths = torch.tensor([float(len(self.frames(prompt))) for prompt in self.parts["train"]])
        self.steps_a_pass = max(1, round(float(self._lengths.sum()) * HOP / seconds))
        self._pass = lru_cache(maxsize=1)(self._drawn_pass)

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A recogniser whose encoder attends by the mechanism; ``options`` go to it and to its encoder."""
        fitting: dict[str, Any] = {"sample_rate": self.sample_rate, "num_mels": self.num_mels}
        fitting |= {"ctc_weight": self.ctc_weight, "decoder": None if self.ctc_weight == 1 else "lstm"}
        return SpeechRecognizer(self.vocab_size, dim, depth, num_heads, mechanism, **{**fitting, **options})

    def batch(self, step: int) -> Batch:
        """Recordings of like length, varied; which ones, and how, depends on seed and step alone."""
        number, place = divmod(step, self.steps_a_pass)
        some = [self.parts["train"][one] for one in self._pass(number)[place]]
        frames = [self._frames[prompt.name] for prompt in some]
        if self.variation is not None:
            generator = step_generator(self.seed, step)
            frames = [
                self.variation.apply(one, _least(prompt.text), generator)
                for one, prompt in zip(frames, some, strict=True)
            ]
        return self._batch(some, frames)

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The recordings of a part, the longest first."""
        left = sorted(self.parts[part], key=lambda prompt: (-len(self._frames[prompt.name]), prompt.name))
        while left:
            rows = max(1, JUDGED_FRAMES // len(self._frames[left[0].name]))
            some, left = left[:rows], left[rows:]
            yield self._batch(some, [self._frames[prompt.name] for prompt in some])

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """CTC's loss of a character, weighted; the model adds the decoder's."""
        options: dict[str, Any] = {"frame_mask": real_frames(prediction), "label_mask": batch.context_mask}
        return self.ctc_weight * ctc_loss(prediction, batch.targets, **options)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, "B 3"]:
        """Wrong characters, wrong words, and words of each recording, read greedily."""
        heard = [self.alphabet.decode(labels) for labels in greedy_labels(prediction)]
        found = [edits(self._texts[name], text) for name, text in zip(batch.units, heard, strict=True)]
        return torch.tensor([[one.characters, one.words, one.word_count] for one in found]).double()

    def tally(self, scores: Float[Tensor, "S 3"]) -> tuple[Float[Tensor, " S"], dict[str, float]]:
        """Wrong characters; and the word error rate."""
        return scores[:, 0], {"word error rate": float(scores[:, 1].sum() / scores[:, 2].sum())}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(recordings, frames) of each part."""
        return {
            part: (len(some), sum(len(self._frames[prompt.name]) for prompt in some))
            for part, some in self.parts.items()
        }

    def frames(self, prompt: Prompt) -> Float[Tensor, "T M"]:
        """What is read of a recording."""
        return self._frames[prompt.name]

    def _kept(self, prompts: Prompts, frames: Sequence[Tensor]) -> list[tuple[Prompt, Float[Tensor, "T M"]]]:
        """What can be learned from, and judged; the rest is counted in ``remarks``."""
        slow, fast = prompts.pace
        kept: list[tuple[Prompt, Tensor]] = []
        left_out: Counter[str] = Counter()
        for prompt, one in zip(prompts.prompts, frames, strict=True):
            if not slow <= len(prompt.text) / (len(one) * HOP) <= fast:
                left_out[f"with less than {slow:g} or more than {fast:g} characters a second"] += 1
            elif len(one) > self.length:
                left_out[f"of more than {self.length * HOP:g} s"] += 1
            elif len(one) < _least(prompt.text):
                left_out["said faster than one character in four frames"] += 1
            else:
                kept.append((prompt, one))
        self.remarks += [f"{count:,} {why} left out" for why, count in left_out.items()]
        return kept

    def _batch(self, prompts: Sequence[Prompt], frames: Sequence[Tensor]) -> Batch:
        labels = [torch.tensor(self.alphabet.encode(prompt.text), dtype=torch.long) for prompt in prompts]
        targets, label_mask = _padded(labels)
        tokens, mask = _padded(frames)
        return Batch(
            tokens,
            targets,
            mask,
            units=tuple(prompt.name for prompt in prompts),
            amounts=tuple(float(len(prompt.text)) for prompt in prompts),
            context=targets,
            context_mask=label_mask,
        )

    def _drawn_pass(self, number: int) -> list[list[int]]:
        """The batches of one pass over the data."""
        return batches_of_like_length(self._lengths, self.steps_a_pass, JITTER, step_generator(self.seed, -1 - number))


def _least(text: str) -> int:
    """Frames without which no path says a text: a state for each character, and one between two that are equal."""
    return STRIDE * (len(text) + sum(one == other for one, other in pairwise(text)))


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Bool[Tensor, "B N"]]:
    """Rows of one length, with zeros at their ends, and which places are real."""
    lengths = torch.tensor([len(row) for row in rows])
    return pad_sequence(list(rows), batch_first=True), torch.arange(int(lengths.max())) < lengths[:, None]
