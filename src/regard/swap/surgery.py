"""Changes to a model that can all be taken back: nobody is left with half a swap."""

from collections.abc import Callable
from typing import Any

from torch import nn


class Surgery:
    """Sets attributes and submodules, and remembers what stood there.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> surgery = Surgery()
        >>> surgery.replace(model, "1", nn.GELU())
        >>> surgery.undo()
        >>> model[1]
        ReLU()
    """

    def __init__(self) -> None:
        self._undone_by: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """``owner.name = value``, for attributes, parameters, buffers and settings alike."""
        before = getattr(owner, name)
        self._undone_by.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def replace(self, model: nn.Module, path: str, part: nn.Module) -> None:
        """Put a module in the place of another."""
        above, _, name = path.rpartition(".")
        self.set(model.get_submodule(above), name, part)

    def call(self, do: Callable[[], Any], undo: Callable[[], Any]) -> None:
        """Do something that is taken back by something else, also where it failed half way."""
        self._undone_by.append(undo)
        do()

    def undo(self) -> None:
        """Take everything back, the last change first."""
        while self._undone_by:
            self._undone_by.pop()()
