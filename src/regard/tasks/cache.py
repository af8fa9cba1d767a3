"""Generated data, kept in the user's cache folder: drawn once, read by every process of a race and by the next race."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from regard.tasks.writing import write_file


def cache_folder() -> Path:
    """``$REGARD_CACHE``, or ``regard`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("REGARD_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regard"


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` returns, from the file ``name`` of the cache folder where it is there and whole.

    The name says everything that the content depends on. A new file is written under a temporary name and renamed, so
    that two races may meet; where nothing can be written, or a file is damaged, the data is simply made again.

    Args:
        name: of the file, without its ending.
        make: makes the data.
    """
    path = cache_folder() / f"{name}.safetensors"
    with contextlib.suppress(OSError, SafetensorError):
        return load(path.read_bytes())
    found = make()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, save({key: tensor.contiguous() for key, tensor in found.items()}))
    return found
