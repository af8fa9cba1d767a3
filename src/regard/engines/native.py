"""Native: exact attention over the non-empty tiles of a plan by the CPU kernels of regard-native.

Time follows the allowed pairs, and no number of the scores ever leaves a core's caches. The kernels read tensors as
they lie; nothing of size N x M exists, forward or backward.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from regard.engines import native_dropout, native_library, tile_composite
from regard.engines.native_library import DTYPES, CAttention, CAttentionGradients, CPart, CTensor
from regard.engines.native_plan import native_part
from regard.engines.native_terms import NativeTerms, reasons
from regard.engines.problem import Gradients, Problem, Request, Serves, Shared
from regard.engines.tile_layout import plan_of, serves_all_heads
from regard.patterns.plan import Part

__all__ = ["backward", "composite", "forward", "serves"]


def _also(request: Request) -> list[str]:
    missing = native_library.missing()
    return reasons(request.terms) if missing is None else [missing]


_LARGE = 1 << 22  # bytes from which allocators often hand out fresh pages, rather than some that were used before

serves = Serves(devices=("cpu",), dtypes=tuple(DTYPES), also=_also)


def composite(problem: Problem) -> tuple[Tensor, Tensor]:
    """-> out and lse in differentiable torch operations, under the dropout of the kernels."""
    return tile_composite.composite(problem, native_dropout.drop)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """-> out (B, H, N, Dv) and lse (B, H, N)."""
    call = _Call(problem)
    parts = plan_of(problem).parts
    shape = (*problem.query.shape[:3], problem.value.shape[-1])
    # The first of several parts writes every row if it concerns every head; parts add to each other in the wide dtype.
    written = bool(parts) and serves_all_heads(parts[0], problem)
    out = _room(problem.query, shape, problem.query.dtype if written and len(parts) == 1 else problem.wide)
    lse = torch.empty(shape[:3], dtype=problem.wide)
    if not written:
        out.zero_()
        lse.fill_(-torch.inf)
    call.fields.out = call.tensor(out)
    call.fields.lse = lse.data_ptr()
    call.set_parts(parts, NativeTerms(problem))
    call.run("regard_forward", call.fields)
    return out.to(problem.query.dtype), lse


def _room(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Room for rows, in memory as another tensor is where its rows are whole: what comes next needs no copy."""
    if like.stride(-1) == 1 and like.shape == shape:
        found = torch.empty_like(like, dtype=dtype)
    else:
        found = torch.empty(shape, dtype=dtype)
    if found.nbytes >= _LARGE:
        native_library.library().regard_large_pages(ctypes.c_void_p(found.data_ptr()), ctypes.c_int64(found.nbytes))
    return found


