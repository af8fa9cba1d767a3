"""What each attention of a model is asked and what it answers, on a batch of the user's."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.inspect.tensors import first_tensor
from regard.swap.building import cuda_only

Batch = Tensor | Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True)
class Asked:
    """One call of one attention.

    Attributes:
        args, kwargs: what it was called with.
        output: the first tensor that it gave.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def run(model: nn.Module, batch: Batch) -> Any:
    """The model's answer to a batch: a tensor, a mapping of named arguments, or a sequence of them.

    Raises:
        TypeError: another kind of batch.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    raise TypeError(
        f"the batch is a {type(batch).__name__}: pass a tensor, a dict of the model's arguments, or a tuple of them"
    )


def record(model: nn.Module, modules: Mapping[str, nn.Module], batch: Batch) -> tuple[dict[str, list[Asked]], Tensor]:
    """Run the model in eval mode, without gradients; afterwards it is as before.

    Args:
        model: the model.
        modules: the attentions of interest, by name.
        batch: what the model is called with.

    Returns:
        The calls of each attention, in order, and the first tensor of the model's output.

    Raises:
        ValueError: a batch with tokens or positions that the model does not have.
    """
    calls: dict[str, list[Asked]] = {name: [] for name in modules}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls[name].append(Asked(*_kept(args, kwargs), first_tensor(output).detach().clone()))

        return keep

    handles = [part.register_forward_hook(hook(name), with_kwargs=True) for name, part in modules.items()]
    try:
        with still(model):
            output = first_tensor(run(model, batch)).clone()
    except IndexError as error:
        raise ValueError(f"the batch must fit the model as it is, without max_length: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


@contextmanager
def still(*models: nn.Module) -> Generator[None]:
    """As :func:`at_rest`, without gradients and without a trace of random draws."""
    devices = (value.device for model in models for value in model.parameters())
    with at_rest(*models), torch.no_grad(), torch.random.fork_rng(cuda_only(*devices)):
        yield


@contextmanager
def at_rest(*models: nn.Module) -> Generator[None]:
    """Eval mode, no caches, and torch's encoders call their attentions; afterwards all is as before.

    In eval mode ``nn.TransformerEncoderLayer`` has a kernel of its own that passes its attention by.
    """
    modes = {part: part.training for model in models for part in model.modules()}
    configs = [config for model in models for config in caching(model)]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for part in modes:
            part.training = False
        for config in configs:
            config.use_cache = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, mode in modes.items():
            part.training = mode
        for config in configs:
            config.use_cache = True


def caching(model: nn.Module) -> list[Any]:
    """The configs of transformers under which the model would keep a cache."""
    parts: Iterable[Any] = (
        getattr(part, name, None) for part in model.modules() for name in ("config", "generation_config")
    )
    return list({id(config): config for config in parts if getattr(config, "use_cache", None) is True}.values())


def _kept(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments; floats are copied, as models may write into what they handed over."""
    copies: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return copies.setdefault(id(value), value.detach().clone())  # query, key and value stay one tensor

    return tuple(copy(value) for value in args), {name: copy(value) for name, value in kwargs.items()}
