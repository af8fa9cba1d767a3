"""Softmax attention over a binary tree of spans: tokens read nodes near and far, spans read their own tokens.

Reading is one opaque operator, ``regard::tree_attention``, and one for its backward pass: a compiled or exported graph
holds a single node whatever the length is. It works off one look after the other (one level to one side), whose scores
are products of blocks, and joins them; the backward pass forms the scores of each look again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.autograd import forward_ad

from regard.engines.joining import merge
from regard.engines.transforms import ordinary
from regard.ops.binary_tree import Look, level_sizes, looks, span_counts, span_means, spread, strays

NOTHING = -1e30
"""The logsumexp of no keys at all: finite, so that differences of it are numbers."""


class Tree(NamedTuple):
    """How a tree is read.

    Attributes:
        step: nodes on each level and side.
        clip: levels from this one on share their labels.
        causal: only to the left.
        lengths: (B,), of each text; where given, the authors' stray edges are read as well.
    """

    step: int
    clip: int = 0
    causal: bool = False
    lengths: Tensor | None = None


def read_tree(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    tree: Tree,
    *,
    mask: Bool[Tensor, "B M"] | None = None,
    table: Float[Tensor, "R D"] | None = None,
    attn_drop: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """What each token reads: softmax over the nodes of :mod:`regard.ops.binary_tree` of q . (k + a) / sqrt(D).

    Accumulates in float32 at least, and has derivatives of any order.

    Args:
        q: queries of the N tokens.
        k, v: keys and values of all nodes, M = V; or of the tokens alone, M = N: then those of a span are the means
            over its real tokens.
        tree: how it is read.
        mask: True for real nodes, or tokens.
        table: a, one row for each label.
        attn_drop, generator: dropout on the weights, and what draws it.

    Returns:
        One row a token, 0 where it reads nothing.
    """
    seed = None
    if attn_drop:
        seed = torch.randint(1 << 62, (), generator=generator, device="cpu" if generator is None else generator.device)
    table = None if table is None else table.to(q.dtype)
    arguments = (q, k, v, mask, table, tree.lengths, seed, tree.step, tree.clip, tree.causal, attn_drop)
    transformed = not torch.compiler.is_compiling() and (forward_ad._current_level >= 0 or not ordinary(q, k, v))
    # the operator would drop the tangents of forward mode without a word, and knows no vmap
    return (composite if transformed else _operator)(*arguments)[0]


def read_spans(
    q: Float[Tensor, "B H S D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    *,
    mask: Bool[Tensor, "B N"] | None = None,
    drop: Callable[[Tensor], Tensor] = lambda weights: weights,
) -> Float[Tensor, "B H S Dv"]:
    """What each of the S = V - N spans reads: softmax over its own tokens, which all carry the same label.

    Args:
        q: queries of the spans, level by level.
        k, v: keys and values of the tokens.
        mask: True for real tokens.
        drop: dropout on the weights.

    Returns:
        One row a span, 0 where it has no real token.
    """
    n, outs = k.shape[2], list[Tensor]()
    real = torch.ones(1, n, dtype=torch.bool, device=q.device) if mask is None else mask
    sizes = level_sizes(n)[1:]
    for level, asking in enumerate(q.split(sizes, 2), 1):
        fill = (asking.shape[2] << level) - n
        keys, values = (F.pad(t, (0, 0, 0, fill)).unflatten(2, (-1, 1 << level)) for t in (k, v))
        there = F.pad(real, (0, fill)).unflatten(1, (-1, 1 << level))[:, None, :, None]
        scores = (asking[..., None, :] * asking.shape[-1] ** -0.5) @ keys.mT
        weights = scores.masked_fill(~there, torch.finfo(scores.dtype).min).softmax(-1) * there
        outs.append((drop(weights) @ values).squeeze(-2))
    return torch.cat(outs, 2) if outs else v[:, :, :0]


def _nodes(k: Tensor, v: Tensor, mask: Tensor | None, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of all nodes, in float32 at least, and which nodes are real."""
    k, v = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (k, v))
    if k.shape[2] == n and n > 1:
        (k, real), (v, _) = span_means(k, mask), span_means(v, mask)
        return k, v, real
    return k, v, torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device) if mask is None else mask


def _looks(n: int, lengths: Tensor | None, step: int, clip: int, causal: bool, device: torch.device) -> list[Look]:
    found = looks(n, step, clip, causal, device)
    return found if lengths is None or causal else found + strays(n, lengths, step, clip)


def _keep(scores: Tensor, seed: Tensor | None, number: int, drop: float) -> Tensor | None:
    """What is left of each weight by dropout: 0 or 1 / (1 - drop)."""
    if seed is None:
        return None
    generator = Generator(scores.device).manual_seed(int(seed) + number)
    return torch.empty_like(scores).bernoulli_(1 - drop, generator=generator).div_(1 - drop)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    table: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    step: int,
    clip: int,
    causal: bool,
    drop: float,
) -> tuple[Tensor, Tensor]:
    """Out (B, H, N, Dv) and its logsumexp (B, H, N)."""
    n = q.shape[2]
    keys, values, real = _nodes(k, v, mask, n)
    asking = q.to(keys.dtype) * q.shape[-1] ** -0.5
    rows = None if table is None else table.to(keys.dtype)
    out, lse = keys.new_zeros(*q.shape[:3], v.shape[-1]), keys.new_full(q.shape[:3], NOTHING)
    for number, look in enumerate(_looks(n, lengths, step, clip, causal, q.device)):
        scores = look.scores(look.blocks(asking), keys, real, rows)
        top = scores.amax(-1, keepdim=True).clamp_(min=NOTHING)
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        share = top.add_(total.log()).clamp_(min=NOTHING).flatten(2)[:, :, :n]
        if (keep := _keep(weights, seed, number, drop)) is not None:
            weights.mul_(keep)
        part = weights @ look.windows(values, weights.shape[2])
        part = part.div_(total.clamp_(min=torch.finfo(total.dtype).tiny)).flatten(2, 3)[:, :, :n]
        joined = torch.logaddexp(lse, share)
        out = out.mul_((lse - joined).exp_()[..., None]).addcmul_(part, (share - joined).exp_()[..., None])
        lse = joined
    return out.to(v.dtype), lse


