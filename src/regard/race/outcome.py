"""What became of an entrant."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """What an entrant's run tells; ``result.json`` in its folder, and an entry of ``results.json``.

    Attributes:
        label: as on the command line.
        status: "finished" or "interrupted"; the runner has more words for runs that ended otherwise.
        parameters: trainable numbers.
        steps, seconds, tokens: what training used; seconds without evaluation and start-up.
        evaluation_seconds: what judging cost, outside the budget.
        curve: steps, seconds and quality on the validation part.
        quality, units: on the test part; units are (document, sum of scores, amount).
        further: other figures on the test part, by name.
        memory: bytes; "base" before the model existed, "peak" of the process, "device" on an accelerator.
        attention_map: of its last attention on the passage, see :func:`regard.race.looking.pack`; or an "error".
        shown: its answers to the examples of the task's gallery, see :func:`regard.race.showing.show`; or an "error".
        milliseconds: of a step, by "attention" and "rest", measured on a few steps after training.
        resumed: how often the run went on from a checkpoint.
    """

    label: str
    status: str = "finished"
    error: str = ""
    parameters: int = 0
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    evaluation_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    quality: float | None = None
    units: list[tuple[str, float, float]] = field(default_factory=list[tuple[str, float, float]])
    further: dict[str, float] = field(default_factory=dict[str, float])
    memory: dict[str, int] = field(default_factory=dict[str, int])
    attention_map: dict[str, Any] = field(default_factory=dict[str, Any])
    shown: dict[str, Any] = field(default_factory=dict[str, Any])
    milliseconds: dict[str, float] = field(default_factory=dict[str, float])
    device: str = "cpu"
    resumed: int = 0
