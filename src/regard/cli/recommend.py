"""``regard recommend``: the question from the command line, progress, the table or JSON."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from regard.advice.recommend import recommend
from regard.advice.recommendation import Recommendation
from regard.bench.settings import parse_lengths
from regard.tasks.documents import InputError


def print_recommendation(given: Mapping[str, Any], *, length: str, context: str | None, as_json: bool) -> int:
    """Measure or remember, and print the answer.

    Args:
        given: arguments of :func:`regard.recommend` but for the lengths; ``dtype`` by its name.
        length: such as "8k", or "64x48" for maps.
        context: such as "1k".
        as_json: print JSON instead of the table.

    Returns:
        The exit code: 0; 1 where nothing stays within the limits; 130 after Ctrl-C.
    """
    sides = _sides(length)
    arguments: dict[str, Any] = {
        **given,
        "dtype": getattr(torch, given["dtype"]),
        "data": "sequence" if isinstance(sides, int) else "map",
        "context": None if context is None else _number(context, "--context"),
    }
    # progress goes to standard error, so that the answer can be piped
    with Console(stderr=True).status("") as status:
        say: Callable[[str], None] = lambda line: status.update(escape(line))  # noqa: E731
        answer = recommend(sides, say=say, **arguments)
    print(json.dumps(answer.to_dict(), indent=1) if as_json else answer)
    return _code(answer)


def _code(answer: Recommendation) -> int:
    if answer.interrupted:
        return 130
    return 0 if answer.name else 1


def _sides(text: str) -> int | tuple[int, int]:
    """Tokens, or the two sides of a map."""
    if match := re.fullmatch(r"(\d+)x(\d+)", text.strip().lower()):
        return int(match[1]), int(match[2])
    return _number(text, "--length")


def _number(text: str, option: str) -> int:
    try:
        (number,) = parse_lengths(text)
    except ValueError as error:
        raise InputError(f"{option} {text}: write a number of tokens such as 8k, or 64x48 for maps") from error
    return number
