"""The delta rule as one operator, ``regard::delta_rule``: a memory whose writes correct what it holds.

Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight Programmers", arXiv:2102.11174, eq. 24 and 25; the
chunked form is that of Yang et al. 2024, arXiv:2406.06484, eq. 8 to 11. For a state S of D x Dv numbers a head::

    S_t = S_(t-1) + k_t beta_t (v_t - S_(t-1)^T k_t)^T        y_t = scale S_t^T q_t

The update comes first, then the reading. In a chunk with the rows K, V, Q and B = diag(beta), exactly::

    A = I + tril(B K K^T, -1)        D = A^(-1) B (V - K S)        Y = scale (Q S + tril(Q K^T) D)        S += K^T D

Time O(N D Dv + N c (D + Dv)) a head in chunks of c tokens; memory O(N (D + Dv) + N / c D Dv).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from regard.engines.operators import autograd_works
from regard.engines.transforms import ordinary
from regard.ops import native_delta_rule

CHUNK = 64
"""Tokens that the torch operations take at a time."""


def delta_rule(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    beta: Float[Tensor, "B H N"],
    state: Float[Tensor, "B H D Dv"] | None = None,
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "B H N Dv"], Float[Tensor, "B H D Dv"]]:
    """y_t = scale S_t^T q_t with S_t = S_(t-1) + k_t beta_t (v_t - S_(t-1)^T k_t)^T; derivatives of any order.

    Args:
        q, k, v: queries, keys and values, heads first. Keys longer than 1 let the state grow without bounds where
            beta |k|^2 > 2: normalise them.
        beta: how much of a key's old value each write replaces, 0 for tokens that do not take part. One number a
            token: with one for each value channel every channel would need a triangular system of its own.
        state: S before the first token, 0 by default.
        scale: of the queries; D^(-1/2) by default.

    Returns:
        One row per token, in the dtype of ``v``; and S after the last token, in float32 at least.

    Raises:
        ValueError: the shapes do not go together.

    Example:
        >>> q = k = v = torch.eye(3)[None, None]
        >>> out, state = delta_rule(q, k, v, torch.ones(1, 1, 3), scale=1.0)
        >>> torch.equal(out, v), torch.equal(state[0, 0], torch.eye(3))
        (True, True)
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    _check(q, k, v, beta, state)
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=wide)
    arguments = (q, k, v, beta, state.to(wide), q.shape[-1] ** -0.5 if scale is None else scale)
    transformed = not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0 or not ordinary(q, k, v, beta, state)
    )
    # the operator would drop the tangents of forward mode without a word, and knows no vmap
    return chunked(*arguments) if transformed else _delta_rule(*arguments)


def _check(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None) -> None:
    shapes = [tuple(t.shape) for t in (q, k, v, beta)]
    if k.shape != q.shape or v.shape[:-1] != q.shape[:-1] or beta.shape != q.shape[:-1]:
        raise ValueError(
            "the delta rule needs q and k (B, H, N, D), v (B, H, N, Dv) and beta (B, H, N), got "
            "q {}, k {}, v {}, beta {}".format(*shapes)
        )
    expected = (*q.shape[:2], q.shape[-1], v.shape[-1])
    if state is not None and state.shape != expected:
        raise ValueError(f"the state has shape {tuple(state.shape)}, but these q and v need {expected}")


def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, scale: float
) -> tuple[Float[Tensor, "B H N Dv"], Float[Tensor, "B H D Dv"]]:
    """The same in differentiable torch operations: all chunks at once but for the state, which passes through them."""
    n, dtype = q.shape[-2], v.dtype
    chunk = min(CHUNK, max(n, 1))
    pad = -n % chunk
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, beta = (t.to(state.dtype) for t in (q * scale, k, v, beta[..., None]))
        # a token with beta 0 leaves the state alone
        q, k, v, beta = (F.pad(t, (0, 0, 0, pad)).unflatten(2, (-1, chunk)) for t in (q, k, v, beta))
        system = (beta * (k @ k.mT)).tril(-1)  # its diagonal of ones is implied below
        sides = torch.linalg.solve_triangular(system, beta * torch.cat((v, k), -1), upper=False, unitriangular=True)
        writes, reads = sides.split((v.shape[-1], k.shape[-1]), -1)
        pairs = (q @ k.mT).tril()
        outs: list[Tensor] = []
        for c in range(q.shape[2]):
            write = writes[:, :, c] - reads[:, :, c] @ state
            outs.append(q[:, :, c] @ state + pairs[:, :, c] @ write)
            state = state + k[:, :, c].mT @ write
    return torch.cat(outs, 2)[:, :, :n].to(dtype) if outs else v.flatten(2, 3).to(dtype), state


@torch.library.custom_op("regard::delta_rule", mutates_args=())
def _delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    if native_delta_rule.serves(q, k, v, beta):
        return native_delta_rule.forward(q, k, v, beta, state, scale, _rows(v))
    out, after = chunked(q, k, v, beta, state, scale)
    # an operator may not return its inputs, which without tokens the state would be
    return _rows(v).copy_(out), after.clone(memory_format=torch.contiguous_format)


@_delta_rule.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _rows(v), state.new_empty(state.shape)


def _rows(like: Tensor) -> Tensor:
    """Room for a row for each token, tokens before heads: the layer joins the heads without a copy."""
    return like.new_empty(like.transpose(1, 2).shape).transpose(1, 2)


@torch.library.custom_op("regard::delta_rule_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    grad_out: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (q, k, v, beta, state)
    if native_delta_rule.serves(q, k, v, beta):
        room = (_rows(q), _rows(k), _rows(v), beta.new_empty(beta.shape))
        return native_delta_rule.backward(*inputs, scale, grad_out, grad_state, room)
    with autograd_works(), torch.enable_grad():
        q, k, v, beta, state = leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        ends = chunked(q, k, v, beta, state, scale)
        q, k, v, beta, state = torch.autograd.grad(ends, leaves, (grad_out, grad_state), materialize_grads=True)
    q, k, v = (_rows(tensor).copy_(tensor) for tensor in (q, k, v))
    return q, k, v, beta.contiguous(), state.clone(memory_format=torch.contiguous_format)


@_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v, beta, state = arguments[:5]
    return _rows(q), _rows(k), _rows(v), beta.new_empty(beta.shape), state.new_empty(state.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _derivative(ctx: Any, grad_out: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, beta, state = inputs = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled() and ordinary(grad_out):  # for gradients of gradients
        wanted = [tensor for tensor, need in zip(inputs, needs, strict=False) if need]
        ends = chunked(q, k, v, beta, state, ctx.scale)
        slopes = iter(
            torch.autograd.grad(ends, wanted, (grad_out, grad_state), create_graph=True, materialize_grads=True)
        )
        return tuple(next(slopes) if need else None for need in needs)
    found = (*_backward(q, k, v, beta, state, ctx.scale, grad_out, grad_state), None)
    return tuple(slope if need else None for slope, need in zip(found, needs, strict=True))


_delta_rule.register_autograd(_derivative, setup_context=_keep)

OPERATOR: Any = torch.ops.regard.delta_rule.default
"""As it stands in graphs."""
