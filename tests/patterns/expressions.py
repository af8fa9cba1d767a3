"""Random pattern expressions, the same for every test that wants some."""

import random

import torch

from regard import patterns as P


def random_pattern(seed: int, length: int, heads: int, depth: int = 2) -> P.Pattern:
    """An expression of primitives that fits ``length`` queries and keys (a multiple of 4, at least 8)."""
    return _expression(random.Random(seed), length, heads, depth)


def _expression(draw: random.Random, length: int, heads: int, depth: int) -> P.Pattern:
    if depth == 0:
        return _primitive(draw, length, heads)
    left, right = (_expression(draw, length, heads, depth - 1) for _ in range(2))
    return draw.choice([lambda: left & right, lambda: left | right, lambda: left & ~right, lambda: left])()


def _primitive(draw: random.Random, length: int, heads: int) -> P.Pattern:
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    grid = (length // 4, 4)
    number = draw.randint
    return draw.choice(
        [
            lambda: P.Full(),
            lambda: P.Causal(),
            lambda: P.Window(number(0, 9)),
            lambda: P.Window(number(0, 20), number(0, 3)),
            lambda: P.Dilated(number(0, 4), number(1, 5)),
            lambda: P.Strided(number(1, 9)),
            lambda: P.Fixed(number(4, 8), number(0, 4)),
            lambda: P.Blocks(number(1, 9), number(0, 2), number(0, 1)),
            lambda: P.Segments(torch.randint(0, 4, (length,), generator=generator).sort().values),
            lambda: P.Segments(torch.randint(0, 3, (2, length), generator=generator)),
            lambda: P.Global(number(0, 4)),
            lambda: P.Global([0, length - 1]),
            lambda: P.Global(torch.rand(2, length, generator=generator) < 0.1),
            lambda: P.BigBird(number(2, 6), number(1, 3), number(0, 3), number(0, 3), number(0, 99)),
            lambda: P.Rows(grid),
            lambda: P.Columns(grid),
            lambda: P.CrissCross(grid),
            lambda: P.Neighborhood(grid, (number(1, 3), number(1, 3)), edge=draw.choice(["shift", "clip"])),
            lambda: P.Halo(grid, 2, number(0, 2)),
            lambda: P.PerHead(*(P.Window(number(0, 9)) if h % 2 else P.Strided(number(1, 4)) for h in range(heads))),
            lambda: P.from_mask(torch.rand(length, length, generator=generator) < 0.3),
            lambda: P.from_blocks(torch.rand(heads, -(-length // 5), -(-length // 5), generator=generator) < 0.4, 5),
        ]
    )()
