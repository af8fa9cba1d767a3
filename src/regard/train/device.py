"""Is the device there?"""

import torch

from regard.tasks.documents import InputError


def check_device(name: str) -> None:
    """Put one number on the device.

    Raises:
        InputError: it has no such name, or torch cannot use it here.

    Example:
        >>> check_device("cpu")
    """
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
