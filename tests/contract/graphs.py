"""A sample as a graph outside of Python: what it is traced with, and inputs of other sizes for it."""

import functools
import inspect

import torch

from regard.map_layers import MapLayer

SIDES = ((8, 9, 7), (6, 11, 5), (9, 7, 6))
"""Of maps, the traced ones first; of them the first axes are taken."""

FIXED_SIDES = ((8, 9, 7), (3, 5, 2))
"""The same for graphs of one size only: of these sides a coarse scale is one pixel wide."""

DROPS = ((4, 0, 5), (1, 0, 2), (10, 6))
"""What is cut off the inputs that a subject has: for long ones, for short ones, and for graphs of one length only."""


class Graph:
    """One sample, with masks where it takes them.

    Attributes:
        axes: input -> the axes whose sizes may change.
        sizes: how many sizes ``inputs`` knows.
    """

    def __init__(self, case, masked=True):
        self.case, self.card, self.module = case, case.card, case.build()
        self.subject = case.subject(self.module)
        self.masked = masked and self.subject.takes_mask
        self.on_maps = isinstance(self.module, MapLayer) or self.card.data == "map"
        self.axes = {name: (axis,) for name, axis in self.subject.axes.items()}
        if self.on_maps:
            self.axes = {name: tuple(range(2, value.ndim)) for name, value in self.subject.inputs.items()}
        shortest = min((self.subject.length(name) for name in self.subject.axes), default=0)
        self.drops = DROPS[2 if not self.card.dynamic else shortest < 9]
        self.sides = SIDES if self.card.dynamic else FIXED_SIDES
        self.sizes = len(self.sides if self.on_maps else self.drops)

    def __str__(self):
        return str(self.case)

    def inputs(self, size, seed=0):
        """Of one of the sizes, 0 is the traced one; other numbers for another seed."""
        make = torch.Generator().manual_seed(seed)
        given = self.subject.inputs if self.on_maps else self.subject.cut(self.drops[size])
        if self.on_maps:
            given = {name: value[(..., *[slice(1)] * (value.ndim - 2))] for name, value in given.items()}
            given = {
                name: value.expand(*value.shape[:2], *self.sides[size][: value.ndim - 2])
                for name, value in given.items()
            }
        drawn = {
            name: torch.randn(value.shape, generator=make) if value.is_floating_point() else value
            for name, value in given.items()
        }
        return drawn | (self._masks(drawn) if self.masked else {})

    def _masks(self, inputs):
        """All is real but the last token, or the last column, of the last sequence."""
        names = {self.subject.mask_name: self.subject.masked[-1]}
        if self.card.data == "pair" and "query_mask" in inspect.signature(self.module.forward).parameters:
            names["query_mask"] = self.subject.first
        found = {}
        for mask, name in names.items():
            value = inputs[name]
            found[mask] = torch.ones(len(value), *(value.shape[axis] for axis in self.axes[name]), dtype=torch.bool)
            found[mask][-1, ..., -1] = False
        return found

    def shapes(self, inputs):
        """torch.export's ``dynamic_shapes``: every size that may change."""
        made = inputs.keys() - self.subject.inputs.keys()
        axes = self.axes | {mask: range(1, inputs[mask].ndim) for mask in made}
        return {name: dict.fromkeys(axes.get(name, ()), torch.export.Dim.DYNAMIC) for name in inputs}

    def labels(self):
        """The same with names, as an ONNX file has them; none where the card claims one size only."""
        shapes = self.shapes(self.inputs(0)) if self.card.dynamic else {}
        return {name: {axis: f"{name}_{axis}" for axis in axes} for name, axes in shapes.items()}

    def export(self, dynamic):
        """The exported program."""
        given = self.inputs(0)
        return torch.export.export(self.module, (), given, dynamic_shapes=self.shapes(given) if dynamic else None)

    @functools.cached_property
    def program(self):
        """The exported program that the card claims."""
        return self.export(self.card.dynamic)

    def runs(self):
        """Inputs that the graph must serve: of other sizes, or of the same with other numbers."""
        return [self.inputs(size) for size in range(self.sizes)] if self.card.dynamic else [self.inputs(0, seed=1)]


def answers(out):
    """The tensors of what a module, or a program, returns."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
