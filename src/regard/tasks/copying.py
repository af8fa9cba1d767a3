"""Repeating a sequence: the duplication task of Reformer (Kitaev et al. 2020, arXiv:2001.04451, section 4).

    0 w 0 w        with w of length / 2 - 1 symbols, each uniform in 1 to 127

The second w is asked for, symbol by symbol, with everything before it in sight; in the paper w has 511 symbols. A model
must look up what stood length / 2 places earlier: a window that is shorter than that cannot.
"""

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from regard.tasks.documents import InputError
from regard.tasks.drawn import UNASKED, Drawn

SYMBOLS = 127


class Copying(Drawn):
    """See above.

    Args:
        length: tokens of a sequence, an even number from 4 on.
        batch: sequences per step.
        seed: of all sequences.

    Raises:
        InputError: a length that has no half.

    Example:
        >>> task = Copying(length=10, batch=1, seed=0)
        >>> first, second = task.batch(0).tokens[0, 1:5], task.batch(0).targets[0, 5:9]
        >>> bool((first == second).all())
        True
    """

    signs = bytes(range(32, 32 + SYMBOLS + 1))

    def __init__(self, *, length: int, batch: int, seed: int) -> None:
        if length % 2 or length < 4:
            raise InputError(f"--length {length}: 0 w 0 w has an even number of tokens, at least 4")
        super().__init__(length=length, batch=batch, seed=seed)

    def draw(self, rows: int, generator: Generator) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N"]]:
        """0 w 0 w, and the second w alone."""
        zero = torch.zeros(rows, 1, dtype=torch.long)
        w = torch.randint(1, SYMBOLS + 1, (rows, self.length // 2 - 1), generator=generator)
        unasked = torch.full((rows, self.length // 2 + 1), UNASKED)
        return torch.cat((zero, w, zero, w), 1), torch.cat((unasked, w), 1)

    def baselines(self) -> dict[str, float | None]:
        """Any symbol; and the symbol that is most frequent in the first w, everywhere."""
        w = self.part("test")[0][:, 1 : self.length // 2]
        return {"chance": 1 / SYMBOLS, "most frequent symbol": float((w == w.mode(1).values[:, None]).double().mean())}
