"""The transforms of ``torch.func``: whether one is active, and how to step out of them."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack


@contextmanager
def outside() -> Generator[None]:
    """Within this block no transform (vmap, grad, jvp) is active: new tensors are ordinary and can be remembered."""
    if _functorch.peek_interpreter_stack() is None:
        yield
    else:
        with temporarily_clear_interpreter_stack():
            yield


def ordinary(*tensors: Tensor) -> bool:
    """Whether these are tensors of numbers and nobody watches: no transform, no mode, no subclass."""
    return (
        _functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and all(type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta for tensor in tensors)
    )
