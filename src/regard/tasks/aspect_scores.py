"""The figures by which aspect sentiment is published, from labels and probabilities.

Rows are the questions of :mod:`regard.tasks.aspects`: the questions of a unit follow one another, in the order of the
aspects. An aspect is found where another answer than "none" is the likeliest one.

SentiHood: strict accuracy (all aspects of a unit right, their sentiments too), macro F1 (precision and recall of the
aspects found, each averaged over the units that have any), macro AUC of "none" over the aspects; and, where an aspect
is there, accuracy and macro AUC of the sentiment, told from the two probabilities that are left without "none".

SemEval-2014: precision, recall and F1 of all aspects found, over the sentences that have any; and, where an aspect is
there, accuracy of the sentiment over all four, without conflict, and without conflict and neutral.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.tasks.aspects import SEMEVAL_LABELS, AspectData


def aspect_scores(data: AspectData, labels: Int[Tensor, " R"], chances: Float[Tensor, "R K"]) -> dict[str, float]:
    """The figures that are usual for a data set.

    Args:
        data: which data set.
        labels: the right answers, unit by unit.
        chances: the probability of each answer.

    Raises:
        ValueError: shapes that do not fit, or units that are not whole.
    """
    if chances.shape != (len(labels), len(data.labels)) or len(labels) % data.aspects or not len(labels):
        raise ValueError(
            f"{len(labels)} labels and probabilities of {tuple(chances.shape)}: expected (rows, {len(data.labels)}) "
            f"and whole units of {data.aspects} rows"
        )
    score = semeval_scores if data.labels == SEMEVAL_LABELS else sentihood_scores
    return score(labels.view(-1, data.aspects), chances.view(-1, data.aspects, chances.shape[-1]))


def sentihood_scores(labels: Int[Tensor, "U A"], chances: Float[Tensor, "U A 3"]) -> dict[str, float]:
    """Of units of A aspects; the answers are none, positive and negative."""
    found = chances.argmax(-1)
    there, said = labels > 0, found > 0
    with_any = there.any(-1)
    right = (there & said).sum(-1)[with_any].double()
    precision = (right / said.sum(-1)[with_any].clamp(min=1)).mean()
    recall = (right / there.sum(-1)[with_any]).mean()
    negative = chances[..., 2] / (chances[..., 1] + chances[..., 2]).clamp(min=torch.finfo(chances.dtype).tiny)
    return {
        "aspect strict accuracy": float((found == labels).all(-1).double().mean()),
        "aspect macro F1": _f1(float(precision), float(recall)),
        "aspect AUC": _macro_auc([(~there[:, a], chances[:, a, 0]) for a in range(labels.shape[1])]),
        "sentiment accuracy": float(((negative > 0.5) == (labels == 2))[there].double().mean()),
        "sentiment AUC": _macro_auc(
            [(labels[:, a][there[:, a]] == 2, negative[:, a][there[:, a]]) for a in range(labels.shape[1])]
        ),
    }


def semeval_scores(labels: Int[Tensor, "U A"], chances: Float[Tensor, "U A 5"]) -> dict[str, float]:
    """Of sentences of A categories; the answers are positive, neutral, negative, conflict and none."""
    there, said = labels < 4, chances.argmax(-1) < 4
    with_any = there.any(-1, keepdim=True)
    right = float((there & said).sum())
    precision = right / max(1.0, float((said & with_any).sum()))
    recall = right / max(1.0, float(there.sum()))
    found = {"aspect precision": precision, "aspect recall": recall, "aspect F1": _f1(precision, recall)}
    for count, kinds in ((4, (0, 1, 2, 3)), (3, (0, 1, 2)), (2, (0, 2))):
        choices = torch.tensor(kinds, device=labels.device)
        asked = torch.isin(labels, choices)
        answer = choices[chances[..., list(kinds)].argmax(-1)]
        found[f"sentiment accuracy, {count}-way"] = float((answer == labels)[asked].double().mean())
    return found


def auc(positive: Tensor, scores: Tensor) -> float:
    """The area under the curve: how often a positive row has the larger score than a negative one, ties by half.

    NaN where one of the two kinds is missing.

    Example:
        >>> auc(torch.tensor([True, False, False]), torch.tensor([0.5, 0.5, 0.1]))
        0.75
    """
    ordered, place = scores.unique(return_inverse=True)
    yes = torch.bincount(place[positive], minlength=len(ordered)).double()
    no = torch.bincount(place[~positive], minlength=len(ordered)).double()
    below = no.cumsum(0) - no
    pairs = yes.sum() * no.sum()
    return float((yes * (below + no / 2)).sum() / pairs) if pairs else float("nan")


def _macro_auc(kinds: list[tuple[Tensor, Tensor]]) -> float:
    """The mean over aspects, those of which only one kind of row is there left out."""
    areas = torch.tensor([auc(positive, scores) for positive, scores in kinds], dtype=torch.float64)
    return float(areas.nanmean())


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
