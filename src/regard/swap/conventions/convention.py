"""What has to be known of a kind of attention module so that one of our layers can stand in for it."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from regard.registry import Layer
from regard.swap.reading import Call, Reading


class Convention(ABC):
    """One way to build and to call an attention.

    Attributes:
        title: what the report calls it.
    """

    title: str

    @abstractmethod
    def read(self, path: str, module: nn.Module) -> Reading | str | None:
        """What the module is; None where it is of another kind, a reason where it must be left alone."""

    @abstractmethod
    def dress(self, attention: Layer, reading: Reading, module: nn.Module) -> nn.Module:
        """What takes the module's place: called as it was, it asks the layer."""

    @abstractmethod
    def understand(self, stand_in: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """What such a call means; what the layer cannot honour is refused."""

    @abstractmethod
    def attention(self, stand_in: nn.Module) -> Layer:
        """The layer inside what :meth:`dress` made."""

    @abstractmethod
    def probe(self, module: nn.Module, x: Tensor, causal: bool) -> Tensor:
        """What the module makes of x (B, N, C), with nothing masked but the future: (B, N, C')."""

    def reference(self, module: nn.Module, exact: Layer, reading: Reading) -> nn.Module:
        """The module's own attention with the words of our layers: what maps are taken from."""
        return self.dress(exact, reading, module)
