"""What is carried from one piece of a sequence to the next, and what can be done with it.

One protocol for caches, windows, running sums, compressed memories and slots: ``memory = layer.memory(batch)`` is the
memory of sequences of which nothing has been seen, ``y, memory = layer.stream(x, memory)`` continues with one token or
many. Every memory is a named tuple of tensors, hence a pytree, whose tensors all have the batch as their first
dimension, and is returned new: the one before stays as it was, to come back to. Whatever mechanism made it, a memory
can be cut off from its graph (:func:`detach`), reordered (:func:`reorder`), taken back (:func:`truncate`) and written
to a file (:func:`save`, :func:`load`). A leaf: it imports nothing of ours.
"""

from regard.memory.files import load, save
from regard.memory.kinds import KeyValueCache, LayerMemory, LinearState, ModelMemory, RollingWindow, StaticCache
from regard.memory.protocol import check_memory, detach, named_tensors, reorder, truncate

__all__ = [
    "KeyValueCache",
    "LayerMemory",
    "LinearState",
    "ModelMemory",
    "RollingWindow",
    "StaticCache",
    "check_memory",
    "detach",
    "load",
    "named_tensors",
    "reorder",
    "save",
    "truncate",
]
