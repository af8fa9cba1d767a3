"""Attention by features in the CPU kernels of regard-native, forward and backward: one pass over the tokens of a head.

What :mod:`regard.ops.feature_sums` and :mod:`regard.ops.feature_gradients` do in torch operations, chunk by chunk, is
done here for one head at a time, whose sums and features stay in a core's cache.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_double, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.engines import native_library
from regard.engines.native_library import DTYPES, CTensor
from regard.ops.feature_sums import Inputs

KINDS = {"elu": 0, "relu": 1, "softmax": 2, "symmetric": 3}
CHUNK = 64
"""Tokens that a kernel takes at a time."""
ROW_BYTES = 64
"""What the length of a projection's rows is rounded up to."""


class CFeatureAttention(Structure):
    """``FeatureAttention`` of native/cpp/linear_calls.h."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "n", "m", "width", "value_width", "features", "rows")),
        *((name, c_int64) for name in ("kind", "causal")),
        ("eps", c_double),
        *((name, CTensor) for name in ("query", "key", "value", "out")),
        *((name, c_void_p) for name in ("key_mask", "projection")),
        ("projection_head", c_int64),
        *((name, c_void_p) for name in ("before", "exponent_before", "after", "exponent_after", "total")),
        ("threads", c_int64),
    ]


class CFeatureGradients(Structure):
    """``FeatureGradients``."""

    _fields_ = [
        ("call", CFeatureAttention),
        *((name, CTensor) for name in ("grad_out", "query", "key", "value")),
        *((name, c_void_p) for name in ("grad_after", "grad_before", "projection", "exponents", "totals")),
    ]


def serves(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> bool:
    """Whether the kernels compute this: numbers of one dtype on the CPU, and a library to call."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return (
        q.device.type == "cpu"
        and q.dtype in DTYPES
        and q.dtype == k.dtype == v.dtype
        and state.dtype == dtype
        and native_library.missing() is None
    )


def as_tensor(tensor: Tensor) -> CTensor:
    """Where a tensor of four dimensions lies."""
    return CTensor(tensor.data_ptr(), *tensor.stride(), DTYPES[tensor.dtype])


def run(name: str, fields: Structure) -> None:
    """Call the library.

    Raises:
        MemoryError: it found no room for its workspace.
    """
    if getattr(native_library.library(), name)(ctypes.byref(fields)):
        raise MemoryError("regard-native found no memory for its workspace of a few chunks and states a thread")


class _Call:
    """The C struct of a call, and everything it points at."""

    def __init__(self, inputs: Inputs, state: Tensor, exponent: Tensor) -> None:
        q, k, v = inputs[:3]
        self.kept: list[Tensor] = []
        self.wide = state.dtype
        rows = inputs.projection.shape[-2]
        fields = CFeatureAttention(*q.shape[:3], k.shape[2], q.shape[3], v.shape[3], state.shape[2], rows)
        fields.kind, fields.causal, fields.eps = KINDS[inputs.kind], inputs.causal, inputs.eps
        fields.query, fields.key, fields.value = map(as_tensor, (q, k, v))
        if inputs.key_mask is not None:
            fields.key_mask = self.keep(inputs.key_mask)
        projection = F.pad(inputs.projection.to(self.wide), (0, -q.shape[3] % (ROW_BYTES // self.wide.itemsize)))
        fields.projection = self.keep(projection)
        fields.projection_head = projection[0].numel() if len(projection) > 1 else 0
        fields.before, fields.exponent_before = self.keep(state), self.keep(exponent)
        fields.threads = torch.get_num_threads()
        self.fields, self.padded = fields, projection.shape[-1]

    def keep(self, tensor: Tensor) -> int:
        """The address of a tensor's numbers in a row."""
        self.kept.append(tensor.contiguous())
        return self.kept[-1].data_ptr()


def attend(*arguments: Any, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :func:`regard.ops.feature_sums.attend` returns, for the same arguments; ``out`` is written to."""
    inputs, (state, exponent) = Inputs(*arguments[:8]), arguments[8:]
    call = _Call(inputs, state, exponent)
    after, exponent_after = (torch.empty(t.shape, dtype=call.wide) for t in (state, exponent))
    total = torch.empty(*inputs.q.shape[:3], 1, dtype=call.wide)
    call.fields.out, call.fields.total = as_tensor(out), total.data_ptr()
    call.fields.after, call.fields.exponent_after = after.data_ptr(), exponent_after.data_ptr()
    run("regard_linear_forward", call.fields)
    return out, total, after, exponent_after


def gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What :func:`regard.ops.feature_gradients.gradients` returns, for the same arguments."""
    inputs, (state, exponent) = Inputs(*arguments[:8]), arguments[8:10]
    out, total, after, exponent_after, grad_out, grad_state, needs_projection = arguments[10:]
    call = _Call(inputs, state, exponent)
    batch, heads, n, width = inputs.q.shape
    q, k, v = (t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in inputs[:3])
    grad_before = torch.empty(state.shape, dtype=call.wide)
    totals = torch.empty(total.shape, dtype=call.wide)
    exponents = torch.empty(batch, heads, -(-n // CHUNK), dtype=call.wide)
    call.fields.out, call.fields.total = as_tensor(out), call.keep(total)
    call.fields.after, call.fields.exponent_after = call.keep(after), call.keep(exponent_after)
    fields = CFeatureGradients(call.fields, *map(as_tensor, (grad_out, q, k, v)))
    fields.grad_after, fields.grad_before = call.keep(grad_state), grad_before.data_ptr()
    fields.exponents, fields.totals = exponents.data_ptr(), totals.data_ptr()
    projection, rows = inputs.projection.new_empty(0), inputs.projection.shape[1]
    sums = torch.zeros(batch, heads, rows if needs_projection else 0, call.padded, dtype=call.wide)
    if needs_projection and rows:
        fields.projection = sums.data_ptr()
    run("regard_linear_backward", fields)
    if needs_projection:  # of W x, where x~ = x / D^(1/4)
        projection = (sums[..., :width].sum(0) * width**-0.25).sum_to_size(inputs.projection.shape)
        projection = projection.to(inputs.projection.dtype)
    return q, k, v, projection, grad_before
