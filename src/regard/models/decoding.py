"""Text out of a causal model: one token after the other, each drawn from the logits after the last."""

from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor


class Streaming(Protocol):
    """A model that continues from a memory, such as :class:`regard.models.TransformerLM`."""

    def memory(self, batch: int) -> Any:
        """The memory of sequences of which nothing has been seen."""
        ...

    def stream(self, tokens: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Logits (B, N, V) after each of the next tokens (B, N), and the grown memory."""
        ...


@torch.no_grad()
def generate(
    model: Streaming,
    prompt: Int[Tensor, "B N"],
    steps: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: Generator | None = None,
) -> Int[Tensor, "B N+steps"]:
    """Continue a prompt: p(token) = softmax(logits / temperature), among the ``top_k`` likeliest.

    The prompt is read at once, then one token at a time from the model's memory. The model stays in the mode it is in:
    call ``model.eval()`` first where it has dropout.

    Args:
        model: has ``memory`` and ``stream``.
        prompt: at least one token a sequence.
        steps: how many tokens to add.
        temperature: below 1 sharpens; 0 takes the likeliest token.
        top_k: the rest is never drawn.
        generator: the source of the draws.

    Returns:
        The prompt and what follows it.

    Raises:
        ValueError: an empty prompt, or a number out of range.

    Example:
        >>> import regard
        >>> model = regard.models.TransformerLM(256, 16, 2, 2, 64, "local", window=8)
        >>> generate(model, torch.tensor([[72, 105]]), 5).shape
        torch.Size([1, 7])
    """
    if prompt.ndim != 2 or not prompt.shape[1]:
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}: it needs one token at least in each row of (B, N)")
    if steps < 0 or temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"steps={steps}, temperature={temperature}, top_k={top_k}: none may be negative, top_k not 0")
    memory, last, found = model.memory(len(prompt)), prompt, [prompt]
    for _ in range(steps):
        logits, memory = model.stream(last, memory)
        last = draw(logits[:, -1], temperature=temperature, top_k=top_k, generator=generator)
        found.append(last)
    return torch.cat(found, 1)


def draw(
    logits: Float[Tensor, "B V"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator | None = None,
) -> Int[Tensor, "B 1"]:
    """One token a row, by softmax(logits / temperature) among those that are kept.

    Args:
        logits: of all tokens.
        temperature: below 1 sharpens; 0 takes the likeliest token.
        top_k: only the k likeliest are kept.
        top_p: only the likeliest are kept, as few as have this probability together; of those kept by ``top_k``.
        generator: the source of the draws.

    Example:
        >>> draw(torch.tensor([[0.0, 3.0, 1.0]]), temperature=0).tolist()
        [[1]]
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, -1).values[:, -1:], -torch.inf)
    weights = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        likeliest, order = weights.sort(-1, descending=True)
        enough = likeliest.cumsum(-1) - likeliest >= top_p  # those before it have it already
        weights = weights.masked_fill(enough.gather(-1, order.argsort(-1)), 0.0)
    return torch.multinomial(weights, 1, generator=generator)
