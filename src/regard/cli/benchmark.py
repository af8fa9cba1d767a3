"""``regard bench``: settings, the folder, and the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from regard.bench.chart import draw
from regard.bench.entrants import choose
from regard.bench.results import gather, load_average
from regard.bench.runner import Runner
from regard.bench.settings import Settings, parse_lengths
from regard.bench.table import show
from regard.cli.display import make_console
from regard.cli.folders import new_folder
from regard.tasks.writing import write_file

DEFAULT_FOLDER = "regard-bench"


def print_bench(given: Mapping[str, Any], *, lengths: str, out: Path | None) -> bool:
    """Measure, print the table, write ``bench.json`` and ``bench.png``.

    Args:
        given: settings but for the lengths.
        lengths: as on the command line.
        out: the folder; None: a new one.

    Returns:
        Whether Ctrl-C ended it early.
    """
    settings = Settings(lengths=parse_lengths(lengths), **given)
    field, load, console = choose(settings), load_average(), make_console()
    folder = new_folder(out, DEFAULT_FOLDER, "bench.json", "a benchmark")
    folder.mkdir(parents=True, exist_ok=True)
    results = dict[str, Any]()

    def save(runner: Runner) -> None:
        results.update(gather(runner, field, load))
        write_file(folder / "bench.json", json.dumps(results, indent=1).encode())

    with console.status("") as status:
        runner = Runner(settings, field.entrants, lambda line: status.update(escape(line)), save)
        runner.run()
    show(results, console)
    write_file(folder / "bench.png", draw(results))
    console.print(f"{folder / 'bench.json'}  {folder / 'bench.png'}", markup=False, highlight=False, soft_wrap=True)
    return runner.interrupted
