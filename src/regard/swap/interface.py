"""Cores and patterns between the projections of a model of transformers, which keeps all the rest of its attention."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard import factory
from regard.inspect.tensors import all_tensors, first_tensor
from regard.integrations.huggingface import Site, attach, detach, register, sites, use
from regard.integrations.huggingface.masks import DescribedMask
from regard.integrations.pattern_words import pattern_from_words
from regard.patterns import Pattern
from regard.registry import Core, UnsupportedError
from regard.swap.building import drawn_from
from regard.swap.comparing import LONGEST, Distance, divergence, output_errors, overlap, summed_up
from regard.swap.recording import Asked, still
from regard.swap.stand_ins import covers
from regard.swap.surgery import Surgery
from regard.swap.way import Way

EXACT = "regard"
ATTACHED = "regard:attached"
_RATES = ("dropout", "attn_dropout", "attention_dropout")


def interface_sites(model: nn.Module) -> dict[str, Site]:
    """Every attention that calls transformers' interface, by its path in the model; none in a model without."""
    found: dict[str, Site] = {}
    for path, root in roots(model).items():
        try:
            inside = sites(root)
        except UnsupportedError:  # Longformer, BigBird, ... : they stay what they are
            continue
        found |= {_join(path, name): site for name, site in inside.items()}
    return found


def roots(model: nn.Module) -> dict[str, nn.Module]:
    """The models of transformers in a tree, by path; the outermost where one is a part of another."""
    found: dict[str, nn.Module] = {}
    for path, part in model.named_modules():
        inside = any(path.startswith(_join(outer, "")) for outer in found)
        if not inside and hasattr(part, "set_attn_implementation") and hasattr(part, "config"):
            found[path] = part
    return found


def remember(model: nn.Module, surgery: Surgery) -> None:
    """Have the implementation of now set again when everything is taken back."""
    register()
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    for config in configs.values():
        before = config._attn_implementation_internal
        surgery.set(config, "_attn_implementation_internal", before)


