"""What there is to see of translation: a few held-out sentences, what a model writes, and where it looks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from regard.models.translating import Hypothesis
from regard.registry import UnsupportedError
from regard.tasks.alignment_picture import alignment_picture
from regard.tasks.gallery import Exhibition, Sight
from regard.tasks.translation_scores import sentence_chrf

if TYPE_CHECKING:
    from regard.tasks.translation import Translation

SHOWN = 5
SHORTEST, LONGEST = 5, 16
"""Source tokens of a sentence that is worth looking at and can still be drawn."""

WRITTEN = 24
"""Tokens of a translation that are shown: a model that has learned little does not know when to end."""


class TranslationGallery(Exhibition):
    """Sentences of the test part; answers are greedy translations with their chrF.

    Args:
        task: whose sentences are shown.
    """

    looking = "source words to the right, written words downwards; how much each written word looks at each source word"
    measured = "weights of the last cross attention, mean over heads; darkest at 1"

    def __init__(self, task: "Translation") -> None:
        self.task = task
        text, tokens = task.parts["test"].text, task.parts["test"].source
        fitting = [number for number in task.chosen["test"] if SHORTEST <= len(tokens[number]) <= LONGEST]
        fitting = fitting or task.chosen["test"]
        chosen = [
            fitting[place * len(fitting) // min(SHOWN, len(fitting))] for place in range(min(SHOWN, len(fitting)))
        ]
        self.sentences, self.references = ([side[number] for number in chosen] for side in (text.source, text.target))
        self.inputs = [Sight(sentence) for sentence in self.sentences]
        self.truths = [Sight(sentence) for sentence in self.references]

    def ask(self, model: nn.Module) -> tuple[Sequence[Sight], Sequence[Sight]]:
        """Translate, then look at the alignment of what was written."""
        answers, looked = list[Sight](), list[Sight]()
        found = self.task.hypotheses(model, self.sentences)
        for source, reference, hypothesis in zip(self.sentences, self.references, found, strict=True):
            text = self.task.subwords.decode(hypothesis.tokens)
            shown, more = self.task.subwords.decode(hypothesis.tokens[:WRITTEN]), len(hypothesis.tokens) > WRITTEN
            ending = " ..." * more + " (no end)" * (not hypothesis.finished)
            answers.append(Sight(f"{shown}{ending} (chrF {sentence_chrf(text, reference):.0f})"))
            looked.append(self._looked(model, source, hypothesis))
        return answers, looked

    def _looked(self, model: nn.Module, source: str, found: Hypothesis) -> Sight:
        subwords = self.task.subwords
        written = [*found.tokens, *([subwords.end] if found.finished else [])][:WRITTEN]
        try:
            weights = self.task.align(model, source, found.tokens)[: len(written)]
        except UnsupportedError as error:
            return Sight(str(error))
        columns = subwords.pieces([*subwords.encode(source), subwords.end])
        return Sight(picture=alignment_picture(weights, subwords.pieces(written), columns))
