"""Another attention in a pretrained model: its weights are kept, and a report says how far the new one is."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard import factory
from regard.inspect.tensors import first_tensor
from regard.integrations.pattern_words import pattern_from_words
from regard.patterns import Pattern
from regard.registry import Core, UnsupportedError
from regard.swap.building import cuda_only
from regard.swap.comparing import Distance, output_errors
from regard.swap.finding import Found, Layers, choose, find, none_left
from regard.swap.interface import InterfaceSwap, interface_sites, roots
from regard.swap.module_swap import ModuleSwap
from regard.swap.positions import extend_positions
from regard.swap.proof import proven
from regard.swap.recording import Asked, Batch, record, run, still
from regard.swap.report import LayerRow, SwapReport, Verdict
from regard.swap.surgery import Surgery
from regard.swap.way import Way

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Errors up to this are those of sums in another order."""


def swap_attention(
    model: nn.Module,
    mechanism: str | Pattern,
    *,
    layers: Layers = None,
    max_length: int | None = None,
    batch: Batch | None = None,
    cross: bool = False,
    dry_run: bool = False,
    tolerance: float = 1e-5,
    generator: Generator | None = None,
    **options: Any,
) -> SwapReport:
    """Replace attention in a pretrained model by another mechanism, with the weights of the old one.

    The model itself is changed, or, on any error, left as it was. Projections, biases, norms, rotary positions, rates
    of dropout, ``requires_grad``, dtype, device and mode are kept; parameters that only the new mechanism has start as
    its paper says. The model is called as before. To keep a teacher, take ``copy.deepcopy(model)`` first; to load a
    saved swapped model, swap a fresh one in the same way and call its ``load_state_dict``.

    Args:
        model: any tree of modules with ``torch.nn.MultiheadAttention``, attentions as in timm (qkv, proj, num_heads),
            self-attentions of transformers, or layers of regard.
        mechanism: a registry name, an expression such as "causal&(window-64|global-1)", or a pattern.
        layers: which attentions: paths, numbers in the order of the model, or a rule (path, module) -> bool.
        max_length: the longest sequence from now on: tables of learned positions are repeated up to it (Longformer,
            arXiv:2004.05150, section 5), with the config's numbers, and mechanisms that depend on it get it.
        batch: what the report measures on: a tensor, a dict of the model's arguments, or a tuple of them. It must fit
            the model as it is.
        cross: also replace attentions from one sequence to another, where the mechanism can.
        dry_run: change nothing and return the same report.
        tolerance: the error up to which a layer is called "within tolerance".
        generator: seeds what the mechanism draws.
        options: those of the mechanism, as in :func:`regard.create`; ``causal=True`` for trees that do not say it.

    Returns:
        The report; print it.

    Raises:
        TypeError: an option that nobody takes, or a batch that is none.
        ValueError: an unknown mechanism or layer.
        UnsupportedError: nothing could be replaced, or the mechanism cannot do what the model needs.

    Example:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
        >>> report = swap_attention(model, "local", window=8, batch=torch.randn(2, 6, 16))
        >>> [row.verdict for row in report.rows], report.ok
        (['exact', 'exact'], True)
    """
    found = find(model, interface_sites(model) if _stands_between(mechanism) else {})
    reasons = choose(found, layers, cross)
    reasons |= proven([one for one in found if one.name not in reasons], required=layers is not None)
    chosen = [one for one in found if one.name not in reasons]
    if not chosen:
        raise UnsupportedError(none_left(model, reasons))
    devices = cuda_only(*(value.device for value in model.parameters()))
    if dry_run and generator is not None:
        generator = generator.clone_state()
    surgery = Surgery()
    try:
        with torch.random.fork_rng(devices, enabled=dry_run):
            ways = _ways(model, found, chosen, mechanism, max_length, generator, options)
            report = _carry_out(model, ways, found, reasons, surgery, max_length, batch, tolerance)
    except BaseException:
        surgery.undo()
        raise
    what = mechanism if isinstance(mechanism, str) else repr(mechanism)
    report = dataclasses.replace(report, title=f"{what} in {report.title}", dry_run=dry_run)
    if dry_run:
        surgery.undo()
        report = dataclasses.replace(report, model=model)
    return report


