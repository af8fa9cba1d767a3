"""Checkpoints: tensors in a safetensors file, all else in ``checkpoint.json``, which names the file and its sha256.

Both are written under a temporary name and renamed, the JSON last: whenever the process dies, it names a whole file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from regard.tasks.writing import write_file

FORMAT = "regard.checkpoint/1"
NAME = "checkpoint.json"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or not ours; the message names the file and what is wrong with it."""


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the checkpoint in ``folder``; ``facts`` must be JSON."""
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    name = f"checkpoint-{digest[:16]}.safetensors"
    write_file(folder / name, data)
    header = {"format": FORMAT, "file": name, "bytes": len(data), "sha256": digest, **facts}
    write_file(folder / NAME, json.dumps(header, indent=1).encode())
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and facts of the checkpoint in ``folder``, or None if there is none.

    Raises:
        CheckpointError: a file is missing, truncated, altered, or was written by something else.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of regard (expected format {FORMAT!r})")
    file = folder / str(facts.get("file"))
    if not file.is_file():
        raise CheckpointError(f"{path} names {file.name}, which is missing")
    data = file.read_bytes()
    if len(data) != facts["bytes"]:
        raise CheckpointError(f"{file} is truncated: {len(data):,} bytes instead of {facts['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise CheckpointError(f"{file} was altered: its sha256 is not the one in {path.name}")
    try:
        return load(data), facts
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error
