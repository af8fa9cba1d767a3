"""Visual reasoning: answer a question about an image of coloured shapes, in up to two hops from thing to thing.

Scenes and images are those of :mod:`regard.tasks.scenes`, questions those of :mod:`regard.tasks.scene_questions`; both
say exactly how they are drawn. Every step draws new ones from (seed, step), the held-out parts are drawn from (seed,
part): a model that answers those has learned to look and to reason, not the examples.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.models.mac_network import Dropouts, MACNetwork
from regard.registry import UnsupportedError
from regard.tasks.scene_questions import ANSWERS, KINDS, LONGEST, WORDS, Question, draw_question
from regard.tasks.scenes import SIDE, draw_images
from regard.tasks.task import Batch, Metric, Part, Task, step_generator

HELD_OUT = {"validation": 1024, "test": 4096}
"""Questions of each part; there is no end of them for training."""

JUDGED = 256
"""Questions per batch when judging."""

COUNTED = 4096
"""Training questions that the baseline counts answers in."""

_NUMBERS = {word: number for number, word in enumerate(WORDS)}
_KINDS = tuple(KINDS)


class Reasoning(Task):
    """Questions about scenes; quality is the share of right answers, told for each kind and number of hops as well.

    Batches hold words as ``tokens`` (B, S) with ``key_mask``, images as ``context`` (B, 3, 32, 32), and the numbers of
    the answers as ``targets``.

    Args:
        batch: questions per step.
        seed: of everything.

    Example:
        >>> batch = Reasoning(batch=2, seed=0).batch(0)
        >>> batch.tokens.shape, batch.context.shape
        (torch.Size([2, 15]), torch.Size([2, 3, 32, 32]))
    """

    metric = Metric("accuracy", lower_is_better=False, digits=3, items="questions")
    unit = "words"
    vocab_size = len(WORDS)
    length = LONGEST
    num_classes = len(ANSWERS)

    def __init__(self, *, batch: int, seed: int) -> None:
        self.rows, self.seed = batch, seed

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str = "mac", **options: Any) -> nn.Module:
        """A MAC network of ``depth`` steps, without dropout: no question comes twice.

        Raises:
            UnsupportedError: another mechanism.
        """
        if mechanism != "mac":
            raise UnsupportedError(f"{mechanism} answers no question about an image: this task is for mac")
        sizes: dict[str, Any] = {"dim": dim, "steps": depth, "embedding_dim": dim, "hidden_dim": 2 * dim}
        sizes |= {"channels": 3, "strides": (2, 2, 2), "positions": True, "dropouts": Dropouts(*[0.0] * 6)}
        return MACNetwork(self.vocab_size, self.num_classes, **sizes | options)

    def batch(self, step: int) -> Batch:
        """New questions, each about a scene of its own, from random numbers of this step."""
        return as_batch(self.questions(step, self.rows), step_generator(self.seed, step))

    def held_out(self, part: Part) -> Iterator[Batch]:
        """The same questions every time."""
        questions, generator = self.questions(part, HELD_OUT[part]), step_generator(self.seed, part)
        for first in range(0, len(questions), JUDGED):
            yield as_batch(questions[first : first + JUDGED], generator)

    def questions(self, step: int | Part, count: int) -> list[Question]:
        """What is asked in a step or a part."""
        random = Random(f"{self.seed}:{step}")
        return [draw_question(random) for _ in range(count)]

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction.float(), batch.targets)

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, "B 2"]:
        """Whether each answer is right, and the number of the question's kind, of which :meth:`tally` makes scores."""
        right = (prediction.argmax(-1) == batch.targets).double()
        kinds = torch.tensor([_KINDS.index(unit.split(":")[0]) for unit in batch.units], device=right.device)
        return torch.stack((right, kinds.double()), -1)

    def tally(self, scores: Float[Tensor, "S 2"]) -> tuple[Float[Tensor, " S"], dict[str, float]]:
        """Right or not, and the accuracy of each kind and of each number of hops."""
        right, kinds = scores[:, 0], scores[:, 1].long()
        hops = torch.tensor([KINDS[kind][0] for kind in _KINDS])[kinds]
        told = {f"accuracy, {kind}": right[kinds == number] for number, kind in enumerate(_KINDS)}
        told |= {f"accuracy, hops {number}": right[hops == number] for number in range(3)}
        return right, {name: float(some.mean()) for name, some in told.items() if len(some)}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(questions, pixels) of the held-out parts."""
        return {part: (count, count * SIDE**2) for part, count in HELD_OUT.items()}

    def baselines(self) -> dict[str, float | None]:
        """Test accuracy of the answer that is most frequent for the kind, and for the very words, in training."""
        seen = [question for step in range(COUNTED // self.rows + 1) for question in self.questions(step, self.rows)]
        ways = {"most frequent answer of the kind": _kind, "most frequent answer of the words": _words}
        found: dict[str, float | None] = {}
        for name, way in ways.items():
            counts: dict[object, Counter[str]] = {}
            for question in seen:
                for key in {_kind(question), way(question)}:
                    counts.setdefault(key, Counter())[question.answer] += 1
            test = self.questions("test", HELD_OUT["test"])
            guesses = [counts.get(way(question), counts[_kind(question)]).most_common(1)[0][0] for question in test]
            found[name] = sum(g == q.answer for g, q in zip(guesses, test, strict=True)) / len(test)
        return found

    def digest(self) -> str:
        """sha256 of the test part's words and answers, which tells whether the rules are the same."""
        told = "\n".join(f"{' '.join(q.words)} {q.answer}" for q in self.questions("test", HELD_OUT["test"]))
        return hashlib.sha256(told.encode()).hexdigest()


def as_batch(questions: list[Question], generator: torch.Generator) -> Batch:
    """Questions as tensors; each unit is "kind:number"."""
    tokens = torch.zeros(len(questions), LONGEST, dtype=torch.long)
    for row, question in enumerate(questions):
        tokens[row, : len(question.words)] = torch.tensor([_NUMBERS[word] for word in question.words])
    return Batch(
        tokens,
        torch.tensor([ANSWERS.index(question.answer) for question in questions]),
        tokens != 0,
        tuple(f"{question.kind}:{row}" for row, question in enumerate(questions)),
        (1.0,) * len(questions),
        draw_images([question.scene for question in questions], generator),
    )


def _kind(question: Question) -> object:
    return question.kind


def _words(question: Question) -> object:
    return question.words
