"""A module under check, its inputs, and the variations of them that the rules ask for."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.inspect.measure import named
from regard.inspect.report import Verdict
from regard.inspect.tensors import first_tensor, noise
from regard.map_layers import MapLayer
from regard.registry import Card, Causality, Core

Side = Literal["left", "right"]

CONTEXT = ("context", "memory", "encoder_hidden_states")
"""Inputs that another sequence fills: their tokens are neither before nor after those of the first input."""

KEYS = ("k", "v", "key", "value", "keys", "values", *CONTEXT)
"""Inputs whose tokens a key mask marks."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A module under check.

    Attributes:
        module: in eval mode; the rules copy it before they change it.
        inputs: arguments of forward by name, in order; ``positional`` of them are passed by position.
        axes: the time axis of every input that has one.
        squares: inputs that end in (N, N), such as a causal mask; cut along both axes.
        time_dim: as given to :func:`regard.check`; None where nothing is a sequence.
        mask_name, mask_true: the mask argument and what True means in it.
        card: of a registered mechanism, with the claims of its sample.
        claim: what is promised about causality.
        mask_dtype: of the mask argument; in integers True is 1.
        foreign: inputs beside those of ``CONTEXT`` that another sequence fills.
        marks: the inputs whose tokens the mask marks; empty: told by the names.
        positions: the argument that takes the place of each token among the real ones along with a mask; empty: none.
        notes: what else the reader of the report must know.
    """

    module: nn.Module
    inputs: Mapping[str, Any]
    positional: int
    axes: Mapping[str, int]
    squares: tuple[str, ...]
    time_dim: int | None
    mask_name: str
    mask_true: Literal["keep", "drop"]
    card: Card | None
    claim: Causality | None
    mask_dtype: torch.dtype = torch.bool
    foreign: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    positions: str = ""
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The module and its tensors, e.g. "MultiHead on x float32 (2, 17, 12)"."""
        tensors = [
            f"{name} {named(value.dtype)} {tuple(value.shape)}"
            for name, value in self.inputs.items()
            if isinstance(value, Tensor)
        ]
        return f"{type(self.module).__name__} on {', '.join(tensors)}"

    @property
    def about(self) -> tuple[str, ...]:
        """How it is tried, in sentences for the reader of the report."""
        floats = {named(value.dtype) for value in self.module.parameters() if value.is_floating_point()}
        device = next((str(value.device) for value in self.inputs.values() if isinstance(value, Tensor)), "cpu")
        size = sum(value.numel() for value in self.module.parameters())
        lines = [f"{size:,} parameters in {' and '.join(sorted(floats)) or 'no floats'} on {device}, in eval mode"]
        lines.append(f"held to {self.claim!r} causality" if self.claim else "not held to any causality")
        if self.axes and self.takes_mask:
            polarity = "takes part" if self.mask_true == "keep" else "is ignored"
            lines.append(
                f"{self.mask_name} in {named(self.mask_dtype)}: True or 1 {polarity}; over {', '.join(self.masked)}"
            )
        lines += self.notes
        return (*lines, f"torch {torch.__version__}, seed 0; other inputs are drawn with the spread of those given")

    @property
    def breach(self) -> Verdict:
        """The verdict on a module that breaks a rule of ours which other libraries do not share."""
        return "info" if self.card is None else "FAIL"

    @property
    def first(self) -> str:
        """The input whose tokens are those of the output."""
        return next(iter(self.axes))

    @property
    def batch_axis(self) -> int:
        """0, or 1 where time comes first."""
        return 1 if self.time_dim == 0 else 0

    @property
    def batch(self) -> int:
        """The number of sequences."""
        tensors = [value for value in self.inputs.values() if isinstance(value, Tensor)]
        return tensors[0].shape[self.batch_axis]

    def length(self, name: str | None = None) -> int:
        """The number of tokens of an input, by default of the one that the output follows."""
        name = name or self.first
        return self.inputs[name].shape[self.axes[name]]

    @property
    def span(self) -> int:
        """The largest number of tokens of any input; causally, the last tokens of all inputs stand at one position."""
        return max(map(self.length, self.ordered))

    @property
    def ordered(self) -> tuple[str, ...]:
        """The inputs whose tokens have a place before or after those of the output."""
        if self.card is not None:  # the library's rule: the last query stands with the last key
            return tuple(self.axes)
        others = (*CONTEXT, *self.foreign)
        return tuple(name for name in self.axes if name not in others and self.length(name) == self.length())

    @property
    def masked(self) -> tuple[str, ...]:
        """The inputs whose tokens the mask hides, those of other inputs that come along included."""
        if self.marks:
            return self.marks
        owners = [name for name in self.axes if name not in ("k", "key") and self.mask_name.startswith(f"{name}_")]
        keys = owners or [name for name in self.axes if name in KEYS] or [self.first]
        if self.claim and self.card:
            return self.ordered  # padding the keys alone would move the queries in time
        lengths = {self.length(name) for name in keys}
        # two sequences that meet have a mask each, of whatever length; a context of each token goes with its token
        pair = self.card is not None and self.card.data == "pair" and self.card.cross
        return tuple(keys) if owners or pair else tuple(name for name in self.axes if self.length(name) in lengths)

    @property
    def takes_mask(self) -> bool:
        """Whether forward has the mask argument; ``**kwargs`` counts when a name of one's own was asked for."""
        if self.card is not None and self.mask_name in self.card.refuses:
            return False
        parameters = inspect.signature(self.module.forward).parameters
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        return self.mask_name in parameters or (anything and self.mask_name != "key_mask")

    def __call__(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        keep: Tensor | None = None,
        queries: Tensor | None = None,
        module: nn.Module | None = None,
        seed: int | None = 0,
    ) -> Tensor:
        """The first tensor that the module, or a variant of it, returns; arguments as in :meth:`run`."""
        return first_tensor(self.run(inputs, keep=keep, queries=queries, module=module, seed=seed))

    def run(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        keep: Tensor | None = None,
        queries: Tensor | None = None,
        module: nn.Module | None = None,
        seed: int | None = 0,
    ) -> Any:
        """All that the module, or a variant of it, returns.

        Args:
            inputs: instead of the given ones.
            keep: True for the real tokens, handed on as the mask.
            queries: True for the real queries; for cores only, everything else derives them from ``keep``.
            module: instead of the given one.
            seed: of torch's random numbers; None leaves their state alone.
        """
        arguments = dict(self.inputs if inputs is None else inputs)
        if keep is not None:
            arguments[self.mask_name] = self._mask(keep)
            if self.positions:
                arguments[self.positions] = (keep.long().cumsum(1) - 1).clamp(min=0)
        if queries is not None and isinstance(self.module, Core):
            arguments["query_mask"] = queries
        if seed is not None:
            torch.manual_seed(seed)
        names = list(arguments)[: self.positional]
        values = [arguments.pop(name) for name in names]
        called = self.module if module is None else module
        return called(*values, **arguments)

    def rows(self, out: Tensor) -> int | None:
        """The time axis of an output, None where it has none (a pooled model)."""
        if self.time_dim is None or out.ndim <= max(self.time_dim, ~self.time_dim):
            return None
        axis = self.time_dim % out.ndim
        return axis if out.shape[axis] == self.length() else None

    def cut(self, drop: int, names: Sequence[str] | None = None) -> dict[str, Any]:
        """The inputs without the last ``drop`` tokens (of each input that has more than that)."""
        changed = dict(self.inputs)
        for name in self.axes if names is None else names:
            value = self.inputs[name]
            size = max(1, self.length(name) - drop)
            changed[name] = value.narrow(self.axes[name], 0, size).contiguous()
        for name in self.squares if names is None or self.first in names else ():
            size = max(1, self.length() - drop)
            changed[name] = self.inputs[name][..., :size, :size].contiguous()
        return changed

    def pad(self, drops: Sequence[int], side: Side) -> tuple[dict[str, Any], Tensor]:
        """The inputs with sequence b shortened by ``drops[b]`` tokens and filled up with noise, and what is real."""
        changed = dict(self.inputs)
        for name in self.masked:
            rows = self.inputs[name].movedim((self.batch_axis, self.axes[name]), (0, 1))
            padded = noise(rows, strength=10.0)
            for row, drop in enumerate(drops):
                real = rows.shape[1] - drop
                start = drop if side == "left" else 0
                padded[row, start : start + real] = rows[row, :real]
            changed[name] = padded.movedim((0, 1), (self.batch_axis, self.axes[name])).contiguous()
        place = torch.arange(self.length(self.masked[-1]), device=changed[self.first].device)
        drop = torch.tensor(drops, device=place.device)[:, None]
        return changed, place >= drop if side == "left" else place < len(place) - drop

    def disturb(self, start: int, stop: int, strength: float) -> dict[str, Any]:
        """The inputs with noise at the positions ``start`` to ``stop - 1``, counted so that all inputs end together."""
        changed = dict(self.inputs)
        for name in self.ordered:
            value = self.inputs[name]
            if value.dtype == torch.bool:
                continue
            shift = self.span - self.length(name)
            low, high = max(0, start - shift), max(0, stop - shift)
            part = value.narrow(self.axes[name], low, high - low)
            changed[name] = value.clone()
            changed[name].narrow(self.axes[name], low, high - low).copy_(noise(part, like=value, strength=strength))
        return changed

    def real(self, inputs: Mapping[str, Any]) -> Tensor:
        """A mask for these inputs: all tokens are real but the last one of the last sequence."""
        name = self.masked[-1]
        value: Tensor = inputs[name]
        keep = torch.ones(self.batch, value.shape[self.axes[name]], dtype=torch.bool, device=value.device)
        keep[-1, -1] = keep.shape[1] == 1
        return keep

    def at_real(self, out: Tensor, keep: Tensor) -> Tensor:
        """The rows of an output at real tokens, where it has such rows: at the others anything may stand."""
        if self.time_dim is None or self.first not in self.masked or out.ndim <= max(self.time_dim, ~self.time_dim):
            return out
        rows = out.movedim((self.batch_axis, self.time_dim % out.ndim), (0, 1))
        return rows[keep] if rows.shape[:2] == keep.shape else out

    def _mask(self, keep: Tensor) -> Tensor:
        if isinstance(self.module, MapLayer) or (self.card is not None and self.card.data == "map"):
            batch, _, height, _ = self.inputs[self.masked[-1]].shape
            keep = keep[:, None, :].expand(batch, height, -1)
        return (keep if self.mask_true == "keep" else ~keep).to(self.mask_dtype)
