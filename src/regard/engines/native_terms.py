"""Score terms in the form that the native kernels read: biases that depend on the difference of two codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.engines.native_library import CDifference, CTerm
from regard.engines.problem import Problem
from regard.scores import Bias, RelativeGrid, Slope, SoftCap, Term, alibi_slopes

_CODED = ("Slope(", "Bias(Relative(", "Bias(T5Buckets(", "Bias(RelativeGrid(")


def reasons(specs: tuple[str, ...]) -> list[str]:
    """Why these terms cannot be served, in words, from their texts."""
    found = [f"it does not know the score term {spec}" for spec in specs if not spec.startswith((*_CODED, "SoftCap("))]
    if sum(spec.startswith("SoftCap(") for spec in specs) > 1:
        found.append("it takes one SoftCap only")
    return found


@dataclass(frozen=True, eq=False)
class Codes:
    """An index (i, j) -> entry as a list over the differences of two codes.

    Attributes:
        entry: of each difference code_query - code_key, the smallest first, Long[length]; for slopes the distance.
        shift: minus the smallest difference.
        query, key: the codes of rows, Long[N] and Long[M]; None where rows are their own codes.
    """

    entry: Tensor
    shift: int
    query: Tensor | None = None
    key: Tensor | None = None


def codes(term: Bias | Slope, n: int, m: int, q_offset: int) -> Codes:
    """The codes of a term's index, for N rows of queries at positions from ``q_offset`` on and M keys."""
    index = term.index if isinstance(term, Bias) else None
    if isinstance(index, RelativeGrid):
        return _grid_codes(index, n, m, q_offset)
    ahead = torch.arange(1 - m, n) + q_offset  # i - j: rows differ by 1 - M ... N - 1
    return Codes(ahead.abs() if index is None else index(ahead, torch.zeros_like(ahead)), m - 1)


def _grid_codes(index: RelativeGrid, n: int, m: int, q_offset: int) -> Codes:
    """Coordinates as digits of a number, 2 side - 1 to an axis, so that no two offsets share a difference."""
    i, j = torch.arange(n) + q_offset, torch.arange(m)
    query, key, entry = torch.zeros_like(i), torch.zeros_like(j), torch.zeros(1, dtype=torch.long)
    shift, inner = 0, math.prod(index.grid)
    for side, reach in zip(index.grid, index.reach, strict=True):
        inner //= side
        query, key = (code * (2 * side - 1) + t // inner % side for code, t in ((query, i), (key, j)))
        shift = shift * (2 * side - 1) + side - 1
        ahead = torch.arange(side - 1, -side, -1)  # c_key - c_query, falling where codes rise
        step = (ahead // index.dilation).clamp(1 - reach, reach - 1) + reach - 1
        entry = (entry[:, None] * (2 * reach - 1) + step).flatten()
    return Codes(entry, shift, query, key)


class NativeTerms:
    """The terms of a problem as C structs, and the way back of their gradients.

    Args:
        problem: whose terms.
        backward: lay values the other way round, for keys along the lanes.
        needs: for each term tensor whether it wants a gradient; none in forward.
        slots: slices of the keys, each of which sums on its own.
    """

    def __init__(
        self, problem: Problem, *, backward: bool = False, needs: tuple[bool, ...] = (), slots: int = 1
    ) -> None:
        self.problem, self.slots = problem, slots
        self.kept: list[Tensor] = []
        self._wanted: list[tuple[Term, Codes, Tensor]] = []
        structs: list[CTerm] = []
        rest = iter(needs)
        for term in problem.terms:
            wanted = [next(rest, False) for _ in term.tensors]
            structs.append(self._struct(term, backward, any(wanted)))
        self.structs = (CTerm * len(structs))(*structs)

    def _struct(self, term: Term, backward: bool, wanted: bool) -> CTerm:
        if isinstance(term, SoftCap):
            return CTerm(term.cap, CDifference())
        assert isinstance(term, Bias | Slope)
        problem = self.problem
        found = codes(term, problem.query.shape[2], problem.key.shape[2], problem.q_offset)
        values = self._values(term, found.entry).to(problem.wide)
        length, shift = len(found.entry), found.shift
        if backward:
            values, shift = values.flip(-1), length - 1 - shift
        fields = CDifference(head=length if len(values) > 1 else 0, shift=shift, length=length)
        fields.values = self._address(values.contiguous())
        fields.query_code = None if found.query is None else self._address(found.query)
        fields.key_code = None if found.key is None else self._address(found.key)
        if wanted:
            shape = (self.slots, *problem.query.shape[:2], length)
            sums = torch.zeros(shape, dtype=problem.wide)
            fields.gradient = self._address(sums)
            self._wanted.append((term, found, sums))
        return CTerm(0.0, fields)

    def _address(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _values(self, term: Bias | Slope, entry: Tensor) -> Tensor:
        """What each difference adds to the score, (H or 1, length)."""
        if isinstance(term, Bias):
            return term.tensors[0][:, entry]
        slopes = term.tensors[0] if term.tensors else alibi_slopes(self.problem.query.shape[1])
        return -slopes.to(self.problem.wide)[:, None] * entry.to(self.problem.wide)

    def gradients(self, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """The gradient of every term tensor that wants one, from what the kernels have summed."""
        sums = {id(term): (found, total) for term, found, total in self._wanted}
        result: list[Tensor | None] = []
        for term in self.problem.terms:
            for tensor in term.tensors:
                if not needs[len(result)]:
                    result.append(None)
                    continue
                found, total = sums[id(term)]
                by_head = total.sum((0, 1)).flip(-1)  # (H, length), rising differences code_query - code_key again
                result.append(_gather(term, tensor, found.entry, by_head).to(tensor.dtype))
        return tuple(result)


def _gather(term: Term, tensor: Tensor, entry: Tensor, by_head: Tensor) -> Tensor:
    """The gradient of a term's tensor from that of its values at every difference."""
    if isinstance(term, Slope):
        return -(by_head * entry.to(by_head.dtype)).sum(-1)
    if len(tensor) == 1:
        by_head = by_head.sum(0, keepdim=True)
    return by_head.new_zeros(tensor.shape).index_add_(1, entry, by_head)
