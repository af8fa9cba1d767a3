"""Attention by features as one operator, ``regard::feature_attention``: its loops over chunks stand inside.

So a compiled or exported graph holds one node whatever the lengths are. On the CPU they are regard-native's
(:mod:`regard.ops.native_features`), elsewhere and without it torch operations. Time O((N + M) m (D + Dv)) a head,
memory O(m Dv) beside inputs and outputs, in the backward pass too.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad

from regard.engines.transforms import ordinary
from regard.ops import native_features
from regard.ops.feature_gradients import gradients
from regard.ops.feature_sums import FeatureSums, attend
from regard.ops.features import Kind


def feature_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    projection: Float[Tensor, "#H W D"],
    before: FeatureSums,
    *,
    kind: Kind = "softmax",
    causal: bool = False,
    key_mask: Bool[Tensor, "B M"] | None = None,
    eps: float = 0.0,
) -> tuple[Float[Tensor, "B H N Dv"], FeatureSums]:
    """sum_j phi(q_i) . phi(k_j) v_j / (sum_j phi(q_i) . phi(k_j) + eps), with derivatives of any order.

    Args:
        q, k, v: queries, keys and values, heads first; causal, M >= N and the last query stands at the last key.
        projection: the random rows of the features; (1, 0, D) for a kind without.
        before: the sums over keys that come before these.
        kind: which features.
        causal: query i sees the keys up to its own.
        key_mask: True for real keys.
        eps: added to the denominator, for kinds without an exponent.

    Returns:
        One row per query, 0 where all its weights are; and the sums over all keys so far.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4)
        >>> out, sums = feature_attention(q, k, v, torch.randn(1, 7, 4), FeatureSums.start(1, 2, 7, 4))
        >>> out.shape, sums.state.shape
        (torch.Size([1, 2, 5, 4]), torch.Size([1, 2, 7, 5]))
    """
    arguments = (q, k, v, projection, key_mask, kind, causal, eps, *before)
    transformed = not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0 or not ordinary(q, k, v, projection, *before)
    )
    # the operator would drop the tangents of forward mode without a word, and knows no vmap
    out, _, *after = attend(*arguments) if transformed else _attend(*arguments)
    return out, FeatureSums(*after)


@torch.library.custom_op("regard::feature_attention", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    key_mask: Tensor | None,
    kind: str,
    causal: bool,
    eps: float,
    state: Tensor,
    exponent: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (q, k, v, projection, key_mask, kind, causal, eps)
    if native_features.serves(q, k, v, state):
        return native_features.attend(*inputs, state, exponent, out=_rows(q, v))
    # an operator may not return its inputs, which without keys the sums would be
    return attend(*inputs, state.clone(), exponent.clone(), out=_rows(q, v))


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state, exponent = rest[-2:]
    return _rows(q, v), state.new_empty(*q.shape[:3], 1), torch.empty_like(state), torch.empty_like(exponent)


def _rows(q: Tensor, v: Tensor) -> Tensor:
    """Room for a row of values for each query, tokens before heads: the layer joins the heads without a copy."""
    batch, heads, n, _ = q.shape
    return v.new_empty(batch, n, heads, v.shape[-1]).transpose(1, 2)


@torch.library.custom_op("regard::feature_attention_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    key_mask: Tensor | None,
    kind: str,
    causal: bool,
    eps: float,
    state: Tensor,
    exponent: Tensor,
    out: Tensor,
    total: Tensor,
    after_state: Tensor,
    after_exponent: Tensor,
    grad_out: Tensor,
    grad_state: Tensor,
    needs_projection: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (q, k, v, projection, key_mask, kind, causal, eps, state, exponent)
    results = (out, total, after_state, after_exponent, grad_out, grad_state)
    if native_features.serves(q, k, v, state):
        return native_features.gradients(*inputs, *results, needs_projection)
    return gradients(*inputs, *results, needs_projection)


@_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (tensor.new_empty(tensor.transpose(1, 2).shape).transpose(1, 2) for tensor in arguments[:3])
    projection = arguments[3]
    return q, k, v, projection.new_empty(projection.shape if arguments[-1] else 0), torch.empty_like(arguments[8])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.kind, ctx.causal, ctx.eps, state, exponent = inputs
    ctx.save_for_backward(*tensors, state, exponent, *output)


def _derivative(ctx: Any, grad_out: Tensor, _: Any, grad_state: Tensor, __: Any) -> tuple[Tensor | None, ...]:
    *tensors, state, exponent, out, total, after_state, after_exponent = ctx.saved_tensors
    inputs = (*tensors, ctx.kind, ctx.causal, ctx.eps, state, exponent)
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled() and ordinary(grad_out):  # for gradients of gradients
        found = _differentiable(inputs, grad_out, grad_state, needs)
    else:
        results = (out, total, after_state, after_exponent, grad_out, grad_state)
        q, k, v, projection, before = _backward(*inputs, *results, needs[3])
        found = (q, k, v, projection, None, None, None, None, before, None)
    return tuple(slope if need else None for slope, need in zip(found, needs, strict=True))


def _differentiable(
    inputs: tuple[Any, ...], grad_out: Tensor, grad_state: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]
    out, _, state, _ = attend(*inputs)
    slopes = iter(
        torch.autograd.grad((out, state), wanted, (grad_out, grad_state), create_graph=True, materialize_grads=True)
    )
    return tuple(next(slopes) if need else None for need in needs)


_attend.register_autograd(_derivative, setup_context=_keep)

OPERATOR: Any = torch.ops.regard.feature_attention.default
"""As it stands in graphs; :func:`regard.ops.feature_sums.attend` is its definition."""
