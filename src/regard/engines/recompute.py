"""The backward pass of any engine whose forward is differentiable: compute it once more, under autograd."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regard.engines.problem import Gradients, Problem, Shared
from regard.scores import from_spec

Composite = Callable[[Problem], tuple[Tensor, Tensor]]


def inputs(problem: Problem) -> tuple[Tensor | None, ...]:
    """Everything that can have a gradient, in the order of ``needs``: query, key, value, attn_mask, term tensors."""
    mask = None if problem.attn_mask is None else problem.attn_mask.tensor
    return (problem.query, problem.key, problem.value, mask, *problem.term_tensors())


def with_inputs(problem: Problem, tensors: Sequence[Tensor | None]) -> Problem:
    """The problem with other tensors in the places of :func:`inputs`."""
    query, key, value, mask, *rest = tensors
    if query is None or key is None or value is None:
        raise ValueError("a problem has a query, a key and a value")
    attn_mask = None if problem.attn_mask is None or mask is None else Shared(mask, problem.attn_mask.index)
    numbers = iter(tensor for tensor in rest if tensor is not None)
    terms = tuple(
        from_spec(term.spec, [next(numbers) for _ in term.tensors]).bind(query.shape[1]) for term in problem.terms
    )
    return replace(problem, query=query, key=key, value=value, attn_mask=attn_mask, terms=terms)


def gradients(
    composite: Composite, problem: Problem, grad_out: Tensor, grad_lse: Tensor | None, needs: Sequence[bool]
) -> Gradients:
    """The backward pass of a differentiable forward, which is computed once more."""
    with torch.enable_grad():
        leaves = [
            tensor if tensor is None else tensor.detach().requires_grad_(need)
            for tensor, need in zip(inputs(problem), needs, strict=True)
        ]
        out, lse = composite(with_inputs(problem, leaves))
        wanted = [leaf for leaf, need in zip(leaves, needs, strict=True) if need and leaf is not None]
        ends, seeds = ([out], [grad_out]) if grad_lse is None else ([out, lse], [grad_out, grad_lse])
        found = iter(torch.autograd.grad(ends, wanted, seeds, materialize_grads=True))
    query, key, value, mask, *terms = (next(found) if need else None for need in needs)
    return Gradients(query, key, value, mask, tuple(terms))
