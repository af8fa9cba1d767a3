"""Global context block: one softmax map pools the whole image, and every pixel receives what is made of it.

Cao et al. 2019, "GCNet", arXiv:1904.11492, section 3.3, a non-local block whose map does not depend on the query. Over
the pixels j, with P = ratio * C planes::

    c = sum_j softmax_j(w . x_j + b) x_j                 "att", or "avg": the mean of all x_j
    t(c) = W_2 ReLU(LN(W_1 c + b_1)) + b_2               a transform of its own for each fusion

    y = x * sigmoid(t_mul(c))                            "mul"
    y = x + t_add(c)                                     "add", as in the paper; with both, x is multiplied first

W_2 and b_2 start at 0: "add" starts as the identity, "mul" as x / 2. Masked pixels are not pooled; where none is left,
c is 0. Time is O(N C + C P).
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.map_layers import WeighingLayer
from regard.registry import Card, Sample, register

Pooling = Literal["att", "avg"]
Fusion = Literal["mul", "add"]


def context_weights(
    x: Float[Tensor, "B C *grid"],
    weight: Float[Tensor, " C"] | None = None,
    bias: Float[Tensor, "1"] | None = None,
    key_mask: Bool[Tensor, "B *grid"] | None = None,
) -> Float[Tensor, "B N"]:
    """softmax_j(w . x_j + b) over the pixels that count, or equal shares without w; 0 where no pixel counts.

    Args:
        x: a map of any number of axes.
        weight, bias: w and b.
        key_mask: True for pixels that count.

    Returns:
        Weights of the pixels in row-major order, in float32 at least.

    Example:
        >>> x = torch.tensor([[[0.0, 0.0, 7.0]]])
        >>> context_weights(x, torch.ones(1), torch.zeros(1), torch.tensor([[True, True, False]]))
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    pixels = x.flatten(2)
    scores = pixels[:, 0] * 0.0 if weight is None else (weight.expand(x.shape[0], 1, -1) @ pixels)[:, 0]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores if bias is None else scores + bias  # a softmax does not see it: its gradient is 0
    if key_mask is None:
        return scores.softmax(-1)
    mask = key_mask.flatten(1)
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~mask, 0.0)


class Transform(nn.Module):
    """t(c) = W_2 ReLU(LN(W_1 c + b_1)) + b_2 from C to P planes and back.

    Args:
        dim, planes: C and P.
    """

    def __init__(self, dim: int, planes: int, **factory: Any) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(dim, planes, **factory), nn.LayerNorm(planes, **factory)
        self.outer = nn.Linear(planes, dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W_1 as torch draws it, W_2 and b_2 at 0."""
        self.inner.reset_parameters()
        self.norm.reset_parameters()
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, context: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Of the same shape."""
        return self.outer(self.norm(self.inner(context)).relu())


@register(
    "global_context",
    samples=[
        Sample(dim=12, ratio=0.5),
        Sample(dim=12, ratio=0.25, pooling="avg", fusions=("mul", "add")),
    ],
)
class GlobalContext(WeighingLayer):
    """The block with its residual inside, for maps of one to three axes; see the head of this file.

    Args:
        dim: C.
        ratio: P / C, below 1; with P = 1 the norm leaves nothing of the context but its own bias.
        pooling: "att" or "avg".
        fusions: "mul", "add" or both, in any order.

    Raises:
        ValueError: options of other names, or a ratio that leaves no plane.
    """

    card = Card(
        title="Global context block",
        paper="arXiv:1904.11492",
        year=2019,
        family="gates",
        data="map",
        smooth=True,
        refuses={"causal": "the context is that of the whole map"},
        cost="N",
        summary="One attention map for the whole image, added to every pixel: nearly free global context in a CNN.",
        formula="x + W_2 ReLU(LN(W_1 sum over j of softmax_j(w . x_j) x_j))",
    )

    num_axes = None

    def __init__(
        self,
        dim: int,
        ratio: float = 1 / 16,
        pooling: Pooling = "att",
        fusions: Sequence[Fusion] = ("add",),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        planes = int(dim * ratio)
        if planes < 1:
            raise ValueError(f"ratio={ratio} leaves {planes} of dim={dim} planes: it is P / C, e.g. 1 / 16")
        if pooling not in get_args(Pooling):
            raise ValueError(f'pooling={pooling!r} is neither "att" nor "avg"')
        if not fusions or any(fusion not in get_args(Fusion) for fusion in fusions):
            raise ValueError(f'fusions={fusions!r} must hold "mul", "add" or both')
        self.dim = dim
        self.pooling: Pooling = pooling
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.scores = nn.Linear(dim, 1, **factory) if pooling == "att" else None
        self.mul, self.add = (Transform(dim, planes, **factory) if f in fusions else None for f in ("mul", "add"))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """w is normal of variance 2 / C and b is 0; transforms end in 0."""
        if self.scores is not None:
            nn.init.kaiming_normal_(self.scores.weight, nonlinearity="relu")
            nn.init.zeros_(self.scores.bias)
        for transform in (self.mul, self.add):
            if transform is not None:
                transform.reset_parameters()

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Pool, transform and fuse; see :class:`regard.map_layers.MapLayer`."""
        context = (x.flatten(2) @ self._weights(x, key_mask)[..., None].to(x.dtype)).squeeze(-1)
        shape = (*context.shape, *[1] * (x.ndim - 2))
        y = x if self.mul is None else x * self.mul(context).sigmoid().view(shape)
        return y if self.add is None else y + self.add(context).view(shape)

    def mix(
        self,
        x: Tensor,
        source: Tensor,
        values: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """The context that the same weights make of other values, for every pixel."""
        weights = self._weights(x, key_mask).to(values.dtype)
        return (weights[:, None, None] @ values).expand(-1, -1, weights.shape[1], -1)

    def _weights(self, x: Tensor, key_mask: Tensor | None) -> Float[Tensor, "B N"]:
        if self.scores is None:
            return context_weights(x, key_mask=key_mask)
        return context_weights(x, self.scores.weight[0], self.scores.bias, key_mask)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, pooling={self.pooling!r}"
