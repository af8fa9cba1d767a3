"""Texts with questions as numbers: a vocabulary of words, batches, and two baselines that do not attend."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.tasks.aspects import Asked, AspectData
from regard.tasks.documents import InputError
from regard.tasks.task import Batch

PAD, START, UNKNOWN = 0, 1, 2


def words_of(text: str) -> list[str]:
    """Lower-case words and signs.

    Example:
        >>> words_of("LOCATION1 isn't cheap!")
        ['location1', "isn't", 'cheap', '!']
    """
    return re.findall(r"\w+(?:'\w+)?|[^\w\s]", text.lower())


class Words:
    """The words that stand in at least ``least`` of some texts, by number; the others are one.

    Args:
        texts: which ones are counted, each once.
        least: how many of them a word must stand in.

    Example:
        >>> words = Words(["a cheap place", "a safe place"])
        >>> len(words), words.numbers_of("a cheap bar", 8)
        (5, [1, 3, 2, 2])
    """

    def __init__(self, texts: Iterable[str], least: int = 2) -> None:
        counts = Counter(word for text in dict.fromkeys(texts) for word in dict.fromkeys(words_of(text)))
        known = sorted(word for word, count in counts.items() if count >= least)
        self.numbers = {word: number for number, word in enumerate(known, start=UNKNOWN + 1)}

    def __len__(self) -> int:
        """The numbers in use: words, padding, start and unknown."""
        return len(self.numbers) + UNKNOWN + 1

    def numbers_of(self, text: str, longest: int, *, truncate: bool = False, where: str = "a text") -> list[int]:
        """Start and words.

        Args:
            text: any text.
            longest: the most numbers.
            truncate: cut longer texts instead of refusing them.
            where: what the message calls the text.

        Raises:
            InputError: a longer text that shall not be cut.
        """
        found = [START, *(self.numbers.get(word, UNKNOWN) for word in words_of(text))]
        if len(found) > longest and not truncate:
            raise InputError(
                f"{where} has {len(found) - 1} words, the limit is {longest - 1}: raise it, or ask to truncate"
            )
        return found[:longest]


class AspectBatches:
    """The questions of a data set as batches; ``context`` holds the number of what is asked.

    Args:
        data: the questions.
        longest: the most tokens of a text.
        truncate: cut longer texts; :attr:`truncated` says how many training, validation and test texts were.
        least: how many training texts a word must stand in to have a number.

    Raises:
        InputError: a text over the limit that shall not be cut.
    """

    def __init__(self, data: AspectData, longest: int, *, truncate: bool = False, least: int = 2) -> None:
        self.data = data
        self.words = Words((asked.text for asked in data.train), least)
        self.parts = {"train": data.train, "validation": data.validation, "test": data.test}
        self.tokens: dict[str, list[list[int]]] = {}
        cut: set[str] = set()
        for part, questions in self.parts.items():
            whole = [len(words_of(asked.text)) + 1 for asked in questions]
            cut |= {asked.text for asked, size in zip(questions, whole, strict=True) if size > longest}
            self.tokens[part] = [
                self.words.numbers_of(asked.text, longest, truncate=truncate, where=asked.unit) for asked in questions
            ]
        self.truncated = len(cut)

    def train(self, rows: int, generator: torch.Generator) -> Iterator[Batch]:
        """Random training batches for ever, each of texts of about one length."""
        sizes = [len(tokens) for tokens in self.tokens["train"]]
        while True:
            order = torch.randperm(len(sizes), generator=generator).tolist()
            pools = [order[start : start + 16 * rows] for start in range(0, len(order), 16 * rows)]
            for pool in pools:
                pool = sorted(pool, key=sizes.__getitem__)
                runs = [pool[start : start + rows] for start in range(0, len(pool), rows)]
                for place in torch.randperm(len(runs), generator=generator).tolist():
                    yield self._batch("train", runs[place])

    def held_out(self, part: str, rows: int = 256) -> Iterator[Batch]:
        """A whole part, in order."""
        count = len(self.parts[part])
        for start in range(0, count, rows):
            yield self._batch(part, range(start, min(start + rows, count)))

    def labels(self, part: str) -> Int[Tensor, " R"]:
        """The right answers of a part, in order."""
        return torch.tensor([asked.label for asked in self.parts[part]])

    def _batch(self, part: str, numbers: Sequence[int]) -> Batch:
        rows = [self.tokens[part][number] for number in numbers]
        asked: list[Asked] = [self.parts[part][number] for number in numbers]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
        targets = torch.tensor([each.label for each in asked])
        contexts = torch.tensor([each.context for each in asked])
        return Batch(tokens, targets, tokens != PAD, tuple(each.unit for each in asked), context=contexts)


def majority(batches: AspectBatches, part: str) -> Float[Tensor, "R K"]:
    """For each question how often it has each answer in training: it never reads the text."""
    data = batches.data
    counts = torch.zeros(len(data.contexts), len(data.labels)).index_put_(
        (torch.tensor([asked.context for asked in data.train]), batches.labels("train")), torch.tensor(1.0), True
    )
    shares = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return shares[torch.tensor([asked.context for asked in batches.parts[part]])]


def bag_of_words(batches: AspectBatches, part: str, *, decay: float = 3e-4, steps: int = 60) -> Float[Tensor, "R K"]:
    """Logistic regression on which words stand in a text, with weights of its own for each question.

    Fitted to the training part by L-BFGS; it starts at 0, so nothing is random.

    Args:
        batches: the data.
        part: whose answers are wanted.
        decay: weight of the mean squared weights beside the mean loss, summed over words.
        steps: of L-BFGS.

    Returns:
        The probability of each answer.
    """
    data = batches.data
    answers = torch.zeros(len(batches.parts[part]), len(data.labels))
    for context in range(len(data.contexts)):
        learnt, asked = _rows(batches, "train", context), _rows(batches, part, context)
        if not learnt or not asked:
            continue
        x, y = _bags(batches, "train", learnt), batches.labels("train")[learnt]
        weight = torch.zeros(len(data.labels), x.shape[1], requires_grad=True)
        bias = torch.zeros(len(data.labels), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

        def loss(
            x: Tensor = x,
            y: Tensor = y,
            weight: Tensor = weight,
            bias: Tensor = bias,
            solver: torch.optim.LBFGS = optimizer,
        ) -> Tensor:
            solver.zero_grad()
            total = F.cross_entropy(F.linear(x, weight, bias), y) + decay * weight.square().sum()
            total.backward()
            return total

        optimizer.step(loss)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            answers[asked] = F.linear(_bags(batches, part, asked), weight, bias).softmax(-1)
    return answers


def _rows(batches: AspectBatches, part: str, context: int) -> list[int]:
    return [number for number, asked in enumerate(batches.parts[part]) if asked.context == context]


def _bags(batches: AspectBatches, part: str, numbers: Sequence[int]) -> Float[Tensor, "R V"]:
    bags = torch.zeros(len(numbers), len(batches.words))
    for row, number in enumerate(numbers):
        bags[row, batches.tokens[part][number]] = 1.0
    return bags
