"""One opaque operator for each engine, ``regard::attend_<engine>``, and one for its backward pass.

Pattern and terms travel as text plus tensors (:mod:`regard.engines.packing`) and are planned inside, so a compiled or
exported graph holds a single node whatever the lengths are. Autocast is settled before: the door casts.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from regard.engines import batching
from regard.engines.calls import Calls
from regard.engines.packing import read, unpack
from regard.engines.problem import Engine, widen
from regard.engines.recompute import Composite


def operators(name: str, engine: Engine, composite: Composite) -> Calls:
    """Register ``regard::attend_<name>`` and its backward, with their fake, autograd and vmap rules."""

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        tensors: list[Tensor],
        spec: str,
        q_offset: int | None,
        scale: float | None,
        dropout_p: float,
    ) -> tuple[Tensor, Tensor]:
        return _run(engine.forward, query, key, value, tensors, spec, q_offset, scale, dropout_p)

    def backward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        tensors: list[Tensor],
        spec: str,
        q_offset: int | None,
        scale: float | None,
        dropout_p: float,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        needs: list[bool],
    ) -> list[Tensor]:
        arguments = (query, key, value, tensors, spec, q_offset, scale, dropout_p)
        return _run_backward(engine, arguments, out, lse, grad_out, grad_lse, needs)

    def flat(*arguments: Any) -> tuple[Tensor, Tensor]:
        return _run(composite, *arguments)

    first = torch.library.custom_op(f"regard::attend_{name}", forward, mutates_args=())
    second = torch.library.custom_op(f"regard::attend_{name}_backward", backward, mutates_args=())
    first.register_fake(_fake_forward)
    second.register_fake(_fake_backward)
    opaque, opaque_backward = (getattr(torch.ops.regard, f"attend_{name}{end}").default for end in ("", "_backward"))
    calls = Calls(name, forward, backward, opaque, opaque_backward, flat)
    first.register_autograd(_derivative(calls), setup_context=_keep)
    first.register_vmap(batching.rule(opaque))
    second.register_vmap(batching.rule(opaque_backward))
    return calls


# --- real kernels ----------------------------------------------------------------------------------------------------


def _run(function: Composite, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows, width = query.shape[:-1], value.shape[-1]
    if 0 in query.shape[:-1] or 0 in key.shape[:-1]:
        return _room(query, value).zero_(), query.new_full(rows, -torch.inf, dtype=widen(query.dtype))
    with _exact(query.device.type):
        out, lse = function(unpack(query, key, value, *rest))
    return _laid_out(out.reshape(*rows, width), query), lse.reshape(rows).contiguous()


def _room(like: Tensor, row: Tensor) -> Tensor:
    """Room for rows as wide as ``row``, in memory as ``like`` is: a layer joins its heads without a copy."""
    return (
        torch.empty_like(like) if row.shape[-1] == like.shape[-1] else like.new_empty(*like.shape[:-1], row.shape[-1])
    )


def _laid_out(found: Tensor, like: Tensor) -> Tensor:
    """The same numbers in the memory format of :func:`_room`; they are copied only where they are in another."""
    if found.stride() == like.stride() and like.is_contiguous():
        return found
    wanted = _room(like.to("meta"), found)
    if all(size == 1 or a == b for size, a, b in zip(found.shape, found.stride(), wanted.stride(), strict=True)):
        return found
    return _room(like, found).copy_(found)


def _run_backward(
    engine: Engine,
    arguments: tuple[Any, ...],
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    query, key, value, tensors, spec, *_ = arguments
    inputs = [query, key, value, *tensors]
    if 0 in query.shape[:-1] or 0 in key.shape[:-1]:
        return [torch.zeros_like(tensor) for tensor, need in zip(inputs, needs, strict=True) if need]
    packing, on_tensors = read(spec), needs[3:]
    rows, width = (math.prod(query.shape[:-3]), *query.shape[-3:-1]), value.shape[-1]
    on_mask = packing.attn_mask and on_tensors[packing.attn_mask_at]
    with _exact(query.device.type), autograd_works(), torch.no_grad():
        found = engine.backward(
            unpack(*arguments),
            out.reshape(*rows, width),
            lse.reshape(rows),
            grad_out.reshape(*rows, width),
            None if grad_lse is None else grad_lse.reshape(rows),
            (*needs[:3], on_mask, *on_tensors[packing.terms_at]),
        )
    placed: list[Tensor | None] = [None] * len(tensors)
    placed[packing.terms_at] = found.terms
    if packing.attn_mask:
        placed[packing.attn_mask_at] = found.attn_mask
    grads = zip([*found[:3], *placed], inputs, needs, strict=True)
    return [_fit(grad, like, query.shape[:-3]) for grad, like, need in grads if need]


def _fit(grad: Tensor | None, like: Tensor, lead: torch.Size) -> Tensor:
    """A gradient in the shape, dtype and memory format that the fake kernel promised."""
    if grad is None:
        raise RuntimeError(f"an engine owes the gradient of its input of shape {tuple(like.shape)}")
    if grad.numel() != like.numel():
        grad = grad.reshape(*lead, *grad.shape[1:]).sum_to_size(like.shape)
    return _laid_out(grad.reshape(like.shape).to(like.dtype), like)


@contextmanager
def _exact(device: str) -> Generator[None]:
    """Inside an operator nothing is cast by autocast any more."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            yield
    else:
        yield


@contextmanager
def autograd_works() -> Generator[None]:
    """The dispatcher calls operators below autograd; a backward that differentiates score terms needs it again."""
    below = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    below = below | torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded - below):
        yield


# --- fake kernels ----------------------------------------------------------------------------------------------------


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _room(query, value), query.new_empty(query.shape[:-1], dtype=widen(query.dtype))


def _fake_backward(query: Tensor, key: Tensor, value: Tensor, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
    inputs = [query, key, value, *tensors]
    return [torch.empty_like(tensor) for tensor, need in zip(inputs, rest[-1], strict=True) if need]


# --- derivatives -----------------------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, tensors, *ctx.numbers = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, query, key, value, *tensors)


def _derivative(calls: Calls) -> Callable[..., Any]:
    def formula(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        out, lse, *inputs = ctx.saved_tensors
        needs = [*ctx.needs_input_grad[:3], *ctx.needs_input_grad[3]]
        query, key, value, *rest = calls.gradients(inputs, tuple(ctx.numbers), out, lse, grad_out, grad_lse, needs)
        return query, key, value, rest, None, None, None, None

    return formula
