"""Translation of sentences in subwords; quality is bits per byte of the true translation.

Bits per byte are what a model, given the source, would need to write the target down in an ideal code: they are
comparable between vocabularies, need no search, and move with every step of training. What a search makes of a model,
and BLEU and chrF of it: :mod:`regard.tasks.translation_scores`.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.models.translating import Hypothesis, Translator, beam_search, greedy
from regard.models.translation_model import TranslationModel
from regard.tasks.documents import InputError
from regard.tasks.gallery import Exhibition
from regard.tasks.like_length import batches_of_like_length
from regard.tasks.parallel_text import ParallelSplit, ParallelText
from regard.tasks.subwords import Subwords
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

Beyond = Literal["refuse", "truncate", "leave_out"]

NO_TARGET = -100
"""Stands where there is nothing to predict, as ``torch.nn.functional.cross_entropy`` has it."""

JUDGED: Mapping[Part, int] = {"validation": 256, "test": 1000}
"""Sentences of each part that are judged, where nothing else was asked for."""

JUDGED_TOKENS = 4096
"""Target tokens per batch when judging."""

JITTER = 2.0
"""Sentences whose lengths differ by less than this change places from one pass over the data to the next."""


class TeacherForced(nn.Module):
    """A translator as the trainer calls its models: the target is what it reads, the source its context.

    Args:
        translator: a network ``(src, tgt, *, src_mask, tgt_mask)``, see
            :class:`regard.models.translating.Translator`.
    """

    def __init__(self, translator: nn.Module) -> None:
        super().__init__()
        self.translator = translator
        self._has_aux = "return_aux" in inspect.signature(translator.forward).parameters

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        context: Int[Tensor, "B S"],
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T, V) of the token after each target token; with ``return_aux`` also what there is to tell."""
        told = {"return_aux": True} if return_aux and self._has_aux else {}
        out = self.translator(context, tokens, src_mask=context_mask, tgt_mask=key_mask, **told)
        return (out, {}) if return_aux and not self._has_aux else out


@dataclass(frozen=True)
class _Encoded:
    """Sentences as tokens, without start and end; the pairs of a part that fit."""

    text: ParallelText
    source: list[list[int]]
    target: list[list[int]]

    def __len__(self) -> int:
        return len(self.source)

    def length(self, number: int) -> int:
        """The longer side, with its end."""
        return 1 + max(len(self.source[number]), len(self.target[number]))


