"""What an entrant answers to the examples of a task's gallery, and where it looked, as pictures for the report."""

import base64
import io
from typing import Any

from torch import Tensor, nn

from regard.inspect.measure import said
from regard.tasks.gallery import Exhibition, Sight


def exhibit(gallery: Exhibition | None) -> dict[str, Any] | None:
    """The examples themselves for JSON: inputs, truths and the words around them; None: nothing to see."""
    if gallery is None:
        return None
    return {
        "inputs": [packed(sight) for sight in gallery.inputs],
        "truths": [packed(sight) for sight in gallery.truths],
        "legend": [[name, "#{:02x}{:02x}{:02x}".format(*colour)] for name, colour in gallery.legend],
        "looking": f"{gallery.looking} ({gallery.measured})",
    }


def show(model: nn.Module, gallery: Exhibition) -> dict[str, Any]:
    """A model's answers and where it looked, for JSON; or why there are none, which is no reason to lose a run."""
    training = model.training
    try:
        answers, looked = gallery.ask(model.eval())
        return {"answers": [packed(sight) for sight in answers], "looked": [packed(sight) for sight in looked]}
    except Exception as error:
        return {"error": said(error)}
    finally:
        model.train(training)


def packed(sight: Sight) -> dict[str, Any]:
    """For JSON: the words, the picture as a PNG in base64, and whether it is right."""
    picture = "" if sight.picture is None else base64.b64encode(_png(sight.picture)).decode()
    return {"words": sight.words, "picture": picture, "right": sight.right}


def _png(picture: Tensor) -> bytes:
    """A picture as a file. With few colours, as masks and strengths have, a palette makes it a third of the size."""
    from PIL import Image

    height, width, _ = picture.shape
    image = Image.frombytes("RGB", (width, height), picture.contiguous().numpy().tobytes())
    few = image.getcolors(256)
    out = io.BytesIO()
    (image.convert("P", palette=Image.Palette.ADAPTIVE, colors=len(few)) if few else image).save(out, "PNG")
    return out.getvalue()
