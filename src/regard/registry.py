"""What a mechanism says about itself: its card, its samples, and the two shapes it can take.

A leaf: it imports nothing of ours, so that anything may import it. A mechanism is one file that registers one class::

    @register("linformer", samples=[Sample(dim=12, num_heads=3, max_length=24, rank=4)])
    class Linformer(Core):
        card = Card(title="Linformer", paper="arXiv:2006.04768", year=2020, family="lowrank", data="sequence")

The registry name is the name of the file; :mod:`regard.factory` finds it by that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args

from torch import Generator, Tensor, nn

Data = Literal["sequence", "map", "set", "pair"]
Causality = Literal["strict", "selection"]
EmptyRows = Literal["zero", "uniform"]
Padding = Literal["anywhere", "end"]
Randomness = Literal["dropout", "noise", "resample", "batch_norm", "ema"]


class UnsupportedError(ValueError):
    """Something was asked that this mechanism, engine or machine cannot do; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a mechanism is and what it promises; the contract tests hold it to every field.

    Attributes:
        title, paper, year: as published; ``paper`` is "arXiv:..." or a DOI.
        family: the room under ``mechanisms/`` ("patterned", "linear", "lowrank", ...).
        data: what it runs on: "sequence" or "set" (B, N, C), "map" (B, C, H, W), or "pair" of inputs.
        causal: what ``causal=True`` guarantees. "strict": no earlier output changes when a later input changes.
            "selection": no gradient flows back, but later tokens influence which keys are picked. None: never causal.
        cross: queries may come from one sequence and keys from another.
        gqa: the core takes fewer key heads than query heads; for other cores the layer repeats them.
        streaming: has ``memory`` and ``stream``.
        segments: the core takes ``segments=`` (packed documents) itself; otherwise the layer unpacks them.
        smooth: gradcheck in float64 succeeds.
        stochastic: what differs between ``train()`` and ``eval()``.
        empty_rows: what a query gets that may look at nothing: "zero", or "uniform" weights.
        compile: ``torch.compile(fullgraph=True)`` succeeds.
        dynamic: one graph, compiled or exported, holds for other lengths (sides of maps) than it was traced for; the
            first new length may cost one recompilation. False: a graph for each.
        export: ``torch.export`` succeeds, with dynamic lengths where ``dynamic`` says so.
        onnx: :func:`regard.integrations.onnx.export` writes a file that gives the same numbers in onnxruntime.
        padding: where masked places may stand so that they change nothing: "anywhere", or only at the "end" of each
            axis, for mechanisms that count blocks from the start. Those that take no mask at all refuse "key_mask".
        refuses: option -> reason, e.g. ``{"causal": "every mixture has seen the future"}``.
        cost: time for N tokens, e.g. "N r".
        summary: one sentence that helps to choose.
        formula: one line of plain text.
    """

    title: str
    paper: str
    year: int
    family: str
    data: Data
    causal: Causality | None = None
    cross: bool = False
    gqa: bool = False
    streaming: bool = False
    segments: bool = False
    smooth: bool = False
    stochastic: tuple[Randomness, ...] = ()
    empty_rows: EmptyRows = "zero"
    padding: Padding = "anywhere"
    compile: bool = True
    dynamic: bool = True
    export: bool = True
    onnx: bool = True
    refuses: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    cost: str = ""
    summary: str = ""
    formula: str = ""

    def __post_init__(self) -> None:
        """Refuse misspelt values: pyright sees them in our files, nobody does in a user's."""
        if isinstance(self.stochastic, str):
            raise TypeError(f'stochastic is a tuple: write stochastic=("{self.stochastic}",)')
        allowed: list[tuple[str, object, tuple[object, ...]]] = [
            ("data", self.data, get_args(Data)),
            ("causal", self.causal, (None, *get_args(Causality))),
            ("padding", self.padding, get_args(Padding)),
            ("empty_rows", self.empty_rows, get_args(EmptyRows)),
            *(("stochastic", kind, get_args(Randomness)) for kind in self.stochastic),
        ]
        for name, value, choices in allowed:
            if value not in choices:
                raise ValueError(f"card of {self.title!r}: {name}={value!r} is none of {', '.join(map(repr, choices))}")


