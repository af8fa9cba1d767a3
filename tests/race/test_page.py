import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from regard.inspect import Map
from regard.race.entrants import Entrant, Field
from regard.race.leaderboard import show
from regard.race.looking import pack
from regard.race.outcome import Outcome
from regard.race.page import render
from regard.race.page.charts import Level, Series, chart
from regard.race.page.pictures import density, picture
from regard.race.results import SCHEMA, assemble, command, write
from regard.race.settings import Settings

SETTINGS = Settings(smoke=True, steps=4, length=64, dim=16, depth=1, num_heads=2)
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def prepared():
    return SETTINGS.discipline.prepare(SETTINGS)


def looked(label):
    """The passage has 64 bytes; in row 40 byte 7 has the largest weight."""
    if label != "full":
        return {"error": f"ValueError: {EVIL}"}
    weights = torch.full((1, 2, 64, 64), 0.25)
    weights[:, :, 40, 7] = 0.5
    return pack(Map(weights, "exact"))


def finished(label, shift):
    curve = [
        {"steps": step, "seconds": step / 10, "tokens": step * 64, "quality": 7 + shift - step / 4}
        for step in (1, 2, 4)
    ]
    units = [(f"d{number}", 30.0 + shift, 10.0) for number in range(8)]
    return Outcome(
        label, parameters=1000, steps=4, seconds=0.4, tokens=256, curve=curve, quality=3 + shift / 10, units=units,
        evaluation_seconds=0.1, memory={"base": 10**8, "peak": 3 * 10**8}, milliseconds={"attention": 3.0, "rest": 7.0},
        attention_map=looked(label),
    )  # fmt: skip


@pytest.fixture
def results(prepared):
    entrants = (Entrant("full"), Entrant("local", {"window": 8}), Entrant("linear_transformer"), Entrant("longformer"))
    outcomes = [
        finished("full", 0.5),
        finished("local:window=8", 0.0),
        Outcome("linear_transformer", "crashed", f"RuntimeError: {EVIL}"),
        Outcome("longformer", "interrupted", steps=1, curve=finished("longformer", 1.0).curve[:1]),
    ]
    field = Field(entrants, (("linformer", f"not causal: {EVIL}"),))
    return assemble(SETTINGS, field, prepared, {"unigram": 4.7, "bigram": 3.4, "xz": None}, outcomes, interrupted=True)


def test_results_are_plain_json_and_name_the_pick(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == json.loads(json.dumps(results))
    assert results["schema"] == SCHEMA
    assert [entry["label"] for entry in results["entrants"]] == [
        "local:window=8", "full", "linear_transformer", "longformer",
    ]  # fmt: skip
    assert results["verdict"]["call"].startswith('regard.create("local", dim=16')
    assert results["verdict"]["measured"]
    assert results["entrants"][0]["memory_above_base"] == 2 * 10**8
    assert results["equal_steps"]["quality"]["full"] == 6.5


def test_the_schema_is_documented(results):
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "results-schema.md").read_text()
    documented = set(re.findall(r"`([a-z_0-9]+)`", text))
    assert SCHEMA in text
    assert set(results) <= documented
    for name in ("settings", "machine", "data", "verdict", "metric"):
        assert set(results[name]) <= documented, name
    assert set(results["entrants"][0]) <= documented
    assert set(results["entrants"][0]["curve"][0]) <= documented
    for entry in results["entrants"]:
        assert set(entry["attention_map"]) <= documented
    assert set(results["verdict"]["differences"][0]) <= documented


