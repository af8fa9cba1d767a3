"""What is done in a process of its own, asked and answered in JSON: a call for its memory, or turns for their time."""

import gc
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from regard.advice.question import Question, from_facts
from regard.advice.workload import workload
from regard.bench.turns import Seconds, describe, take_turns
from regard.race.entrants import Entrant
from regard.race.worker import is_out_of_memory
from regard.train.clock import device_memory_peak, memory_now, memory_peak, now

FEW = {1: (32,), 2: (6, 6)}
"""Sides of the input whose call loads the code, before memory is measured."""

LATE = 30.0
"""Seconds that a call may go on after the time is over, before the process is ended."""

_timer = getattr(signal, "setitimer", None)  # not on Windows


class TimeOverError(BaseException):
    """No Exception, so that nobody but :func:`turns` takes it for an error of a mechanism."""


def perform(chore: dict[str, Any]) -> dict[str, Any]:
    """Do one chore: "probe" or "turns", with the rest of its entries as arguments."""
    question = from_facts(chore["question"])
    entrants = [Entrant(name, options) for name, options in chore["entrants"]]
    torch.set_num_threads(question.threads)
    if chore["kind"] == "probe":
        return probe(entrants[0], question, chore["limit"])
    return turns(entrants, question, chore["rounds"], chore["limit"])


def probe(entrant: Entrant, question: Question, limit: float) -> dict[str, Any]:
    """Build and call once: ``status``, ``error``, ``memory_bytes`` above the base, and the ``seconds`` that it took.

    The system ends the process when the time is over, even in the middle of a call.
    """
    if _timer:
        _timer(signal.ITIMER_REAL, limit)
    context = question.context and min(question.context, 32)
    small = replace(question, sides=FEW[len(question.sides)], context=context)
    with suppress(Exception):  # some mechanisms refuse so few tokens; then the code counts as memory too
        workload(entrant, small)()
        gc.collect()
    base, start = memory_now(), now()
    try:
        workload(entrant, question)()
    except Exception as error:
        return {"status": "out of memory" if is_out_of_memory(error) else "crashed", "error": describe(error)}
    on_cpu = torch.device(question.device).type == "cpu"
    memory = max(0, memory_peak() - base) if on_cpu else device_memory_peak()
    return {"status": "measured", "error": "", "memory_bytes": memory, "seconds": now() - start}


def turns(entrants: list[Entrant], question: Question, rounds: int, limit: float) -> dict[str, Any]:
    """Let the entrants take turns until the time is over: the seconds of each turn, by label."""
    seconds = dict[str, Seconds]()
    builders = {entrant.label: partial(workload, entrant, question) for entrant in entrants}
    over = False
    try:
        with _alarm(limit):
            take_turns(builders, rounds, seconds)
    except TimeOverError:
        over = True
    return {"over": over, "seconds": {label: asdict(found) for label, found in seconds.items()}}


@contextmanager
def _alarm(limit: float) -> Generator[None]:
    """Raise :class:`TimeOverError` between two calls when the time is over; the system ends a call that goes on."""

    def ring(*_: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if _timer:
            _timer(signal.ITIMER_REAL, LATE)
        raise TimeOverError

    if _timer is None:
        yield
        return
    signal.signal(signal.SIGALRM, ring)
    _timer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        _timer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
