"""Dual attention: every pixel looks at every other, and every channel at every other one; the two are added.

Fu et al. 2018, "Dual Attention Network for Scene Segmentation" (DANet), arXiv:1809.02983, section 3. For a map x whose
pixels are the rows, and channels the columns, of X (N, C), with q, k (N, E) and v (N, C) linear in it and E = C / 8::

    position    x + gamma softmax(q k^T) v                                          not scaled
    channel     x + gamma X w^T,    w = softmax(-G) over its rows,  G = X^T X       no projections

Both gammas start at 0. The paper writes w = softmax(G). Its code (junfu1115/DANet) subtracts G from the maximum of each
row first, which reverses the order: a channel takes least from itself and from those like it. The authors say that it
keeps training from diverging; every published network has it, so it is the default, and ``affinity="paper"`` the other.
DANet has convolutions of its own before and after each of the two (:class:`PositionAttention`,
:class:`ChannelAttention`); here they see the same map, and their outputs are added.

The compact form is that of the authors' DRANet (Fu et al. 2020; dran_att.py in the same repository). Positions look at
50 centres: means over 1, 4, 9 and 36 parts of the image, each grid with a matrix, batch norm and ReLU of its own, and
E = C / 4. Channels look at C / 16 others, which a matrix, batch norm and ReLU make of them.

The N x N weights are never stored: time O(N^2 C), memory O(N C); compact O(50 N C). Channels: time O(N C^2), memory
O(N C + C^2); G grows with N and is computed in float32. Masked pixels are in no sum; an image's parts know no padding.
"""

from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.map_layers import MapLayer, WeighingLayer, hide_pixels, pixels_of
from regard.ops.centres import Centres, Mixtures
from regard.registry import Card, Sample, register

Which = Literal["both", "position", "channel"]
Affinity = Literal["code", "paper"]

CARD = Card(
    title="Dual attention",
    paper="arXiv:1809.02983",
    year=2018,
    family="gates",
    data="map",
    smooth=True,
    refuses={"causal": "every pixel and every channel looks at all others"},
    cost="N^2 + N C",
    summary="Full attention between pixels beside attention between channels, for features of segmentation networks.",
    formula="x + gamma softmax(q k^T) v, added to x + gamma softmax(-X^T X) applied to the channels of x",
)


COMPACT: dict[str, Any] = {
    "stochastic": ("batch_norm",),
    "onnx": False,  # onnxruntime stops at other sizes: a place out of range
    "refuses": {**CARD.refuses, "key_mask": "the parts of an image are shares of its size, which padding changes"},
}
"""What the card says of layers that look at centres."""


def channel_attention(
    x: Float[Tensor, "B C *grid"],
    source: Float[Tensor, "B K *grid"] | None = None,
    affinity: Affinity = "code",
    *,
    key_mask: Bool[Tensor, "B *grid"] | None = None,
) -> Float[Tensor, "B C *grid"]:
    """w source, w = softmax(-x source^T) over the channels of the source; see the head of this file.

    Args:
        x: the map whose channels ask.
        source: the map of the same sides whose channels are asked; x itself by default.
        affinity: "code", or "paper" for the other sign.
        key_mask: True for pixels that enter the products of channels; without any the result is 0.

    Example:
        >>> x = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])  # two channels that have nothing in common
        >>> channel_attention(x)[0].round().tolist(), channel_attention(x, affinity="paper")[0].round().tolist()
        ([[0.0, 9.0], [9.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]])
    """
    source = x if source is None else source
    seen = hide_pixels(source, key_mask).flatten(2)
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        energy = x.flatten(2).to(wide) @ seen.to(wide).mT
        weights = F.softmax(-energy if affinity == "code" else energy, -1)
        # most weights of strong maps are too small to be normal numbers, with which products take ten times as long
        weights = F.threshold(weights, torch.finfo(wide).tiny, 0.0)
    if key_mask is not None:
        weights = weights.masked_fill(~key_mask.flatten(1).any(1)[:, None, None], 0.0)
    return (weights.to(source.dtype) @ source.flatten(2)).unflatten(-1, x.shape[2:])


