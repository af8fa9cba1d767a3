"""What would run, why nothing else would, and what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass

from regard.engines import ENGINES, choose, preferred
from regard.engines.door import Admitted
from regard.engines.packing import unpack


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The answer of :func:`regard.explain`; ``print`` it.

    Attributes:
        engine: the engine that runs.
        others: every other engine, and why it does not run.
        pattern: the pattern's text, causality included.
        pairs: allowed pairs of query and key over all sequences and heads, before masks.
        density: the share of all pairs that this is.
        flops: floating-point operations of a forward pass, and of forward and backward, counted on allowed pairs.
        memory: bytes needed beyond inputs, outputs and gradients, in a forward pass and with its backward, an estimate.
        notes: what else there is to know.
    """

    engine: str
    others: Mapping[str, tuple[str, ...]]
    pattern: str
    pairs: int
    density: float
    flops: tuple[int, int]
    memory: tuple[int, int]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"engine    {self.engine}",
            f"pattern   {self.pattern}: {self.pairs:,} pairs, {self.density:.2%} of all",
            "work      {} forward, {} with backward".format(*(_short(flops, 1000, "FLOP") for flops in self.flops)),
            "memory    {} forward, {} with backward".format(*(_short(size, 1024, "B") for size in self.memory)),
        ]
        lines += [f"{'not ' + name:<9} {reason}" for name, reasons in self.others.items() for reason in reasons]
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])


def explanation(admitted: Admitted, engine: str) -> Explanation:
    """Explain what the engine of this name ("auto" for the best) would do."""
    request, problem = admitted.request, unpack(*admitted.arguments)
    chosen = choose(engine, request)
    batch, heads, _, n, m, width, value_width = request.shape
    offset = None if problem.pattern.rectangular else problem.q_offset
    density = problem.pattern.density(n, m, heads, offset) if n * m else 0.0
    pairs = round(density * batch * heads * n * m)
    forward = 2 * pairs * (width + value_width)
    return Explanation(
        engine=chosen,
        others={name: tuple(_why_not(name, chosen, engine, admitted)) for name in ENGINES if name != chosen},
        pattern=request.pattern,
        pairs=pairs,
        density=density,
        flops=(forward, forward + 2 * pairs * (3 * width + 2 * value_width)),
        memory=ENGINES[chosen].serves.workspace(request, pairs),
        notes=tuple(_notes(request.pattern)),
    )


def _why_not(name: str, chosen: str, asked: str, admitted: Admitted) -> list[str]:
    reasons = ENGINES[name].serves(admitted.request)
    if reasons:
        return reasons
    if asked != "auto":
        return [f"it could, but engine={asked!r} was asked for"]
    if name in preferred(admitted.request):
        return [f"it could, but {chosen} comes first here"]
    return [f"it could, but runs on {admitted.request.device} only when asked for by name"]


def _notes(pattern: str) -> list[str]:
    if "from_mask" in pattern:  # from_mask_mod too
        return ["from_mask and from_mask_mod are read pair by pair once, which costs O(N M); other patterns O(tiles)"]
    return []


def _short(number: int, base: int, unit: str) -> str:
    value, prefixes = float(number), ["", "k", "M", "G", "T", "P"]
    while value >= base and len(prefixes) > 1:
        value /= base
        prefixes.pop(0)
    return f"{value:.3g} {prefixes[0]}{unit}"
