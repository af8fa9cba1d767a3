"""Rules on how a module is run: twice, in training, with gradients, in short floats."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard.inspect.measure import compare, limit_of, named, said, skip
from regard.inspect.report import Row
from regard.inspect.subject import Subject
from regard.inspect.tensors import all_tensors, slopes

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
RATES = (
    "dropout", "dropout_p", "dropout_rate", "attn_drop", "attn_dropout", "proj_drop", "drop", "drop_path",
    "attention_dropout", "activation_dropout", "layerdrop",
)  # fmt: skip
"""Attributes that hold a probability in modules without a dropout module, such as nn.MultiheadAttention."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def finite(subject: Subject) -> Row:
    """The inputs as given yield numbers."""
    out = subject()
    share = float((~out.isfinite()).double().mean())
    if share:
        return Row(name="finite", verdict="FAIL", explanation=f"{share:.0%} of the output is NaN or infinite")
    return Row(name="finite", verdict="pass", explanation=f"the output is {named(out.dtype)} {tuple(out.shape)}")


def determinism(subject: Subject) -> Row:
    """Two calls in eval mode, one after the other, are equal."""
    first, second = subject(), subject(seed=None)
    broken = "two calls in eval mode differ: keep the draws in a buffer or take a generator"
    return compare("determinism", second, first, kept="two calls in eval mode agree", broken=broken)


def train_is_eval(subject: Subject) -> Row:
    """train() computes what eval() computes once dropout is off and batch norms keep their statistics."""
    name = "train = eval"
    intended = set(subject.card.stochastic) - {"dropout", "batch_norm"} if subject.card else set[str]()
    if intended:
        return skip(name, f"they differ on purpose: {', '.join(sorted(intended))}")
    module = copy.deepcopy(subject.module).train()
    off = _silence(module)
    with torch.enable_grad():
        trained, again = (subject(module=module, seed=seed).detach() for seed in (0, 1))
    if subject.card is None and not torch.equal(trained, again):
        text = "random in train(), even with the dropout that was found switched off"
        return Row(name=name, verdict="info", explanation=text)
    kept = "train() and eval() agree" + (f" with {off} off" if off else "")
    return compare(name, trained, subject(), kept=kept, broken="train() computes something else than eval()")


def gradients(subject: Subject) -> Row:
    """Every parameter gets a gradient, and it is finite."""
    name = "gradients"
    parameters = {key: value for key, value in subject.module.named_parameters() if value.requires_grad}
    if not parameters:
        return skip(name, "no parameters")
    with torch.enable_grad():
        outs = [out for out in all_tensors(subject.run()) if out.requires_grad]
        if not outs:
            return Row(name=name, verdict="FAIL", explanation="the output is detached: no parameter gets a gradient")
        total = sum((out * torch.randn_like(out)).sum() for out in outs)
        assert isinstance(total, Tensor)
        found = slopes(total, list(parameters.values()))
    arrived = dict(zip(parameters, found, strict=True))
    if broken := [key for key, slope in arrived.items() if slope is not None and not bool(slope.isfinite().all())]:
        return Row(name=name, verdict="FAIL", explanation=f"NaN or infinite: {', '.join(broken)}")
    if without := [key for key, slope in arrived.items() if slope is None]:
        text = f"no gradient reaches {', '.join(without)}"
        return Row(name=name, verdict=subject.breach, explanation=text)
    return Row(name=name, verdict="pass", explanation=f"{len(arrived)} parameters get finite gradients")


def bfloat16(subject: Subject) -> Row:
    """In bfloat16 the output is finite, bfloat16 and close to float32 with the same rounded weights."""
    return _short(subject, torch.bfloat16)


def float16(subject: Subject) -> Row:
    """In float16 the output is finite, float16 and close to float32 with the same rounded weights."""
    return _short(subject, torch.float16)


def autocast(subject: Subject) -> Row:
    """Under autocast to bfloat16 the output is finite."""
    name = "autocast"
    device = next((value.device.type for value in subject.inputs.values() if isinstance(value, Tensor)), "cpu")
    try:
        with torch.autocast(device, torch.bfloat16):
            out = subject()
    except Exception as error:
        return Row(name=name, verdict=subject.breach, explanation=f"raises {said(error)}")
    if not bool(out.isfinite().all()):
        return Row(name=name, verdict="FAIL", explanation="NaN or infinite under autocast to bfloat16")
    return Row(name=name, verdict="pass", explanation=f"finite, {named(out.dtype)}")


def _short(subject: Subject, dtype: torch.dtype) -> Row:
    name = named(dtype)
    module = copy.deepcopy(subject.module).to(dtype)
    inputs = _cast(subject.inputs, dtype)
    try:
        out = subject(inputs, module=module)
    except Exception as error:
        return Row(name=name, verdict=subject.breach, explanation=f"raises {said(error)}")
    if not bool(out.isfinite().all()):
        return Row(name=name, verdict="FAIL", explanation="NaN or infinite")
    if out.dtype != dtype:
        return Row(name=name, verdict=subject.breach, explanation=f"the output is {named(out.dtype)} for {name} inputs")
    expected = subject(_cast(inputs, torch.float32), module=module.float())
    smooth = subject.card is None or subject.card.smooth
    kept, broken = "finite and close to float32", "far from float32 with the same weights"
    verdict = subject.breach if smooth else "info"
    return compare(name, out, expected, kept=kept, broken=broken, limit=limit_of(out), verdict=verdict)


def _cast(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The inputs with all floats in this dtype."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _silence(module: nn.Module) -> str:
    """Switch off what is known to be random in training; returns what that was."""
    off: set[str] = set()
    for part in module.modules():
        if isinstance(part, DROPOUTS) and part.p:
            part.p = 0.0
            off.add("dropout")
        for name in RATES:
            if isinstance(vars(part).get(name), float) and vars(part)[name]:
                setattr(part, name, 0.0)
                off.add("dropout")
        if isinstance(part, NORMS):
            part.eval()
            off.add("batch norm")
    return " and ".join(sorted(off))