class Sample:
    """One small instance of a mechanism from which the contract tests are generated.

    Args:
        inputs: makes the named inputs of ``forward``; None: the usual ones for ``card.data``.
        claims: card fields that differ for this instance, e.g. ``{"cross": False}``.
        arguments: those of :func:`regard.create`.

    Example:
        >>> Sample(dim=12, num_heads=3)
        Sample(dim=12, num_heads=3)
    """

    __slots__ = ("arguments", "claims", "inputs")

    def __init__(
        self,
        *,
        inputs: Callable[[], Mapping[str, Any]] | None = None,
        claims: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        self.inputs = inputs
        self.claims: dict[str, Any] = dict(claims or {})
        self.arguments: dict[str, Any] = arguments

    def __repr__(self) -> str:
        parts = [f"inputs={self.inputs!r}"] if self.inputs else []
        parts += [f"claims={self.claims!r}"] if self.claims else []
        parts += [f"{name}={value!r}" for name, value in self.arguments.items()]
        return f"Sample({', '.join(parts)})"


class _Mechanism(nn.Module):
    """What cores and layers share: a card, a name, and the refusal to stream unless they say how."""

    card: Card
    mechanism: str = ""
    """The registry name; ``register`` sets it."""

    def memory(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse; mechanisms with ``card.streaming`` return their empty memory here."""
        raise UnsupportedError(f"{self.mechanism or type(self).__name__} does not stream: it needs the whole sequence")

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse; mechanisms with ``card.streaming`` continue from a memory here."""
        raise UnsupportedError(f"{self.mechanism or type(self).__name__} does not stream: it needs the whole sequence")


class Core(_Mechanism):
    """What happens between the projections, on heads-first tensors; :class:`regard.layers.MultiHead` makes it a layer.

    A core with ``card.streaming`` also has ``memory(batch, num_kv_heads, head_dim, value_dim, *, device, dtype,
    static=None)``, which returns a pytree of tensors, and ``stream(q, k, v, memory) -> (out, memory)``. One with
    ``card.segments`` also takes ``segments``; one with losses or metrics of its own takes ``return_aux`` and then
    returns (out, aux).
    """

    attn_drop: float
    """Dropout on the weights, applied as ``self.attn_drop * self.training``; only cores that have weights set it."""

    layer: "ClassVar[type[Layer] | None]" = None
    """The class that makes it a layer, with the arguments of ``MultiHead``, where that is not ``MultiHead`` itself."""

    weighs_values: bool = True
    """The output is A v with an A that does not depend on v, whatever the width of v; False: it has no exact map."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Attend from q (B, H, N, D) to k (B, G, M, D) and v (B, G, M, Dv); masks are Bool, True = takes part.

        Returns:
            (B, H, N, Dv).
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")


class Layer(_Mechanism):
    """A mechanism that owns its projections: ``layer(x, context=None, *, key_mask, query_mask, segments, generator)``.

    One with something to tell also takes ``return_aux`` and then returns (y, aux): a flat dict of tensors named
    ``loss/...``, ``metric/...`` or ``map/...``. One whose attention is a weighted sum of values has ``weigh(x, values,
    context=None, *, key_mask, query_mask, segments, generator)``, what the same weights make of other values: exact
    attention maps come from it.
    """


@dataclass(frozen=True)
class Entry:
    """One registered mechanism."""

    name: str
    cls: type[Core] | type[Layer]
    card: Card
    samples: tuple[Sample, ...]
    aliases: tuple[str, ...] = ()


_entries: dict[str, Entry] = {}
_Class = TypeVar("_Class", bound=type[Core] | type[Layer])


def register(name: str, *, samples: Sequence[Sample], aliases: Sequence[str] = ()) -> Callable[[_Class], _Class]:
    """Make a class available under ``name``, in :func:`regard.create` and in everything generated from the registry.

    Args:
        name: the name of the file it stands in, e.g. "linear_transformer".
        samples: small instances for the contract tests, at least one.
        aliases: further names that mean the same.

    Raises:
        TypeError: not a Core or Layer with a Card.
        ValueError: a name that is taken or no identifier, or no samples.
    """

    def decorate(cls: _Class) -> _Class:
        if not issubclass(cls, (Core, Layer)):
            raise TypeError(f"{cls!r} is registered as {name!r} but is no subclass of Core or Layer")
        if not isinstance(getattr(cls, "card", None), Card):
            raise TypeError(f"{cls.__name__} is registered as {name!r} but has no card: write card = Card(...) in it")
        if not samples:
            raise ValueError(f"{name!r} has no samples: the contract tests need at least one Sample(...)")
        for taken in (name, *aliases):
            if not taken.isidentifier():
                raise ValueError(f"{taken!r} cannot be a registry name: use lower_case_with_underscores")
            if taken in _entries:
                raise ValueError(f"{taken!r} is already registered, by {_entries[taken].cls!r}")
        record = Entry(name, cls, cls.card, tuple(samples), tuple(aliases))
        _entries.update(dict.fromkeys((name, *aliases), record))
        cls.mechanism = name
        return cls

    return decorate


def entry(name: str) -> Entry:
    """The registered mechanism of this name or alias; its file must have been imported (:mod:`regard.factory` does so).

    Raises:
        KeyError: nothing of this name has been registered yet.
    """
    if name not in _entries:
        raise KeyError(f"{name!r} is not registered; registered so far: {', '.join(sorted(_entries)) or 'nothing'}")
    return _entries[name]


def registered() -> dict[str, Entry]:
    """All that has been registered so far, by name and by alias."""
    return dict(_entries)
