import os
import signal

import pytest
import torch
from rich.console import Console

from regard.cli.training import train_shown
from regard.tasks.documents import InputError
from regard.tasks.recall import Recall
from regard.train.budget import Budget

FACTS = {"kind": "recall", "data": "drawn pairs"}


def shown(folder, *, terminal=False, steps=20, change=lambda model: None, task=None):
    console = Console(record=True, width=120, force_terminal=terminal, quiet=False)
    task = task or Recall(length=8, batch=2, seed=0)
    torch.manual_seed(0)
    model = task.model(8, 1, 2, "full")
    change(model)
    try:
        train_shown(console, model, task, folder, Budget(steps=steps), rate=1e-3, facts=FACTS)
    finally:
        text = console.export_text()
    return text


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    told = shown(tmp_path / "new")
    assert told.splitlines()[0].startswith("training into ")
    assert told.splitlines()[0].endswith("for 20 steps: drawn pairs")
    lines = told.splitlines()[1:]
    assert [line.split("%")[0].strip() for line in lines] == ["5", *(str(10 * n) for n in range(1, 11))]
    assert all("loss" in line and "s left" in line for line in lines)


def test_a_bar_on_a_terminal(tmp_path, capsys):
    told = shown(tmp_path / "new", terminal=True)
    assert "100% step 20" in told


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys):
    class Interrupted(Recall):
        def batch(self, step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(step)

    console = Console(record=True, width=300)
    task = Interrupted(length=8, batch=2, seed=0)
    model = task.model(8, 1, 2, "full")
    with pytest.raises(KeyboardInterrupt):
        train_shown(console, model, task, tmp_path, Budget(steps=9), rate=1e-3, facts=FACTS)
    assert f"kept in {tmp_path}: the same command goes on from there" in console.export_text()


def test_divergence_is_one_line(tmp_path, capsys):
    def spoil(model):
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))

    with pytest.raises(InputError, match="diverged: the loss is nan at step 1"):
        shown(tmp_path / "new", change=spoil)