def _stands_between(mechanism: str | Pattern) -> bool:
    """Whether it can stand between a model's own projections: a pattern, or a mechanism with a core."""
    if isinstance(mechanism, Pattern) or not mechanism.isidentifier():
        return True
    return issubclass(factory.find(mechanism).cls, Core)


def _ways(
    model: nn.Module,
    found: Sequence[Found],
    chosen: Sequence[Found],
    mechanism: str | Pattern,
    max_length: int | None,
    generator: Generator | None,
    options: dict[str, Any],
) -> list[Way]:
    """Transformers' interface where it serves, and modules as a whole for the rest."""
    common = (max_length, generator, options)
    ways: list[Way] = []
    for path, root in roots(model).items():
        inside = [one for one in found if one.site and (not path or one.name.startswith(f"{path}."))]
        mine = {one.name: one.site for one in inside if one in chosen and one.site}
        whole = mine.keys() >= {one.name for one in inside if not one.cross}
        if mine:
            ways.append(InterfaceSwap(root, path, mine, whole, mechanism, *common))
    rest = [one for one in chosen if one.site is None]
    if rest:
        words = isinstance(mechanism, str) and not mechanism.isidentifier()
        ways.append(ModuleSwap(model, rest, pattern_from_words(mechanism) if words else mechanism, *common))  # pyright: ignore
    return ways


def _carry_out(
    model: nn.Module,
    ways: Sequence[Way],
    found: Sequence[Found],
    reasons: Mapping[str, str],
    surgery: Surgery,
    max_length: int | None,
    batch: Batch | None,
    tolerance: float,
) -> SwapReport:
    """Record, replace, measure."""
    asked: dict[str, list[Asked]] = {}
    before: Tensor | None = None
    if batch is not None:
        asked, before = record(model, {name: part for way in ways for name, part in way.modules.items()}, batch)
        for way in ways:
            if way.prepare(surgery):
                asked |= record(model, way.modules, batch)[0]
        if not any(asked.values()):
            raise ValueError(f"the batch reached none of {', '.join(asked)}: nothing could be measured on it")
    notes = [note for way in ways for note in way.install(surgery)]
    swapped = next((way.new[""].module for way in ways if isinstance(way, ModuleSwap) and "" in way.new), model)
    notes += [] if max_length is None else extend_positions(swapped, max_length, surgery)
    rows: dict[str, LayerRow] = {}
    for way in ways:
        measured = way.distances({name: calls for name, calls in asked.items() if name in way.modules})
        rows |= {
            one.name: _row(one, way, measured.get(one.name), tolerance) for one in found if one.name in way.modules
        }
    left = (one for one in found if one.name not in rows)
    rows |= {
        one.name: LayerRow(name=one.name, kind=one.kind, verdict="left alone", note=reasons[one.name]) for one in left
    }
    return SwapReport(
        title=f"{sum(len(way.modules) for way in ways)} of {len(found)} attentions of {type(model).__name__}",
        rows=tuple(rows[one.name] for one in found),
        tolerance=tolerance,
        model=swapped,
        output_error=None if batch is None or before is None else _error(swapped, batch, before, ways, asked),
        notes=tuple(dict.fromkeys(notes)),
    )


def _error(
    model: nn.Module, batch: Batch, before: Tensor, ways: Sequence[Way], asked: Mapping[str, list[Asked]]
) -> float:
    """Of the whole model's first output, at real tokens where the output has one row a token."""
    with still(model):
        after = first_tensor(run(model, batch))
    way, name = next((way, name) for way in ways for name in way.modules if asked[name])
    real = way.real(name, asked[name][0])
    if after.ndim < 3 or real is None or after.shape[:2] != real.shape:
        real = None
    return output_errors(after, before, real)[0]


def _row(found: Found, way: Way, measured: Distance | None, tolerance: float) -> LayerRow:
    note = way.notes.get(found.name, "")
    if measured is None:
        verdict: Verdict = "exact by construction" if way.exact(found.name) else "not measured"
        return LayerRow(name=found.name, kind=found.kind, verdict=verdict, note=note)
    verdict = "within tolerance" if measured.error <= tolerance else "approximate"
    if measured.error <= ROUNDING[way.dtype(found.name)]:
        verdict = "exact"
    return LayerRow(
        name=found.name,
        kind=found.kind,
        verdict=verdict,
        error=measured.error,
        rms=measured.rms,
        kl=measured.kl,
        overlap=measured.overlap,
        note="; ".join(text for text in (note, measured.note) if text),
    )
