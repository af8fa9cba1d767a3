"""How autograd, ``torch.func`` and vmap see an engine.

Two autograd functions, one around forward and one around backward. The second one's own derivative is taken through the
engine's composite, and only when someone asks for it. Ordinary tensors take a short way to the engine itself: the
dispatcher and torch's machinery for transforms cost more than a small attention does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.engines import batching
from regard.engines.transforms import ordinary

Numbers = tuple[Any, ...]  # spec, q_offset, scale, dropout_p


class Calls(NamedTuple):
    """What an engine can be called by.

    Attributes:
        name: the engine's.
        run, run_backward: the kernels of the two operators, without the dispatcher.
        forward: operator (query, key, value, tensors, spec, q_offset, scale, dropout_p) -> (out, lse).
        backward: operator (the same, out, lse, grad_out, grad_lse, needs) -> the gradients that are needed.
        composite: the arguments and results of ``forward``, in differentiable torch operations.
    """

    name: str
    run: Callable[..., tuple[Tensor, Tensor]]
    run_backward: Callable[..., list[Tensor]]
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., list[Tensor]]
    composite: Callable[..., tuple[Tensor, Tensor]]

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, tensors: Sequence[Tensor], *numbers: Any
    ) -> tuple[Tensor, Tensor]:
        """out and lse, with all derivatives, by the shortest way that these tensors allow."""
        if torch.compiler.is_compiling():
            return self.forward(query, key, value, tensors, *numbers)
        if not ordinary(query, key, value, *tensors):
            return self.differentiable(query, key, value, tensors, *numbers)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value, *tensors)):
            return _Plain.apply(self, numbers, query, key, value, *tensors)  # type: ignore[return-value]
        return self.run(query, key, value, tensors, *numbers)

    def differentiable(
        self, query: Tensor, key: Tensor, value: Tensor, tensors: Sequence[Tensor], *numbers: Any
    ) -> tuple[Tensor, Tensor]:
        """The forward operator with all its derivatives, also under the transforms of ``torch.func``."""
        return _Attend.apply(self, numbers, query, key, value, *tensors)  # type: ignore[return-value]

    def differentiable_backward(
        self, query: Tensor, key: Tensor, value: Tensor, tensors: Sequence[Tensor], *rest: Any
    ) -> list[Tensor]:
        """The backward operator, differentiable in its turn."""
        *numbers, out, lse, grad_out, grad_lse, needs = rest
        inputs = (query, key, value, *tensors)
        return list(_Backward.apply(self, tuple(numbers), tuple(needs), out, lse, grad_out, grad_lse, *inputs))

    def gradients(
        self,
        inputs: Sequence[Tensor],
        numbers: Numbers,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor | None,
        grad_lse: Tensor | None,
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """One gradient for each input, None where it is not needed."""
        query, key, value, *tensors = inputs
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        rest = (*numbers, out, lse, grad_out, grad_lse, list(needs))
        short = not torch.is_grad_enabled() and ordinary(grad_out, *inputs)
        found = iter((self.run_backward if short else self.differentiable_backward)(query, key, value, tensors, *rest))
        return [next(found) if need else None for need in needs]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(calls: Calls, numbers: Numbers, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value, *tensors = inputs
        return calls.forward(query, key, value, tensors, *numbers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.calls, ctx.numbers, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        out, lse, *inputs = ctx.saved_tensors
        return None, None, *ctx.calls.gradients(inputs, ctx.numbers, out, lse, *grads, ctx.needs_input_grad[2:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        calls, numbers, query, key, value, *tensors = args
        dims = (*in_dims[2:5], list(in_dims[5:]), *[None] * len(numbers))
        found, out_dims = batching.rule(calls.differentiable)(info, dims, query, key, value, tensors, *numbers)
        return tuple(found), tuple(out_dims)


class _Plain(torch.autograd.Function):
    """The same for ordinary tensors: without ``setup_context`` it is several times quicker to apply."""

    @staticmethod
    def forward(ctx: Any, calls: Calls, numbers: Numbers, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value, *tensors = inputs
        output = calls.run(query, key, value, tensors, *numbers)
        _Attend.setup_context(ctx, (calls, numbers, *inputs), output)
        return output

    backward = _Attend.backward


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
        calls: Calls,
        numbers: Numbers,
        needs: tuple[bool, ...],
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        query, key, value, *tensors = inputs
        rest = (*numbers, out, lse, grad_out, grad_lse, list(needs))
        return tuple(calls.backward(query, key, value, tensors, *rest))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.calls, ctx.numbers, ctx.needs, _, _, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved = ctx.saved_tensors
        varying = [number for number, tensor in enumerate(saved) if tensor is not None and tensor.is_floating_point()]
        needed = [number + 2 for number, need in enumerate(ctx.needs) if need]  # saved: two gradients, then the inputs

        def backward(*moved: Tensor) -> tuple[Tensor, ...]:
            grad_out, grad_lse, *inputs = _replaced(saved, varying, moved)

            def forward(*wanted: Tensor) -> tuple[Tensor, ...]:
                query, key, value, *tensors = _replaced(inputs, [number - 2 for number in needed], wanted)
                ends = ctx.calls.composite(query, key, value, tensors, *ctx.numbers)
                return ends[:1] if grad_lse is None else ends

            pull = torch.func.vjp(forward, *(inputs[number - 2] for number in needed))[1]
            return pull((grad_out,) if grad_lse is None else (grad_out, grad_lse))

        pull = torch.func.vjp(backward, *(saved[number] for number in varying))[1]
        found = _replaced([None] * len(saved), varying, pull(grads))
        return None, None, None, None, None, *found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        calls, numbers, needs, out, lse, grad_out, grad_lse, query, key, value, *tensors = args
        around, places = in_dims[3:7], in_dims[7:]
        dims = (*places[:3], list(places[3:]), *[None] * len(numbers), *around, None)
        arguments = (query, key, value, tensors, *numbers, out, lse, grad_out, grad_lse, needs)
        found, out_dims = batching.rule(calls.differentiable_backward)(info, dims, *arguments)
        return tuple(found), tuple(out_dims)


def _replaced(values: Sequence[Any], places: Sequence[int], others: Sequence[Any]) -> list[Any]:
    found = list(values)
    for place, other in zip(places, others, strict=True):
        found[place] = other
    return found
