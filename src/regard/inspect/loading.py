"""``regard check``: a module out of a file, a package or a folder of Hugging Face's, built and checked."""

import ast
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from regard.inspect.check import check
from regard.inspect.loading_networks import from_folder, is_network, small
from regard.inspect.measure import said
from regard.inspect.report import Report


def check_path(
    spec: str, options: Mapping[str, Any] | Iterable[str] = (), inputs: str | None = None, **arguments: Any
) -> Report:
    """Load a module, and check it.

    Args:
        spec: "PATH.py:Class" or "package.module:Class", instead of a class also a function that returns a module; or a
            folder with the ``config.json`` of a model of Hugging Face's transformers, and perhaps its weights.
        options: of the constructor, or of the configuration of such a model; as a mapping or as texts "name=value".
        inputs: shapes, e.g. "2x17x32"; see :func:`make_inputs`. May be left out for registered mechanisms and models of
            transformers.
        arguments: those of :func:`regard.check`.

    Raises:
        ValueError: whatever stands in the way, in one line.
    """
    given = options if isinstance(options, Mapping) else dict(map(parse_option, options))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strangers' constructors
        torch.manual_seed(0)
        module, source = _load(spec, given)
    report = check(module, None if inputs is None else make_inputs(inputs), **arguments)
    return replace(report, about=(source, *report.about))


def _load(spec: str, options: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """The module, and where it is from."""
    if (folder := Path(spec).expanduser()).is_dir():
        return from_folder(folder, options)
    maker = load_class(spec)
    if is_network(maker):
        return small(maker, options)
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return _build(maker, options), f"{spec}{given}, weights as it makes them"


def load_class(spec: str) -> Callable[..., Any]:
    """The class, or the function that makes a module, that "PATH.py:NAME" or "package.module:NAME" speaks of.

    This runs the file, or imports the module.

    Raises:
        ValueError: no such file, module or name, or code that fails.
    """
    place, colon, name = spec.rpartition(":")
    path = Path(place).expanduser()
    if not colon or not name.isidentifier() or (path.suffix != ".py" and not _dotted(place)):
        raise ValueError(
            f"{spec!r} does not read PATH.py:Class or package.module:Class, e.g. model.py:Attention, "
            "and is no folder with a config.json"
        )
    if path.suffix == ".py":
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        found = vars(_run(path.resolve())).get(name)
        others = _modules_in(path)
    else:
        found, others = getattr(_import(place), name, None), ""
    if found is None:
        raise ValueError(f"{place} has no {name}{others}")
    if not callable(found) or (inspect.isclass(found) and not issubclass(found, nn.Module)):
        raise ValueError(f"{name} in {place} is neither an nn.Module class nor a function that returns one")
    return found


def parse_option(text: str) -> tuple[str, Any]:
    """ "name=value" as a pair; the value is a Python literal or else a text.

    Raises:
        ValueError: no name or no "=".

    Example:
        >>> parse_option("num_heads=4"), parse_option("form=blocks")
        (('num_heads', 4), ('form', 'blocks'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"{text!r} does not read name=value, e.g. num_heads=4")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def make_inputs(text: str) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Random inputs of shapes written as text.

    Args:
        text: shapes divided by commas; "2x17x32" is normal noise, "2x17:256" holds ids below 256, and "src=2x17x32"
            names the argument (all of them or none).

    Raises:
        ValueError: a text that says something else.

    Example:
        >>> [tuple(x.shape) for x in make_inputs("2x17x32,2x9x32")]
        [(2, 17, 32), (2, 9, 32)]
        >>> make_inputs("tokens=2x17:256")["tokens"].dtype
        torch.int64
    """
    generator = torch.Generator().manual_seed(0)
    named: dict[str, Tensor] = {}
    plain: list[Tensor] = []
    for part in text.split(","):
        name, equals, shape = part.strip().rpartition("=")
        value = _random(shape, generator)
        if equals:
            named[name] = value
        else:
            plain.append(value)
    if named and plain:
        raise ValueError(f"{text!r} names some inputs and not others: name all of them or none")
    return named or tuple(plain)


def _random(text: str, generator: torch.Generator) -> Tensor:
    sides, colon, ids = text.partition(":")
    numbers = [*sides.split("x"), *([ids] if colon else [])]
    if not all(number.isdigit() and int(number) for number in numbers):
        raise ValueError(f"{text!r} is no shape: write 2x17x32 for numbers or 2x17:256 for ids below 256")
    shape = [int(side) for side in sides.split("x")]
    if colon:
        return torch.randint(int(ids), shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _dotted(text: str) -> bool:
    """Whether it reads as the name of a module."""
    return all(part.isidentifier() for part in text.split("."))


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no module {error.name}; of a file write PATH.py:Class") from error
    except Exception as error:
        raise ValueError(f"importing {name} raises {said(error)}") from error


def _run(path: Path) -> ModuleType:
    name = f"regard_checked_{path.stem}"
    plan = importlib.util.spec_from_file_location(name, path)
    if plan is None or plan.loader is None:
        raise ValueError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(plan)
    sys.modules[name] = module  # dataclasses and pickle look it up
    sys.path.insert(0, str(path.parent))  # so that the file finds its neighbours
    try:
        plan.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"running {path} raises {said(error)}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _modules_in(path: Path) -> str:
    """Advice: the module classes that the file does define."""
    name = f"regard_checked_{path.stem}"
    classes = [
        key for key, value in vars(sys.modules[name]).items() if inspect.isclass(value) and value.__module__ == name
    ]
    return f"; it defines {', '.join(classes)}" if classes else ""


def _build(maker: Callable[..., Any], options: Mapping[str, Any]) -> nn.Module:
    signature = inspect.signature(maker)
    try:
        signature.bind(**options)
    except TypeError as error:
        name = getattr(maker, "__name__", "it")
        raise ValueError(f"{name}{signature}: {error}; constructor options are written name=value") from error
    try:
        module = maker(**options)
    except Exception as error:
        raise ValueError(f"building {getattr(maker, '__name__', 'it')} raises {said(error)}") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"{getattr(maker, '__name__', 'it')} returns {type(module).__name__}, no nn.Module")
    return module
