"""Any module with our layers in it as one ONNX file that holds for every length: ``export``.

Needs ``pip install regard[onnx]``. The file holds everyday operators only: our own are replaced by what they compute
(:mod:`regard.integrations.onnx_operators`), so attention forms its N x M scores there, whatever the pattern.
"""

import inspect
import logging
import warnings
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from regard.integrations.onnx_operators import definitions, translations
from regard.map_layers import MapLayer
from regard.registry import Card, Core, UnsupportedError
from regard.tasks.writing import write_file

Labels = Mapping[str, Mapping[int, str]]
"""Argument -> {axis: its name}, of axes whose sizes may change."""

Axes = Mapping[str, Mapping[int, str] | Collection[int]]
TOLERANCE = 1e-4
"""By how much onnxruntime may differ from torch in float32, relative to max(1, the largest number)."""

MOST_BYTES = 2**31 - 1
SIDES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def export(
    module: nn.Module,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    path: str | Path,
    *,
    dynamic: bool | Axes = True,
    opset: int | None = None,
    verify: bool = True,
) -> Path:
    """Write a module to an ONNX file, and run the file in onnxruntime to see that it computes the same.

    A file cannot refuse: at lengths that the module itself refuses, or takes another way for, it is not asked for.

    Args:
        module: any nn.Module in evaluation mode, on the CPU.
        inputs: example arguments of forward: a tensor, a tuple of positional or a mapping of named ones. A mask that
            the file shall take must be among them.
        path: of the file, whose weights stand in it.
        dynamic: which sizes may change from call to call. True: the batch, and the tokens of sequences or the sides of
            maps (:func:`lengths`). False: none. Or the axes of each argument, with names for them or without:
            ``{"x": {0: "batch", 1: "length"}}``.
        opset: ONNX's version; torch's default.
        verify: compare the file with the module in onnxruntime: at the example, and with every dynamic axis one
            shorter where the module takes that.

    Returns:
        The path.

    Raises:
        ImportError: the extra is not installed.
        TypeError, ValueError: arguments that make no sense, or a module in training.
        UnsupportedError: the module cannot be written like that; the message holds torch's reason.
        RuntimeError: onnxruntime computes something else. No file is written then.

    Example:
        >>> import regard, tempfile
        >>> layer = regard.create("local", dim=8, num_heads=2, window=3).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export(layer, torch.randn(2, 16, 8), Path(folder) / "local.onnx").name
        'local.onnx'
    """
    _check_installed(verify)
    if module.training:
        raise ValueError("the module is in training mode, an ONNX file holds a model in evaluation: call eval() first")
    arguments = _by_name(module, inputs)
    axes = _axes(module, arguments, dynamic)
    with _in_one_sentence(type(module).__name__):
        written = translate(trace(module, arguments, axes), arguments, axes, opset)
    if verify:
        compare(written, module, arguments)
        shorter = _shorter(arguments, axes)
        if axes and _takes(module, shorter):
            compare(written, module, shorter)
    path = Path(path)
    write_file(path, written)
    return path


def trace(module: nn.Module, arguments: Mapping[str, Any], axes: Labels) -> ExportedProgram:
    """The module as a graph for every size of these axes."""
    shapes = {name: dict.fromkeys(axes.get(name, ()), Dim.DYNAMIC) for name in arguments}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")  # dynamo looks at all that tensors have
        return torch.export.export(module, (), dict(arguments), dynamic_shapes=shapes if axes else None)


def translate(program: ExportedProgram, arguments: Mapping[str, Any], axes: Labels, opset: int | None = None) -> bytes:
    """The file of what :func:`trace` has made of these arguments.

    Raises:
        UnsupportedError: a graph for some lengths only, which a file could not say, or more than a file can hold.
    """
    known, longest = definitions(), _longest(program)
    while any(node.target in known for part in _graphs(program.graph_module) for node in part.graph.nodes):
        graph = program.module()
        for part in _graphs(graph):
            for node in part.graph.nodes:
                node.target = known.get(node.target, node.target)
            part.recompile()
        program = trace(graph, arguments, axes)  # once more where a definition uses another one
    if _longest(program) != longest:
        raise UnsupportedError(
            "it takes another way at other lengths, one graph cannot hold for all: pass dynamic=False"
        )
    with warnings.catch_warnings():  # of torch about itself
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        found: Any = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,  # onnxscript takes away epsilons such as 1e-16; onnxruntime optimizes when it loads
            opset_version=opset,
            verbose=False,
            custom_translation_table=translations(),
        )
    labels: dict[str, str] = {}
    for value in found.model.graph.inputs:
        for axis, label in axes.get(value.name, {}).items():
            labels.setdefault(value.shape[axis].value, label)
    found.rename_axes(labels)
    data = found.model_proto
    if data.ByteSize() > MOST_BYTES:
        raise UnsupportedError(f"an ONNX file holds up to 2 GB, and this model has {data.ByteSize() / 1e9:.1f} GB")
    return data.SerializeToString()


def _longest(program: ExportedProgram) -> Any:
    """Up to which size the graph holds, of the size that is bound most."""
    return min((sizes.upper for sizes in program.range_constraints.values()), default=None)


def _graphs(module: nn.Module) -> list[Any]:
    """The graph and those inside it, of regions with a setting of their own."""
    return [part for part in module.modules() if isinstance(part, GraphModule)]


