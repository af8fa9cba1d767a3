"""Repeat the authors' numbers: outputs and gradients of a recorded case, computed by our module.

A case is a header and tensors under ``param/``, ``buffer/`` and ``in/`` in the authors' names and layouts. What was
recorded under ``out/`` and ``grad/`` is never read; the same names come back.
"""

import json

import torch
from torch import Tensor, nn
from torch.func import functional_call

from regard.authors import Call, Importer, Inputs, Outputs, find, load

__all__ = ["replay"]


class _Call(nn.Module):
    """An importer's call as a forward, so that ``functional_call`` can put the authors' tensors in place."""

    def __init__(self, module: nn.Module, importer: Importer) -> None:
        super().__init__()
        self.module, self.importer = module, importer

    def forward(self, inputs: Inputs, call: Call) -> Outputs:
        return self.importer.call(self.module, inputs, call)


def replay(tensors: dict[str, Tensor], meta: dict[str, str]) -> dict[str, Tensor]:
    """Run one recorded case through our module.

    Args:
        tensors: the case's tensors; those under ``param/``, ``buffer/`` and ``in/`` are used.
        meta: its header: ``mechanism``, ``source``, ``config`` (JSON), ``call`` (JSON) and ``main_output``.

    Returns:
        ``out/<name>`` for every output that our module has, and ``grad/<name>`` for every floating-point parameter and
        input: the gradient of sum(main output * ``in/cotangent``), where there is a cotangent.

    Raises:
        UnsupportedError: no importer for this source, or an option that we do not compute.
    """
    state, inputs, cotangent = _part(tensors, "param/"), _part(tensors, "in/"), tensors.get("in/cotangent")
    inputs.pop("cotangent", None)
    leaves = {name: t.detach().requires_grad_() for name, t in (state | inputs).items() if t.is_floating_point()}
    inputs = {name: leaves.get(name, t) for name, t in inputs.items()}
    state = {name: leaves.get(name, t) for name, t in (state | _part(tensors, "buffer/")).items()}

    importer = find(meta["mechanism"], meta["source"])
    detached = {name: t.detach() for name, t in state.items()}
    module = load(meta["mechanism"], meta["source"], meta.get("config", "{}"), detached).eval()
    used = module.state_dict().keys()
    weights = {f"module.{name}": t for name, t in importer.weights(state).items() if name in used}
    outputs = functional_call(_Call(module, importer), weights, (inputs, json.loads(meta.get("call", "{}"))))

    main = meta.get("main_output", "").removeprefix("out/") or "out"
    if "out" in outputs:  # what every importer calls its main output; the recording may have another name for it
        outputs[main] = outputs.pop("out")
    found = {f"out/{name}": t.detach() for name, t in outputs.items()}
    if cotangent is None or not leaves:
        return found
    total = (outputs[main] * cotangent).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return found | {f"grad/{name}": t for name, t in zip(leaves, gradients, strict=True)}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
