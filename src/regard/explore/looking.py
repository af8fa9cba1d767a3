"""Where a small model looks in what the user gave: the maps of all its layers, packed for the page."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard.explore.choice import Choice
from regard.explore.lessons import Shapes
from regard.explore.pictures import head_names, in_words, map_of, pack, with_mean
from regard.explore.reading import JACOBIAN_LENGTH, LENGTH, PATCH, SIDE, pixels_as_text, read_image, read_text
from regard.explore.trainings import Kind, Trainings, hindrance
from regard.inspect.own_maps import _weighs
from regard.tasks.shapes import KINDS, draw_shapes

EXAMPLES = 3


def look(choice: Choice, kind: Kind, given: Mapping[str, Any], trainings: Trainings) -> dict[str, Any]:
    """The maps of every layer on the user's input.

    Args:
        choice: the mechanism.
        kind: of input.
        given: ``{"text": ...}``, ``{"image": bytes in base 64}`` or ``{"example": number}``.
        trainings: where the models are.

    Raises:
        InputError: an input that cannot be read, or parameters that the mechanism refuses.
    """
    if reason := hindrance(choice, kind):
        return {"kind": "none", "words": reason}
    model, task = trainings.model(choice, kind)
    state = trainings.state(choice, kind)
    if kind == "image":
        image, remark = _image(given)
        assert isinstance(task, Shapes)
        x = task.scale.apply(image[None])
        shown: dict[str, Any] = {"grid": [SIDE // PATCH, SIDE // PATCH], "image": pixels_as_text(image), "side": SIDE}
    else:
        exact = all(map(_weighs, _attentions(model)))
        total = given.get("bytes", 0)
        text, most = str(given.get("text", "")), LENGTH if exact else JACOBIAN_LENGTH
        passage = read_text(text, most, total if isinstance(total, int) else 0)
        x, remark = passage.tokens, passage.remark
        shown = {"signs": passage.signs}
    inputs = _inputs(model, x)
    last = map_of(*inputs[-1])
    # gradients take their time: of a Jacobian the last layer must do
    found = [*(map_of(*each) for each in inputs[:-1]), last] if last.kind == "exact" else [last]
    trained = state.status == "trained"
    return {
        **shown,
        "remark": remark,
        "trained": trained,
        "model": state.words if trained else "untrained: random weights, so this is where it starts from",
        "words": in_words(found[-1]),
        "kind": found[-1].kind,
        "names": head_names(found[-1]),
        "depths": list(range(len(inputs) - len(found) + 1, len(inputs) + 1)),
        "layers": [pack(with_mean(each.tensor[0])) for each in found],
    }


def _image(given: Mapping[str, Any]) -> tuple[Tensor, str]:
    number = given.get("example")
    if isinstance(number, int) and 0 <= number < EXAMPLES:
        images, kinds, _ = draw_shapes(64, SIDE, seed=1)
        chosen = int((kinds == number).nonzero()[0])
        return images[chosen], f"A drawn {KINDS[number]} that no model here has learned from."
    return read_image(str(given.get("image", "")))


def _attentions(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".attention")]


def _inputs(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Each attention with what it reads when the model reads x."""
    caught: list[tuple[nn.Module, Tensor]] = []

    def catch(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        caught.append((module, arguments[0]))

    handles = [layer.register_forward_pre_hook(catch) for layer in _attentions(model)]
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return caught
