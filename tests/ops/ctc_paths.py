"""CTC by enumeration: every path, what it says, and the slow loops of the papers."""

import itertools
import math

import torch

NEVER = -math.inf


def drawn(*shape, seed=0, sharpness=1.0):
    """Log-probabilities in float64."""
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def added(a, b):
    """log(exp a + exp b)."""
    if NEVER in (a, b):
        return max(a, b)
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def said(path, blank=0):
    """Repetitions merged, blanks dropped."""
    return tuple(c for c, before in zip(path, (None, *path), strict=False) if c not in (before, blank))


def paths(log_probs):
    """Every path of (T, C) and its log-probability."""
    rows = log_probs.tolist()
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(rows)):
        yield path, sum(row[c] for row, c in zip(rows, path, strict=True))


def posteriors(log_probs, blank=0):
    """log p of everything that can be said in (T, C)."""
    found = {}
    for path, score in paths(log_probs):
        labels = said(path, blank)
        found[labels] = added(found.get(labels, NEVER), score)
    return found


def searched(log_probs, beams, *, blank=0, topk=None, floor=None, row_of=None, alpha=0.0, beta=0.0):
    """Prefix beam search of one utterance with dictionaries; ``row_of`` gives a language model's row after a prefix."""
    classes, language = log_probs.shape[1], {(): 0.0}
    beam = {(): (0.0, NEVER)}
    for row in log_probs.tolist():
        tried = sorted(range(classes), key=lambda c: -row[c])[: topk or classes]
        tried = {c for c in tried if floor is None or row[c] >= floor} | {blank}
        new = {}

        def add(labels, kind, score, new=new):
            both = list(new.get(labels, (NEVER, NEVER)))
            both[kind] = added(both[kind], score)
            new[labels] = tuple(both)

        for labels, (b, n) in beam.items():
            for c in tried:
                longer = (*labels, c)
                if c == blank:
                    add(labels, 0, row[c] + added(b, n))
                    continue
                if row_of:
                    language[longer] = language[labels] + row_of(labels)[c]
                if labels[-1:] == (c,):
                    add(labels, 1, row[c] + n)
                add(longer, 1, row[c] + (b if labels[-1:] == (c,) else added(b, n)))

        def score(item):
            return added(*item[1]) + (alpha * language[item[0]] if row_of else 0.0) + beta * len(item[0])

        real = [item for item in new.items() if added(*item[1]) > NEVER]
        beam = dict(sorted(real, key=lambda item: (-round(score(item), 9), item[0]))[:beams])
    total = {labels: score((labels, both)) for labels, both in beam.items()}
    if row_of:
        total = {labels: s + alpha * row_of(labels)[-1] for labels, s in total.items()}
    return [(labels, total[labels], *beam[labels]) for labels in sorted(total, key=lambda y: (-round(total[y], 9), y))]
