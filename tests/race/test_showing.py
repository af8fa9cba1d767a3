import base64
import io

import torch
from PIL import Image
from torch import nn

from regard.race.showing import exhibit, packed, show
from regard.tasks.gallery import Sight
from regard.tasks.image_galleries import ImageGallery, TileGallery
from regard.tasks.task import Batch


class Corner(nn.Module):
    """Its answer is the first pixel."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, key_mask=None):
        return self.dropout(x[:, 0, 0, :1] * self.weight)


def images():
    shown = torch.rand(2, 1, 4, 4)
    return ImageGallery(Batch(shown, torch.tensor([0, 1])), shown, ("light", "dark"))


def opened(told):
    return Image.open(io.BytesIO(base64.b64decode(told["picture"]))).convert("RGB")


def test_pictures_survive_being_packed():
    few = torch.tensor([[[1, 2, 3], [200, 100, 0]]], dtype=torch.uint8)
    many = torch.randint(256, (40, 30, 3), dtype=torch.uint8)
    for picture in (few, many):
        found = opened(packed(Sight(picture=picture)))
        assert found.tobytes() == picture.numpy().tobytes()
    assert packed(Sight("words", right=True)) == {"words": "words", "picture": "", "right": True}


def test_a_model_is_asked_as_it_is_judged_and_left_as_it_was():
    model, gallery = Corner().train(), images()
    state = torch.random.get_rng_state()
    told = show(model, gallery)
    assert model.training
    assert model.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [sight["right"] for sight in told["answers"]] == [True, False]
    looked = opened(told["looked"][0])
    assert looked.getpixel((0, 0)) != looked.getpixel((1, 0)) == looked.getpixel((3, 3))


def test_a_model_that_fails_loses_no_race():
    told = show(nn.Linear(3, 3), images())
    assert set(told) == {"error"}


def test_what_is_shown_of_the_task():
    assert exhibit(None) is None
    mask = torch.tensor([[[0, 1], [1, 1]]])
    told = exhibit(TileGallery(Batch(torch.rand(1, 3, 2, 2), mask), torch.rand(1, 3, 2, 2), ("sea", "<land>")))
    assert told["legend"][0] == ["sea", "#1f4e8c"]
    assert len(told["inputs"]) == len(told["truths"]) == 1
