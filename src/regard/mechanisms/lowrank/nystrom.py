"""Nystromformer: softmax attention by way of a few landmarks, the means of consecutive tokens.

Xiong et al. 2021, arXiv:2102.03902, eq. 13 to 15 and algorithm 1. With m landmarks q', k' of the queries and the keys::

    y = F1 Z (F3 v)           F1 = softmax(q k'^T)    A = softmax(q' k'^T)    F3 = softmax(q' k^T)    each / sqrt(D)
    Z nearly pinv(A):         Z_0 = A^T / (|A|_1 |A|_inf)    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4, six times

where |A|_inf, the largest sum of a row, is 1. A depthwise convolution over the values, one filter a head, may be added.

Landmarks are means over real tokens: of n of them, with s = floor(n / m), the first (s + 1) m - n segments hold s and
the others s + 1. Segments without a token take no part. Where none holds more than one key, the landmarks are the keys
and the result is softmax attention itself, as in the authors' code for n = m. Each A has a start of its own, as in the
paper, so that no sequence depends on its batch. The authors' code takes the largest norm in the batch, and multiplies
padded queries and keys by 0 instead of leaving them out; for its checkpoints see :mod:`regard.authors`.

Short floats are computed in float32: Z magnifies the differences between landmarks, and their rounding.
Time O((N + M) m D + m^3) a head, memory O((N + M) D + m^2): F1 and F3 are never stored.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.ops.convolution import token_convolution
from regard.ops.landmarks import segment_means
from regard.ops.positions import put_back, real_first
from regard.registry import Card, Core, Sample, register


def landmark_weights(
    q: Float[Tensor, "B H m D"],
    k: Float[Tensor, "B H m D"],
    q_filled: Bool[Tensor, "B m"] | None = None,
    k_filled: Bool[Tensor, "B m"] | None = None,
) -> Float[Tensor, "B H m m"]:
    """A = softmax(q k^T / sqrt(D)) between landmarks; those that are not filled have rows and columns of 0."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if q_filled is None or k_filled is None:
        return scores.softmax(-1)
    weights = scores.masked_fill(~k_filled[:, None, None], torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~(q_filled[:, None, :, None] & k_filled[:, None, None]), 0.0)


def column_norm(a: Float[Tensor, "B H m m"]) -> Float[Tensor, "B H 1 1"]:
    """|A|_1 of each matrix of weights, the largest sum of a column; 1 for a matrix of zeros."""
    norm = a.sum(-2, keepdim=True).amax(-1, keepdim=True)
    return torch.where(norm > 0, norm, 1.0)


def pseudo_inverse_times(
    a: Float[Tensor, "B H m m"],
    y: Float[Tensor, "B H m Dv"],
    iterations: int = 6,
    norm: Float[Tensor, "#B #H 1 1"] | None = None,
) -> Float[Tensor, "B H m Dv"]:
    """Z y, where Z starts at A^T / norm and each iteration takes it nearer to the pseudo-inverse of A.

    The last iteration meets only y, which has few columns. A row of zeros in A is a column of zeros in Z.

    Args:
        a: weights whose rows sum to 1, or to 0.
        y: what is multiplied; the identity for Z itself.
        iterations: at least 1.
        norm: |A|_1 |A|_inf or more; by default :func:`column_norm`, as |A|_inf is 1.

    Example:
        >>> a, one = torch.tensor([[[[0.9, 0.1], [0.3, 0.7]]]]), torch.eye(2).expand(1, 1, 2, 2)
        >>> bool(torch.allclose(pseudo_inverse_times(a, one) @ a, one, atol=1e-3))
        True
    """
    shape, z = y.shape, (a.mT / (column_norm(a) if norm is None else norm)).flatten(0, 1)
    a, y = a.flatten(0, 1), y.flatten(0, 1)
    for _ in range(iterations - 1):
        az = a @ z
        inner = torch.baddbmm(az, az, az, beta=7, alpha=-1)
        outer = torch.baddbmm(az, az, inner, beta=15, alpha=-1)
        z = torch.baddbmm(z, z, outer, beta=13 / 4, alpha=-1 / 4)
    y = (13 * y - a @ (z @ (15 * y - a @ (z @ (7 * y - a @ (z @ y)))))) / 4
    return (z @ y).view(shape)


