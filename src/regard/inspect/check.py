"""``regard.check``: does a module look into the future, at padding or at its batch mates, and does it survive use?"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.inspect import modes, surroundings
from regard.inspect.causality import causality, prefix
from regard.inspect.compiling import compiling
from regard.inspect.inputs import make_subject
from regard.inspect.measure import said
from regard.inspect.report import Report, Row
from regard.inspect.streaming import streaming
from regard.inspect.subject import Subject
from regard.registry import Causality

RULES: dict[str, Callable[[Subject], Row]] = {
    "finite": modes.finite,
    "causality": causality,
    "prefix": prefix,
    "padding right": surroundings.padding_right,
    "padding left": surroundings.padding_left,
    "batch mates": surroundings.batch_mates,
    "lengths": surroundings.lengths,
    "empty rows": surroundings.empty_rows,
    "determinism": modes.determinism,
    "train = eval": modes.train_is_eval,
    "memory = full": streaming,
    "gradients": modes.gradients,
    "bfloat16": modes.bfloat16,
    "float16": modes.float16,
    "autocast": modes.autocast,
    "compile": compiling,
}
"""Every rule, by the name of its row, in the order of the report."""


def check(
    module: nn.Module,
    inputs: Tensor | tuple[Any, ...] | dict[str, Any] | None = None,
    *,
    time_dim: int | None = 1,
    mask_name: str = "key_mask",
    mask_true: Literal["keep", "drop"] = "keep",
    mask_dtype: torch.dtype | None = None,
    causal: Causality | None = None,
) -> Report:
    """Try out on a copy of any module what goes wrong with attention in practice, and report it.

    Leaks are looked for by changing inputs, not by gradients: a module that picks its keys by content (hashing,
    clustering, sorting) can look into the future with a gradient of exactly zero. The module and torch's random state
    stay as they are; the caches of torch.compile are cleared.

    Args:
        module: any nn.Module; of what it returns the first tensor is looked at.
        inputs: arguments of forward: a tensor, a tuple of positional or a dict of named ones, of two sequences or more.
            Those as long as the first are one sequence with it; ``context``, ``memory`` and ``encoder_hidden_states``
            are another one; inputs that end in (N, N), such as a causal mask, are cut along with it. May be left out
            for modules made from the registry and for models of Hugging Face's transformers, whose ids, images or
            sounds are made here; their mask is ``attention_mask`` in integers, their causality the architecture's.
        time_dim: the axis of the tokens in inputs and output; None where nothing is a sequence.
        mask_name: the argument of forward that marks padding, (B, N).
        mask_true: what True means in it: "keep" as in this library, "drop" as in torch's ``key_padding_mask``: say
            ``mask_name="src_key_padding_mask", mask_true="drop"`` for nn.TransformerEncoderLayer.
        mask_dtype: of the mask; None: torch.bool, or integers, 1 and 0, for models of transformers.
        causal: what to hold the module to. "strict": no output changes when later inputs do. "selection": it has no
            gradient from them. None: the card's claim if the module was built causal; without one, leaks are reported
            and do not fail.

    Returns:
        A report that prints as a table; ``report.ok`` and ``report.raise_if_failed()`` are for tests. For modules
        without a card, what torch does not promise either (numbers for empty rows, graphs without breaks, short
        floats) is "info" and no failure.

    Raises:
        TypeError, ValueError: arguments that make no sense, or inputs that the module cannot be called with.

    Example:
        >>> report = check(torch.nn.GRU(6, 6, batch_first=True), torch.randn(2, 9, 6), causal="strict")
        >>> report.ok, report["causality"].verdict, report["padding left"].explanation
        (True, 'pass', 'not applicable: takes no key_mask')
    """
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"check takes an nn.Module, got {type(module).__name__}")
    cuda = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(list(cuda)), torch.no_grad():
        subject = make_subject(
            module,
            inputs,
            time_dim=time_dim,
            mask_name=mask_name,
            mask_true=mask_true,
            mask_dtype=mask_dtype,
            causal=causal,
        )
        try:
            subject()
        except Exception as error:
            raise ValueError(f"{subject.title} cannot be called: {said(error)}") from error
        first = modes.finite(subject)
        rows = [run_rule(name, subject) for name in RULES if name != "finite" and first.verdict == "pass"]
    return Report(subject.title, (_explained(first), *rows), subject.about)


def _explained(row: Row) -> Row:
    """The row with what its rule asks for: the first paragraph of the rule's docstring."""
    text = inspect.getdoc(RULES[row.name]) or ""
    return replace(row, meaning=" ".join(text.partition("\n\n")[0].split()))


def run_rule(name: str, subject: Subject) -> Row:
    """One row of the report; a module that raises on the way has failed the rule."""
    with torch.no_grad(), warnings.catch_warnings():
        if subject.card is None:
            warnings.simplefilter("ignore")  # of a stranger: that a mask and its padding differ in dtype, and the like
        try:
            return _explained(RULES[name](subject))
        except Exception as error:
            return _explained(Row(name=name, verdict="FAIL", explanation=f"raises {said(error)}"))