def compare(written: bytes, module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Run the file in onnxruntime beside the module.

    Raises:
        RuntimeError: they differ; the message says by how much and where.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and need not be printed too
    session = onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
    given = [value for value in tree_leaves(dict(arguments)) if isinstance(value, Tensor)]
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), given, strict=True)}
    with torch.no_grad():
        expected = [y for y in tree_leaves(module(**arguments)) if isinstance(y, Tensor)]
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
    for number, (found, right) in enumerate(zip(session.run(None, feeds), expected, strict=True)):
        got, where = torch.from_numpy(found), f"output {number} for {shapes}"
        if got.shape != right.shape:
            raise RuntimeError(f"the ONNX file gives {tuple(got.shape)}, torch {tuple(right.shape)}: {where}")
        apart = torch.where(got == right, 0.0, (got.double() - right.double()).abs())  # -inf is where -inf should be
        largest = right.double().masked_fill(~right.isfinite(), 0.0).abs()
        off = float(apart.max()) / max(1.0, float(largest.max())) if right.numel() else 0.0
        if not off <= TOLERANCE:
            raise RuntimeError(f"the ONNX file differs from the module by {off:.2g} of the largest number: {where}")


def lengths(module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """The axes that ``dynamic=True`` means, by argument: the batch, and those of tokens or pixels.

    Tokens stand along axis 1, of heads-first cores along axis 2; the sides of maps from axis 2 on. An argument has
    tokens if it has as many as the first one, or is the context. Masks are dynamic in all axes. An axis of size 1
    stays fixed: torch makes a graph for that size alone.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor) and value.ndim > 1}
    if not tensors:
        return {}
    first = next(iter(tensors.values()))
    on_maps = isinstance(module, MapLayer) or getattr(getattr(module, "card", None), "data", None) == "map"
    found: dict[str, dict[int, str]] = {}
    for name, value in tensors.items():
        of = "" if value is first else f"{name}_"
        if value.dtype == torch.bool:
            labels = {axis: f"{of}{axis}" for axis in range(1, value.ndim)}
        elif on_maps:
            labels = {axis + 2: of + side for axis, side in enumerate(SIDES[value.ndim - 2])}
        else:
            axis = 2 if isinstance(module, Core) else 1
            own = value.ndim > axis and (name == "context" or value.shape[axis] == first.shape[axis])
            labels = {axis: f"{of}length"} if own else {}
        if len(value) == len(first):
            labels[0] = "batch"
        found[name] = {axis: label for axis, label in labels.items() if value.shape[axis] > 1}
    return found


def _check_installed(verify: bool) -> None:
    for name in ("onnx", "onnxscript", *(["onnxruntime"] if verify else [])):
        if find_spec(name) is None:
            way_out = ", or say verify=False" if name == "onnxruntime" else ""
            raise ImportError(f"{name} is missing: pip install regard[onnx]{way_out}")


def _by_name(module: nn.Module, inputs: Any) -> dict[str, Any]:
    """The arguments by the names that forward has for them."""
    if not isinstance(inputs, (Tensor, tuple, list, Mapping)):
        raise TypeError(f"inputs is a tensor, a tuple or a mapping of arguments, not {type(inputs).__name__}")
    signature = inspect.signature(module.forward)
    if isinstance(inputs, Mapping):
        return dict(signature.bind(**inputs).arguments)
    return dict(signature.bind(*([inputs] if isinstance(inputs, Tensor) else inputs)).arguments)


def _axes(module: nn.Module, arguments: Mapping[str, Any], dynamic: bool | Axes) -> dict[str, dict[int, str]]:
    """Argument -> {axis: name}."""
    if isinstance(dynamic, Mapping):
        unknown = set(dynamic) - set(arguments)
        if unknown:
            raise ValueError(f"dynamic names {', '.join(sorted(unknown))}; the inputs are {', '.join(arguments)}")
        return {
            name: dict(axes) if isinstance(axes, Mapping) else {axis: f"{name}_{axis}" for axis in axes}
            for name, axes in dynamic.items()
        }
    if not dynamic:
        return {}
    for part in module.modules():
        card = getattr(part, "card", None)
        if isinstance(card, Card) and not card.dynamic:
            raise UnsupportedError(
                f"a graph of {card.title} holds for one size only: pass dynamic=False, or as a mapping the axes that "
                "may change nevertheless"
            )
    return lengths(module, arguments)


def _shorter(arguments: Mapping[str, Any], axes: Labels) -> dict[str, Any]:
    """The arguments with every dynamic axis shorter by one."""
    found = dict(arguments)
    for name, changing in axes.items():
        for axis in changing:
            size = found[name].shape[axis]
            found[name] = found[name].narrow(axis, 0, size - 1 if size > 2 else size)
    return found


def _takes(module: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Whether the module itself has nothing against these sizes."""
    try:
        with torch.no_grad():
            module(**arguments)
    except Exception:
        return False
    return True


@contextmanager
def _in_one_sentence(name: str) -> Generator[None]:
    """torch's pages of refusal as one sentence, and no warnings about operators of torchvision."""
    from torch.onnx._internal.exporter._registration import logger

    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except UnsupportedError as error:
        raise UnsupportedError(f"{name} cannot be written as ONNX: {error}") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if line.startswith("<class ")), lines[0])
        if "Constraints violated" in reason:
            reason = f"something in it, perhaps a pattern that holds tensors, is made for one size ({reason})"
        raise UnsupportedError(f"{name} cannot be written as ONNX: {reason}") from error
    finally:
        logger.setLevel(level)
