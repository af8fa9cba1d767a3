"""Causal sums a run of tokens at a time, so that the features of a run stay in the cache."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

TOKENS_AT_ONCE = 1024

State = TypeVar("State")


def in_token_runs(
    step: Callable[..., tuple[Tensor, State]], tokens: Sequence[Tensor | None], state: State
) -> tuple[Tensor, State]:
    """``step(*tokens, state)`` from run to run: all rows, and the state after the last token.

    A graph that is compiled or exported holds one run of all tokens, whatever their number.

    Args:
        step: computes some tokens from the state before them, -> (out (B, H, n, Dv), the state after them).
        tokens: (B, H, N) or (B, H, N, _) each, (B, N) or None.
        state: before the first token.

    Example:
        >>> def total(x, before):
        ...     sums = before + x.cumsum(2)
        ...     return sums, sums[:, :, -1:]
        >>> in_token_runs(total, [torch.ones(1, 1, 3000, 1)], torch.zeros(1, 1, 1, 1))[1].flatten()
        tensor([3000.])
    """
    first = tokens[0]
    if first is None:
        raise ValueError("the first of the tokens are those of the result")
    if torch.compiler.is_compiling() or first.shape[2] <= TOKENS_AT_ONCE:
        return step(*tokens, state)
    count = -(-first.shape[2] // TOKENS_AT_ONCE)
    cut = [[None] * count if t is None else t.split(TOKENS_AT_ONCE, min(2, t.ndim - 1)) for t in tokens]
    outs: list[Tensor] = []
    runs: Any = zip(*cut, strict=True)
    for run in runs:
        out, state = step(*run, state)
        outs.append(out)
    return torch.cat(outs, 2), state