def composite(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    table: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    step: int,
    clip: int,
    causal: bool,
    drop: float,
) -> tuple[Tensor, Tensor]:
    """The same in differentiable torch operations; an absent row has the logsumexp -inf."""
    n, outs, lses = q.shape[2], list[Tensor](), list[Tensor]()
    keys, values, real = _nodes(k, v, mask, n)
    asking = q.to(keys.dtype) * q.shape[-1] ** -0.5
    rows = None if table is None else table.to(keys.dtype)
    for number, look in enumerate(_looks(n, lengths, step, clip, causal, q.device)):
        scores = look.scores(look.blocks(asking), keys, real, rows)
        top = scores.detach().amax(-1, keepdim=True)
        weights = (scores - top.masked_fill(top == -torch.inf, 0.0)).exp()
        total = weights.sum(-1, keepdim=True)
        empty = total == 0
        total = total.masked_fill(empty, 1.0)
        keep = _keep(weights, seed, number, drop)
        part = (weights if keep is None else weights * keep) @ look.windows(values, weights.shape[2]) / total
        outs.append(part.flatten(2, 3)[:, :, :n])
        lses.append((top + total.log()).masked_fill(empty, -torch.inf).flatten(2)[:, :, :n])
    out, lse = merge(outs, lses)
    return out.to(v.dtype), lse


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    table: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    step: int,
    clip: int,
    causal: bool,
    drop: float,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and the table (an empty one without)."""
    n, scale = q.shape[2], q.shape[-1] ** -0.5
    keys, values, real = _nodes(k, v, mask, n)
    asking, rows = q.to(keys.dtype) * scale, None if table is None else table.to(keys.dtype)
    slope = grad_out.to(keys.dtype)
    fall = (slope * out.to(keys.dtype)).sum(-1, keepdim=True)
    dq, dk, dv = torch.zeros_like(asking), torch.zeros_like(keys), torch.zeros_like(values)
    dtable = keys.new_zeros(0 if rows is None else rows.shape)
    for number, look in enumerate(_looks(n, lengths, step, clip, causal, q.device)):
        asks, ours = look.blocks(asking), look.blocks(slope)
        weights = look.scores(asks, keys, real, rows).sub_(look.blocks(lse[..., None])).exp_()
        through = ours @ look.windows(values, asks.shape[2]).mT
        keep = _keep(weights, seed, number, drop)
        look.add_windows((weights if keep is None else weights * keep).mT @ ours, dv)
        through = through if keep is None else through.mul_(keep)
        through.sub_(look.blocks(fall)).mul_(weights)
        look.add_windows(through.mT @ asks, dk)
        back = through @ look.windows(keys, asks.shape[2])
        if rows is not None:
            slots = look.label_slopes(through)
            back.add_(slots @ rows[look.labels])
            dtable.index_add_(0, look.labels, slots.flatten(0, -2).mT @ asks.flatten(0, -2))
        dq.add_(back.flatten(2, 3)[:, :, :n])
    dq.mul_(scale)
    dk, dv = (_to_tokens(t, mask, n) if k.shape[2] == n else t for t in (dk, dv))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dtable.to(q.dtype)


def _to_tokens(slopes: Tensor, mask: Tensor | None, n: int) -> Tensor:
    """From the gradients of means over spans to those of the tokens."""
    real = torch.ones(1, n, dtype=torch.bool, device=slopes.device) if mask is None else mask
    counts = span_counts(real).to(slopes.dtype).clamp(min=1)[:, None, :, None]
    return spread(slopes / counts, n).masked_fill(~real[:, None, :, None], 0.0)


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    return v.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=dtype)


def _fake_backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, table: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    last = q.new_empty(0 if table is None else table.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), last


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.step, ctx.clip, ctx.causal, ctx.drop = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _derivative(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    if torch.is_grad_enabled() and ordinary(grad_out):  # for gradients of gradients
        needs, inputs = ctx.needs_input_grad, tensors[:3] + tensors[4:5]
        wanted = [tensor for tensor, need in zip(inputs, (*needs[:3], needs[4]), strict=True) if need]
        arguments: list[Any] = [*tensors, ctx.step, ctx.clip, ctx.causal, ctx.drop]
        again = composite(*arguments)[0]
        slopes = iter(torch.autograd.grad(again, wanted, grad_out, create_graph=True, materialize_grads=True))
        return tuple(next(slopes) if need else None for need in needs)
    found = _operator_backward(*tensors, ctx.step, ctx.clip, ctx.causal, ctx.drop, out, lse, grad_out.contiguous())
    dq, dk, dv, dtable = found
    return dq, dk, dv, None, None if tensors[4] is None else dtable, *(None,) * 6


_operator = torch.library.custom_op("regard::tree_attention", _forward, mutates_args=())
_operator_backward = torch.library.custom_op("regard::tree_attention_backward", _backward, mutates_args=())
_operator.register_fake(_fake_forward)
_operator_backward.register_fake(_fake_backward)
_operator.register_autograd(_derivative, setup_context=_save)

OPERATOR: Any = torch.ops.regard.tree_attention.default
"""As it stands in graphs; :func:`composite` is its definition."""
