"""The loss of a causal model that carries sums along, with the activations of one piece of the sequence at a time.

Likhosherstov et al. 2020, "Sub-Linear Memory", arXiv:2012.11346, section 3. Forwards, the sequence passes piece by
piece, and what is kept are the sums of every layer after the last piece. Backwards, the pieces come in reverse: the
sums before a piece are those after it minus its own terms, the piece is computed once more, and the gradient of its
loss and of <gradient of the sums after it, these sums> is taken, by the weights and by the sums before it. The
gradients are those of the whole sequence at once. Each subtraction rounds; ``keep`` stores the sums now and then.

Memory O(step C + depth m C) for layers of C channels and m features a head, whatever the length; time that of a
training step and of one more forward pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from regard.memory import LinearState, ModelMemory


def loss_in_pieces(
    piece: nn.Module,
    memory: ModelMemory,
    tokens: Int[Tensor, "B N"],
    targets: Int[Tensor, "B N"],
    share: Float[Tensor, "B N"],
    *,
    step: int,
    keep: int | None = None,
) -> Float[Tensor, ""]:
    """The sum over tokens of share x cross-entropy, whose gradient reaches the parameters of ``piece``.

    Args:
        piece: ``(tokens, memory, *, known) -> (logits, sums before, sums after)``, where ``memory`` is the position of
            the first token and the sums of every layer before the tokens, or after them if not ``known``. The sums
            before are leaves of the graph.
        memory: of nothing.
        tokens, targets, share: what goes in, what should come out, and what it counts.
        step: tokens in a piece.
        keep: store the sums before every so many pieces.
    """
    named = dict(piece.named_parameters()) | dict(piece.named_buffers())
    return _Loss.apply(_Work(piece, list(named), memory, step, keep), tokens, targets, share, *named.values())


def cross_entropy(logits: Float[Tensor, "B N V"], targets: Int[Tensor, "B N"], share: Float[Tensor, "B N"]) -> Tensor:
    """The sum over tokens of share x cross-entropy."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * share.flatten()).sum()


@dataclass(frozen=True)
class _Work:
    """What is to be run, the names of its weights and buffers, and how."""

    piece: nn.Module
    names: list[str]
    empty: ModelMemory
    step: int
    keep: int | None

    def run(self, weights: tuple[Tensor, ...], tokens: Tensor, memory: ModelMemory, *, known: bool) -> Any:
        named = dict(zip(self.names, weights, strict=True))
        return functional_call(self.piece, named, (tokens, memory), {"known": known})

    def at(self, number: int, layers: tuple[LinearState, ...]) -> ModelMemory:
        """The memory of a piece: where it starts, and these sums."""
        return ModelMemory(layers, self.empty.position + number * self.step)


class _Loss(torch.autograd.Function):
    """The loss, from pieces of the sequence; the sums after the last one are kept, and some before others."""

    @staticmethod
    def forward(ctx: Any, work: _Work, tokens: Tensor, targets: Tensor, share: Tensor, *weights: Tensor) -> Tensor:
        layers, loss = work.empty.layers, share.new_zeros(())
        ctx.work, ctx.kept, ctx.autocast = work, {0: layers}, _autocast(tokens.device.type)
        ctx.save_for_backward(tokens, targets, share, *weights)
        for number, (piece, aim, part) in enumerate(_pieces(work.step, tokens, targets, share)):
            if work.keep and number % work.keep == 0:
                ctx.kept[number] = layers
            logits, _, layers = work.run(weights, piece, work.at(number, layers), known=True)
            loss = loss + cross_entropy(logits, aim, part)
        ctx.last = layers
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        tokens, targets, share, *weights = ctx.saved_tensors
        work: _Work = ctx.work
        leaves = tuple(
            t.detach().requires_grad_(need) for t, need in zip(weights, ctx.needs_input_grad[4:], strict=True)
        )
        wanted = [t for t in leaves if t.requires_grad]
        totals = [torch.zeros_like(t) for t in wanted]
        layers, slopes = ctx.last, None
        pieces = list(enumerate(_pieces(work.step, tokens, targets, share)))
        with ctx.autocast():
            for number, (piece, aim, part) in reversed(pieces):
                known = number in ctx.kept
                memory = work.at(number, ctx.kept[number] if known else layers)
                with torch.enable_grad():
                    logits, befores, afters = work.run(leaves, piece, memory, known=known)
                    ends = [cross_entropy(logits, aim, part), *(t for sums in afters for t in sums)]
                starts = [t for sums in befores for t in sums]
                slopes = [torch.zeros_like(t) for t in ends[1:]] if slopes is None else slopes
                found = torch.autograd.grad(
                    ends, [*wanted, *starts], [grad_outputs[0], *slopes], allow_unused=True, materialize_grads=True
                )
                for total, slope in zip(totals, found, strict=False):
                    total += slope
                layers, slopes = befores, list(found[len(wanted) :])
        remaining = iter(totals)
        return None, None, None, None, *(next(remaining) if t.requires_grad else None for t in leaves)


def _pieces(step: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(t.split(step, 1) for t in tensors), strict=True)


def _autocast(device: str) -> Callable[[], torch.autocast]:
    """Makes autocast as it is now once more."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled)
