"""Pathfinder, 32 x 32, as in Long Range Arena: do two discs mark the two ends of one dashed path?

Linsley et al. 2018, arXiv:1805.08315, in the sizes of Tay et al. 2021, arXiv:2011.04006, with the 14 dashes of its hard
part. Two paths of 14 dashes grow side by side, then up to five distractors of 4:

    the first dash of one path begins within 2 pixels of the centre, that of the other 7 pixels from it
    the next dash ends at one of the free pixels on a circle around the end of the last gap, drawn with weight
        cos^2(min(turn * continuity, 90 degrees))
    no dash comes nearer than a margin to any but its neighbours; where a path cannot go on, the image is given up

A disc lies on the first dash of one path, another on the last dash of the same one (class 1) or the other (class 0).

Our own drawing, many images at a time, from the recipe of the published generator. Where it differs: pixels are rounded
to the nearest one, while theirs drift; targets and distractors have the same contrast, theirs tell them apart; and the
discs are visible, as they are in the benchmark but no longer in what that generator draws today.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

SIDE, PADDING = 32, 1
DASH, THICKNESS, MARGIN, CONTRAST = 2, 0.5, 1, 1.5
DASHES, DISTRACTORS, DISTRACTOR_DASHES = 14, 5, 4
SEED_DISTANCE, DISC_RADIUS, CONTINUITY = 7, 1.5, 1.0
DASH_TRIES, DISTRACTOR_TRIES, PLACES = 3, 5, 32
"""Tries of a dash and of a distractor; places that a distractor's first dash is tried at, at once."""

IMAGES = 4096
"""Begun at a time."""

_EDGE = 5  # a frame around everything, so that what reaches over the border can be looked up like the rest
_WIDE = SIDE + 2 * _EDGE
_REACH = 3  # of a dash with its margin, in pixels
_BOX = torch.cartesian_prod(*[torch.arange(-_REACH, _REACH + 1)] * 2)
_CROSS = torch.tensor([(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)])  # what lies within the margin of a pixel

_FREE, _WALL = 0, 1
"""What a pixel holds; the last dash of path p holds p instead of a wall, because its successor may touch it."""
_PATHS = (2, 3)


def _coverage(distance: Float[Tensor, "K P 4 4"], radius: float) -> Float[Tensor, "K P"]:
    """The share of each pixel within ``radius``, from 4 x 4 points."""
    return (distance <= radius).float().mean((-1, -2))


def _points() -> Float[Tensor, "P 4 4 2"]:
    """4 x 4 points in each pixel of the box, relative to the centre of its middle pixel."""
    fine = (torch.arange(4) + 0.5) / 4 - 0.5
    return _BOX[:, None, None] + torch.stack(torch.meshgrid(fine, fine, indexing="ij"), -1)


def _directions() -> Float[Tensor, "360 2"]:
    """(down, right) of each degree."""
    angle = torch.arange(360) * math.pi / 180
    return torch.stack((angle.sin(), angle.cos()), -1)


def _dash_stamps() -> tuple[Float[Tensor, "360 P"], Bool[Tensor, "360 P"]]:
    """For each degree: a dash that begins in the middle of the box, as it is seen; and the pixels that it occupies."""
    points, along = _points()[None], _directions()[:, None, None, None]
    nearest = (points * along).sum(-1, keepdim=True).clamp(0, DASH) * along
    distance = (points - nearest).norm(dim=-1)
    return CONTRAST * _coverage(distance, THICKNESS / 2), _coverage(distance, THICKNESS / 2 + MARGIN) > 0.8


def _circle() -> tuple[Int[Tensor, "K 2"], Int[Tensor, " K"]]:
    """The pixels at which a dash may end, relative to where its gap begins, and their directions in degrees."""
    steps = (torch.arange(0, 360, 360 / (2 * math.pi * (DASH + MARGIN))) * math.pi / 180)[:, None]
    pixels = ((DASH + MARGIN) * torch.cat((steps.sin(), steps.cos()), 1)).round().long().unique(dim=0)
    return pixels, (torch.atan2(pixels[:, 0].float(), pixels[:, 1].float()) * 180 / math.pi).round().long() % 360


_DIRECTIONS, (_SEEN, _OCCUPIED), (_CIRCLE, _CIRCLE_DEGREES) = _directions(), _dash_stamps(), _circle()
_NEAR_CIRCLE = (_CIRCLE[:, None] + _CROSS).flatten(0, 1)
_DISC = _coverage(_points().norm(dim=-1)[None], DISC_RADIUS)[0]


