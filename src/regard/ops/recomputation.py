"""Forward passes that are run a second time."""

import torch


def repeated() -> bool:
    """Whether a backward pass is under way, which repeats a forward pass to save its memory: count nothing twice.

    Example:
        >>> repeated()
        False
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
