"""Whole networks, one readable file each; ``regard.models.TransformerLM`` imports its file when it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.models.transformer import TransformerClassifier as TransformerClassifier
    from regard.models.transformer import TransformerEncoder as TransformerEncoder
    from regard.models.transformer import TransformerLM as TransformerLM
    from regard.models.transformer_2017 import Transformer as Transformer

_HOME = {
    "Transformer": "transformer_2017",
    **dict.fromkeys(("TransformerClassifier", "TransformerEncoder", "TransformerLM"), "transformer"),
}
__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "Transformer",
    "TransformerClassifier",
    "TransformerEncoder",
    "TransformerLM",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regard.models' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"regard.models.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
