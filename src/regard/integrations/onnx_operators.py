"""What our operators, and a few of torch's, become in an ONNX file: everyday operations that hold for every length.

An exported graph holds ``regard::attend_native`` and its like as single nodes. Before translation each is replaced by
the definition it computes, with symbolic sizes: for attention the whole N x M matrix, whose pattern is worked out from
the positions. What torch's translation lacks of torch's own operators is added here as well.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from regard.engines import CALLS, dense
from regard.engines.packing import unpack
from regard.ops import chunk_attention, delta_rule, feature_attention, feature_sums, tree_attention
from regard.registry import UnsupportedError


def definitions() -> dict[Any, Callable[..., Any]]:
    """Operator -> the same in torch operations that trace with symbolic sizes."""
    aten = torch.ops.aten
    return {
        **{calls.forward: _attend for calls in CALLS.values()},
        feature_attention.OPERATOR: feature_sums.attend,
        chunk_attention.OPERATOR: chunk_attention.at_once,
        delta_rule.OPERATOR: _delta_rule,
        tree_attention.OPERATOR: tree_attention.composite,
        aten.embedding_bag.padding_idx: _embedding_bag,
        aten.cdist.default: _cdist,
        aten.cummax.default: _cummax,
    }


def translations() -> dict[Any, Callable[..., Any]]:
    """Operator of torch -> a function in ONNX's operators, where torch's own translation has none or a broken one."""
    from onnx import TensorProto
    from onnxscript import opset18

    op: Any = opset18

    def sort(x: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
        """TopK of all: among equals it takes the lower place first, which is what stable means."""
        size = op.Shape(x, start=dim, end=dim + 1 if dim != -1 else None)
        return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    def amax(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
        axes = op.Constant(value_ints=list(dim)) if len(dim) else None
        return op.ReduceMax(x, axes, keepdims=int(keepdim))

    def searchsorted(
        row: Any, asked: Any, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
    ) -> Any:
        """How many of the sorted numbers are smaller, or not larger: all are asked."""
        if sorter is not None:
            raise UnsupportedError("searchsorted with a sorter is not translated to ONNX")
        numbers, limits = (
            op.Unsqueeze(row, op.Constant(value_ints=[-2])),
            op.Unsqueeze(asked, op.Constant(value_ints=[-1])),
        )
        below = op.LessOrEqual(numbers, limits) if right or side == "right" else op.Less(numbers, limits)
        kind = TensorProto.INT32 if out_int32 else TensorProto.INT64
        return op.ReduceSum(op.Cast(below, to=kind), op.Constant(value_ints=[-1]), keepdims=0)

    def floordiv(a: Any, b: Any) -> Any:
        """ONNX divides whole numbers towards 0; -(-n // b) is how lengths are rounded up."""
        return op.Div(op.Sub(a, op.Mod(a, b)), b)

    def matmul(a: Any, b: Any) -> Any:
        """Vectors as matrices: onnxruntime 1.32 is wrong where it joins a transposition with a vector's product."""
        rows, columns = len(a.shape) == 1, len(b.shape) == 1
        a = op.Unsqueeze(a, op.Constant(value_ints=[0])) if rows else a
        b = op.Unsqueeze(b, op.Constant(value_ints=[-1])) if columns else b
        found = op.MatMul(a, b)
        found = op.Squeeze(found, op.Constant(value_ints=[-1])) if columns else found
        return op.Squeeze(found, op.Constant(value_ints=[-1 if columns else -2])) if rows else found

    def anywhere(x: Any, dim: int, keepdim: bool = False) -> Any:
        """Counted, for the largest of nothing is not False."""
        count = op.ReduceSum(op.Cast(x, to=TensorProto.INT64), op.Constant(value_ints=[dim]), keepdims=int(keepdim))
        return op.Greater(count, op.Constant(value_int=0))

    return {
        operator.floordiv: floordiv,
        torch.ops.aten.any.dim: anywhere,
        torch.ops.aten.matmul.default: matmul,
        torch.ops.aten.mv.default: matmul,
        torch.ops.aten.sort.stable: sort,
        torch.ops.aten.amax.default: amax,
        torch.ops.aten.searchsorted.Tensor: searchsorted,
    }


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    spec: str,
    q_offset: int | None,
    scale: float | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    if dropout_p:
        raise UnsupportedError(f"dropout_p={dropout_p}: an ONNX file holds a model in evaluation, call eval() first")
    out, lse = dense.composite(unpack(query, key, value, tensors, spec, q_offset, scale, dropout_p))
    return out.reshape(*query.shape[:-1], value.shape[-1]), lse.reshape(query.shape[:-1])


def _delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One token after the other, as ONNX's Scan."""
    rows = (q * scale, k, v, beta[..., None])
    after, out = scan(_write_and_read, state, tuple(t.to(state.dtype).movedim(2, 0) for t in rows))
    return out.movedim(0, 2).to(v.dtype), after


def _write_and_read(state: Tensor, token: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    q, k, v, beta = token
    write = beta * (v - (k[..., None, :] @ state).squeeze(-2))
    state = state + k[..., None] * write[..., None, :]
    return state, (q[..., None, :] @ state).squeeze(-2)


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bags that are summed, each row added to its own bag."""
    if mode != 0 or include_last_offset or padding_idx is not None:
        raise UnsupportedError("of torch's embedding bags only sums without padding are translated to ONNX")
    rows = weight[indices]
    rows = rows if per_sample_weights is None else rows * per_sample_weights[:, None]
    place = torch.arange(indices.shape[0], device=indices.device)
    bag = (place[:, None] >= offsets).sum(-1) - 1
    sums = rows.new_zeros(offsets.shape[0], weight.shape[1]).index_add(0, bag, rows)
    return sums, bag, offsets, offsets


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    differences = x1[..., :, None, :] - x2[..., None, :, :]
    if p == 2.0:
        return differences.square().sum(-1).sqrt()
    return differences.abs().pow(p).sum(-1).pow(1 / p)


def _cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest so far, from the whole matrix of pairs."""
    rows = x.movedim(dim, -1)
    place = torch.arange(rows.shape[-1], device=x.device)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    earlier = rows[..., None, :].masked_fill(place > place[:, None], lowest)
    values = earlier.amax(-1)
    indices = torch.where((earlier == values[..., None]) & (place <= place[:, None]), place, -1).amax(-1)
    return values.movedim(-1, dim), indices.movedim(-1, dim)
