"""What can be said of two sentences without a network: how long they are, and which words and numbers they share.

Logistic regressions on a few numbers of each pair, fitted to the training part; and always the same answer.
"""

import re

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.tasks.pairs import PairMatching

FITTED_PAIRS = 8192
"""Training pairs that the regressions see."""

_WORD, _NUMBER = re.compile(r"\w+"), re.compile(r"\d+")


def baselines(task: PairMatching) -> dict[str, float]:
    """The accuracy on the test pairs of what sees no meaning."""
    largest = torch.bincount(task.targets("train"), minlength=task.num_classes).argmax()
    step = max(1, len(task.pairs["train"]) // FITTED_PAIRS)
    known = task.pairs["train"].at(range(0, len(task.pairs["train"]), step))
    answers, asked = task.targets("train")[::step], task.pairs["test"]
    found = {"the most common label": float((task.targets("test") == largest).double().mean())}
    for name, columns in (("length ratio", slice(0, 2)), ("lengths, shared words and numbers", slice(None))):
        learned, judged = (
            torch.tensor([told(*pair) for pair in zip(some.first, some.second, strict=True)])[:, columns]
            for some in (known, asked)
        )
        given = logistic(learned, answers, judged, task.num_classes)
        found[name] = float((given == task.targets("test")).double().mean())
    return found


def told(first: str, second: str) -> list[float]:
    """Numbers that describe a pair: of the lengths, of shared words, and of numbers that both or only one have.

    Example:
        >>> [round(value, 2) for value in told("Press F4 to open 2 files", "Mit F4 werden 2 Dateien geöffnet")]
        [0.29, 0.29, 0.33, 2.0, 1.0, 0.0]
    """
    ratio = len(second) / max(1, len(first))
    length = float(torch.tensor(ratio).clamp(min=1e-3).log())
    one, other = (set(_WORD.findall(text.lower())) for text in (first, second))
    numbers, others = (set(_NUMBER.findall(text)) for text in (first, second))
    shared = len(one & other)
    part = shared / max(1, min(len(one), len(other)))
    return [length, abs(length), part, float(shared), float(numbers == others), float(len(numbers ^ others))]


def logistic(
    known: Float[Tensor, "B F"], answers: Int[Tensor, " B"], asked: Float[Tensor, "A F"], classes: int
) -> Int[Tensor, " A"]:
    """The likeliest class of what is asked, by a logistic regression on standardised numbers.

    Example:
        >>> known, answers = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1])
        >>> logistic(known, answers, torch.tensor([[0.4], [2.6]]), 2).tolist()
        [0, 1]
    """
    mean, spread = known.mean(0), known.std(0).clamp(min=1e-6)
    known, asked = (known - mean) / spread, (asked - mean) / spread
    weight, bias = torch.zeros(classes, known.shape[1]), torch.zeros(classes)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(known, weight, bias), answers) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return F.linear(asked, weight, bias).argmax(-1)
