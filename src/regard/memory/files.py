"""Memories in files: a conversation, a stream or a document is put away and taken up again."""

import os
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from regard.memory.protocol import check_memory, named_tensors, parts_of, rebuilt

Memory = TypeVar("Memory")


def save(memory: Any, path: str | os.PathLike[str]) -> None:
    """Write a memory as safetensors, first under a temporary name: a file that is there is whole.

    Args:
        memory: of a layer or a model.
        path: the file; one that exists is replaced.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in named_tensors(memory).items()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, unfinished, {"format": "regard memory 1"})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], empty: Memory) -> Memory:
    """Read a memory that :func:`save` wrote.

    Args:
        path: the file.
        empty: the memory of as many sequences, from the ``memory`` of the layer or model that will continue; it says
            the kind, and on which device and in which dtype the result is.

    Raises:
        ValueError: a file of something else, or the memory of another layer or of another number of sequences.

    Example:
        >>> import tempfile, torch
        >>> from regard.memory import KeyValueCache
        >>> cache = KeyValueCache.start(1, 2, 4, 4).append(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(cache, f"{folder}/cache.safetensors")
        ...     load(f"{folder}/cache.safetensors", KeyValueCache.start(1, 2, 4, 4)).key.shape
        torch.Size([1, 2, 5, 4])
    """
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("format") != "regard memory 1":
            raise ValueError(f"{path} is no memory that regard wrote")
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    wanted = named_tensors(empty)
    if stored.keys() != wanted.keys():
        raise ValueError(f"{path} holds {', '.join(sorted(stored))}, but this memory has {', '.join(sorted(wanted))}")
    memory = _filled(empty, {name: stored[name].to(wanted[name]) for name in wanted}, "memory")
    check_memory(memory, empty)
    return memory


def _filled(empty: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A memory of the same kind that holds these tensors."""
    if isinstance(empty, Tensor):
        return tensors[name]
    return rebuilt(empty, (_filled(part, tensors, f"{name}.{field}") for field, part in parts_of(empty).items()))
