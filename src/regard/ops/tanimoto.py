"""How alike two fuzzy sets are: the fractal Tanimoto coefficient, and the loss that it makes.

Diakogiannis, Waldner and Caccetta 2020, arXiv:2009.02062, section 2.2. For p and l with values in 0 to 1, and p.l a sum
over some of their axes::

    FT_d(p, l) = (p.l + e) / (2^d (p.p + l.l) - (2^(d + 1) - 1) p.l + e)       e = 1e-5
    FT(p, l)   = mean of FT_d over d = 0 ... depth - 1
    T(p, l)    = (FT(p, l) + FT(1 - p, 1 - l)) / 2                             1 for equal sets

The more terms, the steeper T falls near 1. The complements keep it defined where the truth is all 0. Sums are taken in
float32 at least, as the denominator is a difference.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SMOOTH = 1e-5
"""e."""


def fractal_tanimoto(
    p: Float[Tensor, "B *sides"],
    label: Float[Tensor, "B *sides"],
    axes: Sequence[int],
    depth: int = 5,
    mask: Bool[Tensor, "B *#sides"] | None = None,
) -> Float[Tensor, "B *ones"]:
    """T(p, label) over some axes, which stay as 1; see the head of this file.

    Args:
        p, label: fuzzy sets, values from 0 to 1.
        axes: over which inner products are sums.
        depth: how many terms are averaged; 0 is the one of d = 0, as 1.
        mask: True for what counts, broadcast over the shape of p.

    Raises:
        ValueError: shapes that differ, or a negative depth.

    Example:
        >>> p = torch.tensor([[0.0, 1.0, 1.0]])
        >>> [round(fractal_tanimoto(p, label, (1,)).item(), 2) for label in (p, torch.tensor([[0.0, 1.0, 0.0]]), 1 - p)]
        [1.0, 0.24, 0.0]
    """
    return similarity(products(p, label, mask), axes, depth).to(p.dtype)


def tanimoto_loss(
    p: Float[Tensor, "B *sides"],
    label: Float[Tensor, "B *sides"],
    depth: int = 5,
    mask: Bool[Tensor, "B *#sides"] | None = None,
) -> Float[Tensor, " B"]:
    """1 - T over all axes but the first: one loss for each sample, 0 where p is the label.

    Args:
        p: predicted probabilities.
        label: the truth, of the shape of p.
        depth: how many terms are averaged: a deeper loss is steeper near the truth.
        mask: True for what counts, such as (B, 1, H, W).

    Returns:
        (B,), in float32 for shorter floats.

    Raises:
        ValueError: shapes that differ, or a negative depth.

    Example:
        >>> truth = torch.zeros(2, 3, 4, 4)
        >>> tanimoto_loss(truth, truth).tolist()
        [0.0, 0.0]
    """
    return 1 - similarity(products(p, label, mask), range(1, p.ndim), depth).flatten()


def products(p: Tensor, label: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """p l, p p and l l of both sets, then of their complements; 0 where masked."""
    if p.shape != label.shape:
        raise ValueError(
            f"sets of shapes {tuple(p.shape)} and {tuple(label.shape)}: each value meets that of its place"
        )
    wide = torch.promote_types(p.dtype, torch.float32)
    pairs = [(p.to(wide), label.to(wide))]
    pairs.append((1 - pairs[0][0], 1 - pairs[0][1]))
    if mask is not None:
        pairs = [(a.masked_fill(~mask, 0.0), b.masked_fill(~mask, 0.0)) for a, b in pairs]
    return [(a * b, a * a, b * b) for a, b in pairs]


def _fractal(sums: Sequence[Tensor], depth: int) -> Tensor:
    """FT from p.l, p.p and l.l."""
    if depth < 0:
        raise ValueError(f"depth={depth}: the number of terms that are averaged is not negative")
    both, one, other = sums
    scales = [2.0**d for d in range(max(depth, 1))]
    parts = [1 / (scale * (one + other) - (2 * scale - 1) * both + SMOOTH) for scale in scales]
    return (both + SMOOTH) * sum(parts) / len(parts)


def similarity(found: list[tuple[Tensor, Tensor, Tensor]], axes: Sequence[int], depth: int) -> Tensor:
    """T from the products of both sets and of their complements."""
    direct, complement = (_fractal([t.sum(tuple(axes), keepdim=True) for t in part], depth) for part in found)
    return (direct + complement) / 2
