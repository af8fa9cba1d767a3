"""The cases of the contract: every sample of every registered mechanism, as a layer and as the core in it."""

import dataclasses
from typing import Any

import pytest
import torch

import regard
from regard.factory import find
from regard.inspect.inputs import LENGTH, default_inputs, make_subject
from regard.map_layers import MapLayer
from regard.pair_layers import PairLayer
from regard.registry import Card, Sample


@dataclasses.dataclass(frozen=True)
class Case:
    """One sample of one mechanism."""

    name: str
    index: int
    kind: str  # "layer" or "core"
    sample: Sample

    def __str__(self):
        return f"{self.name}-{self.index}-{self.kind}"

    @property
    def card(self) -> Card:
        """The card with what the sample claims otherwise."""
        return dataclasses.replace(find(self.name).card, **self.sample.claims)

    @property
    def causal(self):
        """What this instance promises: nothing unless it is built causal."""
        return self.subject().claim

    def build(self, *, seed=0, **changes) -> Any:
        """The module, freshly drawn, in eval mode."""
        torch.manual_seed(seed)
        layer = regard.create(self.name, **(self.sample.arguments | changes)).eval()
        return layer if self.kind == "layer" else layer.core

    def inputs(self, module=None):
        """Named inputs: the sample's own, or two sequences of odd length."""
        if self.sample.inputs is not None:
            return dict(self.sample.inputs())
        layer = self.layer_of(module)
        if self.kind == "layer":
            return default_inputs(layer, self.card)
        groups = layer.num_kv_heads if self.card.gqa else layer.num_heads
        length = min(LENGTH, self.sample.arguments.get("max_length", LENGTH))
        heads = {"q": layer.num_heads, "k": groups, "v": groups}
        return {name: torch.randn(2, count, length, layer.head_dim) for name, count in heads.items()}

    def layer_of(self, module=None):
        """The layer around the module."""
        return (
            module if self.kind == "layer" and module is not None else dataclasses.replace(self, kind="layer").build()
        )

    def subject(self, module=None, inputs=None):
        """What the rules of regard.check take."""
        module = self.build() if module is None else module
        return make_subject(module, inputs or self.inputs(module), card=self.card)


def _cases():
    for name in regard.names():
        entry = find(name)
        for index, sample in enumerate(entry.samples):
            yield Case(name, index, "layer", sample)
            if issubclass(entry.cls, regard.registry.Core) and sample.inputs is None:
                yield Case(name, index, "core", sample)


CASES = tuple(_cases())
LAYERS = tuple(case for case in CASES if case.kind == "layer")
USUAL = tuple(case for case in LAYERS if case.sample.inputs is None)
SEQUENCES = tuple(case for case in USUAL if case.card.data in ("sequence", "set"))
SETS = tuple(case for case in SEQUENCES if case.card.data == "set")
MAPS = tuple(case for case in USUAL if case.card.data == "map")
PAIRS = tuple(case for case in USUAL if issubclass(find(case.name).cls, PairLayer))
MAP_PAIRS = tuple(case for case in USUAL if case.card.data == "pair" and issubclass(find(case.name).cls, MapLayer))
CORES = tuple(case for case in CASES if case.kind == "core")
NAMES = tuple(dict.fromkeys(case.name for case in CASES))


def first_of_each(cases, *arguments):
    """Parameters for every case; those after the first of each mechanism are slow tests, run before a release."""
    first = {case.name: case for case in reversed(cases)}
    for case in cases:
        marks = () if case is first[case.name] else pytest.mark.slow
        yield pytest.param(case, *arguments, marks=marks, id="-".join(map(str, (case, *arguments))))
