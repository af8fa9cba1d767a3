"""A small network for few-shot episodes over any mechanism by name: where meetings of two maps are compared.

A convolutional backbone makes a map of every image; the mean map of a class's examples is its prototype. Every query
meets every prototype: both maps, normalised, go through a mechanism between two inputs (:func:`regard.models.across`),
and what comes out is added to them. The score of a pair is the cosine of their means over pixels, times a learned
scale.
Without a mechanism the maps do not meet, and the network is a prototype network (Snell et al. 2017, arXiv:1703.05175)
with cosines, as in CAN, which is :class:`regard.models.CAN`, with its own losses.
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.mechanisms.pairs.cross_attention_fewshot import CrossAttentionFewshot
from regard.models.both_ways import Across, across

Told = dict[str, Tensor]
HALVINGS = 2
"""Convolutions of stride 2."""

STRIDE = 2**HALVINGS
"""Pixels of an image to a pixel of its map, along each side."""

SCALE = 10.0
"""Of cosines, at the start, as in Gidaris and Komodakis 2018, arXiv:1804.09458."""


class FewShotNet(nn.Module):
    """Episodes in, scores of every query for every class out; see the head of this file.

    Args:
        channels: of the images.
        dim, num_heads: C, H.
        side: of the images, in pixels.
        mechanism: the registry name of what maps meet by; None: they do not.
        shots: examples of each class.
        depth: convolutions behind those that halve the sides.
        options: what else the mechanism takes.

    Raises:
        UnsupportedError: something that the mechanism cannot do.

    Example:
        >>> model = FewShotNet(1, dim=8, num_heads=2, side=16, mechanism="full", shots=2)
        >>> query, support = torch.randn(3, 5, 1, 16, 16), torch.randn(3, 4 * 2, 1, 16, 16)
        >>> model(query, context=support).shape
        torch.Size([3, 5, 4])
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        num_heads: int,
        side: int,
        mechanism: str | None,
        *,
        shots: int,
        depth: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.shots = shots
        widths = [channels] + [dim] * (HALVINGS + depth)
        stages: list[nn.Module] = []
        for number, (width_in, width) in enumerate(itertools.pairwise(widths)):
            stride = 2 if number < HALVINGS else 1
            convolution = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False, **factory)
            stages += [convolution, nn.BatchNorm2d(width, **factory), nn.ReLU(inplace=True)]
        self.backbone = nn.Sequential(*stages)
        pixels = (-(-side // STRIDE)) ** 2
        self.meeting = None if mechanism is None else Meeting(mechanism, dim, num_heads, pixels, **options, **factory)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE), **factory))

    def forward(
        self,
        query: Float[Tensor, "B Q c H W"],
        *,
        context: Float[Tensor, "B S c H W"],
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, Told]:
        """Scores (B, Q, K).

        Args:
            query: images to classify.
            context: the examples of K classes, class by class, ``shots`` of each.
            key_mask, context_mask: None: an episode is complete.
            return_aux: also return what the mechanism has to tell.

        Raises:
            ValueError: masks, or examples that are no multiple of ``shots``.
        """
        if key_mask is not None or context_mask is not None:
            raise ValueError("an episode is complete: it takes no masks")
        if context.shape[1] % self.shots:
            raise ValueError(f"{context.shape[1]} examples are not {self.shots} of each class")
        maps = self.backbone(torch.cat((context.flatten(0, 1), query.flatten(0, 1))))
        examples, queries = maps.tensor_split([context.shape[:2].numel()])
        prototypes = examples.unflatten(0, (context.shape[0], -1, self.shots)).mean(2)
        queries = queries.unflatten(0, query.shape[:2])
        if self.meeting is None:
            p, q, told = prototypes.mean((3, 4))[:, None], queries.mean((3, 4))[:, :, None], dict[str, Tensor]()
        else:
            p, q, told = self.meeting(prototypes, queries)
        scores = self.log_scale.exp() * F.cosine_similarity(p, q, dim=-1)
        return (scores, told) if return_aux else scores


class Meeting(nn.Module):
    """Every prototype meets every query by one mechanism.

    Args:
        mechanism: the registry name.
        dim, num_heads: C, H.
        pixels: of a map.
        options: what else the mechanism takes.
    """

    def __init__(self, mechanism: str, dim: int, num_heads: int, pixels: int, **options: Any) -> None:
        super().__init__()
        self.attention: CrossAttentionFewshot | Across
        if mechanism == CrossAttentionFewshot.mechanism:
            sizes: dict[str, Any] = {"size": pixels, **options}
            self.attention = CrossAttentionFewshot(**sizes)
        else:
            factory = {name: options[name] for name in ("device", "dtype")}
            self.norm = nn.GroupNorm(1, dim, **factory)
            self.attention = across(mechanism, dim=dim, num_heads=num_heads, max_length=pixels, **options)

    def forward(
        self, prototypes: Float[Tensor, "B K C h w"], queries: Float[Tensor, "B Q C h w"]
    ) -> tuple[Tensor, Tensor, Told]:
        """The mean over pixels of each prototype as each query sees it, and the other way, (B, Q, K, ...)."""
        if isinstance(self.attention, CrossAttentionFewshot):
            p, q = self.attention(prototypes, queries)
            return p.mean((4, 5)), q.mean((4, 5)), {}
        pairs = torch.broadcast_tensors(prototypes[:, None], queries[:, :, None])
        p, q = (maps.flatten(0, 2) for maps in pairs)
        met, told = self.attention(self.norm(p), self.norm(q), return_aux=True)
        # what answers with other channels, as co-attention does, has put the maps themselves beside
        answers = [y + x if y.shape == x.shape else y for x, y in zip((p, q), met, strict=True)]
        p, q = (y.mean((2, 3)).unflatten(0, pairs[0].shape[:3]) for y in answers)
        return p, q, told
