"""One call in a fresh process, ``python -m regard.bench.probe JSON``: does it run in time, and in how much memory?

The answer is the last line of its standard output, in JSON. The system ends the process by SIGALRM when the time limit
is over, and by SIGKILL when memory is.
"""

import gc
import json
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from regard.bench.settings import Settings
from regard.bench.turns import describe, workload
from regard.race.entrants import Entrant
from regard.race.worker import is_out_of_memory
from regard.train.clock import device_memory_peak, memory_now, memory_peak

FEW = 32  # tokens of the call that loads the code
START = 300.0  # seconds for a process to start, on a very busy machine


def probe(entrant: Entrant, length: int, settings: Settings) -> dict[str, Any]:
    """Call the mechanism once in a process of its own.

    Returns:
        ``status`` "measured" with ``memory_bytes``, or "too slow", "out of memory" or "crashed" with ``error``.
    """
    job = {"name": entrant.name, "options": entrant.options, "length": length, "settings": asdict(settings)}
    command = [sys.executable, "-m", "regard.bench.probe", json.dumps(job)]
    slow = {"status": "too slow", "error": f"not built and called once within {settings.limit:g} s"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START + settings.limit, check=False)
    except subprocess.TimeoutExpired:
        return slow
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode == -getattr(signal, "SIGALRM", 0):
        return slow
    if done.returncode == -getattr(signal, "SIGKILL", 0):
        return {"status": "out of memory", "error": "killed by the system"}
    last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
    return {"status": "crashed", "error": f"its process ended with code {done.returncode}: {last}"}


def main(job: dict[str, Any]) -> dict[str, Any]:
    """What :func:`probe` returns, found in this process."""
    settings = Settings(**job["settings"])
    entrant = Entrant(job["name"], job["options"])
    torch.set_num_threads(settings.threads)
    with suppress(Exception):  # some mechanisms refuse so few tokens; then the code counts as memory too
        workload(entrant, FEW, settings)()
        gc.collect()
    base = memory_now()
    try:
        workload(entrant, job["length"], settings)()
    except Exception as error:
        status = "out of memory" if is_out_of_memory(error) else "crashed"
        return {"status": status, "error": describe(error)}
    memory = max(0, memory_peak() - base) if torch.device(settings.device).type == "cpu" else device_memory_peak()
    return {"status": "measured", "error": "", "memory_bytes": memory}


def _first_to_go() -> None:
    """On Linux, ask to be the one that is killed when memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    _first_to_go()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, request["settings"]["limit"])
    print("\n" + json.dumps(main(request)))
