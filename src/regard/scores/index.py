"""Indices: which entry of a learnt table a pair of positions reads. Numbers only, so that they travel as text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

Index = Callable[[Tensor, Tensor], Tensor]


class Relative:
    """The clipped distance j - i, from 0 (keys ``max_distance`` or more behind) to 2 * max_distance.

    Shaw et al. 2018, arXiv:1803.02155, eq. 4.

    Args:
        max_distance: distances beyond it share an entry.

    Example:
        >>> Relative(2)(torch.tensor(5), torch.arange(9)).tolist()
        [0, 0, 0, 0, 1, 2, 3, 4, 4]
    """

    def __init__(self, max_distance: int) -> None:
        if max_distance < 0:
            raise ValueError(f"max_distance is a distance, and {max_distance} is negative")
        self.max_distance = max_distance
        self.size = 2 * max_distance + 1
        self.spec = f"Relative({max_distance})"

    def __repr__(self) -> str:
        return self.spec

    def __call__(self, i: Tensor, j: Tensor) -> Tensor:
        return (j - i).clamp(-self.max_distance, self.max_distance) + self.max_distance


class T5Buckets:
    """T5's buckets: near distances one each, far ones in logarithmic steps up to ``max_distance``.

    Raffel et al. 2020, arXiv:1910.10683, section 2.1, and the formula of the released code.

    Args:
        num_buckets: how many there are; with ``bidirectional`` half of them serve keys ahead.
        max_distance: everything from here on shares the last bucket.
        bidirectional: tell keys ahead from keys behind (encoders); otherwise all keys ahead are at distance 0.

    Example:
        >>> T5Buckets(8, 16, bidirectional=False)(torch.tensor(20), torch.tensor([20, 19, 16, 12, 0])).tolist()
        [0, 1, 4, 6, 7]
    """

    def __init__(self, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> None:
        sides = 2 if bidirectional else 1
        exact = num_buckets // sides // 2
        if exact < 1 or max_distance <= exact:
            raise ValueError(
                f"num_buckets={num_buckets} leaves {exact} exact distances a side, which must be at least 1 and below "
                f"max_distance={max_distance}"
            )
        self.buckets, self.exact = num_buckets // sides, exact
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.size = num_buckets
        self.spec = f"T5Buckets({num_buckets}, {max_distance}, {bidirectional})"

    def __repr__(self) -> str:
        return self.spec

    def __call__(self, i: Tensor, j: Tensor) -> Tensor:
        ahead = j - i
        distance = ahead.abs() if self.bidirectional else (-ahead).clamp(min=0)
        # T5 divides the float32 logarithm first and multiplies then; the order decides at bucket borders.
        logarithm = torch.log(distance.clamp(min=1).float() / self.exact) / math.log(self.max_distance / self.exact)
        far = self.exact + (logarithm * (self.buckets - self.exact)).long()
        bucket = torch.where(distance < self.exact, distance.long(), far.clamp(max=self.buckets - 1))
        return bucket + (ahead > 0).long() * self.buckets if self.bidirectional else bucket


class RelativeGrid:
    """The offset between two places of a row-major grid, as one number: the relative tables of 1-D to 3-D attention.

    Along an axis with reach r (``kernel``, else the side) the offset c_j - c_i in -(r-1) ... r-1 becomes an entry of
    2r - 1, axes combined row-major: the table of NATTEN, of HaloNet and BoTNet, of Swin.

    Args:
        grid: the sides of the grid, e.g. (H, W).
        kernel: how far a query sees along each axis, counted with itself; one number serves all axes.
        dilation: the step of a dilated neighbourhood; offsets are counted in steps.

    Example:
        >>> RelativeGrid((2, 3)).size, RelativeGrid((2, 3))(torch.tensor(0), torch.arange(6)).tolist()
        (15, [7, 8, 9, 12, 13, 14])
    """

    def __init__(self, grid: tuple[int, ...], kernel: int | tuple[int, ...] | None = None, dilation: int = 1) -> None:
        reach = grid if kernel is None else (kernel,) * len(grid) if isinstance(kernel, int) else kernel
        if len(reach) != len(grid) or min(*grid, *reach, dilation) < 1:
            raise ValueError(
                f"grid={grid}, kernel={kernel} and dilation={dilation} must be positive, one entry for an axis"
            )
        self.grid, self.reach, self.dilation = tuple(grid), tuple(reach), dilation
        self.size = math.prod([2 * r - 1 for r in self.reach])  # a list: dynamo follows it
        self.spec = f"RelativeGrid({self.grid!r}, {self.reach!r}, {dilation})"

    def __repr__(self) -> str:
        return self.spec

    def __call__(self, i: Tensor, j: Tensor) -> Tensor:
        index = torch.zeros_like(j - i)
        stride = math.prod(self.grid)
        for side, reach in zip(self.grid, self.reach, strict=True):
            stride //= side
            offset = (j // stride) % side - (i // stride) % side
            entry = (offset // self.dilation).clamp(1 - reach, reach - 1) + reach - 1
            index = index * (2 * reach - 1) + entry
        return index


class OwnIndex:
    """A user's index function; it travels as a number, so it must live as long as its term."""

    alive: ClassVar[WeakValueDictionary[int, Any]] = WeakValueDictionary()
    size = None

    def __init__(self, function: Index) -> None:
        self.function = function
        self.alive[id(function)] = function
        self.spec = f"own_index({id(function)})"

    def __repr__(self) -> str:
        return f"<{getattr(self.function, '__name__', type(self.function).__name__)}>"

    def __call__(self, i: Tensor, j: Tensor) -> Tensor:
        return self.function(i, j)


def own_index(number: int) -> OwnIndex:
    """The user's function with this number."""
    function = OwnIndex.alive.get(number)
    if function is None:
        raise ValueError(
            "the index function of a score term is gone: keep the term, or the function, for as long as it is used"
        )
    return OwnIndex(function)


def as_index(index: Index) -> Any:
    """An index with a ``spec``; functions of the user's own get one."""
    return index if hasattr(index, "spec") else OwnIndex(index)
