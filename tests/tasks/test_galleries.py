import torch

from regard.tasks.gallery import as_picture, colour_of, coloured, heat
from regard.tasks.image_galleries import ImageGallery, TileGallery, place_to_ask
from regard.tasks.set_galleries import SIDE, ClusterGallery, PointGallery
from regard.tasks.task import Batch


def test_an_image_gallery_names_the_likeliest_class_and_asks_for_its_logit():
    shown = torch.rand(2, 1, 4, 5)
    gallery = ImageGallery(Batch(shown - 0.5, torch.tensor([1, 0])), shown, ("cat", "dog"))
    assert [sight.words for sight in gallery.truths] == ["dog", "cat"]
    assert torch.equal(gallery.inputs[0].picture, as_picture(shown[0]))
    logits = torch.tensor([[0.0, 5.0], [0.0, 5.0]])
    right, wrong = gallery.answers(logits)
    assert (right.words, right.right, wrong.right) == ("dog 99%", True, False)
    assert gallery.evidence(logits).tolist() == [5.0, 5.0]
    gradient = torch.zeros(2, 1, 4, 5)
    gradient[0, 0, 2, 3] = -4.0
    strength = gallery.looked(gradient)[0].picture
    assert torch.equal(strength[2, 3], heat(torch.ones(1, 1))[0, 0])
    assert torch.equal(strength[0, 0], heat(torch.zeros(1, 1))[0, 0])


def test_a_tile_gallery_asks_at_a_border():
    mask = torch.zeros(1, 9, 9, dtype=torch.long)
    mask[0, :, 6:] = 1
    mask[0, 0, 0] = 255
    shown = torch.rand(1, 3, 9, 9)
    gallery = TileGallery(Batch(shown, mask), shown, ("sea", "land"))
    assert gallery.places == [(4, 5)]
    logits = torch.zeros(1, 2, 9, 9)
    logits[0, 1] = 1.0
    logits[0, 1, 4, 5] = 7.0
    (answer,) = gallery.answers(logits)
    assert answer.words == "34% right"  # 27 of 80 known pixels are land
    assert torch.equal(answer.picture, coloured(torch.ones(9, 9, dtype=torch.long), 2))
    assert gallery.evidence(logits).tolist() == [7.0]
    assert [name for name, _ in gallery.legend] == ["sea", "land"]
    cross = gallery.inputs[0].picture.ne(as_picture(shown[0])).any(-1)
    assert cross[4, 3]
    assert not cross[4, 5], "the pixel itself stays to be seen"


def test_without_a_border_the_middle_is_asked():
    assert place_to_ask(torch.full((5, 7), 2)) == (2, 3)


def test_a_cluster_gallery_colours_points_by_their_cluster():
    points = torch.tensor([[[-2.0, -2.0], [-2.1, -2.0], [2.0, 2.0]]])
    truth = torch.tensor([[[0.5, -2.0, -2.0], [0.5, 2.0, 2.0]]])
    gallery = ClusterGallery(Batch(points, truth), reach=4.0, deviation=0.3)
    swapped = torch.tensor([[[0.0, 2.0, 2.0, 0.5], [0.0, -2.0, -2.0, 0.5]]])
    (answer,) = gallery.answers(swapped)
    lower_left, upper_right = answer.picture[SIDE * 3 // 4, SIDE // 4], answer.picture[SIDE // 4 - 1, SIDE * 3 // 4]
    assert tuple(lower_left.tolist()) == colour_of(1)
    assert tuple(upper_right.tolist()) == colour_of(0)
    assert gallery.evidence(swapped).tolist() == [0.0]
    assert gallery.looked(torch.ones_like(points))[0].picture.shape == (SIDE, SIDE, 3)


def test_a_point_gallery_puts_points_back_where_they_were():
    points = torch.tensor([[[-0.5, 0.5, 0.2], [0.5, -0.5, 1.0], [0.0, 0.0, 0.0]]])  # the last one is padding
    batch = Batch(points, torch.tensor([1]), torch.tensor([[True, True, False]]))
    gallery = PointGallery(batch, (2, 2), ("bag", "boot"))
    assert gallery.inputs[0].picture[..., 0].tolist() == [[0, 51], [255, 0]]
    assert gallery.answers(torch.tensor([[[1.0, 3.0]]]))[0].right
    strength = torch.zeros(1, 3, 3)
    strength[0, 1] = 1.0
    assert torch.equal(gallery.looked(strength)[0].picture[1, 0], heat(torch.ones(1, 1))[0, 0])