class _Call:
    """The C struct of a problem, and everything it points at."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.kept: list[object] = [problem]
        batch, heads, n, width = problem.query.shape
        groups, m, value_width = problem.value.shape[1:]
        fields = CAttention(batch, heads, groups, n, m, width, value_width)
        fields.query, fields.key, fields.value = map(self.tensor, (problem.query, problem.key, problem.value))
        fields.scale, fields.dropout = problem.scale, problem.dropout_p
        fields.seed = 0 if problem.seed is None else int(problem.seed) & (1 << 64) - 1
        fields.threads = torch.get_num_threads()
        self.fields = fields
        if problem.key_mask is not None:
            fields.key_mask = self._keep(problem.key_mask.tensor.contiguous())
            fields.key_mask_row = self._index(problem.key_mask)
        if problem.attn_mask is not None:
            self._set_attn_mask(problem.attn_mask)

    def tensor(self, tensor: Tensor) -> CTensor:
        """Where the numbers of a tensor lie; it is kept as long as the call."""
        tensor = tensor.resolve_neg()  # views of complex numbers may only say that theirs are negative
        return CTensor(self._keep(tensor), *tensor.stride(), DTYPES[tensor.dtype])

    def _set_attn_mask(self, mask: Shared) -> None:
        tensor = mask.tensor.resolve_neg()
        self.fields.attn_mask_bool = tensor.dtype == torch.bool
        if tensor.dtype != torch.bool:
            tensor = tensor.to(self.problem.wide)
        strides = [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        self.fields.attn_mask = CTensor(self._keep(tensor), *strides, 0)
        self.fields.attn_mask_row = self._index(mask)

    def _keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _index(self, shared: Shared) -> int | None:
        return None if shared.index is None else self._keep(shared.index.contiguous())

    def set_parts(self, parts: tuple[Part, ...], terms: NativeTerms) -> None:
        """What is computed: the parts of the plan, under these terms."""
        found = [native_part(part) for part in parts]
        structs = [part.of(self.problem.query.shape[1]) for part in found]
        array = (CPart * len(parts))(*(fields for fields, _ in structs))
        self.kept += [found, structs, terms]
        self.fields.parts, self.fields.part = len(parts), array
        self.fields.terms, self.fields.term = len(terms.structs), terms.structs

    def run(self, name: str, fields: ctypes.Structure) -> None:
        """Call the library.

        Raises:
            MemoryError: it found no room for its workspace.
        """
        if getattr(native_library.library(), name)(ctypes.byref(fields)):
            raise MemoryError("regard-native found no memory for its workspace of a few tiles a thread")


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None, needs: tuple[bool, ...]
) -> Gradients:
    """Gradients of query, key, value, attn_mask and term tensors, the weights recomputed from lse."""
    call = _Call(problem)
    parts, wide = plan_of(problem).parts, problem.wide
    written = bool(parts) and serves_all_heads(parts[0], problem)  # as in forward
    mask = _MaskGradient(problem, needs[3])
    slots = _slots(problem, call.fields.threads, mask.together)
    if slots == 1:
        grad_query = _room(problem.query, tuple(problem.query.shape), wide)[None]
    else:
        grad_query = torch.empty((slots, *problem.query.shape), dtype=wide)
    grad_key, grad_value = (_room(t, tuple(t.shape), wide) for t in (problem.key, problem.value))
    if not written:
        grad_key.zero_()
        grad_value.zero_()
    mean = torch.empty_like(lse)
    terms = NativeTerms(problem, backward=True, needs=needs[4:], slots=slots)
    call.fields.out, call.fields.lse = call.tensor(out), call._keep(lse.contiguous())
    call.set_parts(parts, terms)
    fields = CAttentionGradients(call=call.fields, grad_out=call.tensor(grad_out))
    fields.grad_lse = None if grad_lse is None else call._keep(grad_lse.to(wide).contiguous().resolve_neg())
    fields.mean = mean.data_ptr()
    fields.query, fields.key, fields.value = map(call.tensor, (grad_query[0], grad_key, grad_value))
    fields.query_slot, fields.slots, fields.accumulate = grad_query.stride(0), slots, not written
    mask.set(fields, slots)
    call.run("regard_backward", fields)
    dtype = problem.query.dtype
    query, key, value = (
        gradient.to(dtype) if need else None
        for gradient, need in zip((grad_query[0], grad_key, grad_value), needs, strict=False)
    )
    return Gradients(query, key, value, mask.result(), terms.gradients(needs[4:]))


def _slots(problem: Problem, threads: int, together: bool) -> int:
    """Slices of the keys that are worked off at the same time: one where there are sequences and heads enough."""
    units = 1 if together else problem.key.shape[0] * problem.key.shape[1]
    return 1 if units >= 2 * threads or units % threads == 0 else threads


class _MaskGradient:
    """The gradient of attn_mask, where one is wanted.

    Attributes:
        together: sequences or heads share entries, so one worker must do all of a slice of the keys.
    """

    def __init__(self, problem: Problem, wanted: bool) -> None:
        self.mask = problem.attn_mask if wanted else None
        self.wide, self.sums = problem.wide, None
        rows = () if self.mask is None else self.mask.tensor.shape[:2]
        self.together = self.mask is not None and tuple(rows) != tuple(problem.query.shape[:2])

    def set(self, fields: CAttentionGradients, slots: int) -> None:
        """Point the kernels at zeros: one set where slices of the keys have entries of their own, else one a slice."""
        if self.mask is None:
            return
        shape = self.mask.tensor.shape
        self.sums = torch.zeros((1 if shape[-1] > 1 else slots, *shape), dtype=self.wide)
        strides = [0 if size == 1 else stride for size, stride in zip(shape, self.sums.stride()[1:], strict=True)]
        fields.attn_mask, fields.together = self.sums.data_ptr(), self.together
        fields.attn_mask_strides = (ctypes.c_int64 * 4)(*strides)
        fields.attn_mask_slot = self.sums.stride(0) if len(self.sums) > 1 else 0

    def result(self) -> Tensor | None:
        """The gradient, shaped like the mask."""
        return None if self.mask is None or self.sums is None else self.sums.sum(0).to(self.mask.tensor.dtype)
