"""What needs no source: how well the target's own subwords predict each other, in bits per byte."""

import math
from collections import Counter
from itertools import pairwise

from regard.tasks.translation import Translation


def subword_baselines(task: Translation) -> dict[str, float]:
    """Unigrams and bigrams of the target side of the training part, judged on the judged sentences of the test part.

    Unigram: add one. Bigram: Witten-Bell, p(b|a) = (c(ab) + t(a) p(b)) / (c(a) + t(a)) with t(a) kinds of followers.
    Each sentence begins at its start and is to be ended.
    """
    start, end = task.subwords.start, task.subwords.end
    pairs, single, before, kinds = Counter[tuple[int, int]](), Counter[int](), Counter[int](), Counter[int]()
    for target in task.train.target:
        pairs.update(zip([start, *target], [*target, end], strict=True))
    for (a, b), count in pairs.items():
        single[b] += count
        before[a] += count
        kinds[a] += 1
    total = single.total() + task.vocab_size

    def unigram(b: int) -> float:
        return (single[b] + 1) / total

    def bigram(a: int, b: int) -> float:
        followers = kinds[a] or 1
        return (pairs[a, b] + followers * unigram(b)) / (before[a] + followers)

    bits, amount = {"unigram": 0.0, "bigram": 0.0}, 0
    part = task.parts["test"]
    for number in task.chosen["test"]:
        tokens = [start, *part.target[number], end]
        amount += len(part.text.target[number].encode()) + 1
        for a, b in pairwise(tokens):
            bits["unigram"] -= math.log2(unigram(b))
            bits["bigram"] -= math.log2(bigram(a, b))
    return {name: value / amount for name, value in bits.items()}
