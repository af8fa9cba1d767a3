"""The two ways to replace attentions have this in common: modules as a whole, and what is between their projections."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regard.swap.comparing import Distance
from regard.swap.recording import Asked
from regard.swap.surgery import Surgery


class Way(ABC):
    """Some attentions of a model that are replaced in one way.

    Attributes:
        modules: the attentions as they are now, by path.
        notes: what could not be kept, by path; complete after ``install``.
    """

    modules: dict[str, nn.Module]
    notes: dict[str, str]

    @abstractmethod
    def prepare(self, surgery: Surgery) -> bool:
        """Whether the calls are to be recorded once more, under settings that this changed."""

    @abstractmethod
    def install(self, surgery: Surgery) -> list[str]:
        """Put the new attentions in; returns sentences on what else was changed."""

    @abstractmethod
    def distances(self, asked: Mapping[str, list[Asked]]) -> dict[str, Distance]:
        """How far each new attention is from the old one, on what the old one was asked; after ``install``."""

    @abstractmethod
    def real(self, name: str, asked: Asked) -> Tensor | None:
        """Bool, True for the tokens of a call that are real, in the layout of its output; None: all are."""

    @abstractmethod
    def exact(self, name: str) -> bool:
        """Whether the new attention computes the same by definition."""

    def dtype(self, name: str) -> torch.dtype:
        """Of the numbers in this attention."""
        return next((value.dtype for value in self.modules[name].parameters()), torch.float32)
