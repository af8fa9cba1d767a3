"""The rule on torch.compile."""

from typing import Any

import torch

from regard.inspect.measure import compare, said, skip
from regard.inspect.report import Row
from regard.inspect.subject import Subject


def compiling(subject: Subject) -> Row:
    """torch.compile(fullgraph=True) gives the same; other lengths cost one recompilation at most, also with a mask.

    A card that claims no dynamic length is held to one length.
    """
    if subject.card is not None and not subject.card.compile:
        return skip("compile", "the card does not claim it")
    row = compiled(subject, masked=False)
    if row.verdict == "pass" and subject.axes and subject.takes_mask:
        masked = compiled(subject, masked=True)
        return masked if masked.verdict != "pass" else row
    return row


def compiled(subject: Subject, *, masked: bool) -> Row:
    """Three lengths, or one where the card claims no more: in training, or in inference with a mask."""
    from torch._dynamo.testing import CompileCounterWithBackend

    name, how = "compile", "with a mask" if masked else "without a mask"
    row = skip(name, "")
    fixed = subject.card is not None and not subject.card.dynamic
    long = bool(subject.axes) and min(map(subject.length, subject.axes)) > 4
    drops = (0, 1, 3) if long and not fixed else (0,)
    torch.compiler.reset()
    backend: Any = CompileCounterWithBackend("aot_eager")
    try:
        module: Any = torch.compile(subject.module, fullgraph=True, backend=backend)
        for drop in drops:
            inputs = subject.cut(drop)
            keep = subject.real(inputs) if masked else None
            with torch.set_grad_enabled(not masked):
                got = subject(inputs, keep=keep, module=module).detach()
            expected = subject(inputs, keep=keep)
            if keep is not None:
                got, expected = subject.at_real(got, keep), subject.at_real(expected, keep)
            row = compare(name, got, expected, broken=f"compiled {how} it computes something else")
            if row.verdict == "FAIL":
                return row
    except Exception as error:
        return Row(name=name, verdict=subject.breach, explanation=f"{how} it raises {said(error)}")
    finally:
        torch.compiler.reset()
    graphs = backend.frame_count
    if graphs > 2:
        text = f"{graphs} graphs for {len(drops)} lengths {how}: it is compiled anew for every length"
        return Row(name=name, verdict=subject.breach, measured=graphs, limit=2, explanation=text)
    lengths = "one length, the card claims no more" if fixed else f"{len(drops)} lengths"
    text = f"no graph break; {lengths}, {graphs} compilation{'s' if graphs > 1 else ''}"
    return Row(name=name, verdict="pass", measured=row.measured, limit=row.limit, explanation=text)
