"""regard: every published attention mechanism behind one interface."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard import authors as authors
    from regard import inspect as inspect
    from regard import integrations as integrations
    from regard import layers as layers
    from regard import memory as memory
    from regard import models as models
    from regard import patterns as patterns
    from regard import registry as registry
    from regard import scores as scores
    from regard.advice.recommend import recommend as recommend
    from regard.attention import attend as attend
    from regard.attention import explain as explain
    from regard.attention import merge as merge
    from regard.factory import card as card
    from regard.factory import core as core
    from regard.factory import create as create
    from regard.factory import names as names
    from regard.inspect.check import check as check
    from regard.layers import MultiHead as MultiHead
    from regard.registry import UnsupportedError as UnsupportedError
    from regard.swap.distill import distill_attention as distill_attention
    from regard.swap.swap import swap_attention as swap_attention
    from regard.torch_shell import MultiheadAttention as MultiheadAttention

    def engines() -> list[str]:
        """The engines that train in float32 on this machine now; ``regard.engines`` is a package that can be called."""
        ...


# public name -> the module it stands in, imported when the name is asked for
_HOME = {
    **dict.fromkeys(("attend", "explain", "merge"), "attention"),
    **dict.fromkeys(("card", "core", "create", "names"), "factory"),
    "check": "inspect.check",
    "MultiHead": "layers",
    "MultiheadAttention": "torch_shell",
    "UnsupportedError": "registry",
    "distill_attention": "swap.distill",
    "recommend": "advice.recommend",
    "swap_attention": "swap.swap",
}
_MODULES = (
    "authors", "engines", "inspect", "integrations", "layers", "memory", "models", "patterns", "registry", "scores",
)  # fmt: skip
__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "MultiHead",
    "MultiheadAttention",
    "UnsupportedError",
    "attend",
    "authors",
    "card",
    "check",
    "core",
    "create",
    "distill_attention",
    "engines",
    "explain",
    "inspect",
    "integrations",
    "layers",
    "memory",
    "merge",
    "models",
    "names",
    "patterns",
    "recommend",
    "registry",
    "scores",
    "swap_attention",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"regard.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"regard.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
