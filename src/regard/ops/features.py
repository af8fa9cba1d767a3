"""Feature maps whose products stand for the weights of attention, each in a form that neither overflows nor vanishes.

The features of x are a value times exp(exponent). Katharopoulos et al. 2020, "Transformers are RNNs", arXiv:2006.16236,
eq. 7, and Choromanski et al. 2020, "Rethinking Attention with Performers", arXiv:2009.14794, Lemma 1 and section 2.4;
with x~ = x / D^(1/4) and random rows W the m features of x are::

    "elu"         elu(x) + 1                                            no rows; m = D
    "relu"        relu(W x~) + 0.001
    "softmax"     m^(-1/2) exp(W x~ - |x~|^2 / 2)                       E[phi(q) . phi(k)] = exp(q . k / sqrt(D))
    "symmetric"   m^(-1/2) [exp(W x~ - |x~|^2 / 2), exp(-W x~ - |x~|^2 / 2)]       W has m / 2 rows

The first two are kernels of their own and have no exponent. Of the others the largest exponent of each token is split
off, so that its largest value is 1: a ratio of sums over tokens needs the split-off exponents up to a constant only,
and of the token that asks not at all.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor

RandomKind = Literal["softmax", "symmetric", "relu"]
Kind = Literal[RandomKind, "elu"]
Norms = Literal["chi", "sqrt"]
RELU_OFFSET = 1e-3


def orthogonal_rows(
    sets: int,
    rows: int,
    dim: int,
    *,
    norms: Norms = "chi",
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "sets rows dim"]:
    """Random rows that are orthogonal to each other in blocks of ``dim``, and each distributed as a Gaussian vector.

    Args:
        sets, rows, dim: the shape; the last block is cut off where ``rows`` is no multiple of ``dim``.
        norms: "chi", those of independent Gaussian vectors, or "sqrt", sqrt(dim) for all (the regularised kernel of
            the paper's appendix, which is biased and varies less).
        generator: the source of the draws, which are made on its device.
        device: where to draw without one, and where the rows go.

    Example:
        >>> w = orthogonal_rows(1, 5, 3, norms="sqrt")
        >>> torch.allclose(w[0, :3] @ w[0, :3].T, 3 * torch.eye(3), atol=1e-5)
        True
    """
    place = device if generator is None else generator.device
    blocks = torch.randn(sets, -(-rows // dim), dim, dim, generator=generator, device=place)
    directions, triangle = torch.linalg.qr(blocks)
    # with the signs of the diagonal the directions are uniform
    directions = (directions * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]).mT
    directions = directions.flatten(1, 2)[:, :rows]
    if norms == "sqrt":
        return directions.to(device or place) * dim**0.5
    lengths = torch.randn(sets, rows, dim, generator=generator, device=place).norm(dim=-1, keepdim=True)
    return (directions * lengths).to(device or place)


class Features(NamedTuple):
    """The features of T tokens, ``value * exp(exponent)``.

    Attributes:
        value: (B, H, T, m), of the softmax kinds at most 1.
        exponent: (B, H, T), None for 0; its dependence on the split-off maximum is left out of gradients, where it
            cancels.
        scaled: (B, H, T, D), x~, or x where there are no rows.
    """

    value: Float[Tensor, "B H T m"]
    exponent: Float[Tensor, "B H T"] | None
    scaled: Float[Tensor, "B H T D"]

    def without(self, hidden: Bool[Tensor, "B #H T"]) -> "Features":
        """The same with weight 0 for hidden tokens."""
        if self.exponent is None:
            return self._replace(value=self.value.masked_fill(hidden[..., None], 0.0))
        return self._replace(exponent=self.exponent.masked_fill(hidden, -torch.inf))


def features(x: Float[Tensor, "B H T D"], projection: Float[Tensor, "#H W D"], kind: Kind) -> Features:
    """The features of the tokens x, in float32 at least.

    Args:
        x: queries or keys, heads first.
        projection: the random rows, one set for all heads or one for each; (1, 0, D) for a kind without.
        kind: which features; see the head of this file.

    Example:
        >>> x, projection = torch.randn(1, 2, 5, 4), torch.randn(1, 7, 4)
        >>> phi = features(x, projection, "softmax")
        >>> expected = torch.exp(x / 4**0.25 @ projection.mT - x.square().sum(-1, keepdim=True) / 4**0.5 / 2) / 7**0.5
        >>> torch.allclose(phi.value * phi.exponent.exp()[..., None], expected)
        True
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, projection = x.to(dtype), projection.to(dtype)
    if kind == "elu":
        # elu(x) + 1 itself would lose the digits of small features
        return Features(x.clamp(min=0.0).add_(x.clamp(max=0.0).exp_()), None, x)
    x = (x * x.shape[-1] ** -0.25).contiguous()
    # one matrix product for all heads where they share the rows
    u = F.linear(x, projection[0]) if len(projection) == 1 else x @ projection.mT
    if kind == "relu":
        return Features(F.relu(u) + RELU_OFFSET, None, x)
    u = torch.cat((u, -u), -1) if kind == "symmetric" else u
    top = u.detach().amax(-1, keepdim=True)
    exponent = top.squeeze(-1) - x.square().sum(-1) / 2 - math.log(u.shape[-1]) / 2
    return Features(u.sub_(top).exp_(), exponent, x)


def features_backward(
    slope: Float[Tensor, "B H T m"], phi: Features, projection: Float[Tensor, "#H W D"], kind: Kind, *, exponent: bool
) -> tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T W"]]:
    """From the gradient of ``phi.value`` to those of x and of W x~; ``slope`` is overwritten.

    Args:
        slope: the gradient of the values.
        phi: what :func:`features` returned; hidden tokens have the gradient 0.
        projection, kind: as given to it.
        exponent: the exponent, where there is one, was multiplied in. Its gradient then is the product of the values
            and their gradients.
    """
    projection = projection.to(slope.dtype)
    if kind == "elu":
        return slope.mul_(phi.value.clamp(max=1.0)), slope[..., :0]
    if kind == "relu":
        slope.mul_(phi.value > RELU_OFFSET)
    else:
        slope.mul_(phi.value)
    norm = slope.sum(-1, keepdim=True) if exponent and phi.exponent is not None else None
    if kind == "symmetric":
        slope = torch.sub(*slope.chunk(2, -1))
    x = slope @ (projection[0] if len(projection) == 1 else projection)
    if norm is not None:
        x.addcmul_(norm, phi.scaled, value=-1.0)
    return x.mul_(phi.scaled.shape[-1] ** -0.25), slope
