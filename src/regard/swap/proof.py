"""Before anything is replaced: does a copy of an attention, in our words, compute what the attention computes?"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from regard.registry import UnsupportedError
from regard.swap.building import build, cuda_only
from regard.swap.comparing import output_errors
from regard.swap.conventions.own_layers import OwnLayers
from regard.swap.finding import Found
from regard.swap.recording import still

TOKENS = 5
"""Tokens of the random sequences on which both are asked."""


def proven(found: Sequence[Found], required: bool) -> dict[str, str]:
    """Ask each attention and softmax attention with its weights the same; why it is left alone, where they differ.

    Args:
        found: attentions that can be read.
        required: they were named one by one, so none may be left alone.

    Raises:
        UnsupportedError: one that was required could not be proven.
    """
    reasons = {one.name: reason for one in found if one.site is None and (reason := _doubt(one))}
    if required and reasons:
        name, reason = next(iter(reasons.items()))
        raise UnsupportedError(f"{name} cannot be replaced: {reason}")
    return reasons


def exact_copy(found: Found, causal: bool) -> nn.Module:
    """Softmax attention with the weights of this one, called as it is."""
    reading = dataclasses.replace(found.readable, causal=causal)
    with torch.random.fork_rng(cuda_only(reading.q.weight.device)):  # what is drawn here is replaced at once
        exact, _ = build("multi_head", reading, causal, None, None, {})
    return found.known.reference(found.module, exact, reading)


def _doubt(found: Found) -> str:
    reading, convention, causal = found.readable, found.known, bool(found.readable.causal)
    if isinstance(convention, OwnLayers) or reading.q.weight.is_meta:
        return ""
    weight = reading.q.weight
    noise = torch.randn(2, TOKENS, reading.dim, generator=torch.Generator().manual_seed(0))
    x = noise.to(weight.device, weight.dtype)
    copy = exact_copy(found, causal)
    with still(found.module, copy):
        try:
            theirs = convention.probe(found.module, x, causal)
        except Exception as error:
            return f"it could not be asked by itself: {type(error).__name__}: {error}"
        ours = convention.probe(copy, x, causal)
    limit = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 5e-2
    error = output_errors(ours, theirs)[0] if ours.shape == theirs.shape else float("inf")
    if error <= limit:
        return ""
    return f"softmax attention with its weights does not compute what it computes (they differ by {error:.1g})"
