"""What is asked: shapes, device and budget of measuring, checked before anything runs."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from regard.bench.settings import format_length
from regard.tasks.documents import InputError
from regard.train.device import check_device

Space = Literal["sequence", "map"]

STEP = 4
"""Each shorter length, measured to find the crossover, is a quarter of the next one."""

FIRST = range(64, 513)
"""The shortest of the lengths lies here, where everybody is quick."""

_BYTES = {
    "": 1,
    **{f"{letter}b": 1000**n for n, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**n for n, letter in enumerate("kmgt", 1)},
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What :func:`regard.recommend` measures; its arguments say more.

    Attributes:
        sides: (tokens,) of a sequence, (height, width) of a map.
        context: tokens of another sequence that is attended to; None: self-attention.
        batch, dim, num_heads: of the layer and its input.
        causal, backward, streaming: what the layer must do.
        device, dtype, threads: "cpu", "float32", threads of torch.
        mechanisms: NAME or NAME:option=value,... each; empty: all.
        budget: seconds of measuring.
    """

    sides: tuple[int, ...]
    context: int | None = None
    batch: int = 1
    dim: int = 512
    num_heads: int = 8
    causal: bool = False
    backward: bool = True
    streaming: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    mechanisms: tuple[str, ...] = ()
    budget: float = 60.0

    def __post_init__(self) -> None:
        numbers: dict[str, float] = {name: getattr(self, name) for name in ("batch", "dim", "num_heads", "threads")}
        numbers |= {"budget": self.budget, **({} if self.context is None else {"context": self.context})}
        for name, value in [*(("length", side) for side in self.sides), *numbers.items()]:
            if not value > 0:
                raise InputError(f"{name}={value} is not positive")
        if self.dim % self.num_heads:
            raise InputError(f"dim={self.dim} cannot be shared equally by num_heads={self.num_heads}")
        if not getattr(getattr(torch, self.dtype, None), "is_floating_point", False):
            raise InputError(
                f"dtype={self.dtype} is no dtype of numbers with a fraction: give torch.float32 or bfloat16"
            )
        if self.space == "map":
            self._refuse_on_maps()
        check_device(self.device)
        if torch.device(self.device).type not in ("cpu", "cuda"):
            raise InputError(f"device={self.device} cannot be timed: there are clocks for cpu and cuda")

    @property
    def space(self) -> Space:
        """Whether the input is a sequence (B, N, C) or a map (B, C, H, W)."""
        return "sequence" if len(self.sides) == 1 else "map"

    @property
    def length(self) -> int:
        """The number of tokens, or pixels."""
        return math.prod(self.sides)

    @property
    def clock(self) -> str:
        """What counts: "cpu" seconds where one thread computes, which other processes hardly disturb, else "wall"."""
        return "cpu" if torch.device(self.device).type == "cpu" and self.threads == 1 else "wall"

    @property
    def where(self) -> str:
        """The size in short, such as "8k" or "64x48"."""
        return format_length(self.length) if self.space == "sequence" else "x".join(map(str, self.sides))

    def sizes(self) -> list["Question"]:
        """The same question where everybody is quick, at about a quarter of the length, and last itself.

        Example:
            >>> [size.where for size in Question(sides=(2**16,)).sizes()]
            ['256', '16k', '64k']
        """
        quarter = self.shrunk()
        first = quarter.shrunk()
        while first.length >= FIRST.stop:
            first = first.shrunk()
        return [size for size in (first, quarter) if size.length >= FIRST.start] + [self]

    def shrunk(self) -> "Question":
        """The same question at about a quarter of the length; maps have half the sides.

        Example:
            >>> Question(sides=(64, 48)).shrunk().where, Question(sides=(8192,), context=100).shrunk().context
            ('32x24', 25)
        """
        divisor = STEP if self.space == "sequence" else math.isqrt(STEP)
        context = self.context and max(1, self.context // STEP)
        return replace(self, sides=tuple(max(1, side // divisor) for side in self.sides), context=context)

    def in_words(self) -> str:
        """The question in one line."""
        what = f"{self.where} tokens" if self.space == "sequence" else f"maps of {self.where}"
        what += f" to {format_length(self.context)} keys" if self.context else ""
        passes = "forward and backward" if self.backward else "forward"
        shape = f"batch {self.batch}, dim {self.dim}, {self.num_heads} heads"
        kinds = [word for word in ("causal", "streaming") if getattr(self, word)]
        return ", ".join([what, *kinds, passes, shape, f"{self.dtype} on {self.device}"])

    def _refuse_on_maps(self) -> None:
        """What has no meaning where nothing comes before or after."""
        asked = {"causal": self.causal, "streaming": self.streaming, "context": self.context is not None}
        for name, given in asked.items():
            if given:
                raise InputError(f"{name} is asked of sequences only: give one length instead of {self.where}")


def parse_bytes(given: int | str | None) -> int | None:
    """An amount of memory: a number of bytes, or a text such as "4GB" (10^9 bytes each) or "512MiB" (2^20 each).

    Raises:
        InputError: something else.

    Example:
        >>> parse_bytes("1.5GB"), parse_bytes("2KiB"), parse_bytes(None)
        (1500000000, 2048, None)
    """
    if given is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)", str(given).strip().lower())
    unit = match[2] if match else "?"
    size = _BYTES.get(unit if unit.endswith("b") or not unit else f"{unit}b")
    if match is None or size is None or not float(match[1]):
        raise InputError(f"{given!r} is no amount of memory: write 4GB, 512MB or a number of bytes")
    return round(float(match[1]) * size)


def facts(question: Question) -> dict[str, Any]:
    """The question as JSON has it, and back with ``Question(**...)`` once lists are tuples again."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(question).items()}


def from_facts(found: dict[str, Any]) -> Question:
    """The question that :func:`facts` made this of.

    Example:
        >>> from_facts(facts(Question(sides=(9, 9)))) == Question(sides=(9, 9))
        True
    """
    return replace(Question(**found), sides=tuple(found["sides"]), mechanisms=tuple(found["mechanisms"]))
