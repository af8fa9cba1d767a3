"""The delta rule in the CPU kernels of regard-native: one pass over the tokens of a head, its state in the cache."""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64, c_void_p

import torch
from torch import Tensor

from regard.engines import native_library
from regard.engines.native_library import DTYPES, CTensor
from regard.ops.native_features import CHUNK, as_tensor, run


class CDeltaRule(Structure):
    """``DeltaRule`` of native/cpp/linear_calls.h."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "n", "width", "value_width")),
        ("scale", c_double),
        *((name, CTensor) for name in ("query", "key", "value", "out", "beta")),
        *((name, c_void_p) for name in ("before", "after")),
        ("threads", c_int64),
    ]


class CDeltaGradients(Structure):
    """``DeltaGradients``."""

    _fields_ = [
        ("call", CDeltaRule),
        *((name, CTensor) for name in ("grad_out", "query", "key", "value", "beta")),
        *((name, c_void_p) for name in ("grad_after", "grad_before", "states", "errors")),
    ]


def serves(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> bool:
    """Whether the kernels compute this: numbers of one dtype on the CPU, and a library to call."""
    return (
        q.device.type == "cpu"
        and q.dtype in DTYPES
        and q.dtype == k.dtype == v.dtype == beta.dtype
        and native_library.missing() is None
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, scale: float, out: Tensor
) -> tuple[Tensor, Tensor]:
    """-> ``out``, which is written to, and the state after the last token."""
    state, after = state.contiguous(), torch.empty(state.shape, dtype=state.dtype)
    call = _call(q, k, v, beta, state, scale)
    call.out, call.after = as_tensor(out), after.data_ptr()
    run("regard_delta_forward", call)
    return out, after


def _call(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, scale: float) -> CDeltaRule:
    query, key, value = map(as_tensor, (q, k, v))
    call = CDeltaRule(*q.shape, v.shape[-1], scale, query, key, value)
    call.beta, call.before, call.threads = as_tensor(beta[..., None]), state.data_ptr(), torch.get_num_threads()
    return call


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    grad_out: Tensor,
    grad_state: Tensor,
    room: tuple[Tensor, Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and beta, written to ``room``, and of the state before the first token."""
    state, grad_state, before = state.contiguous(), grad_state.contiguous(), torch.empty(state.shape, dtype=state.dtype)
    chunks = -(-q.shape[2] // CHUNK)
    states = torch.empty(*q.shape[:2], chunks, *state.shape[2:], dtype=state.dtype)
    errors = torch.empty(v.shape, dtype=state.dtype)
    *rows, grad_beta = room
    call = _call(q, k, v, beta, state, scale)
    fields = CDeltaGradients(call, *map(as_tensor, (grad_out, *rows, grad_beta[..., None])))
    fields.grad_after, fields.grad_before = grad_state.data_ptr(), before.data_ptr()
    fields.states, fields.errors = states.data_ptr(), errors.data_ptr()
    run("regard_delta_backward", fields)
    return *room, before
