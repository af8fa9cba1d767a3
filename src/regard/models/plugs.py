"""Mechanisms in the places of a network on images, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Generator, Tensor, nn

from regard.factory import card, create
from regard.models.on_maps import map_attention
from regard.registry import Layer

Place = Literal["spatial", "branch", "after"]


@dataclass(frozen=True, kw_only=True)
class Plug:
    """A mechanism, on maps or on their pixels row by row, and where it stands in a residual network.

    Attributes:
        mechanism: its registry name.
        place: "spatial": instead of a 3 x 3 convolution; "branch": at the end of the branch, before the addition;
            "after": behind a block.
        stages: in which of the four stages, counted from 1 (the paper's stage s is its conv s + 1, or res s + 1).
        blocks: in which blocks of them, counted from 0, or from the end if negative; None: in all.
        options: those of :func:`regard.create`, without ``dim``.

    Raises:
        ValueError: a place or a stage that is not there.

    Example:
        >>> Plug(mechanism="axial", stages=(3, 4), options={"num_heads": 8}).place
        'spatial'
    """

    mechanism: str
    place: Place = "spatial"
    stages: tuple[int, ...] = (1, 2, 3, 4)
    blocks: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.place not in get_args(Place):
            raise ValueError(f"place={self.place!r} is none of {', '.join(map(repr, get_args(Place)))}")
        if not self.stages or not set(self.stages) <= {1, 2, 3, 4}:
            raise ValueError(f"stages={self.stages}: name some of 1, 2, 3 and 4")

    def stands(self, stage: int, block: int, depth: int) -> bool:
        """Whether it stands in this block of a stage of ``depth`` blocks."""
        return stage in self.stages and (self.blocks is None or not {block, block - depth}.isdisjoint(self.blocks))


def plugged(plug: Plug, dim: int, **options: Any) -> Layer:
    """The layer of a plug, on maps of ``dim`` channels; the options are added to its own.

    Example:
        >>> import torch
        >>> plugged(Plug(mechanism="kronecker", options={"num_heads": 2}), 8)(torch.randn(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """
    options |= plug.options
    if card(plug.mechanism).data == "map":
        return create(plug.mechanism, dim=dim, **options)
    return map_attention(plug.mechanism, dim=dim, **options)


def ask(owner: nn.Module, name: str, x: Tensor, generator: Generator | None, told: dict[str, Tensor]) -> Tensor:
    """What a part of ``owner`` makes of a map; what a mechanism has to tell is added to ``told`` under its name."""
    part = owner.get_submodule(name)
    if not isinstance(part, Layer):
        return part(x)
    y, aux = part(x, generator=generator, return_aux=True)
    told |= under(name, aux)
    return y


def under(path: str, aux: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a part tells as "loss/..." and so on, under its path: "loss/<path>/...".

    Example:
        >>> import torch
        >>> list(under("layer1.0", {"loss/conv2/rest": torch.zeros(())}))
        ['loss/layer1.0/conv2/rest']
    """
    return {
        f"{kind}/{path}/{rest}": value for (kind, _, rest), value in ((k.partition("/"), v) for k, v in aux.items())
    }
