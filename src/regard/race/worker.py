"""The process of one entrant: ``python -m regard.race.worker FOLDER``, where FOLDER holds ``job.json``.

It writes one JSON object a line to its standard output and, at the end, ``result.json``. Whatever a mechanism prints
goes to standard error, which the runner keeps in ``log.txt``. SIGTERM asks for a checkpoint and an early end.
"""

import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

EVENT_SECONDS = 0.1
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


def main(folder: Path) -> int:
    """Run the job in ``folder``; the exit code is 0 whenever the outcome was told in an orderly way."""
    emit = _events()
    stop = _stop_flag()
    _die_with_parent()
    from regard.tasks.documents import InputError
    from regard.tasks.writing import write_file
    from regard.train.checkpoint import CheckpointError
    from regard.train.trainer import DivergedError

    try:
        outcome = _run(folder, emit, stop)
        write_file(folder / "result.json", json.dumps(outcome).encode())
        emit({"kind": "outcome", "status": outcome["status"]})
    except BrokenPipeError:
        return 1  # the runner is gone; the last checkpoint stands
    except (InputError, CheckpointError, DivergedError) as error:
        emit(
            {
                "kind": "outcome",
                "status": "diverged" if isinstance(error, DivergedError) else "crashed",
                "error": str(error),
            }
        )
    except OSError as error:
        status = "full disk" if error.errno in FULL_DISK else "crashed"
        emit({"kind": "outcome", "status": status, "error": f"{error.strerror}: {error.filename or folder}"})
    except Exception as error:
        traceback.print_exc()
        status = "out of memory" if is_out_of_memory(error) else "crashed"
        emit({"kind": "outcome", "status": status, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
    return 0


def _run(folder: Path, emit: Callable[[dict[str, Any]], None], stop: Callable[[], bool]) -> dict[str, Any]:
    from regard.race.entrants import Entrant
    from regard.race.job import Job
    from regard.race.settings import Settings

    job = json.loads((folder / "job.json").read_bytes())
    settings, entrant = Settings.from_json(job["settings"]), Entrant(job["name"], job["options"])
    return asdict(Job(settings, entrant, folder, fingerprint=job["fingerprint"], emit=emit, stopped=stop).run())


def _events() -> Callable[[dict[str, Any]], None]:
    """A function that writes events to the real standard output, steps at most ten times a second."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    last = 0.0

    def emit(event: dict[str, Any]) -> None:
        nonlocal last
        if event["kind"] == "step" and time.monotonic() - last < EVENT_SECONDS:
            return
        last = time.monotonic()
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    return emit


def _stop_flag() -> Callable[[], bool]:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the runner decides
    return lambda: bool(asked)


def _die_with_parent() -> None:
    """On Linux, be killed when the runner is: an orphan would go on writing checkpoints beside a resumed race."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch or Python gave up for want of memory."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
