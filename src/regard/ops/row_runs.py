"""Queries a run at a time, for mechanisms that need whole rows of their map: what a run needs stays in the cache."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

NUMBERS_AT_ONCE = 2**21
"""Of a map: 8 MB of float32. Training takes twice as many, for each run adds to the gradients of all keys."""


def by_rows(
    form: Callable[..., Tensor], rows: Sequence[Tensor | None], others: Sequence[Tensor], numbers: int, *, again: bool
) -> Tensor:
    """``form(*rows, *others)``, whose result has a row for each row of its first argument, computed in runs of rows.

    A graph that is compiled or exported holds one run of all rows, whatever their number.

    Args:
        form: what is computed, row by row.
        rows: tensors whose dimension -2 is cut; one with a single row there, or None, belongs to every run.
        others: tensors that every run needs as a whole.
        numbers: how many numbers of the map stand in a row, those of all sequences and heads.
        again: training forms each run once more instead of keeping it; not for what is drawn at random.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
        >>> out = by_rows(lambda q, k, v: (q @ k.mT).softmax(-1) @ v, [q], [k, v], 2 * 5 * 2**20, again=True)
        >>> torch.allclose(out, (q @ k.mT).softmax(-1) @ v, atol=1e-6)
        True
    """
    first = rows[0]
    if first is None:
        raise ValueError("the first of the rows are those of the result")
    count = first.shape[-2]
    training = torch.is_grad_enabled()
    size = max(1, (1 + training) * NUMBERS_AT_ONCE // max(1, numbers))
    if torch.compiler.is_compiling() or size >= count:
        return form(*rows, *others)
    whole = [t is None or t.shape[-2] == 1 for t in rows]
    cut = [() if keep or t is None else t.split(size, -2) for keep, t in zip(whole, rows, strict=True)]
    outs: list[Tensor] = []
    for number in range(-(-count // size)):
        run = [t if keep else parts[number] for keep, t, parts in zip(whole, rows, cut, strict=True)]
        forms_again = again and training
        outs.append(checkpoint(form, *run, *others, use_reentrant=False) if forms_again else form(*run, *others))
    return torch.cat(outs, -2)
