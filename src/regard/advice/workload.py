"""What is timed: one call of a layer with random weights on random input."""

from typing import Any

import torch

from regard.advice.field import arguments
from regard.advice.question import Question
from regard.bench.turns import Call
from regard.factory import create
from regard.models.on_maps import map_attention
from regard.race.entrants import Entrant


def workload(entrant: Entrant, question: Question) -> Call:
    """A layer and its inputs: the function that calls it once, with the backward pass where that is asked.

    Example:
        >>> workload(Entrant("full"), Question(sides=(4, 5), dim=8, num_heads=2, backward=False))().shape
        torch.Size([1, 8, 4, 5])
    """
    torch.manual_seed(0)
    place: dict[str, Any] = {"device": question.device, "dtype": getattr(torch, question.dtype)}
    make: Any = create if question.space == "sequence" else map_attention
    layer = make(entrant.name, **arguments(entrant, question), **place)
    inputs = [torch.randn(shape, **place) for shape in _shapes(question)]
    if not question.backward:
        layer.eval()
        return torch.no_grad()(lambda: layer(*inputs))
    leaves = [x.requires_grad_() for x in inputs] + [p for p in layer.parameters() if p.requires_grad]
    cotangent = torch.randn(inputs[0].shape, **place)
    return lambda: torch.autograd.grad(layer(*inputs), leaves, cotangent, allow_unused=True)


def _shapes(question: Question) -> list[tuple[int, ...]]:
    batch, dim = question.batch, question.dim
    if question.space == "map":
        return [(batch, dim, *question.sides)]
    return [(batch, length, dim) for length in (question.length, question.context) if length]
