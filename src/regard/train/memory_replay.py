"""Memory replay back-propagation: gradients through all segments of a stream in the memory of one.

Wu et al. 2022, arXiv:2010.06891, section 4 (Algorithm 1). All segments run forward without a graph, and what they hand
on is kept: memories M_0 ... M_{T-1}. Then, from the last segment to the first, segment t runs again from M_t as a leaf;
back-propagated are its loss and the gradient G_{t+1} of what it handed on, and G_t is the gradient of M_t. The result
is that of back-propagation through the whole stream, for one more forward pass.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Segment = TypeVar("Segment")
Memory = TypeVar("Memory")


def memory_replay(
    step: Callable[[Segment, Memory], tuple[Tensor, Memory]],
    segments: Sequence[Segment],
    memory: Memory,
    *,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[list[Tensor], Memory]:
    """Add to every ``.grad`` the gradient of the sum of all losses.

    Random numbers are drawn anew as they were the first time, also on CUDA, so dropout does not disturb.

    Args:
        step: (segment, memory) -> (loss, next memory), for any model that carries a memory: any pytree of tensors.
        segments: in order.
        memory: before the first segment; where it depends on parameters, they get their gradient too.
        no_sync: of a DistributedDataParallel model: entered for all backward passes but the last.

    Returns:
        The loss of each segment, and the memory after the last, all without a graph.

    Example:
        >>> cell = torch.nn.GRUCell(4, 4)
        >>> def step(x, memory):
        ...     memory = cell(x, memory)
        ...     return memory.square().mean(), memory
        >>> losses, memory = memory_replay(step, torch.randn(5, 2, 4).unbind(), torch.zeros(2, 4))
        >>> len(losses), memory.shape, cell.weight_ih.grad is not None
        (5, torch.Size([2, 4]), True)
    """
    states: list[_Random] = []
    memories: list[Any] = [pytree.tree_map(_detached, memory)]
    losses: list[Tensor] = []
    with torch.no_grad():
        for segment in segments:
            states.append(_Random.now())
            loss, following = step(segment, memories[-1])
            losses.append(loss.detach())
            memories.append(following)
    after = _Random.now()
    slopes: dict[int, Tensor] = {}  # by place in the flattened memory
    starts = any(t.requires_grad for t in _tensors(memory))
    for number in reversed(range(len(segments))):
        states[number].restore()
        leaves = pytree.tree_map(_leaf, memories[number])
        with nullcontext() if number == 0 and not starts else no_sync():
            with torch.enable_grad():
                loss, following = step(segments[number], leaves)
            _backward([(loss, torch.ones_like(loss)), *_paired(following, slopes)])
        slopes = {place: t.grad for place, t in enumerate(_tensors(leaves)) if t.grad is not None}
    _backward(_paired(memory, slopes))
    after.restore()
    return losses, memories[-1]


class _Random(NamedTuple):
    """Where torch's random numbers stand."""

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> "_Random":
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


def _tensors(memory: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(memory) if isinstance(leaf, Tensor)]


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _leaf(leaf: Any) -> Any:
    """The start of a graph of its own; lengths and masks are no part of any graph."""
    return leaf.detach().requires_grad_(leaf.is_floating_point()) if isinstance(leaf, Tensor) else leaf


def _paired(memory: Any, slopes: dict[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What was handed on, with its gradient, where it has one."""
    tensors = _tensors(memory)
    return [(tensors[place], slope) for place, slope in slopes.items() if tensors[place].requires_grad]


def _backward(pairs: list[tuple[Tensor, Tensor]]) -> None:
    pairs = [(tensor, slope) for tensor, slope in pairs if tensor.requires_grad]
    if pairs:
        torch.autograd.backward([tensor for tensor, _ in pairs], [slope for _, slope in pairs])