class PositionAttention(WeighingLayer):
    """x + gamma softmax(q k^T) v over the pixels of a map, or of a context.

    Args:
        dim: C.
        inner: E, the width of queries and keys; C / 8, or C / 4 where compact, and 1 at least.
        compact: keys and values are 50 centres of an image.
        gamma: what it starts from.

    Raises:
        ValueError: sizes that are no positive numbers.
    """

    card = replace(CARD, title="Position attention", cross=True)
    num_axes = None

    def __init__(
        self,
        dim: int,
        inner: int | None = None,
        *,
        compact: bool = False,
        gamma: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        inner = max(1, dim // (4 if compact else 8)) if inner is None else inner
        if min(dim, inner) < 1:
            raise ValueError(f"dim={dim}, inner={inner}: sizes must be positive")
        self.dim, self.start = dim, gamma
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.centres = Centres(dim, **factory) if compact else None
        self.weighs_values = not compact
        if compact:
            self.card, self.num_axes = replace(self.card, cross=False, **COMPACT), 2
        self.q_proj, self.k_proj = (nn.Linear(dim, inner, **factory) for _ in range(2))
        self.v_proj = nn.Linear(dim, dim, **factory)
        self.gamma = nn.Parameter(torch.empty(1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """gamma as given, the projections as torch draws them."""
        for part in self.children():
            if isinstance(part, (nn.Linear, Centres)):
                part.reset_parameters()
        nn.init.constant_(self.gamma, self.start)

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Add what each pixel sees to it; see :class:`regard.map_layers.MapLayer`."""
        y = self._look(x, source, key_mask).mT.unflatten(-1, x.shape[2:])
        return torch.addcmul(x, self.gamma, y)

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
        """What softmax(q k^T) makes of other values, before gamma and the residual."""
        return self._look(x, source, key_mask, values[:, 0])[:, None]

    def _look(self, x: Tensor, source: Tensor, key_mask: Tensor | None, values: Tensor | None = None) -> Tensor:
        """softmax(q k^T) v: (B, N, C)."""
        pixels = pixels_of(x)  # else each projection would copy it
        asked = pixels if source is x else pixels_of(source)
        asked = asked if self.centres is None else self.centres(x)
        q, k = self.q_proj(pixels), self.k_proj(asked)
        v = self.v_proj(asked) if values is None else values
        mask = None if key_mask is None else key_mask.flatten(1)
        return attend(q[:, None], k[:, None], v[:, None], scale=1.0, key_mask=mask)[:, 0]


class ChannelAttention(MapLayer):
    """x + gamma w x, w the weights of :func:`channel_attention`.

    Args:
        dim: C.
        affinity: "code" or "paper".
        compact: channels look at C / 16 mixtures of all, 1 at least.
        gamma: what it starts from.

    Raises:
        ValueError: an unknown affinity.
    """

    card = replace(CARD, title="Channel attention")
    num_axes = None

    def __init__(
        self,
        dim: int,
        affinity: Affinity = "code",
        *,
        compact: bool = False,
        gamma: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if affinity not in get_args(Affinity):
            raise ValueError(f'affinity={affinity!r} is neither "code" nor "paper"')
        self.dim, self.start = dim, gamma
        self.affinity: Affinity = affinity
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.mixtures = Mixtures(dim, max(1, dim // 16), **factory) if compact else None
        if compact:
            self.card = replace(self.card, stochastic=("batch_norm",))
        self.gamma = nn.Parameter(torch.empty(1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """gamma as given, the mixtures as torch draws them."""
        if self.mixtures is not None:
            self.mixtures.reset_parameters()
        nn.init.constant_(self.gamma, self.start)

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Add what each channel sees to it; see :class:`regard.map_layers.MapLayer`."""
        source = x if self.mixtures is None else self.mixtures(x, key_mask)
        return torch.addcmul(x, self.gamma, channel_attention(x, source, self.affinity, key_mask=key_mask))


@register(
    "dual_attention",
    samples=[
        Sample(dim=8, gamma=0.5),
        Sample(dim=9, which="channel", affinity="paper", gamma=0.5),
        Sample(dim=16, compact=True, gamma=0.5, claims=COMPACT),
    ],
)
class DualAttention(WeighingLayer):
    """Position attention plus channel attention of the same map; see the head of this file.

    Args:
        dim: C.
        which: "both", added, or only "position" or "channel".
        inner: E of the positions, as in :class:`PositionAttention`.
        affinity: of the channels, "code" or "paper".
        compact: the form of DRANet, for images.
        gamma: what each gamma starts from.

    Raises:
        ValueError: sizes or options that do not fit.
    """

    card = CARD
    num_axes = None

    def __init__(
        self,
        dim: int,
        which: Which = "both",
        inner: int | None = None,
        *,
        affinity: Affinity = "code",
        compact: bool = False,
        gamma: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if which not in get_args(Which):
            raise ValueError(f'which={which!r} is none of "both", "position" and "channel"')
        if which == "channel" and inner is not None:
            raise ValueError(f'inner={inner} is the width of positions, which="channel" has none')
        if which == "position" and affinity != "code":
            raise ValueError(f'affinity={affinity!r} is that of channels, which="position" has none')
        self.dim = dim
        options: dict[str, Any] = {"compact": compact, "gamma": gamma, "device": device, "dtype": dtype}
        self.position = None if which == "channel" else PositionAttention(dim, inner, **options)
        self.channel = None if which == "position" else ChannelAttention(dim, affinity, **options)
        self.weighs_values = self.position is not None and self.position.weighs_values
        whole = self.channel if self.position is None else self.position
        if compact and whole is not None:
            self.num_axes = whole.num_axes
            self.card = replace(
                CARD, stochastic=whole.card.stochastic, refuses=whole.card.refuses, onnx=whole.card.onnx
            )

    def reset_parameters(self) -> None:
        """As each of the two starts."""
        for part in (self.position, self.channel):
            if part is not None:
                part.reset_parameters()

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Both, added; see :class:`regard.map_layers.MapLayer`."""
        masks: dict[str, Any] = {"key_mask": key_mask, "query_mask": query_mask, "generator": generator}
        parts = [part.respond(x, x, **masks) for part in (self.position, self.channel) if part is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

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
        """That of the position attention: channels weigh channels, no pixels."""
        masks: dict[str, Any] = {"key_mask": key_mask, "query_mask": query_mask, "generator": generator}
        return cast(PositionAttention, self.position).mix(x, source, values, **masks)
