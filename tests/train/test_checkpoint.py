import json
import os

import pytest
import torch

from regard.train import checkpoint
from regard.train.checkpoint import CheckpointError, read_checkpoint, write_checkpoint

TENSORS = {"model/w": torch.arange(6.0).reshape(2, 3), "random/cpu": torch.arange(5, dtype=torch.uint8)}


def test_returns_what_was_written_and_keeps_only_the_last(tmp_path):
    assert read_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, {"model/w": torch.zeros(9)}, {"step": 1})
    write_checkpoint(tmp_path, TENSORS, {"step": 2})
    tensors, facts = read_checkpoint(tmp_path)
    assert facts["step"] == 2
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert len(list(tmp_path.iterdir())) == 2


def test_writes_tensors_that_share_memory_or_are_views(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    write_checkpoint(tmp_path, {"a": whole.T, "b": whole, "c": whole[:, 1]}, {})
    tensors, _ = read_checkpoint(tmp_path)
    assert torch.equal(tensors["a"], whole.T)
    assert torch.equal(tensors["c"], whole[:, 1])


def _file(folder):
    return next(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda folder: os.truncate(_file(folder), 100),
            r"checkpoint-\w+.safetensors is truncated: 100 bytes instead of",
        ),
        (lambda folder: _file(folder).unlink(), "which is missing"),
        (lambda folder: _file(folder).write_bytes(_file(folder).read_bytes()[:-1] + b"\1"), "was altered"),
        (lambda folder: os.truncate(folder / "checkpoint.json", 10), "checkpoint.json is damaged: not JSON"),
        (lambda folder: (folder / "checkpoint.json").write_text('{"epoch": 3}'), "not a checkpoint of this version"),
        (lambda folder: (folder / "checkpoint.json").write_text("[1]"), "not a checkpoint of this version"),
    ],
)
def test_names_what_is_damaged(tmp_path, damage, words):
    write_checkpoint(tmp_path, TENSORS, {})
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path)


def test_a_foreign_file_with_the_right_sum_is_still_named(tmp_path):
    write_checkpoint(tmp_path, TENSORS, {})
    facts = json.loads((tmp_path / "checkpoint.json").read_bytes())
    foreign = b"PK\3\4 not ours"
    _file(tmp_path).write_bytes(foreign)
    facts |= {"bytes": len(foreign), "sha256": checkpoint.hashlib.sha256(foreign).hexdigest()}
    (tmp_path / "checkpoint.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        read_checkpoint(tmp_path)