@dataclass(frozen=True)
class Paths:
    """One path in each of B images, while it grows.

    Attributes:
        dashes: (row, column, degrees) of each dash so far: where it begins and where it leads.
        tip: the pixel at which the last dash ends.
        pivot: a margin before the last dash, on its line.
        degrees: in which the path goes on.
    """

    dashes: Int[Tensor, "B S 3"]
    tip: Int[Tensor, "B 2"]
    pivot: Int[Tensor, "B 2"]
    degrees: Int[Tensor, " B"]

    def of(self, chosen: Tensor) -> "Paths":
        """The paths of some of the images."""
        return Paths(self.dashes[chosen], self.tip[chosen], self.pivot[chosen], self.degrees[chosen])


@dataclass(frozen=True)
class Drawings:
    """What is in B images, before it is painted; rows and columns count from the frame, ``_EDGE`` outside of the image.

    Attributes:
        paths: dashes of the two long paths, from the first to the last.
        distractors: dashes of the others; degrees are -1 where there is none.
        discs: where the two discs are.
        labels: whether they are on one path.
    """

    paths: Int[Tensor, "B 2 S 3"]
    distractors: Int[Tensor, "B T 3"]
    discs: Int[Tensor, "B 2 2"]
    labels: UInt8[Tensor, " B"]

    def paint(self) -> UInt8[Tensor, "B 32 32"]:
        """Black, dashes in grey, discs in white."""
        dashes = torch.cat((self.paths.flatten(1, 2), self.distractors), 1)
        stamps = _SEEN[dashes[..., 2].clamp(min=0)] * (dashes[..., 2:] >= 0)
        stamps = torch.cat((stamps, _DISC.expand(*self.discs.shape[:2], -1)), 1)
        places = _pixels(torch.cat((dashes[..., :2], self.discs), 1), _BOX)
        image = torch.zeros(len(dashes), _WIDE * _WIDE)
        image.scatter_reduce_(1, places.flatten(1), stamps.flatten(1), "amax")
        image = image.view(-1, _WIDE, _WIDE)[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
        return (255 * image).round().to(torch.uint8)


def draw_pathfinder(count: int, seed: int) -> tuple[UInt8[Tensor, "S 32 32"], UInt8[Tensor, " S"]]:
    """``count`` images and their classes, in the order in which they were finished."""
    generator = torch.Generator().manual_seed(seed)
    images, labels, found = list[Tensor](), list[Tensor](), 0
    while found < count:
        drawings = draw(IMAGES, generator)
        images.append(drawings.paint())
        labels.append(drawings.labels)
        found += len(drawings.labels)
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def draw(begun: int, generator: Generator) -> Drawings:
    """Of ``begun`` images those whose two paths reach their full length."""
    both, grid, origins = _two_paths(begun, generator)
    distractors = _distract(grid, generator)
    rows = torch.arange(len(grid))
    labels = torch.randint(2, (len(rows),), generator=generator)
    first = torch.randint(2, (len(rows),), generator=generator)
    tips = torch.stack([path.tip for path in both], 1)
    discs = torch.stack((origins[rows, first], tips[rows, torch.where(labels > 0, first, 1 - first)]), 1)
    dashes = torch.stack([path.dashes for path in both], 1)
    return Drawings(dashes, distractors, discs, labels.to(torch.uint8))


def _two_paths(begun: int, generator: Generator) -> tuple[list[Paths], UInt8[Tensor, "B W"], Int[Tensor, "B 2 2"]]:
    """The long paths of the images that succeed, the pixels around them, and where they begin."""
    grid = torch.full((begun, _WIDE, _WIDE), _WALL, dtype=torch.uint8)
    inside = slice(_EDGE + PADDING, -_EDGE - PADDING)
    grid[:, inside, inside] = _FREE
    grid = grid.flatten(1)
    centre = SIDE - 4 * SEED_DISTANCE  # pixels that are at least two seed distances away from every border
    one = _EDGE + 2 * SEED_DISTANCE + torch.randint(centre, (begun, 2), generator=generator)
    away = _DIRECTIONS[_degrees(begun, generator)]
    origins = torch.stack((one, one + (SEED_DISTANCE * away).round().long()), 1)
    paths = [_begin(origin, _degrees(begun, generator)) for origin in origins.unbind(1)]
    for path, mark in zip(paths, _PATHS, strict=True):
        _occupy(grid, path, mark)
    for _ in range(DASHES - 1):
        for number, mark in enumerate(_PATHS):
            longer, done = _extend(paths[number], grid, mark, generator)
            grid, origins, paths[1 - number] = grid[done], origins[done], paths[1 - number].of(done)
            _occupy(grid, paths[number].of(done), _WALL)
            paths[number] = longer.of(done)
            _occupy(grid, paths[number], mark)
    return paths, grid.clamp(max=_WALL), origins


def _distract(grid: UInt8[Tensor, "B W"], generator: Generator) -> Int[Tensor, "B T 3"]:
    """Short paths where there is room; those that are not found after some tries are left out."""
    found: list[Tensor] = []
    for _ in range(DISTRACTORS):
        dashes = torch.full((len(grid), DISTRACTOR_DASHES, 3), -1)
        dashes[..., :2] = _EDGE
        for _ in range(DISTRACTOR_TRIES):
            missing = (dashes[:, 0, 2] < 0).nonzero()[:, 0]
            path, fits = _seed(grid[missing], generator)
            missing, path = missing[fits], path.of(fits)
            room = grid[missing]
            for _ in range(DISTRACTOR_DASHES - 1):
                longer, done = _extend(path, room, _PATHS[0], generator)
                room, missing = room[done], missing[done]
                _occupy(room, path.of(done), _WALL)
                path = longer.of(done)
            _occupy(room, path, _WALL)
            dashes[missing], grid[missing] = path.dashes, room
        found.append(dashes)
    return torch.cat(found, 1)


def _begin(start: Int[Tensor, "B 2"], degrees: Int[Tensor, " B"]) -> Paths:
    """Paths of one dash."""
    dash = torch.cat((start, degrees[:, None]), 1)[:, None]
    return Paths(dash, start, start - (MARGIN * _DIRECTIONS[degrees]).round().long(), degrees)


def _seed(grid: UInt8[Tensor, "B W"], generator: Generator) -> tuple[Paths, Bool[Tensor, " B"]]:
    """A dash at a uniform place where it fits, and whether one was found."""
    degrees = _degrees(len(grid), generator)
    places = _EDGE + torch.randint(SIDE, (len(grid), PLACES, 2), generator=generator)
    around = grid.gather(1, _pixels(places, _BOX).flatten(1)).view(len(grid), PLACES, -1)
    fits = ~((around != _FREE) & _OCCUPIED[degrees][:, None]).any(-1)
    first = fits.int().argmax(1)
    return _begin(places[torch.arange(len(grid)), first], degrees), fits.any(1)


def _extend(
    path: Paths, grid: UInt8[Tensor, "B W"], mark: int, generator: Generator
) -> tuple[Paths, Bool[Tensor, " B"]]:
    """One more dash for each path, and which of them got one; ``mark`` is what its last dash holds in the grid."""
    pivot = path.pivot + ((DASH + 2 * MARGIN) * _DIRECTIONS[path.degrees]).round().long()
    pivot = pivot.clamp(_REACH, _WIDE - 1 - _REACH)
    turn = (_CIRCLE_DEGREES - path.degrees[:, None] + 180) % 360 - 180
    weight = (turn.abs() * CONTINUITY).clamp(max=90).mul(math.pi / 180).cos() ** 2
    near = grid.gather(1, _pixels(pivot, _NEAR_CIRCLE)).view(len(grid), len(_CIRCLE), -1)
    weight = weight * ~_blocked(near, mark).any(-1)
    tip, degrees, dash = path.tip.clone(), path.degrees.clone(), torch.zeros(len(grid), 3, dtype=torch.long)
    done = torch.zeros(len(grid), dtype=torch.bool)
    left = (weight.sum(1) > 1e-4).nonzero()[:, 0]
    for _ in range(DASH_TRIES):
        if not len(left):
            break
        drawn = torch.multinomial(weight[left], 1, generator=generator)[:, 0]
        end, onward = pivot[left] + _CIRCLE[drawn], _CIRCLE_DEGREES[drawn]
        backward = (onward + 180) % 360  # it is drawn from its end
        box = grid.take(left[:, None] * grid.shape[1] + _pixels(end, _BOX))
        fits = ~(_blocked(box, mark) & _OCCUPIED.index_select(0, backward)).any(1)
        new = left[fits]
        tip[new], degrees[new], done[new] = end[fits], onward[fits], True
        dash[new] = torch.cat((end, backward[:, None]), 1)[fits]
        left = left[~fits]
    return replace(path, dashes=torch.cat((path.dashes, dash[:, None]), 1), tip=tip, pivot=pivot, degrees=degrees), done


def _blocked(pixels: UInt8[Tensor, "*B"], mark: int) -> Bool[Tensor, "*B"]:
    return (pixels != _FREE) & (pixels != mark)


def _occupy(grid: UInt8[Tensor, "B W"], path: Paths, mark: int) -> None:
    """Write ``mark`` where the last dash of each path is, but for walls."""
    last = path.dashes[:, -1]
    box = _pixels(last[:, :2], _BOX)
    held = grid.gather(1, box)
    grid.scatter_(1, box, held.masked_fill(_OCCUPIED.index_select(0, last[:, 2]) & (held != _WALL), mark))


def _pixels(places: Int[Tensor, "*B 2"], around: Int[Tensor, "P 2"]) -> Int[Tensor, "*B P"]:
    """The numbers of the pixels around each place."""
    return (places[..., :1] * _WIDE + places[..., 1:]) + (around[:, 0] * _WIDE + around[:, 1])


def _degrees(count: int, generator: Generator) -> Int[Tensor, " B"]:
    return torch.randint(360, (count,), generator=generator)
