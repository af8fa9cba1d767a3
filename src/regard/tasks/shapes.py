"""Discs, squares and crosses on noise: images for smoke runs, which need no package and mean nothing."""

import torch
from jaxtyping import UInt8
from torch import Tensor

KINDS = ("disc", "square", "cross")


def draw_shapes(
    count: int, side: int, seed: int
) -> tuple[UInt8[Tensor, "S 1 side side"], UInt8[Tensor, " S"], UInt8[Tensor, "S side side"]]:
    """Grey images of one shape each, its kind, and a mask: 0 around it, 1 + kind on it.

    Example:
        >>> images, kinds, masks = draw_shapes(4, 16, seed=0)
        >>> images.shape, bool((masks.amax((1, 2)) == kinds + 1).all())
        (torch.Size([4, 1, 16, 16]), True)
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(len(KINDS), (count,), generator=generator)
    size = side * (0.15 + 0.15 * torch.rand(count, generator=generator))
    middle = side * (0.3 + 0.4 * torch.rand(count, 2, generator=generator))
    along = torch.arange(side) + 0.5
    down, right = ((along - place[:, None]).abs() for place in middle.unbind(1))
    down, right, size = down[:, :, None], right[:, None, :], size[:, None, None]
    within = (down < size) & (right < size)
    forms = torch.stack(
        (down**2 + right**2 < size**2, within, within & ((down < size / 3) | (right < size / 3))), dim=1
    )
    shape = forms[torch.arange(count), kinds]
    noise = torch.randint(64, (count, side, side), generator=generator)
    images = (noise + 96 * shape + 32).to(torch.uint8)
    return images[:, None], kinds.to(torch.uint8), (shape * (kinds + 1)[:, None, None]).to(torch.uint8)
