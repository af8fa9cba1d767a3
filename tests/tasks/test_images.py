import io

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from regard.tasks.documents import InputError
from regard.tasks.image_folder import read_image_folder
from regard.tasks.images import Images, LabelledImages, moved, nearest_mean, ridge
from regard.tasks.pictures import Scale, open_picture, pixels, square
from regard.tasks.shapes import draw_shapes


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))


def picture(mode="RGB", size=(8, 8), shade=0):
    colour = (shade, 0, 255 - shade)[: len(Image.new(mode, (1, 1)).getbands())]
    image = Image.new(mode, size, colour if len(colour) > 1 else shade)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    return image


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def folder(root, mode="RGB", each=4, ending="png", size=(8, 8)):
    for number, name in enumerate(("cat", "dog")):
        for place in range(each):
            save(root / name / f"{place}.{ending}", picture(mode, size, shade=40 * place + 100 * number))
    return root


def task(count=40, **changes):
    images, kinds, _ = draw_shapes(count, 14, seed=0)
    parts = dict(zip(("train", "validation", "test"), torch.arange(count).split([count - 16, 8, 8]), strict=True))
    found = LabelledImages(images, kinds, ("disc", "square", "cross"), parts)
    return Images(found, **{"patch": 2, "batch": 5, "seed": 0, **changes})


def test_batches_depend_on_seed_and_step_alone():
    one, two, other, seeded = task().batch(3), task().batch(3), task().batch(4), task(seed=1).batch(3)
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.targets, two.targets)
    assert not torch.equal(one.tokens, other.tokens)
    assert not torch.equal(one.tokens, seeded.tokens)
    assert (one.tokens.shape, one.positions) == ((5, 1, 14, 14), 5 * 14 * 14)


def test_the_training_part_is_standardised_and_can_be_shown():
    given = task()
    train = given.scale.apply(given.found.images[given.found.parts["train"]])
    assert train.mean().abs() < 1e-5
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    (held,) = given.held_out("test")
    assert_close(given.scale.undo(held.tokens), given.found.images[given.found.parts["test"]] / 255)
    flat = Scale.of(torch.full((2, 3, 4, 4), 7, dtype=torch.uint8))
    assert torch.equal(flat.apply(torch.full((1, 3, 1, 1), 7, dtype=torch.uint8)), torch.zeros(1, 3, 1, 1))


def test_moving_keeps_all_of_an_image_but_the_edge():
    image = torch.arange(1, 197, dtype=torch.uint8).view(1, 1, 14, 14).repeat(64, 1, 1, 1)
    found = moved(image, torch.Generator().manual_seed(0))
    expected = set()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            shifted = torch.zeros(16, 16, dtype=torch.uint8)
            shifted[1 + down : 15 + down, 1 + right : 15 + right] = image[0, 0]
            expected.add(tuple(shifted[1:15, 1:15].flatten().tolist()))
    assert {tuple(one.flatten().tolist()) for one in found} == expected


def test_all_held_out_images_are_judged_once_as_they_are():
    given = task(test_images=5)
    (held,) = given.held_out("test")
    assert held.units == ("32", "33", "34", "35", "36")
    assert given.sizes() == {"train": (24, 4704), "validation": (8, 1568), "test": (5, 980)}
    guess = torch.nn.functional.one_hot(held.targets, 3).float()
    assert given.scores(guess, held).tolist() == [1.0] * 5
    assert given.scores(-guess, held).sum() == 0
    assert given.loss(100 * guess, held) < 1e-6


