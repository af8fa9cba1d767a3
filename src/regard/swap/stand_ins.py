"""What takes the place of one attention."""

import dataclasses
from typing import Any

from torch import Generator, nn

from regard import factory
from regard.patterns import Causal, Pattern
from regard.registry import UnsupportedError
from regard.swap.building import build
from regard.swap.conventions.convention import Convention
from regard.swap.finding import Found
from regard.swap.reading import Reading


@dataclasses.dataclass(frozen=True)
class StandIn:
    """One attention that is replaced.

    Attributes:
        found: the old one.
        reading: of it, with ``causal`` settled.
        module: the new one, called as the old one is.
        exact: the new one computes the same by definition.
        note: what could not be kept.
    """

    found: Found
    reading: Reading
    module: nn.Module
    exact: bool
    note: str

    @property
    def convention(self) -> Convention:
        """How both are called."""
        return self.found.known

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one."""
        return bool(self.reading.causal)

    def take_mode(self) -> None:
        """Train or evaluate as the old one does; the parts that both have keep their own mode."""
        shared = set(self.found.module.modules())
        for part in self.module.modules():
            if part not in shared:
                part.training = self.found.module.training


def stand_in(
    found: Found,
    mechanism: str | Pattern,
    max_length: int | None,
    generator: Generator | None,
    options: dict[str, Any],
) -> StandIn:
    """Build the new attention beside the old one, which is not touched.

    Args:
        found: the old one.
        mechanism: a registry name or a pattern.
        max_length, generator, options: as :func:`regard.swap_attention`; ``causal`` among the options.

    Raises:
        UnsupportedError: what the mechanism cannot do here.
    """
    options = dict(options)
    causal = _causal(found, mechanism, options)
    reading = dataclasses.replace(found.readable, causal=causal)
    if found.cross and not (isinstance(mechanism, Pattern) or factory.card(mechanism).cross):
        raise UnsupportedError(
            f"{found.name} asks another sequence, which {mechanism} cannot: choose layers= without it"
        )
    layer, note = build(mechanism, reading, causal, max_length, generator, options)
    module = found.known.dress(layer, reading, found.module)
    return StandIn(found, reading, module, _same(mechanism, layer, causal, max_length), note)


def _causal(found: Found, mechanism: str | Pattern, options: dict[str, Any]) -> bool:
    """What the model says, else what the user says; a contradiction is refused."""
    asked, told = options.pop("causal", None), found.readable.causal
    if found.cross:
        return False
    if told is not None and asked is not None and bool(asked) != told:
        raise UnsupportedError(f"causal={asked}, but {found.name or 'the model'} is {'' if told else 'not '}causal")
    causal = bool(asked if told is None else told)
    if (
        causal
        and isinstance(mechanism, str)
        and factory.card(mechanism).causal == "selection"
        and "strict" not in options
    ):
        raise UnsupportedError(
            f"in {mechanism} later tokens influence which keys are picked, and {found.name or 'the model'} is causal: "
            "pass strict=True, or strict=False to accept it"
        )
    return causal


def _same(mechanism: str | Pattern, layer: nn.Module, causal: bool, max_length: int | None) -> bool:
    """Whether it is softmax attention over all pairs up to the greatest length."""
    if isinstance(mechanism, str) and factory.find(mechanism).name == "multi_head":
        return True
    pattern = getattr(getattr(layer, "core", layer), "pattern", None)
    if not isinstance(pattern, Pattern):
        return False
    if isinstance(mechanism, str) and mechanism not in ("local", "longformer", "sparse_transformer"):
        return False  # others do more than to restrict the pairs
    return covers(pattern, causal, max_length)


def covers(pattern: Pattern, causal: bool, max_length: int | None) -> bool:
    """Whether a pattern allows every pair up to this length, of the past only where it is causal."""
    if max_length is None:
        return False
    seen = Causal() & pattern if causal else pattern
    return seen.density(max_length) == (Causal().density(max_length) if causal else 1.0)