def nystrom_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    *,
    num_landmarks: int = 64,
    iterations: int = 6,
    conv: Float[Tensor, "H K"] | None = None,
    key_mask: Bool[Tensor, "B M"] | None = None,
    query_mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """F1 Z (F3 v), see the head of this file; softmax attention where there are no more real keys than landmarks.

    Args:
        q, k, v: queries, keys and values, heads first.
        num_landmarks: m.
        iterations: of the pseudo-inverse.
        conv: filters of odd width for the values, which are then those of the queries' own tokens: N = M.
        key_mask: True for real keys; the others are in no landmark and in no sum.
        query_mask: True for real queries; the others are in no landmark.

    Returns:
        One row per query, 0 where a sequence has no real key.

    Raises:
        ValueError: a convolution where N != M.

    Example:
        >>> q, k, v = (torch.randn(1, 2, n, 4) for n in (5, 90, 90))
        >>> nystrom_attention(q, k, v, num_landmarks=16).shape
        torch.Size([1, 2, 5, 4])
    """
    if conv is not None and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"{q.shape[-2]} queries, {k.shape[-2]} keys: a convolution over the values needs one for each")
    with torch.autocast(q.device.type, enabled=False):
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, values = q.to(wide), k.to(wide), v.to(wide)
        q_marks, q_count = segment_means(q, num_landmarks, query_mask)
        k_marks, k_count = segment_means(k, num_landmarks, key_mask)
        single, _ = segment_means(values, num_landmarks, key_mask)
        a = landmark_weights(q_marks, k_marks, q_count > 0, k_count > 0)
        y = pseudo_inverse_times(a, attend(q_marks, k, values, key_mask=key_mask), iterations)
        y = torch.where((k_count > 1).any(-1)[:, None, None, None], y, single)
        out = attend(q, k_marks, y, key_mask=k_count > 0)
        if conv is not None:
            out = out + _convolve(values, conv.to(wide), key_mask)
    return out.to(v.dtype)


def _convolve(v: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """Real tokens are neighbours, whatever padding stands between them."""
    if mask is None:
        return token_convolution(v, weight)
    (v,) = real_first(mask, v.masked_fill(~mask[:, None, :, None], 0.0))
    return put_back(mask, token_convolution(v, weight))


@register(
    "nystrom",
    samples=[
        Sample(dim=12, num_heads=3, num_landmarks=4),
        Sample(dim=12, num_heads=2, num_landmarks=3, conv_kernel=3, claims={"cross": False}),
        Sample(dim=12, num_heads=3),
    ],
)
class Nystrom(Core):
    """The module around :func:`nystrom_attention`; it owns the filters of the convolution.

    Args:
        num_landmarks: m, 32 to 256; quality and cost grow with it.
        iterations: of the pseudo-inverse; more where queries and keys are peaky.
        conv_kernel: the width of the filters over the values, odd (the authors have 33 to 65); None: no convolution.
        num_heads: H, needed for the filters.
        device, dtype: of the filters.

    Raises:
        ValueError: sizes that make no sense.
        UnsupportedError: a context with a convolution.
    """

    card = Card(
        title="Nystromformer",
        paper="arXiv:2102.03902",
        year=2021,
        family="lowrank",
        data="sequence",
        cross=True,
        smooth=True,
        refuses={
            "causal": "landmarks average over the future",
            "attn_drop": "the weights of a query are a product of three matrices, which is never formed",
        },
        cost="N m",
        summary="Softmax attention through the means of 64 or so segments: for encoders from 1k tokens on.",
        formula="softmax(q k'^T) pinv(softmax(q' k'^T)) softmax(q' k^T) v, q' and k' segment means, each / sqrt(D)",
    )

    def __init__(
        self,
        num_landmarks: int = 64,
        iterations: int = 6,
        conv_kernel: int | None = None,
        *,
        num_heads: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_landmarks < 1 or iterations < 1:
            raise ValueError(f"num_landmarks={num_landmarks} and iterations={iterations} must be positive")
        self.num_landmarks, self.iterations, self.conv_kernel = num_landmarks, iterations, conv_kernel
        self.conv = None
        if conv_kernel is not None:
            if conv_kernel < 1 or conv_kernel % 2 == 0:
                raise ValueError(f"conv_kernel={conv_kernel}: only an odd filter has as many tokens before as after")
            if num_heads is None:
                raise ValueError(f"conv_kernel={conv_kernel} makes a filter for each head: pass num_heads")
            self.conv = nn.Parameter(torch.empty(num_heads, 1, conv_kernel, 1, device=device, dtype=dtype))
            self.card = replace(self.card, cross=False)  # a query without a token of its own has no neighbours
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The filters as torch.nn.Conv2d draws them."""
        if self.conv is not None:
            nn.init.kaiming_uniform_(self.conv, a=math.sqrt(5))

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Attend; shapes as in :func:`nystrom_attention` (nothing is drawn, so ``generator`` is idle)."""
        conv = None if self.conv is None else self.conv.flatten(1)
        if conv is not None and len(conv) != q.shape[1]:
            raise ValueError(f"{q.shape[1]} heads, but this Nystrom was built with filters for num_heads={len(conv)}")
        options = {"num_landmarks": self.num_landmarks, "iterations": self.iterations}
        return nystrom_attention(q, k, v, **options, conv=conv, key_mask=key_mask, query_mask=query_mask)

    def extra_repr(self) -> str:
        return f"{self.num_landmarks}, {self.iterations}, conv_kernel={self.conv_kernel}"
