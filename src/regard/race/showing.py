"""What an entrant answers to the examples of a task's gallery, and where it looked, as pictures for the report."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.inspect.measure import said
from regard.tasks.gallery import Gallery, Sight


def exhibit(gallery: Gallery | None) -> dict[str, Any] | None:
    """The examples themselves for JSON: inputs, truths and the words around them; None: nothing to see."""
    if gallery is None:
        return None
    return {
        "inputs": [packed(sight) for sight in gallery.inputs],
        "truths": [packed(sight) for sight in gallery.truths],
        "legend": [[name, "#{:02x}{:02x}{:02x}".format(*colour)] for name, colour in gallery.legend],
        "looking": gallery.looking,
    }


def show(model: nn.Module, gallery: Gallery) -> dict[str, Any]:
    """A model's answers and where it looked, for JSON; or why there are none, which is no reason to lose a run."""
    training = model.training
    try:
        answers, looked = _asked(model.eval(), gallery)
        return {"answers": [packed(sight) for sight in answers], "looked": [packed(sight) for sight in looked]}
    except Exception as error:
        return {"error": said(error)}
    finally:
        model.train(training)


def packed(sight: Sight) -> dict[str, Any]:
    """For JSON: the words, the picture as a PNG in base64, and whether it is right."""
    picture = "" if sight.picture is None else base64.b64encode(_png(sight.picture)).decode()
    return {"words": sight.words, "picture": picture, "right": sight.right}


def _asked(model: nn.Module, gallery: Gallery) -> tuple[Sequence[Sight], Sequence[Sight]]:
    """One pass forward, one backward; the gradients of the model's parameters stay as they are."""
    place = next(model.parameters()).device
    batch = gallery.batch.to(place)
    devices = [place] if place.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices):
        tokens = batch.tokens.detach().clone().requires_grad_()
        prediction = model(tokens, **batch.options)
        (gradient,) = torch.autograd.grad(gallery.evidence(prediction).sum(), tokens)
    return gallery.answers(prediction.detach().cpu()), gallery.looked(gradient.cpu())


def _png(picture: Tensor) -> bytes:
    """A picture as a file. With few colours, as masks and strengths have, a palette makes it a third of the size."""
    from PIL import Image

    height, width, _ = picture.shape
    image = Image.frombytes("RGB", (width, height), picture.contiguous().numpy().tobytes())
    few = image.getcolors(256)
    out = io.BytesIO()
    (image.convert("P", palette=Image.Palette.ADAPTIVE, colors=len(few)) if few else image).save(out, "PNG")
    return out.getvalue()
