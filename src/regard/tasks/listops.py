"""ListOps, drawn as Long Range Arena draws it (Tay et al. 2021, arXiv:2011.04006; Nangia & Bowman 2018, 1804.06028).

    node(depth) = a digit, uniform in 0-9, with probability 3/4 where depth < 10, and always at depth 10; otherwise
                  [OP node(depth + 1) ... ] with 2 to 10 children and OP in MIN, MAX, MED, SM, both uniform

The root has depth 1. MED is the median, rounded down, SM the sum modulo 10. The length of a digit is 1, of a list 2
more than its children together. An expression is kept if its length lies strictly between two bounds, 500 and 2000 in
the benchmark, and it has not come before. The class is its value. Trees are grown level by level, thousands at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from regard.tasks.sequences import Sequences

DEEPEST, FEWEST, MOST, INNER_SHARE = 10, 2, 10, 0.25
MIN, MAX, MED, SM, END, PAD = range(10, 16)
VOCABULARY = (*map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]", "(pad)")
"""Names of the tokens 0 to 15: digits, operators (with the bracket before them), the closing bracket, padding."""

SIGNS = "0123456789<>~+]."
"""The same, one sign each: < MIN, > MAX, ~ MED, + SM."""

TREES = 1 << 14
"""Drawn at a time."""


@dataclass
class _Level:
    """All nodes of one depth in many trees; children of one parent lie beside each other.

    Attributes:
        tree: the number of the tree that each belongs to.
        parent: its place in the level above.
        operator: MIN, MAX, MED or SM; 0 for a digit.
        children: how many nodes of the level below are its own.
        value, size: of the expression that it stands for; of lists they are found from below.
        place: of its first token, in the stream of all tokens.
    """

    tree: Tensor
    parent: Tensor
    operator: Tensor
    children: Tensor
    value: Tensor
    size: Tensor
    place: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def first_child(self) -> Tensor:
        """The place of each node's first child in the level below."""
        return self.children.cumsum(0) - self.children


def draw_listops(count: int, shortest: int, longest: int, seed: int) -> Sequences:
    """``count`` different expressions with shortest < length < longest, in the order in which they were drawn."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[bytes, int] = {}
    while len(found) < count:
        for tokens, value in _draw(shortest, longest, generator):
            found.setdefault(tokens, value)
    chosen = list(found)[:count]
    return Sequences(
        torch.frombuffer(bytearray(b"".join(chosen)), dtype=torch.uint8),
        torch.tensor([len(tokens) for tokens in chosen]),
        torch.tensor([found[tokens] for tokens in chosen], dtype=torch.uint8),
    )


def evaluate(tokens: Sequence[int]) -> int:
    """The value of an expression, read from left to right; what the labels are held against.

    Raises:
        ValueError: it is not one whole expression.

    Example:
        >>> evaluate([MAX, 2, MED, 9, 4, END, 1, END])  # [MAX 2 [MED 9 4 ] 1 ]
        6
    """
    open_lists: list[list[int]] = [[]]
    for token in tokens:
        if token in (MIN, MAX, MED, SM):
            open_lists.append([token])
        elif token == END and len(open_lists) > 1 and len(open_lists[-1]) > 1:
            operator, *values = open_lists.pop()
            open_lists[-1].append(_apply(operator, sorted(values)))
        elif token < 10:
            open_lists[-1].append(token)
        else:
            raise ValueError(f"{VOCABULARY[token]!r} cannot stand there")
    if len(open_lists) > 1 or len(open_lists[0]) != 1:
        raise ValueError("not one whole expression")
    return open_lists[0][0]


def _apply(operator: int, values: list[int]) -> int:
    if operator == SM:
        return sum(values) % 10
    if operator == MED:
        return (values[(len(values) - 1) // 2] + values[len(values) // 2]) // 2
    return values[0] if operator == MIN else values[-1]


def _draw(shortest: int, longest: int, generator: Generator) -> list[tuple[bytes, int]]:
    """Those of ``TREES`` trees whose length is right, as (tokens, value)."""
    levels, grown = _grow(longest, generator)
    for above, below in zip(levels[-2::-1], levels[:0:-1], strict=True):
        _evaluate(above, below)
    root = levels[0]
    kept = grown & (root.size > shortest) & (root.size < longest)
    sizes = root.size * kept
    root.place = sizes.cumsum(0) - sizes
    stream = torch.full((int(sizes.sum()),), PAD, dtype=torch.uint8)
    for number, level in enumerate(levels):
        if number:
            _place(levels[number - 1], level)
        _write(level, kept[level.tree], stream)
    tokens, ends = stream.numpy().tobytes(), sizes.cumsum(0)[kept].tolist()
    starts = [0, *ends[:-1]]
    return [
        (tokens[start:end], value) for start, end, value in zip(starts, ends, root.value[kept].tolist(), strict=True)
    ]


def _grow(longest: int, generator: Generator) -> tuple[list[_Level], Tensor]:
    """The levels of many trees from the root down, and which trees are whole.

    A tree that is already too long stops growing: it would be thrown away.
    """
    tree, parent = torch.arange(TREES), torch.zeros(TREES, dtype=torch.long)
    grown, nodes = torch.ones(TREES, dtype=torch.bool), torch.zeros(TREES, dtype=torch.long)
    levels: list[_Level] = []
    for depth in range(1, DEEPEST + 1):
        count = (len(tree),)
        inner = torch.rand(count, generator=generator) < (INNER_SHARE if depth < DEEPEST else 0.0)
        operator = torch.randint(MIN, SM + 1, count, generator=generator) * inner
        children = torch.randint(FEWEST, MOST + 1, count, generator=generator) * inner
        value = torch.randint(10, count, generator=generator)
        nodes.index_add_(0, tree, 1 + inner.long())
        grown &= nodes < longest
        children *= grown[tree]
        levels.append(_Level(tree, parent, operator, children, value, torch.ones_like(value)))
        parent = torch.arange(len(tree)).repeat_interleave(children)
        tree = tree[parent]
    return levels, grown


def _evaluate(above: _Level, below: _Level) -> None:
    """Values and sizes of the lists of a level, from their children; those of trees that are not whole mean nothing."""
    lists = above.children > 0
    parent, count = below.parent, above.children[lists]
    above.size[lists] = 2 + torch.zeros_like(above.size).index_add_(0, parent, below.size)[lists]
    ordered = (parent * 10 + below.value).sort().values % 10  # values of each parent's children, in order
    first = above.first_child[lists]
    total = torch.zeros_like(above.value).index_add_(0, parent, below.value)[lists]
    middle = (ordered[first + (count - 1) // 2] + ordered[first + count // 2]) // 2
    results = torch.stack((ordered[first], ordered[first + count - 1], middle, total % 10))
    above.value[lists] = results.gather(0, above.operator[lists][None] - MIN)[0]


def _place(above: _Level, below: _Level) -> None:
    """A child's tokens begin behind its parent's operator and its elder siblings."""
    before = below.size.cumsum(0) - below.size
    first = above.first_child[below.parent]
    below.place = above.place[below.parent] + 1 + before - before[first]


def _write(level: _Level, kept: Tensor, stream: Tensor) -> None:
    """Write the tokens of a level's nodes where they belong."""
    lists = kept & (level.operator > 0)
    stream[level.place[kept]] = torch.where(level.operator > 0, level.operator, level.value)[kept].to(torch.uint8)
    stream[(level.place + level.size - 1)[lists]] = END
