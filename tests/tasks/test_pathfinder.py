import math

import pytest
import torch

from regard.tasks import pathfinder
from regard.tasks.pathfinder import DASH, DASHES, SIDE, draw, draw_pathfinder


@pytest.fixture(scope="module")
def drawings():
    torch.set_num_threads(1)
    return draw(4096, torch.Generator().manual_seed(3))


def ends(dashes):
    """Where dashes begin and end, in pixels of the image, as real numbers."""
    angle = dashes[..., 2] * math.pi / 180
    start = (dashes[..., :2] - pathfinder._EDGE).double()
    return start, start + DASH * torch.stack((angle.sin(), angle.cos()), -1)


def along(paths):
    """The ends of every dash in the order of the path: only its first dash was drawn from its beginning."""
    start, end = ends(paths)
    first = torch.arange(paths.shape[-2])[:, None] == 0
    return torch.where(first, start, end), torch.where(first, end, start)


def distance(point, start, end):
    """Of points (B, 1, 2) to dashes (B, S, 2)."""
    share = ((point - start) * (end - start)).sum(-1, keepdim=True) / DASH**2
    return (point - start - share.clamp(0, 1) * (end - start)).norm(dim=-1)


def test_labels_agree_with_the_paths_that_were_drawn(drawings):
    start, end = ends(drawings.paths)
    discs = (drawings.discs - pathfinder._EDGE).double()
    on = torch.stack(
        [
            torch.stack(
                [distance(discs[:, disc, None], start[:, path], end[:, path]).amin(1) < 0.5 for path in (0, 1)], 1
            )
            for disc in (0, 1)
        ],
        1,
    )
    assert (on.sum(2) == 1).all(), "each disc lies on one path"
    assert torch.equal(on[:, 0].int().argmax(1) == on[:, 1].int().argmax(1), drawings.labels.bool())


def test_discs_mark_a_first_and_a_last_dash(drawings):
    begin, finish = along(drawings.paths)
    discs = (drawings.discs - pathfinder._EDGE).double()
    assert ((discs[:, :1] - begin[:, :, 0]).norm(dim=-1).amin(1) == 0).all()
    assert ((discs[:, 1:] - finish[:, :, -1]).norm(dim=-1).amin(1) == 0).all()
    origins = begin[:, :, 0]
    assert ((origins[:, 0] - (SIDE - 1) / 2).abs() < 2).all(), "one begins in the middle four by four pixels"
    assert ((origins[:, 0] - origins[:, 1]).norm(dim=-1) - 7).abs().max() < 0.75


def test_paths_go_on_with_one_gap_and_turn_by_less_than_a_right_angle(drawings):
    assert drawings.paths.shape[1:] == (2, DASHES, 3)
    begin, finish = along(drawings.paths)
    gap = (begin[:, :, 1:] - finish[:, :, :-1]).norm(dim=-1)
    assert gap.min() > 0.5
    assert gap.max() < 4
    assert gap.mean() == pytest.approx(2, abs=0.2), "a margin behind one dash and one before the next"
    forward = finish - begin
    cosine = (forward[:, :, 1:] * forward[:, :, :-1]).sum(-1) / DASH**2
    assert cosine.min() > -0.05
    angles = cosine[:, :, 3:6].clamp(-1, 1).acos() * 180 / math.pi
    assert 15 < angles.mean() < 45, "cos^2 draws near turns more often: uniform turns would have mean 45"


def test_no_dash_touches_one_that_is_not_its_neighbour(drawings):
    short = drawings.distractors.view(len(drawings.labels), -1, pathfinder.DISTRACTOR_DASHES, 3)
    chains = [*drawings.paths.unbind(1), *short.unbind(1)]
    covered = torch.zeros(len(drawings.labels), pathfinder._WIDE**2, dtype=torch.int)
    for chain in chains:
        there = chain[..., 2:] >= 0
        masks = torch.zeros(*chain.shape[:2], pathfinder._WIDE**2, dtype=torch.int)
        stamps = (pathfinder._OCCUPIED[chain[..., 2]] & there).int()
        masks.scatter_(2, pathfinder._pixels(chain[..., :2], pathfinder._BOX), stamps)
        apart = torch.arange(chain.shape[1])[:, None] - torch.arange(chain.shape[1]) > 1
        assert not (masks @ masks.transpose(1, 2))[:, apart].any()
        covered += masks.amax(1)
    assert covered.max() == 1, "chains keep their distance"
    whole = (short[..., 2] >= 0).all(2)
    assert torch.equal(whole, (short[..., 2] >= 0).any(2)), "a distractor is whole or not there"
    assert whole.double().mean() > 0.7


def test_discs_are_the_brightest(drawings):
    images = drawings.paint()
    assert images.shape[1:] == (SIDE, SIDE)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centres = drawings.discs - pathfinder._EDGE
    near = (rows - centres[..., :1, None]) ** 2 + (columns - centres[..., 1:, None]) ** 2 <= 1
    white = near.any(1)
    assert (images[white] == 255).all()
    assert images[~white].max() < 255
    background = images[(rows[0:1] == 0).expand(len(images), 1, SIDE).expand(-1, SIDE, -1) & ~white]
    assert (background == 0).double().mean() > 0.5
    assert (images > 0).double().mean() < 0.5
    assert images.amax((1, 2)).min() == 255


def test_dashes_are_painted_where_they_are(drawings):
    """Brightness lies near the segments and nowhere else."""
    images = drawings.paint()[:20]
    start, end = ends(torch.cat((drawings.paths.flatten(1, 2), drawings.distractors), 1)[:20])
    there = torch.cat((torch.ones(20, 2 * DASHES), drawings.distractors[:20, :, 2] >= 0), 1).bool()
    pixels = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    discs = (drawings.discs[:20] - pathfinder._EDGE).double()
    for image, a, b, real, marked in zip(images, start, end, there, discs, strict=True):
        away = distance(pixels[:, None], a[real][None], b[real][None]).amin(1)
        from_disc = torch.cdist(pixels, marked).amin(1)
        dark = image.flatten() == 0
        assert dark[(away > 1) & (from_disc > 2.3)].all()
        assert not dark[away < 0.15].any()


def test_halves_are_equal_and_seeds_decide(drawings):
    count = len(drawings.labels)
    assert count > 100
    assert abs(float(drawings.labels.double().mean()) - 0.5) < 4 * 0.5 / count**0.5
    images, labels = draw_pathfinder(20, seed=5)
    again, same = draw_pathfinder(20, seed=5)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert not torch.equal(images, draw_pathfinder(20, seed=6)[0])
