"""What a search over labels asks: which label follows, after those that it has found so far?

A language model here is anything with ``score(prefixes)``, a row of log-probabilities for each beginning: of each of
the C labels and, last, of the end. The column of the blank is -inf. There are two: n-grams, counted in a moment from
the transcripts of a training set, and any network that streams, such as :class:`regard.models.TransformerLM`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from regard.memory import reorder
from regard.models.decoding import Streaming

__all__ = ["NGram", "NeuralLanguageModel", "perplexity"]

START = -1
"""Stands before the first label of a context."""


class NGram:
    """n-grams with Witten-Bell smoothing (Witten and Bell 1991, method C; interpolated)::

        p(c | h) = (count(h c) + distinct(h) p(c | h')) / (count(h) + distinct(h))

    distinct(h) is the number of different labels that were seen after h, and h' is h without its first label. What
    follows an empty h is mixed with a uniform choice among all labels and the end, so nothing is impossible.

    Args:
        counts: for each context of at most n - 1 labels, how often each label, or the end C, came after it.
        num_labels: C.
        order: n.
        blank: the class that is no label; None: there is none.

    Example:
        >>> model = NGram.fit([[1, 2, 1, 2], [1, 2]], num_labels=3, order=2)
        >>> model.score([(1,)]).exp()[0].tolist()  # of the blank, of 1, of 2, of the end
        [0.0, 0.0909..., 0.8409..., 0.0681...]
    """

    def __init__(
        self, counts: dict[tuple[int, ...], Counter[int]], num_labels: int, order: int, blank: int | None = 0
    ) -> None:
        self.counts, self.num_labels, self.order, self.blank = counts, num_labels, order, blank
        self._rows: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def fit(cls, sequences: Iterable[Sequence[int]], num_labels: int, order: int = 4, blank: int | None = 0) -> "NGram":
        """Count what comes after what.

        Args:
            sequences: labels from 0 to C - 1.
            num_labels: C.
            order: n; 1 knows frequencies only.
            blank: the class that is no label.

        Raises:
            ValueError: numbers that mean nothing, or labels that are none.
        """
        if order < 1 or num_labels < 1:
            raise ValueError(f"order={order}, num_labels={num_labels}: 1 at least")
        counts: dict[tuple[int, ...], Counter[int]] = {(): Counter()}
        for sequence in sequences:
            labels = [int(label) for label in sequence]
            if any(not 0 <= label < num_labels or label == blank for label in labels):
                raise ValueError(f"labels {labels[:20]}: each is from 0 to {num_labels - 1} and not the blank {blank}")
            row = (START, *labels)
            for place, label in enumerate([*labels, num_labels]):
                for length in range(min(order - 1, place + 1) + 1):
                    counts.setdefault(row[place + 1 - length : place + 1], Counter())[label] += 1
        return cls(counts, num_labels, order, blank)

    def score(self, prefixes: Sequence[tuple[int, ...]]) -> Float[Tensor, "R F"]:
        """log p of each label after each beginning and, last, of the end; float64."""
        return torch.stack([self._after(self._context(prefix)) for prefix in prefixes])

    def _context(self, prefix: tuple[int, ...]) -> tuple[int, ...]:
        """The longest context that was seen."""
        if self.order == 1:
            return ()
        context = (START, *prefix)[1 - self.order :]
        while context not in self.counts:
            context = context[1:]
        return context

    def _after(self, context: tuple[int, ...]) -> Float[Tensor, " F"]:
        if context in self._rows:
            return self._rows[context]
        seen = self.counts[context]
        if context:
            shorter = context[1:]
            while shorter not in self.counts:
                shorter = shorter[1:]
            below = self._after(shorter).exp()
        else:
            below = torch.ones(self.num_labels + 1, dtype=torch.float64)
            if self.blank is not None:
                below[self.blank] = 0.0
            below = below / below.sum()
        numbers = below.new_zeros(self.num_labels + 1)
        if seen:
            numbers[torch.tensor([*seen.keys()])] = below.new_tensor([*seen.values()])
        total = sum(seen.values()) + len(seen)
        row = ((numbers + len(seen) * below) / total if total else below).log()
        self._rows[context] = row
        return row


class NeuralLanguageModel:
    """A network that reads labels as tokens; what it remembers of each beginning is kept for those that follow it.

    Args:
        model: has ``memory`` and ``stream``, e.g. :class:`regard.models.TransformerLM`; call ``model.eval()`` first.
        num_labels: C; label c is the model's token c.
        start: the token that it reads first.
        end: the token that says that nothing follows.
        blank: the class that is no label; None: there is none.
        most: memories that are kept; beyond these all are let go, and made again where they are needed.

    Example:
        >>> import regard
        >>> model = regard.models.TransformerLM(6, 16, 2, 2, 32).eval()
        >>> NeuralLanguageModel(model, 5, start=5, end=5).score([(), (1, 3)]).shape
        torch.Size([2, 6])
    """

    def __init__(
        self,
        model: Streaming,
        num_labels: int,
        *,
        start: int,
        end: int,
        blank: int | None = 0,
        most: int = 4096,
    ) -> None:
        self.model, self.num_labels, self.start, self.end = model, num_labels, start, end
        self.blank, self.most = blank, most
        self._known: dict[tuple[int, ...], tuple[Tensor, Any]] = {}

    @torch.no_grad()
    def score(self, prefixes: Sequence[tuple[int, ...]]) -> Float[Tensor, "R F"]:
        """log p of each label after each beginning and, last, of the end, each beginning read once."""
        if len(self._known) > self.most:
            self._known.clear()
        missing = {prefix[:length] for prefix in prefixes for length in range(len(prefix) + 1)} - self._known.keys()
        for length in sorted({len(prefix) for prefix in missing}):
            self._read(sorted(prefix for prefix in missing if len(prefix) == length))
        return torch.stack([self._known[prefix][0] for prefix in prefixes])

    def _read(self, prefixes: list[tuple[int, ...]]) -> None:
        """One token more, for beginnings of the same length."""
        device = next((p.device for p in getattr(self.model, "parameters", list[Tensor])()), None)
        tokens = torch.tensor([[prefix[-1] if prefix else self.start] for prefix in prefixes], device=device)
        if prefixes[0]:
            memory = _joined([self._known[prefix[:-1]][1] for prefix in prefixes])
        else:
            memory = self.model.memory(len(prefixes))
        logits, memory = self.model.stream(tokens, memory)
        likely = logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        rows = torch.cat((likely[:, : self.num_labels], likely[:, self.end, None]), 1)
        if self.blank is not None:
            rows[:, self.blank] = -math.inf
        for number, prefix in enumerate(prefixes):
            self._known[prefix] = rows[number], reorder(memory, torch.tensor([number], device=device))


def perplexity(model: NGram | NeuralLanguageModel, sequences: Iterable[Sequence[int]]) -> float:
    """exp of the mean -log p of all labels and ends.

    Example:
        >>> model = NGram.fit([], num_labels=3)  # knows nothing: two labels and the end are alike
        >>> round(perplexity(model, [[1, 2, 2], []]), 6)
        3.0
    """
    total, count = 0.0, 0
    for sequence in sequences:
        labels = tuple(sequence)
        rows = model.score([labels[:length] for length in range(len(labels) + 1)])
        total -= float(rows.gather(1, torch.tensor([*labels, model.num_labels], device=rows.device)[:, None]).sum())
        count += len(labels) + 1
    return math.exp(total / count) if count else math.nan


def _joined(memories: list[Any]) -> Any:
    """Memories of single sequences as that of a batch."""
    flat = [pytree.tree_flatten(memory) for memory in memories]
    return pytree.tree_unflatten(
        [torch.cat(some) for some in zip(*(leaves for leaves, _ in flat), strict=True)], flat[0][1]
    )
