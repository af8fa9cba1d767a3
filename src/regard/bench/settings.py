"""What is measured: the numbers that all mechanisms share, checked before anything runs."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from regard.race.entrants import Entrant
from regard.tasks.documents import InputError
from regard.train.device import check_device

_UNITS = {"": 1, "k": 2**10, "m": 2**20}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a benchmark.

    Attributes:
        mechanisms: as given: NAME or NAME:option=value,... each; empty: all on sequences.
        lengths: numbers of tokens, ascending.
        causal: the causal forms.
        backward: the forward and the backward pass, instead of the forward pass without gradients.
        dim, num_heads, batch: of the layer and its input.
        dtype: of weights and input: "float32", "float64", "bfloat16" or "float16".
        device: "cpu" or "cuda".
        threads: of torch.
        rounds: how often each mechanism has its turn at each length.
        limit: seconds in which a layer must be built and called once, in a process of its own.
    """

    mechanisms: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    causal: bool = False
    backward: bool = False
    dim: int = 512
    num_heads: int = 8
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    rounds: int = 5
    limit: float = 60.0

    def __post_init__(self) -> None:
        for name in ("dim", "num_heads", "batch", "threads", "rounds", "limit"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} is not positive")
        if self.dim % self.num_heads:
            raise InputError(f"--dim {self.dim} cannot be shared equally by --num-heads {self.num_heads}")
        check_device(self.device)
        if torch.device(self.device).type not in ("cpu", "cuda"):
            raise InputError(f"--device {self.device} cannot be timed: there are clocks for cpu and cuda")

    @property
    def clock(self) -> str:
        """The time that counts: "cpu" seconds of the process, or "wall" seconds where another device computes."""
        return "cpu" if torch.device(self.device).type == "cpu" else "wall"

    def arguments(self, entrant: Entrant, length: int) -> dict[str, Any]:
        """The arguments of ``regard.create`` at one length."""
        shared = {"dim": self.dim, "num_heads": self.num_heads, "causal": self.causal, "max_length": length}
        return {**shared, "device": self.device, "dtype": getattr(torch, self.dtype), **entrant.options}


def parse_lengths(text: str) -> tuple[int, ...]:
    """Lengths in ascending order.

    Raises:
        InputError: something that is no length.

    Example:
        >>> parse_lengths("16k,1000,1k")
        (1000, 1024, 16384)
    """
    found: set[int] = set()
    for word in filter(None, (word.strip().lower() for word in text.split(","))):
        match = re.fullmatch(r"(\d+)([km]?)", word)
        if match is None or not int(match[1]):
            raise InputError(f"--lengths: {word!r} is no length: write numbers such as 1k,4k,16k or 1000")
        found.add(int(match[1]) * _UNITS[match[2]])
    if not found:
        raise InputError("--lengths names no length: write numbers such as 1k,4k,16k")
    return tuple(sorted(found))


def format_length(length: float) -> str:
    """The short form of a length, exact for whole thousands of 1024.

    Example:
        >>> format_length(16384), format_length(1000), format_length(2345.6)
        ('16k', '1000', '2346')
    """
    number = round(length)
    for unit, size in (("m", 2**20), ("k", 2**10)):
        if number % size == 0:
            return f"{number // size}{unit}"
    return str(number)