class Translation(Task):
    """Predict each subword of a translation from the source and the subwords before it.

    A step reads about ``batch`` x ``length`` target tokens of sentences of like length; a pass over the data has each
    sentence once, in batches that are drawn anew.

    Args:
        split: the sentences.
        subwords: of both languages.
        length: the most tokens of a sentence, its end among them.
        batch: a step has as many tokens as this many sentences of the greatest length.
        seed: of the order.
        beyond: what becomes of longer sentences: "refuse", "truncate" or "leave_out"; ``remarks`` tells.
        judged: how many sentences of each held-out part are judged, spread evenly; None: all.

    Attributes:
        remarks: what was left out or cut, in words.

    Raises:
        InputError: sentences over the limit, or a part without any that fits.
    """

    metric = Metric("bits per byte", lower_is_better=True, digits=3, items="sentences")
    unit = "subwords"
    loss_unit, loss_scale = "bits per subword", 1 / math.log(2)

    def __init__(
        self,
        split: ParallelSplit,
        subwords: Subwords,
        length: int,
        batch: int,
        seed: int,
        *,
        beyond: Beyond = "refuse",
        judged: Mapping[Part, int] | None = JUDGED,
    ) -> None:
        self.subwords, self.length, self.batch_size, self.seed = subwords, length, batch, seed
        self.vocab_size = self.num_classes = len(subwords)
        self.remarks: list[str] = []
        self.train = self._encoded(split.train, "training", beyond)
        parts = {"validation": split.validation, "test": split.test}
        self.parts = {part: self._encoded(text, part, beyond) for part, text in parts.items()}
        self.chosen = {
            part: _spread(len(found), None if judged is None else judged[cast(Part, part)])
            for part, found in self.parts.items()
        }
        self._lengths = torch.tensor([self.train.length(number) for number in range(len(self.train))])
        self.steps_a_pass = max(1, round(float(self._lengths.sum()) / (batch * length)))
        self._pass = lru_cache(maxsize=1)(self._drawn_pass)

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str, **options: Any) -> nn.Module:
        """A Transformer whose cross attention is the mechanism."""
        sizes = (self.vocab_size, dim, depth, num_heads, self.length)
        return TeacherForced(TranslationModel(*sizes, mechanism, **options))

    def blind(self, dim: int, depth: int, num_heads: int) -> nn.Module:
        """The same decoder without a source: what it reaches can be had without translating anything."""
        return TeacherForced(TranslationModel(self.vocab_size, dim, depth, num_heads, self.length, None))

    def batch(self, step: int) -> Batch:
        """Sentences of like length; which ones depends on seed and step alone."""
        number, place = divmod(step, self.steps_a_pass)
        return self._batch(self.train, self._pass(number)[place])

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The judged sentences, the longest first."""
        found = self.parts[part]
        left = sorted(self.chosen[part], key=lambda number: (-found.length(number), number))
        while left:
            rows = max(1, JUDGED_TOKENS // found.length(left[0]))
            numbers, left = left[:rows], left[rows:]
            yield self._batch(found, numbers)

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy of the target's tokens."""
        return F.cross_entropy(prediction.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=NO_TARGET)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """Bits that each target, its end included, would take in an ideal code."""
        nats = F.cross_entropy(prediction.mT.float(), batch.targets, reduction="none", ignore_index=NO_TARGET)
        return nats.double().sum(-1) / math.log(2)

    def gallery(self) -> Exhibition:
        """A few sentences, what a model makes of them, and which source word each word was made of."""
        from regard.tasks.translation_gallery import TranslationGallery

        return TranslationGallery(self)

    def translate(self, model: nn.Module, sentences: Sequence[str], *, beams: int = 1, alpha: float = 0.6) -> list[str]:
        """Sentences in the other language, in the same order; see :func:`translate`."""
        return [self.subwords.decode(one.tokens) for one in self.hypotheses(model, sentences, beams=beams, alpha=alpha)]

    def hypotheses(
        self, model: nn.Module, sentences: Sequence[str], *, beams: int = 1, alpha: float = 0.6
    ) -> list[Hypothesis]:
        """The best translation of each sentence as tokens, greedily or by a search with beams.

        Args:
            model: a translator, or what :meth:`model` returned; asked in eval mode, and left as it was.
            sentences: in the source language; they may be longer than ``length``, unless the mechanism minds.
            beams: 1: greedily.
            alpha: of the length penalty.
        """
        translator = model.translator if isinstance(model, TeacherForced) else model
        place, training = next(translator.parameters()).device, translator.training
        tokens = [[*source, self.subwords.end] for source in self.subwords.encode_all(sentences)]
        order = sorted(range(len(tokens)), key=lambda number: -len(tokens[number]))
        found: dict[int, Hypothesis] = {}
        _ = translator.eval()
        while order:
            rows = max(1, JUDGED_TOKENS // (4 * beams * len(tokens[order[0]])))
            numbers, order = order[:rows], order[rows:]
            src, mask = _padded([tokens[number] for number in numbers], self.subwords.pad)
            options: dict[str, Any] = {
                "src_mask": mask.to(place),
                "start": self.subwords.start,
                "end": self.subwords.end,
            }
            asked = cast(Translator, translator)
            if beams == 1:
                best = greedy(asked, src.to(place), **options)
            else:
                best = [some[0] for some in beam_search(asked, src.to(place), **options, beams=beams, alpha=alpha)]
            found |= zip(numbers, best, strict=True)
        translator.train(training)
        return [found[number] for number in range(len(tokens))]

    def align(self, model: nn.Module, source: str, target: Sequence[int]) -> Float[Tensor, "T S"]:
        """Where each token of a translation, and its end, looks among the tokens of the source and its end."""
        translator = model.translator if isinstance(model, TeacherForced) else model
        place = next(translator.parameters()).device
        src = torch.tensor([[*self.subwords.encode(source), self.subwords.end]], device=place)
        tgt = torch.tensor([[self.subwords.start, *target]], device=place)
        with torch.no_grad():
            return cast(Translator, translator).align(src, tgt)[0].float().cpu()

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(sentences, target tokens) of each part; of the held-out ones those that are judged."""
        parts = {"train": (self.train, range(len(self.train)))}
        parts |= {part: (found, self.chosen[part]) for part, found in self.parts.items()}
        return {part: (len(some), sum(1 + len(found.target[n]) for n in some)) for part, (found, some) in parts.items()}

    def sentences(self, part: Part) -> ParallelText:
        """The judged sentences of a part, as text."""
        return self.parts[part].text.at(self.chosen[part])

    def _batch(self, found: _Encoded, numbers: Sequence[int]) -> Batch:
        pad, start, end = self.subwords.pad, self.subwords.start, self.subwords.end
        context, context_mask = _padded([[*found.source[number], end] for number in numbers], pad)
        tokens, key_mask = _padded([[start, *found.target[number]] for number in numbers], pad)
        targets, _ = _padded([[*found.target[number], end] for number in numbers], NO_TARGET)
        texts = [found.text.target[number] for number in numbers]
        return Batch(
            tokens,
            targets,
            key_mask,
            units=tuple(found.text.groups[number] for number in numbers),
            amounts=tuple(float(len(text.encode()) + 1) for text in texts),
            context=context,
            context_mask=context_mask,
        )

    def _drawn_pass(self, number: int) -> list[list[int]]:
        """The batches of one pass over the data: neighbours by length, in random order."""
        return batches_of_like_length(self._lengths, self.steps_a_pass, JITTER, step_generator(self.seed, number))

    def _encoded(self, text: ParallelText, part: str, beyond: Beyond) -> _Encoded:
        """The sentences that fit, as tokens."""
        room = self.length - 1
        source, target = self.subwords.encode_all(text.source), self.subwords.encode_all(text.target)
        long = [n for n, sides in enumerate(zip(source, target, strict=True)) if max(map(len, sides)) > room]
        if long and beyond == "refuse":
            tokens = 1 + max(len(source[long[0]]), len(target[long[0]]))
            raise InputError(
                f"{len(long):,} {part} sentences have more than --length {self.length:,} subwords, the first (of "
                f"{text.groups[long[0]]}) has {tokens:,}: give a greater --length, or shorten or leave them out"
            )
        if long:
            done = "cut" if beyond == "truncate" else "left out"
            self.remarks.append(f"{len(long):,} {part} sentences of more than {room:,} subwords {done}")
        if beyond == "truncate":
            source, target = ([side[:room] for side in sides] for sides in (source, target))
            cut = {n: (self.subwords.decode(source[n]), self.subwords.decode(target[n])) for n in long}
            pairs = [cut.get(n, pair) for n, pair in enumerate(zip(text.source, text.target, strict=True))]
            text = ParallelText(tuple(one for one, _ in pairs), tuple(other for _, other in pairs), text.groups)
            long = []
        without = set(long)
        kept = [number for number in range(len(source)) if number not in without]
        if not kept:
            raise InputError(f"there is no {part} sentence of at most {room:,} subwords")
        return _Encoded(text.at(kept), [source[number] for number in kept], [target[number] for number in kept])


def _spread(count: int, limit: int | None) -> list[int]:
    """At most ``limit`` of so many numbers, evenly spread."""
    chosen = count if limit is None else min(limit, count)
    return [(2 * number + 1) * count // (2 * chosen) for number in range(chosen)]


def _padded(rows: Sequence[Sequence[int]], filler: int) -> tuple[Int[Tensor, "B N"], Tensor]:
    """Rows of one length, and which of their tokens are real."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    tokens = torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
    return tokens, torch.arange(longest) < lengths[:, None]