class InterfaceSwap(Way):
    """The attentions of one model of transformers that get a core or a pattern.

    Args:
        model: of transformers.
        path: where it stands in the user's model.
        chosen: its sites that are replaced, by their path in the user's model.
        whole: they are all that look at their own sequence.
        mechanism: a registry name, words for a pattern, or a pattern.
        max_length: the longest sequence.
        generator: seeds what the mechanism draws.
        options: of the mechanism.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str,
        chosen: Mapping[str, Site],
        whole: bool,
        mechanism: str | Pattern,
        max_length: int | None,
        generator: torch.Generator | None,
        options: dict[str, Any],
    ) -> None:
        self.model, self.path, self.chosen = model, path, chosen
        self.modules = {name: site.module for name, site in chosen.items()}
        self.notes = {}
        self.generator, self.max_length = generator, max_length
        self.options = {} if max_length is None else {"max_length": max_length}
        self.options |= {name: value for name, value in options.items() if name != "causal"}
        for name, site in chosen.items():
            if options.get("causal") is not None and bool(options["causal"]) != site.causal and not site.cross:
                raise UnsupportedError(
                    f"causal={options['causal']}, but {name} is {'' if site.causal else 'not '}causal"
                )
        self.mechanism, self.implementation = mechanism, ATTACHED
        crossing = [name for name, site in chosen.items() if site.cross]
        if crossing and not (isinstance(mechanism, str) and mechanism.isidentifier() and factory.card(mechanism).cross):
            raise UnsupportedError(
                f"{crossing[0]} asks another sequence, which {mechanism} cannot: leave cross=True out"
            )
        if isinstance(mechanism, str) and not mechanism.isidentifier():
            self.mechanism = pattern_from_words(mechanism)
            if whole and not options:
                self.implementation = "regard:" + "".join(mechanism.split())
        elif whole and isinstance(mechanism, str) and factory.find(mechanism).name == "multi_head" and not options:
            self.implementation = EXACT

    def prepare(self, surgery: Surgery) -> bool:
        """Our own exact attention, whose masks are those that the new one will get."""
        remember(self.model, surgery)
        use(self.model, EXACT)
        return True

    def install(self, surgery: Surgery) -> list[str]:
        """Attach cores, or set the implementation where that is enough."""
        remember(self.model, surgery)
        if self.implementation != ATTACHED:
            use(self.model, self.implementation)
            return [f"attn_implementation is {self.implementation!r}; weights and caches are the model's own"]
        names = [name[len(_join(self.path, "")) :] for name in self.chosen]
        before = {name: getattr(site.module, "regard_core", None) for name, site in self.chosen.items()}
        surgery.call(lambda: None, lambda: self._restore(before, names))
        with drawn_from(self.generator, next(self.model.parameters()).device):
            if isinstance(self.mechanism, Pattern):
                attach(self.model, self._pattern_core, only=names)
            else:
                attach(self.model, self.mechanism, only=names, selection="strict" in self.options, **self.options)
        self.notes = {name: note for name in self.chosen if (note := self._dropout(name, surgery))}
        return [f"attn_implementation is {ATTACHED!r}; a core stands in each attention as its regard_core"]

    def _restore(self, before: Mapping[str, Core | None], names: Sequence[str]) -> None:
        detach(self.model, only=names)
        for name, core in before.items():
            if core is not None:
                self.chosen[name].module.regard_core = core

    def _pattern_core(self, site: Site) -> Core:
        heads = {"num_heads": site.num_heads, "head_dim": site.head_dim}
        return factory.core("sparse_transformer", pattern=self.mechanism, causal=site.causal, **heads, **self.options)

    def _dropout(self, name: str, surgery: Surgery) -> str:
        """Switch the model's dropout on weights off where the core has no weights to drop; what was lost, in words."""
        module = self.chosen[name].module
        core = cast(Core, module.regard_core)
        if hasattr(core, "attn_drop"):
            return ""
        for rate in _RATES:
            held = getattr(module, rate, None)
            owner, key = (held, "p") if isinstance(held, nn.Dropout) else (module, rate)
            value = getattr(owner, key, 0.0)
            if value:
                surgery.set(owner, key, 0.0)
                reason = core.card.refuses.get("attn_drop", "it has no dropout on its weights")
                return f"its dropout of {value:g} on the weights is gone: {reason}"
        return ""

    def distances(self, asked: Mapping[str, list[Asked]]) -> dict[str, Distance]:
        """See :class:`Way`."""
        with still(self.model):
            return {name: self._distance(self.chosen[name], calls) for name, calls in asked.items() if calls}

    def real(self, name: str, asked: Asked) -> Tensor | None:
        """See :class:`Way`."""
        return real_tokens(asked, self.chosen[name])

    def exact(self, name: str) -> bool:
        """See :class:`Way`."""
        if self.implementation == EXACT or self.mechanism == "full":
            return True
        return isinstance(self.mechanism, Pattern) and covers(self.mechanism, self.chosen[name].causal, self.max_length)

    def _distance(self, site: Site, asked: Sequence[Asked]) -> Distance:
        errors: list[tuple[float, float]] = []
        divergences: list[Tensor] = []
        overlaps: list[Tensor] = []
        note = ""
        for one in asked:
            real = real_tokens(one, site)
            self._set(self.implementation)
            errors.append(output_errors(first_tensor(site.module(*one.args, **one.kwargs)), one.output, real))
            try:
                old, new = (self._map(site, one, name) for name in (EXACT, self.implementation))
            except UnsupportedError as error:
                note = f"no map: {error}"
                continue
            finally:
                self._set(self.implementation)
            rows = slice(None) if real is None else real
            divergences.append(divergence(old.transpose(1, 2)[rows], new.transpose(1, 2)[rows]))
            overlaps.append(overlap(old.transpose(1, 2)[rows], new.transpose(1, 2)[rows]))
        return summed_up(errors, divergences, overlaps, note)

    def _map(self, site: Site, one: Asked, implementation: str) -> Tensor:
        """(B, H, N, M) of one call, as the model returns it when asked for its attentions."""
        length = one.output.shape[1]
        if length > LONGEST:
            raise UnsupportedError(f"{length} keys a row, and maps are compared up to {LONGEST}")
        self._set(implementation)
        with _asked_for_weights():
            weights = [part for part in all_tensors(site.module(*one.args, **one.kwargs)) if part.ndim == 4]
        if not weights:
            raise UnsupportedError(f"{type(site.module).__name__} does not return its weights")
        return weights[-1]

    def _set(self, implementation: str) -> None:
        cast(Any, self.model).set_attn_implementation(implementation)


def real_tokens(asked: Asked, site: Site) -> Tensor | None:
    """Bool (B, N), True for real queries, from the mask of the call; None where all are, or nobody says."""
    values: Iterable[Any] = (*asked.args, *asked.kwargs.values())
    masks = [value for value in values if isinstance(value, DescribedMask)]
    if not masks or site.cross or masks[0].shape[2] != masks[0].shape[3] or masks[0].padding is None:
        return None
    return masks[0].padding.expand(len(asked.output), -1)


@contextmanager
def _asked_for_weights():
    """Inside, attentions of transformers return their weights, as for ``output_attentions=True``."""
    from transformers.utils import output_capturing

    token = output_capturing._active_collector.set({"attentions": []})
    try:
        yield
    finally:
        output_capturing._active_collector.reset(token)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
