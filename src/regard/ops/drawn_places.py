"""Places that are drawn by their weights, and how to learn from a draw, through which no gradient flows."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def draw_places(weights: Float[Tensor, "B T L"], generator: Generator | None = None) -> Float[Tensor, "B T L"]:
    """One place for each step, drawn by its weights, as a one-hot row; a row without weights gives some place.

    Example:
        >>> draw_places(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])).tolist()
        [[[0.0, 1.0], [1.0, 0.0]]]
    """
    # of exponential waiting times with these rates, each is the first with a probability in proportion to its rate
    waiting = torch.empty_like(weights).exponential_(generator=generator).clamp(min=torch.finfo(weights.dtype).tiny)
    return one_hot((weights.detach() / waiting).argmax(-1), weights)


def one_hot(place: Tensor, like: Float[Tensor, "B T L"]) -> Float[Tensor, "B T L"]:
    """Rows of one 1, at the places (B, T)."""
    return torch.zeros_like(like).scatter(-1, place[..., None], 1.0)


def score_gradient(
    log_weights: Float[Tensor, "B T L"], chosen: Float[Tensor, "B T L"], reward: Float[Tensor, "B #T"]
) -> Float[Tensor, "B T"]:
    """Numbers of value 0 whose gradient is reward times that of log p(the chosen places): REINFORCE, to be minimised.

    Args:
        log_weights: log alpha.
        chosen: one-hot samples; weights themselves add nothing.
        reward: the loss of the choice, less what was to be expected.

    Example:
        >>> logits = torch.zeros(1, 1, 2, requires_grad=True)
        >>> first = torch.tensor([[[1.0, 0.0]]])
        >>> score_gradient(logits.log_softmax(-1), first, torch.tensor([[4.0]])).sum().backward()
        >>> logits.grad.tolist()
        [[[2.0, -2.0]]]
    """
    told = reward.detach() * (chosen.detach() * log_weights).sum(-1)
    return told - told.detach()


def entropy(log_weights: Float[Tensor, "B T L"]) -> Float[Tensor, "B T"]:
    """H(alpha_t) in nats.

    Example:
        >>> round(entropy(torch.zeros(1, 1, 4).log_softmax(-1)).item(), 4)
        1.3863
    """
    return -(log_weights.exp() * log_weights).sum(-1)
