"""A whole race: choose the folder, prepare, run, judge, write."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from regard.race.discipline import Prepared
from regard.race.entrants import Field, choose
from regard.race.folder import FORMAT, choose_folder, only_one, read_settings
from regard.race.page import render
from regard.race.results import assemble, write
from regard.race.runner import Runner, Watcher
from regard.race.settings import Settings
from regard.tasks.documents import InputError
from regard.tasks.writing import write_file


class Show(Protocol):
    """Makes the watcher of a race, as a context; and says lines before it starts."""

    def say(self, line: str) -> None:
        """One line of text."""
        ...

    def watch(self, field: Field, prepared: Prepared) -> AbstractContextManager[Watcher]:
        """The live display."""
        ...


def hold_race(
    given: Mapping[str, Any], show: Show, *, out: str | None = None, resume: bool = False
) -> tuple[dict[str, Any], Path]:
    """Run a race from the options that were given (None: not given), and write its results.

    Args:
        given: fields of :class:`Settings`.
        show: where progress goes.
        out: the folder for everything that is written; None: a new one beside the earlier ones.
        resume: go on with the race in the folder.

    Returns:
        The content of ``results.json``, and the folder. ``results["interrupted"]`` is True after Ctrl-C.

    Raises:
        InputError: the request cannot be met; nothing was written unless the disk filled up on the way.
    """
    folder = choose_folder(out, resume)
    stored = read_settings(folder) if resume else None
    if resume and stored is None:
        show.say(f"nothing to resume in {folder}: starting from the beginning")
    settings = _settings(given, stored[0] if stored else None, folder)
    field = choose(settings)
    if settings.scale == "full":
        show.say("the data of the full scale is drawn once and kept; the first time that takes minutes")
    prepared = settings.discipline.prepare(settings)
    if stored and stored[1] != prepared.fingerprint:
        raise InputError(f"the text is not the one that the race in {folder} began with: start a new race")
    try:
        return _run(settings, field, prepared, folder, show), folder
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error


def _settings(given: Mapping[str, Any], stored: Settings | None, folder: Path) -> Settings:
    """The stored settings if everything that was given agrees with them, or new ones."""
    if stored is None:
        return Settings.of(given)
    if differences := stored.differences(given):
        raise InputError(f"cannot resume {folder} with other settings: {'; '.join(differences)}")
    return stored


def _run(settings: Settings, field: Field, prepared: Prepared, folder: Path, show: Show) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        stored = {"format": FORMAT, "fingerprint": prepared.fingerprint, "settings": asdict(settings)}
        describe(settings, prepared, show.say)
        baselines = prepared.baselines()
        with show.watch(field, prepared) as watcher:
            runner = Runner(settings, field.entrants, folder, prepared.fingerprint, watcher)
            runner.inspect()
            write_file(folder / "race.json", json.dumps(stored, indent=1).encode())
            outcomes, interrupted = runner.run()
        results = assemble(settings, field, prepared, baselines, outcomes, interrupted=interrupted)
        write(folder, results, render(results))
    return results


def describe(settings: Settings, prepared: Prepared, say: Callable[[str], None]) -> None:
    """Say what will be done before it is done."""
    items, unit = prepared.task.metric.items, prepared.task.unit
    sizes = ", ".join(f"{part} {count:,} {items} {size:,} {unit}" for part, (count, size) in prepared.sizes.items())
    say(f"{prepared.name}: {sizes}")
    say(f"held out {prepared.rule}")
    for remark in prepared.remarks:
        say(remark)
    say(
        f"each entrant trains for {settings.budget}: depth {settings.depth}, dim {settings.dim}, "
        f"{settings.num_heads} heads, {settings.intake(unit)} at the input, {settings.portion(unit)}, "
        f"seed {settings.seed}"
    )
