"""Where measurements are kept: one JSON file a machine and question, in the user's cache folder."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regard.advice.measuring import Point
from regard.advice.question import Question, facts
from regard.engines import native_library
from regard.race.machine import machine
from regard.tasks.cache import cache_folder
from regard.tasks.writing import write_file

SCHEMA = "regard.recommend/1"


@dataclass(frozen=True)
class Kept:
    """What was measured: enough to answer with other limits of memory and time.

    Attributes:
        question, machine: facts of both.
        measured: when, ISO 8601.
        points: by label and length.
        absent: (label, reason) of those who did not come into question.
    """

    question: dict[str, Any]
    machine: dict[str, Any]
    measured: str
    points: dict[str, dict[int, Point]]
    absent: list[tuple[str, str]]


def here(question: Question) -> dict[str, Any]:
    """The machine as far as times depend on it."""
    native = native_library.isa() if native_library.missing() is None else ""
    return {**machine(), "threads": question.threads, "native": native}


def path_of(question: Question) -> Path:
    """The file of this question on this machine, whether it is there or not."""
    key = json.dumps([SCHEMA, here(question), facts(question)], sort_keys=True, default=str)
    return cache_folder() / "recommend" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"


def load(path: Path) -> Kept | None:
    """What was kept; None where nothing was.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        found = json.loads(path.read_bytes())
        if found.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        points = {
            label: {int(length): Point(**point) for length, point in by_length.items()}
            for label, by_length in found.pop("points").items()
        }
        return Kept(points=points, **found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__})") from error


def store(path: Path, kept: Kept) -> None:
    """Write it, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"schema": SCHEMA, **asdict(kept)}, indent=1).encode())
