"""What can be done with every memory, whatever mechanism made it."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils import _pytree as pytree

from regard.memory.kinds import KeyValueCache, StaticCache

Memory = TypeVar("Memory")


def reorder(memory: Memory, index: Int[Tensor, " K"]) -> Memory:
    """The memories of the sequences ``index``, in that order: what beam search does after each step."""

    def pick(tensor: Tensor) -> Tensor:
        return tensor[index]

    return pytree.tree_map(pick, memory)


def detach(memory: Memory) -> Memory:
    """The same memory, cut off from the graph that made it: what truncated back-propagation does between pieces."""
    return pytree.tree_map(Tensor.detach, memory)


def truncate(memory: Memory, length: int) -> Memory:
    """The memory as it was after its first ``length`` tokens: speculative decoding takes back those that were refused.

    Args:
        memory: of a layer or a model.
        length: how many tokens stay; a memory of fewer stays as it is.

    Raises:
        ValueError: a memory that does not hold its tokens one by one, or has let go of those that it would need.

    Example:
        >>> cache = KeyValueCache.start(1, 2, 4, 4).append(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4))
        >>> truncate(cache, 3).key.shape
        torch.Size([1, 2, 3, 4])
    """
    if length < 0:
        raise ValueError(f"a memory of {length} tokens cannot be: length must not be negative")
    if take_back := getattr(memory, "truncate", None):
        return take_back(length)
    parts: dict[Any, Any] = parts_of(memory) if isinstance(memory, tuple) else {}
    if not parts or any(isinstance(part, Tensor) for field, part in parts.items() if field != "position"):
        raise ValueError(
            f"a {type(memory).__name__} does not hold its tokens one by one, so none can be taken back: "
            "keep the memory from before them, stream never overwrites it"
        )
    return rebuilt(
        memory,
        (part.clamp(max=length) if field == "position" else truncate(part, length) for field, part in parts.items()),
    )


def named_tensors(memory: Any, name: str = "memory") -> dict[str, Tensor]:
    """Every tensor of a memory by its path.

    Example:
        >>> list(named_tensors(KeyValueCache.start(1, 2, 4, 4)))
        ['memory.key', 'memory.value']
    """
    if isinstance(memory, Tensor):
        return {name: memory}
    if not isinstance(memory, tuple):
        raise TypeError(f"{name} is a {type(memory).__name__}: a memory consists of tuples and tensors")
    found: dict[str, Tensor] = {}
    for field, part in parts_of(memory).items():
        found |= named_tensors(part, f"{name}.{field}")
    return found


def check_memory(memory: Any, empty: Any, place: Tensor | None = None) -> None:
    """Refuse what is no memory of this layer for these sequences.

    Args:
        memory: what was given to ``stream``.
        empty: what the layer's own ``memory`` returns for so many sequences, on whatever device; an axis of size 0
            there is one that grows.
        place: a tensor where the memory must be.

    Raises:
        TypeError: a memory of another kind.
        ValueError: another number of sequences, another size or another device.
    """
    if torch.compiler.is_compiling():
        return
    _check_kind(memory, empty, "memory")
    expected = named_tensors(empty)
    for name, tensor in named_tensors(memory).items():
        like = expected.get(name)
        if like is None:  # the fill level of a cache of fixed size
            continue
        fits = tensor.ndim == like.ndim and all(a == b or b == 0 for a, b in zip(tensor.shape, like.shape, strict=True))
        if not fits:
            sizes = ", ".join(str(size or "any") for size in like.shape)
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but these sequences and this layer need ({sizes}): "
                "take the memory from this layer's memory(batch), or reorder it for another batch"
            )
        if place is not None and tensor.device != place.device:
            raise ValueError(f"{name} is on {tensor.device} and the tokens are on {place.device}: move one of them")


def _check_kind(memory: Any, empty: Any, name: str) -> None:
    kind, wanted = type(memory), type(empty)
    static = kind is StaticCache and getattr(wanted, "_fields", ()) == KeyValueCache._fields
    if kind is not wanted and not static:
        raise TypeError(
            f"{name} is a {kind.__name__}, but this layer continues from a {wanted.__name__}: take layer.memory(batch)"
        )
    if static or not isinstance(empty, tuple):
        return
    parts, wanted_parts = parts_of(memory), parts_of(empty)
    if parts.keys() != wanted_parts.keys():
        raise ValueError(f"{name} has {len(parts)} parts, but {len(wanted_parts)} are needed")
    for field, part in parts.items():
        _check_kind(part, wanted_parts[field], f"{name}.{field}")


def parts_of(memory: Any) -> dict[Any, Any]:
    """What a tuple consists of, by name or by number."""
    return dict(zip(getattr(memory, "_fields", range(len(memory))), memory, strict=True))


def rebuilt(memory: Memory, parts: Iterable[Any]) -> Memory:
    """A tuple, named or not, of the same kind with other parts."""
    make: Any = getattr(memory, "_make", type(memory))
    return make(parts)
