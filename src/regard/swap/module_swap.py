"""Attentions that are replaced as a whole, by modules that are called as they were."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.patterns import Pattern
from regard.swap.comparing import Distance, distance
from regard.swap.conventions.transformers_module import TransformersShell
from regard.swap.finding import Found
from regard.swap.interface import EXACT, interface_sites, remember, roots
from regard.swap.proof import exact_copy
from regard.swap.recording import Asked, caching, still
from regard.swap.stand_ins import stand_in
from regard.swap.surgery import Surgery
from regard.swap.way import Way


class ModuleSwap(Way):
    """New modules for some attentions of a model; they are built at once, and put in later.

    Args:
        model: the model.
        chosen: its attentions.
        mechanism, max_length, generator, options: as :func:`regard.swap_attention`.

    Raises:
        UnsupportedError: what the mechanism cannot do here.
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: Sequence[Found],
        mechanism: str | Pattern,
        max_length: int | None,
        generator: torch.Generator | None,
        options: dict[str, Any],
    ) -> None:
        self.model = model
        self.new = {one.name: stand_in(one, mechanism, max_length, generator, options) for one in chosen}
        self.modules = {one.name: one.module for one in chosen}
        self.notes = {name: part.note for name, part in self.new.items()}

    def prepare(self, surgery: Surgery) -> bool:
        """Nothing: the calls are taken as they come."""
        return False

    def install(self, surgery: Surgery) -> list[str]:
        """Put every new module in its place, also where several layers share one."""
        names = {id(module): name for name, module in self.modules.items()}
        places = [(path, names.get(id(part))) for path, part in self.model.named_modules(remove_duplicate=False)]
        sites = interface_sites(self.model)
        for path, name in places:
            if name is not None:
                self.new[name].take_mode()
                if path:
                    surgery.replace(self.model, path, self.new[name].module)
        for encoder in self.model.modules():  # nested tensors are for torch's own kernel
            if isinstance(encoder, nn.TransformerEncoder) and getattr(encoder, "use_nested_tensor", False):
                surgery.set(encoder, "use_nested_tensor", False)
        shells = [part for part in self.new.values() if isinstance(part.module, TransformersShell)]
        if shells and sites:
            self._describe_masks(surgery)
        if not any(part.causal for part in shells):
            return []
        for config in caching(self.model):
            surgery.set(config, "use_cache", False)
        return ["use_cache is off: the new layers keep no cache of transformers', generate() asks them anew"]

    def _describe_masks(self, surgery: Surgery) -> None:
        """Masks of N x M would be drawn for every batch, however few pairs the new attention forms."""
        for root in roots(self.model).values():
            remember(root, surgery)
            cast(Any, root).set_attn_implementation(EXACT)

    def distances(self, asked: Mapping[str, list[Asked]]) -> dict[str, Distance]:
        """See :class:`Way`."""
        return {name: self._distance(name, calls) for name, calls in asked.items() if calls}

    def _distance(self, name: str, calls: list[Asked]) -> Distance:
        part = self.new[name]
        reference = exact_copy(part.found, part.causal)
        with still(part.module, reference):
            return distance(part.convention, part.module, reference, calls)

    def real(self, name: str, asked: Asked) -> Tensor | None:
        """See :class:`Way`."""
        call = self.new[name].convention.understand(self.new[name].module, asked.args, asked.kwargs)
        return call.real() if call.batch_first else call.real().mT

    def exact(self, name: str) -> bool:
        """See :class:`Way`."""
        return self.new[name].exact
