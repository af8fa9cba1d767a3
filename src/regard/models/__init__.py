"""Whole networks, one readable file each; ``regard.models.TransformerLM`` imports its file when it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.models.axial_transformer import AxialTransformer as AxialTransformer
    from regard.models.bert import BertEncoder as BertEncoder
    from regard.models.bigbird_encoder import BigBirdEncoder as BigBirdEncoder
    from regard.models.bpt import BPT as BPT
    from regard.models.compressive_transformer import CompressiveTransformer as CompressiveTransformer
    from regard.models.decoding import generate as generate
    from regard.models.forecaster import TransformerForecaster as TransformerForecaster
    from regard.models.informer import Informer as Informer
    from regard.models.linformer import Linformer as Linformer
    from regard.models.longformer_encoder import LongformerEncoder as LongformerEncoder
    from regard.models.memformer import Memformer as Memformer
    from regard.models.nystromformer import Nystromformer as Nystromformer
    from regard.models.performer import Performer as Performer
    from regard.models.pkm_transformer import PKMTransformer as PKMTransformer
    from regard.models.reformer import Reformer as Reformer
    from regard.models.reversible import ChunkedFeedForward as ChunkedFeedForward
    from regard.models.reversible import PreNorm as PreNorm
    from regard.models.reversible import ReversibleBlock as ReversibleBlock
    from regard.models.reversible import ReversibleSequence as ReversibleSequence
    from regard.models.routing_transformer import RoutingTransformer as RoutingTransformer
    from regard.models.slim_performer import SlimPerformerLM as SlimPerformerLM
    from regard.models.transformer import TransformerClassifier as TransformerClassifier
    from regard.models.transformer import TransformerEncoder as TransformerEncoder
    from regard.models.transformer import TransformerLM as TransformerLM
    from regard.models.transformer_2017 import Transformer as Transformer

_FILES = {
    "axial_transformer": ("AxialTransformer",),
    "bert": ("BertEncoder",),
    "bigbird_encoder": ("BigBirdEncoder",),
    "bpt": ("BPT",),
    "compressive_transformer": ("CompressiveTransformer",),
    "decoding": ("generate",),
    "forecaster": ("TransformerForecaster",),
    "informer": ("Informer",),
    "linformer": ("Linformer",),
    "longformer_encoder": ("LongformerEncoder",),
    "memformer": ("Memformer",),
    "nystromformer": ("Nystromformer",),
    "performer": ("Performer",),
    "pkm_transformer": ("PKMTransformer",),
    "reformer": ("Reformer",),
    "reversible": ("ChunkedFeedForward", "PreNorm", "ReversibleBlock", "ReversibleSequence"),
    "routing_transformer": ("RoutingTransformer",),
    "slim_performer": ("SlimPerformerLM",),
    "transformer": ("TransformerClassifier", "TransformerEncoder", "TransformerLM"),
    "transformer_2017": ("Transformer",),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regard.models' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"regard.models.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