def test_baselines_against_their_definitions():
    torch.manual_seed(0)
    inputs, labels, asked = torch.randn(30, 4), torch.arange(30) % 3, torch.randn(7, 4)
    means = [inputs[labels == number].mean(0) for number in range(3)]
    assert nearest_mean(inputs, labels, asked).tolist() == [
        min(range(3), key=lambda number: float((x - means[number]).norm())) for x in asked
    ]
    targets = torch.nn.functional.one_hot(labels).double()
    centred, centre = (inputs - inputs.mean(0)).double(), targets.mean(0)
    penalty = 1e-2 * centred.square().sum(0).mean()
    weights = torch.linalg.lstsq(
        torch.cat((centred, penalty.sqrt() * torch.eye(4))), torch.cat((targets - centre, torch.zeros(4, 3)))
    ).solution
    assert torch.equal(ridge(inputs, labels, asked), ((asked - inputs.mean(0)).double() @ weights + centre).argmax(1))
    assert nearest_mean(inputs[labels != 1], labels[labels != 1], asked).unique().tolist() == [0, 2]


def test_baselines_of_the_task():
    figures = task(80).baselines()
    assert list(figures) == ["majority class", "nearest class mean", "linear"]
    assert all(0 <= value <= 1 for value in figures.values())
    large = LabelledImages(*draw_shapes(40, 40, 0)[:2], ("disc", "square", "cross"), task().found.parts)
    assert Images(large, patch=4, batch=2, seed=0)._features(torch.arange(2)).shape == (2, 28 * 28)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("RGBA", 3), ("P", 3), ("I;16", 1), ("LA", 1)])
def test_reads_a_folder_per_class(tmp_path, mode, channels):
    found, rule, remarks = read_image_folder([folder(tmp_path / "data", mode)], 8)
    assert found.images.shape == (8, channels, 8, 8)
    assert found.classes == ["cat", "dog"]
    assert found.labels.tolist() == [0] * 4 + [1] * 4
    assert sorted(torch.cat(list(found.parts.values())).tolist()) == list(range(8))
    assert rule.startswith("stratified")
    assert remarks == []
    if mode == "RGB":
        assert found.images[1, :, 0, 0].tolist() == [40, 0, 215]


def test_colour_and_grey_together_are_colour(tmp_path):
    root = folder(tmp_path / "data", "L")
    save(root / "cat" / "red.png", picture("RGB", shade=200))
    found, _, _ = read_image_folder([root], 4)
    assert found.images.shape == (9, 3, 4, 4)


def test_the_middle_is_kept_and_pictures_stand_upright():
    wide = Image.new("L", (30, 10))
    wide.paste(200, (10, 0, 20, 10))
    assert pixels(square(wide, 5), "L")[0, :, 1:4].unique().tolist() == [200]
    turned = picture("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    file = io.BytesIO()
    turned.save(file, "jpeg", exif=exif)
    assert open_picture(file.getvalue()).size == (2, 4)


def test_files_that_are_no_images_are_left_out_and_named(tmp_path):
    root = folder(tmp_path / "data")
    (root / "cat" / "notes.txt").write_text("no image")
    whole = (root / "dog" / "0.png").read_bytes()
    (root / "dog" / "broken.png").write_bytes(whole[: len(whole) // 2])
    found, _, remarks = read_image_folder([root], 8)
    again, _, remembered = read_image_folder([root], 8)
    assert len(found.images) == 8
    assert remarks == ["left out, because they are no images that Pillow can read: cat/notes.txt, dog/broken.png"]
    assert (again.digest, remembered) == (found.digest, remarks)


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="missing is not a folder: --task images takes one with a subfolder"):
        read_image_folder([tmp_path / "missing"], 8)
    for name in ("cat", "dog"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "a.txt").write_text(name)
    with pytest.raises(InputError, match="none of 2 files is an image"):
        read_image_folder([tmp_path / "texts"], 8)
    with pytest.raises(InputError, match=r"8 images of 20000 x 20000 pixels .* choose a smaller --length"):
        read_image_folder([folder(tmp_path / "data")], 20_000)
    root = folder(tmp_path / "few", each=2)
    with pytest.raises(InputError, match="class 'cat' has 2 different documents"):
        read_image_folder([root], 8)
