"""Curves and verdicts from made-up files."""

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "draw_learning.py"


@pytest.fixture(scope="module")
def drawing():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("draw_learning", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(model, seed, value, what="counting sheep", **changes):
    made = {
        "what": what,
        "model": model,
        "parameters": 1234,
        "seed": seed,
        "metric": "accuracy",
        "lower_is_better": False,
        "minutes": 2,
        "threads": 1,
        "steps": 100 + seed,
        "curve": [[0.0, 0.1], [1.0, value - 0.1], [2.0, value]],
        "test": {"easy": 0.99, "accuracy": value},
        "baselines": {"guess": 0.25, "not measured": None},
        "bar": "guess",
        "margin": 0.1,
    }
    return made | changes


def write(folder, *runs):
    for made in runs:
        (folder / f"{made['what']}-{made['model']}-seed{made['seed']}.json").write_text(json.dumps(made))
    (folder / "other.json").write_text("[1, 2]")


def row(text, model):
    return next(line for line in text.splitlines() if line.startswith(f"| {model} |")).split(" | ")


@pytest.mark.parametrize(
    ("values", "changes", "learned"),
    [
        ((0.5, 0.52, 0.48), {}, "yes"),
        ((0.34, 0.34, 0.34), {}, "no"),  # above the bar, but not by the margin
        ((0.5, 0.6, 0.49), {}, "no"),  # the seeds differ by more than the margin
        ((0.14, 0.15, 0.13), {"lower_is_better": True}, "yes"),
        ((0.5, 0.52, 0.48), {"lower_is_better": True}, "no"),
        ((0.5, 0.52, 0.48), {"bar": "nobody"}, "nothing to compare with"),
        ((0.5, 0.5), {}, "too few seeds"),
    ],
)
def test_a_model_has_learned_by_the_margin_and_the_spread(drawing, tmp_path, values, changes, learned, capsys):
    write(tmp_path, *(run("mac", seed, value, **changes) for seed, value in enumerate(values)))
    drawing.main([str(tmp_path)])
    assert row(capsys.readouterr().out, "mac")[-1] == f"{learned} |"


def test_the_bar_may_be_a_model(drawing, tmp_path, capsys):
    rivals = [run("cnn", seed, value, bar="cnn") for seed, value in enumerate((0.30, 0.34, 0.32))]
    write(tmp_path, *rivals, *(run("mac", seed, 0.45, bar="cnn") for seed in range(3)))
    drawing.main([str(tmp_path)])
    told = capsys.readouterr().out
    assert row(told, "mac")[1:] == [
        "1,234",
        "2, 1",
        "101",
        "accuracy 0.450 ± 0.000 (3 seeds)",
        "cnn 0.320 + 0.1",
        "yes |",
    ]
    assert row(told, "cnn")[-1] == "is the bar |"
    assert "| guess | | | | 0.250 | | baseline |" in told
    rivals[0]["test"]["accuracy"] = 0.2  # now its seeds differ by more than the margin
    write(tmp_path, rivals[0])
    drawing.main([str(tmp_path)])
    assert row(capsys.readouterr().out, "mac")[-1] == "no |"


def test_one_picture_a_task_the_same_every_time(drawing, tmp_path):
    write(tmp_path, *(run(model, seed, 0.4 + 0.01 * seed) for model in ("mac", "cnn") for seed in range(2)))
    write(tmp_path, run("mac", 0, 0.9, what="Other: things"))
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        drawing.main([str(tmp_path), "--out", str(folder)])
    assert sorted(path.name for path in first.iterdir()) == ["counting-sheep.svg", "other-things.svg"]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    picture = (first / "counting-sheep.svg").read_text()
    for words in (
        "counting sheep",
        "mac (2 seeds)",
        "cnn (2 seeds)",
        "guess",
        "minutes of training",
        "accuracy (validation)",
    ):
        assert words in picture, words
    assert "not measured" not in picture
    assert "dc:date" not in picture


def test_values_between_points_and_spreads(drawing):
    assert drawing.at([[0, 1.0], [2, 3.0]], 0.5) == 1.5
    assert drawing.at([[1, 1.0], [2, 3.0]], 0.5) == 1.0
    assert drawing.at([[1, 1.0], [2, 3.0]], 9) == 3.0
    assert drawing.mean_and_spread([1.0, 2.0, 4.5]) == (2.5, 1.75)
    assert drawing.file_of("Translation, English-German") == "translation-english-german.svg"


def test_a_folder_without_results_is_refused(drawing, tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        drawing.main([str(tmp_path)])
