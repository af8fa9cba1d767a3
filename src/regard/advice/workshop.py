"""A process in which chores are done, ``python -m regard.advice.workshop``: it loads regard once, and forks for each.

So a mechanism that runs out of memory, crashes or hangs harms nobody, its memory is measured alone, and no chore waits
for torch to be imported. Where the system does not fork safely each chore gets a new process instead. Chores come as
lines of JSON on standard input, answers go to standard output.
"""

import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

FORKS = sys.platform == "linux"

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Of the process that forks: a team of OpenMP threads does not outlive a fork, and its child would wait for it forever.
Each child sets the number of threads that the question asks for."""


class Workshop:
    """The other end: starts the process, hands in chores, ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._errors.close()

    def open(self) -> None:
        """Start the process and wait until it has loaded.

        Raises:
            RuntimeError: it does not start; the message has its last words.
        """
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "regard.advice.workshop"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for us: we end it
        )
        if self._answer() is None:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["without a word"])[-1]
            self.close()
            raise RuntimeError(f"the process that measures does not start: {last}")

    def do(self, chore: dict[str, Any]) -> dict[str, Any]:
        """The answer to a chore; ``status`` "too slow", "out of memory" or "crashed" where there is none."""
        self.open()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(chore) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer is None or not FORKS:
            self.close()
        return answer or {"status": "crashed", "error": "its process ended without a word"}

    def close(self) -> None:
        """End the process, and what it is doing."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            if FORKS:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.communicate()
        self._process = None

    def _answer(self) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def main() -> None:
    """Answer chores until standard input ends; whatever a mechanism prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from regard.advice import chores  # what every chore needs, loaded once
    from regard.factory import names

    names()
    gc.freeze()  # what is loaded is no garbage: children need not look through it, nor copy it to do so
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        chore: dict[str, Any] = json.loads(line)
        answer = _in_a_child(chore) if FORKS else _answered(chores.perform, chore)
        print(json.dumps(answer), file=answers, flush=True)


def _in_a_child(chore: dict[str, Any]) -> dict[str, Any]:
    """Fork, do it there, and tell how the child ended if it did not answer."""
    from regard.advice import chores

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            with suppress(OSError):  # be the one that is killed when memory runs out
                Path("/proc/self/oom_score_adj").write_text("1000")
            with os.fdopen(writer, "w") as pipe:
                json.dump(_answered(chores.perform, chore), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        late = not select.select([pipe], [], [], chore["limit"] + 2 * chores.LATE)[
            0
        ]  # it hangs where no signal is heard
        if late:
            os.kill(child, signal.SIGKILL)
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if text:
        return json.loads(text)
    if late or code == -signal.SIGALRM:
        return {"status": "too slow", "error": f"not built and called once within {chore['limit']:.3g} s"}
    if code == -signal.SIGKILL:
        return {"status": "out of memory", "error": "killed by the system"}
    return {"status": "crashed", "error": f"its process ended with code {code}"}


def _answered(perform: Any, chore: dict[str, Any]) -> dict[str, Any]:
    try:
        return perform(chore)
    except Exception as error:  # of the chore itself: mechanisms' errors are part of its answer
        return {"status": "crashed", "error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
