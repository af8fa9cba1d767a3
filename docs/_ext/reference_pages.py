"""The reference of the public names, made from ``__all__`` of the packages: what is public is documented."""

import importlib
import inspect
from pathlib import Path

WITH_METHODS = ("Pattern", "Core", "Layer", "MultiHead", "Map", "Report", "LayerMemory", "HeadGates", "HeadsReport")
"""Classes whose methods are part of what is used; the others are made and called."""

ENGINES = """```{eval-rst}
.. py:function:: regard.engines() -> list[str]

   The engines that train in float32 on this machine now, e.g. ``["dense", "sdpa", "tiles", "native"]``.
```"""

PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "attention": ("Attention", ENGINES, ("regard.attend", "regard.merge", "regard.explain")),
    "mechanisms": (
        "Mechanisms by name",
        "",
        (
            "regard.create",
            "regard.core",
            "regard.card",
            "regard.names",
            "regard.MultiHead",
            "regard.registry.Card",
            "regard.registry.Core",
            "regard.registry.Layer",
            "regard.registry.Sample",
            "regard.registry.register",
            "regard.UnsupportedError",
        ),
    ),
    "patterns": ("Patterns", "", ("regard.patterns.*",)),
    "scores": ("Scores", "", ("regard.scores.*",)),
    "inspect": ("Looking at modules", "", ("regard.check", "regard.inspect.*")),
    "memory": ("Memories", "", ("regard.memory.*",)),
    "models": ("Models", "", ("regard.models.*",)),
    "authors": (
        "The authors' checkpoints",
        "",
        ("regard.authors.load", "regard.authors.Importer", "regard.verify.verify"),
    ),
}


def write_reference(folder: Path) -> None:
    """One page a package, and their index."""
    folder.mkdir(exist_ok=True)
    index = "\n".join(["```{toctree}", ":maxdepth: 1", "", *PAGES, "```"])
    words = "The public names. Every mechanism's own page has its class and functions."
    texts = {"index.md": f"# Reference\n\n{words}\n\n{index}\n"} | {f"{name}.md": _page(*PAGES[name]) for name in PAGES}
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _page(title: str, head: str, paths: tuple[str, ...]) -> str:
    parts = [f"# {title}", *([head] if head else [])]
    for path in paths:
        module = path.removesuffix(".*")
        names = [path] if module == path else [f"{module}.{name}" for name in importlib.import_module(module).__all__]
        parts += [_entry(name) for name in names]
    return "\n\n".join(parts) + "\n"


def _entry(path: str) -> str:
    module, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, Exception) else "autoclass"
    else:
        kind = "autofunction" if inspect.isroutine(value) else "autodata"
    members = ""
    if name in WITH_METHODS:
        methods = [key for key, method in vars(value).items() if inspect.isroutine(method) and not key.startswith("_")]
        members = f"   :members: {', '.join(methods)}\n"
    return f"```{{eval-rst}}\n.. {kind}:: {path}\n{members}```"
