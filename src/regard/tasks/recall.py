"""Associative recall: pairs of a key and a value, then the same keys in another order, each asking for its value.

    k1 v1 k2 v2 ... kP vP   q1 a1 q2 a2 ... qP aP         P = length / 4

The keys of a sequence are P different letters of 52, in random order; the values are uniform in 42 other signs, so two
keys may have the same. (q1 ... qP) is another random order of the keys; each answer is asked for right behind its
query, and then stands there for all to see. (Multi-query recall as in Arora et al. 2023, arXiv:2312.04927, with every
key asked once.)
"""

import string

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from regard.tasks.documents import InputError
from regard.tasks.drawn import UNASKED, Drawn

KEYS, VALUES = string.ascii_letters, string.digits + string.punctuation


class Recall(Drawn):
    """See above.

    Args:
        length: tokens of a sequence, a multiple of 4 up to 208.
        batch: sequences per step.
        seed: of all sequences.

    Raises:
        InputError: a length that has no quarter, or more pairs than keys.

    Example:
        >>> task = Recall(length=12, batch=1, seed=0)
        >>> batch = task.batch(0)
        >>> [place for place, target in enumerate(batch.targets[0].tolist()) if target >= 0]
        [6, 8, 10]
    """

    signs = (KEYS + VALUES).encode()

    def __init__(self, *, length: int, batch: int, seed: int) -> None:
        if length % 4 or not 4 <= length <= 4 * len(KEYS):
            raise InputError(
                f"--length {length}: pairs and queries take four tokens a key, so a multiple of 4 up to {4 * len(KEYS)}"
            )
        super().__init__(length=length, batch=batch, seed=seed)

    def draw(self, rows: int, generator: Generator) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N"]]:
        """Pairs, queries and answers; and the answers alone."""
        pairs = self.length // 4
        keys = torch.rand(rows, len(KEYS), generator=generator).argsort(1)[:, :pairs]
        values = torch.randint(len(KEYS), self.vocab_size, (rows, pairs), generator=generator)
        order = torch.rand(rows, pairs, generator=generator).argsort(1)
        queries, answers = keys.gather(1, order), values.gather(1, order)
        told = torch.full_like(keys, UNASKED)
        tokens = torch.cat((_in_turns(keys, values), _in_turns(queries, answers)), 1)
        return tokens, torch.cat((_in_turns(told, told), _in_turns(told, answers)), 1)

    def baselines(self) -> dict[str, float | None]:
        """Any value; and the value that is most frequent among the pairs, everywhere."""
        values = self.part("test")[0][:, 1 : self.length // 2 : 2]
        most = float((values == values.mode(1).values[:, None]).double().mean())
        return {"chance": 1 / len(VALUES), "most frequent value": most}


def _in_turns(left: Tensor, right: Tensor) -> Tensor:
    """left[0] right[0] left[1] right[1] ..."""
    return torch.stack((left, right), -1).flatten(1)