class Sources(HTMLParser):
    """Collects everything that a page would load, and the nesting of its tags."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "data", "srcset", "xlink:href")]
        if tag not in ("meta", "link", "circle", "line", "path", "polyline", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "link", "circle", "line", "path", "polyline"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(results):
    page = render(results)
    parser = Sources()
    parser.feed(page)
    assert parser.open == []
    assert parser.loads[0] == "data:,"
    assert len(parser.loads) == 4, "the mean of two heads and each of them"
    assert all(load.startswith("data:image/png;base64,") for load in parser.loads[1:])
    assert "url(" not in page
    assert "@import" not in page
    assert EVIL not in page
    assert page.count("&lt;script&gt;") == 3
    assert parser.tags.count("script") == 1
    for words in (
        "Best: local:window=8",
        "Where it looked",
        "exact weights, mean of 2 heads",
        "equal time",
        "prefers-color-scheme: dark",
        "width=device-width",
        "regard race",
    ):
        assert words in page
    assert page.count('class="pattern"') >= 3


def test_a_jacobian_says_that_it_is_one(results):
    results["entrants"][1]["attention_map"] = pack(Map(torch.rand(1, 1, 64, 64), "jacobian"))
    page = render(results)
    assert "Jacobian norm, from 8 mixtures of its features<" in page
    assert page.count('class="look"') == 1, "one head has no mean"


def test_results_of_before_there_were_maps_make_a_page(results):
    for entry in results["entrants"]:
        del entry["attention_map"]
    del results["data"]["passage"]
    assert "Where it looked" not in render(results)


def test_the_page_of_a_race_that_nobody_finished(prepared):
    outcomes = [Outcome("full", "killed", "by signal SIGKILL")]
    told = assemble(SETTINGS, Field((Entrant("full"),), ()), prepared, {}, outcomes)
    assert "No pick" in render(told)


def test_the_leaderboard_says_everything(results, capsys):
    from rich.console import Console

    show(results, Console(width=160))
    told = capsys.readouterr().out
    assert "pick local:window=8: the best held-out bits per byte" in told
    assert "unigram 4.700, bigram 3.400, xz not measured (the text is too large for that)" in told
    assert "linear_transformer crashed: RuntimeError" in told
    assert "not in the race: linformer: not causal" in told
    assert told.rstrip().splitlines()[-1].strip().startswith('regard.create("local"')


def test_writing_replaces_both_files(results, tmp_path):
    write(tmp_path, results, "<p>page</p>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json"]
    assert json.loads((tmp_path / "results.json").read_bytes())["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (Settings.of({}), "regard race"),
        (Settings.of({"smoke": True}), "regard race --smoke"),
        (
            Settings.of(
                {"files": ("my texts",), "seconds": 60.0, "mechanisms": ("local:window=8",), "learning_rate": 0.01}
            ),
            "regard race 'my texts' --mechanisms local:window=8 --budget 60s --learning-rate 0.01",
        ),
        (Settings.of({"task": "classify", "files": ("d",), "steps": 9}), "regard race d --task classify --steps 9"),
    ],
)
def test_the_command_repeats_the_race(settings, line):
    assert command(settings) == line


def test_patterns_are_drawn_and_formulas_written():
    from regard.patterns import Causal, PerHead, Window

    assert density(Causal(), 64, 2).shape == (1, 64, 64)
    assert density(PerHead(Causal(), Causal() & Window(4), Causal()), 128, 3).shape == (2, 64, 64)
    shares = density(Causal(), 128, 1)[0]
    assert (shares[10, 3], shares[3, 10], shares[7, 7]) == (1.0, 0.0, 0.75)
    assert picture(Entrant("local", {"window": 4}), SETTINGS).startswith('<svg class="pattern" viewBox="0 0 64 64"')
    assert 'class="formula"' in picture(Entrant("linear_transformer"), SETTINGS)


def test_charts_bear_odd_numbers():
    one = Series("one", 0, [(1.0, 5.0)], ["tip & more"])
    svg = chart([one, Series("none", 1, [], [])], [Level("far", 99.0), Level("near", 5.5)], x="s", y="bits")
    assert "tip &amp; more" in svg
    assert "near" in svg
    assert "far" not in svg
    assert "nan" not in chart([Series("flat", 9, [(0.0, 0.0), (0.0, 0.0)], ["", ""])], [], x="s", y="b", from_zero=True)
    high = Series("falling", 0, [(1.0, 9.0), (2.0, 3.0), (3.0, 2.0)], ["first", "second", "third"])
    assert "first" not in chart([high], [], x="s", y="b", ceiling=4.0)
    assert "first" in chart([high], [], x="s", y="b", ceiling=1.0)
    assert "no entrant got far enough" in chart([], [], x="s", y="b")


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_a_browser_opens_the_page_without_errors_or_requests(results, tmp_path):
    probe = """<script>
      const tip = (target, kind, place) => {
        target.dispatchEvent(new PointerEvent(kind, { bubbles: true, ...place }));
        return document.getElementById("tip").textContent;
      };
      window.onerror = (message) => { document.title = "ERROR " + message; };
      addEventListener("load", () => {
        const root = document.documentElement, map = document.querySelector("img.look");
        const box = map.getBoundingClientRect(), cell = box.width / 64;
        const row = { clientX: box.left + 7.5 * cell, clientY: box.top + 40.5 * cell };
        const point = tip(document.querySelector("circle"), "pointerover", {}).split("\\n")[0];
        const weight = tip(map, "pointermove", row).split("\\n")[1].match(/.*: 0.../)[0];
        const full = [...document.querySelectorAll("#tip .passage span")].map((sign, place) =>
          sign.style.backgroundColor === "rgb(70, 130, 230)" ? place : "").join("");
        document.title = [performance.getEntriesByType("resource").length, root.scrollWidth <= root.clientWidth,
          point, weight, full].join("|");
      });
    </script>"""
    passage = results["data"]["passage"]
    signs = [passage[place].replace(" ", "space").replace("\n", "line end") for place in (40, 7)]
    (tmp_path / "report.html").write_text(render(results).replace("<head>", f"<head>{probe}"))
    for width in ("390", "1200"):
        told = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr",
             "--dump-dom", f"file://{tmp_path / 'report.html'}"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        title = re.search(r"<title>(.*?)</title>", told.stdout)
        assert title is not None, told.stderr
        assert title[1] == f"0|true|local:window=8|{signs[0]} (40) to {signs[1]} (7): 0.50|7"
        assert "CONSOLE" not in told.stderr


def test_examples_stand_on_the_page_and_nothing_in_them_is_markup(results):
    assert "What it sees" not in render(results)
    sight = {"words": EVIL, "picture": "iVBORw0KGgo=", "right": None}
    results["data"]["gallery"] = {
        "inputs": [sight], "truths": [sight], "legend": [[EVIL, "#ffffff"]], "looking": "what it takes",
    }  # fmt: skip
    results["entrants"][0]["shown"] = {"answers": [sight | {"right": False}], "looked": [sight]}
    results["entrants"][1]["shown"] = {"error": EVIL}
    page = render(results)
    assert "What it sees" in page
    assert page.count("data:image/png;base64,iVBORw0KGgo=") == 4
    assert "no answers: " in page
    assert EVIL not in page
