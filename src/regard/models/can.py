"""CAN: classify images by a handful of examples of each class, comparing what class and query have in common.

Hou et al. 2019, arXiv:1910.07677. A backbone makes maps of all images of an episode; the mean map of a class's examples
is its prototype P; cross attention (:mod:`regard.mechanisms.pairs.cross_attention_fewshot`) makes P' and Q' of it and
each query's map Q. With the means over pixels written [.], and s = 7::

    score(q, k) = s cos([Q'], [P'])
    local  = cross entropy over the classes k of an episode of s cos(Q'_i, [P'])
    global = cross entropy over all classes to learn from of W Q'_i + b, where Q' is attended with its true class
    loss   = global + 0.5 local                        both are means over pixels i and queries

Transductive inference, where all queries come at once: in round i the i n queries with the largest scores become
further examples of the classes that they were given, as their original maps, n = 35 / 75 of all; then everybody is
scored again.

The replicated maps Q' and P' are never stored: means over their pixels are sums by weight, cos(Q'_i, .) is that of Q_i,
because the weights are positive, and W Q'_i needs those of one class.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.mechanisms.pairs.cross_attention_fewshot import CrossAttentionFewshot, Reduce
from regard.models.resnet12 import ResNet12


class CAN(nn.Module):
    """Episodes in, scores of every query for every class out; see the head of this file.

    Args:
        num_classes: to learn from; they matter to the global loss only.
        backbone: images (B, channels, H, W) -> maps (B, ``width``, h, w); None:
            :class:`regard.models.resnet12.ResNet12`.
        width: C, the channels of the maps.
        size: m = h w, their pixels.
        reduction, reduce: of the cross attention.
        scale: s.
        local_weight: of the local loss.

    Example:
        >>> model = CAN(10, backbone=ResNet12((4, 4, 8, 8)), width=8)
        >>> support, query = torch.randn(2, 6, 3, 84, 84), torch.randn(2, 4, 3, 84, 84)
        >>> labels = torch.tensor([[0, 0, 1, 1, 2, 2]] * 2)
        >>> model(support, labels, query, ways=3).shape
        torch.Size([2, 4, 3])
    """

    def __init__(
        self,
        num_classes: int = 64,
        *,
        backbone: nn.Module | None = None,
        width: int = 512,
        size: int = 36,
        reduction: int = 6,
        reduce: Reduce = "mean",
        scale: float = 7.0,
        local_weight: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.scale, self.local_weight = scale, local_weight
        self.backbone = ResNet12(**factory) if backbone is None else backbone
        self.attention = CrossAttentionFewshot(size, reduction, reduce=reduce, **factory)
        self.classes = nn.Linear(width, num_classes, **factory)

    def forward(
        self, support: Tensor, labels: Int[Tensor, "B S"], query: Tensor, ways: int
    ) -> Float[Tensor, "B Q ways"]:
        """Scores of every query for every class of its episode.

        Args:
            support: examples, (B, S, channels, H, W).
            labels: the class of each, 0 to ``ways`` - 1; a class without examples gets the score 0.
            query: images to classify, (B, Q, channels, H, W).
            ways: K.

        Raises:
            ValueError: shapes or labels that do not fit.
        """
        examples, queries = self.maps(support, query)
        return self.scores(prototypes(examples, memberships(labels, ways, support)), queries)

    def loss(
        self,
        support: Tensor,
        labels: Int[Tensor, "B S"],
        query: Tensor,
        targets: Int[Tensor, "B Q"],
        classes: Int[Tensor, "B Q"],
        ways: int,
    ) -> Float[Tensor, ""]:
        """What to train with: the global loss and the local one by its weight.

        Args:
            support, labels, query, ways: as in ``forward``.
            targets: the class of each query in its episode, 0 to ``ways`` - 1.
            classes: its class among all that are learned from.
        """
        examples, queries = self.maps(support, query)
        examples = prototypes(examples, memberships(labels, ways, support))
        of_prototypes, of_queries = self.attention.weights(examples, queries)
        pixels = queries.flatten(3)
        pooled = _unit(torch.einsum("bqki,bkci->bqkc", of_prototypes, examples.flatten(3)))
        local = self.scale * torch.einsum("bqcj,bqkc->bqkj", F.normalize(pixels, dim=2, eps=1e-12), pooled)
        index = targets[..., None, None].expand(-1, -1, 1, pixels.shape[-1])
        attended = pixels * of_queries.take_along_dim(index, 2)
        logits = self.classes(attended.mT)
        return _cross_entropy(logits.mT, classes) + self.local_weight * _cross_entropy(local, targets)

    def transductive(
        self, support: Tensor, labels: Int[Tensor, "B S"], query: Tensor, ways: int, *, share: float = 35 / 75
    ) -> Float[Tensor, "B Q ways"]:
        """Scores after the most confident queries of each episode have become examples, in rounds.

        Args:
            support, labels, query, ways: as in ``forward``.
            share: of the queries, n / Q; there are Q // n rounds.
        """
        examples, queries = self.maps(support, query)
        return self.rounds(examples, memberships(labels, ways, support), queries, share)

    def maps(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of all images of an episode, (B, S, C, h, w) and (B, Q, C, h, w), by one call of the backbone."""
        for name, images in (("support", support), ("query", query)):
            if images.ndim != 5 or images.shape[0] != support.shape[0] or images.shape[2:] != support.shape[2:]:
                raise ValueError(
                    f"{name} has shape {tuple(images.shape)} and support {tuple(support.shape)}: expected (batch, "
                    "number, channels, H, W), where only the numbers may differ"
                )
        found = self.backbone(torch.cat((support.flatten(0, 1), query.flatten(0, 1))))
        examples, queries = found.tensor_split([support.shape[:2].numel()])
        return examples.unflatten(0, support.shape[:2]), queries.unflatten(0, query.shape[:2])

    def scores(
        self, prototypes: Float[Tensor, "B K C h w"], queries: Float[Tensor, "B Q C h w"]
    ) -> Float[Tensor, "B Q K"]:
        """s cos([Q'], [P']) of every pair of maps."""
        of_prototypes, of_queries = self.attention.weights(prototypes, queries)
        p = torch.einsum("bqki,bkci->bqkc", of_prototypes, prototypes.flatten(3))
        q = torch.einsum("bqki,bqci->bqkc", of_queries, queries.flatten(3))
        return self.scale * (_unit(p) * _unit(q)).sum(-1)

    def rounds(
        self,
        examples: Float[Tensor, "B S C h w"],
        members: Float[Tensor, "B S K"],
        queries: Float[Tensor, "B Q C h w"],
        share: float = 35 / 75,
    ) -> Float[Tensor, "B Q K"]:
        """Transductive inference on maps; ``members`` as in :func:`prototypes`."""
        scores = self.scores(prototypes(examples, members), queries)
        step = max(1, int(queries.shape[1] * share + 1e-6))  # 15 * (35 / 75) may fall just short of 7
        everything = torch.cat((examples, queries), 1)
        for count in range(step, queries.shape[1] + 1, step):
            best, guesses = scores.max(-1)
            chosen = torch.zeros_like(best).scatter(1, best.topk(count).indices, 1.0)
            guessed = F.one_hot(guesses, members.shape[-1]) * chosen[..., None]
            scores = self.scores(prototypes(everything, torch.cat((members, guessed), 1)), queries)
        return scores


def memberships(labels: Int[Tensor, "B S"], ways: int, support: Tensor) -> Float[Tensor, "B S ways"]:
    """1 where an example belongs to a class, else 0.

    Raises:
        ValueError: labels of another shape, or outside of 0 to ``ways`` - 1.

    Example:
        >>> memberships(torch.tensor([[1, 0]]), 2, torch.zeros(1, 2, 3, 8, 8)).tolist()
        [[[0.0, 1.0], [1.0, 0.0]]]
    """
    if labels.shape != support.shape[:2]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but the examples are {tuple(support.shape[:2])}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < ways:
        raise ValueError(f"labels run from {int(labels.min())} to {int(labels.max())}: with ways={ways} from 0 on")
    return F.one_hot(labels, ways).to(support.dtype)


def prototypes(maps: Float[Tensor, "B S C h w"], members: Float[Tensor, "B S K"]) -> Float[Tensor, "B K C h w"]:
    """The mean map of each class's examples; 0 for a class without any.

    Example:
        >>> maps = torch.tensor([1.0, 3.0, 9.0]).view(1, 3, 1, 1, 1)
        >>> prototypes(maps, torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])).flatten().tolist()
        [2.0, 9.0, 0.0]
    """
    total = torch.einsum("bsk,bschw->bkchw", members.to(maps.dtype), maps)
    count = members.to(maps.dtype).sum(1)
    return total / count.where(count > 0, 1.0)[:, :, None, None, None]


def _unit(vectors: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
    return F.normalize(vectors, dim=-1, eps=1e-12)


def _cross_entropy(logits: Float[Tensor, "B Q K m"], targets: Int[Tensor, "B Q"]) -> Float[Tensor, ""]:
    """The mean over pixels and queries."""
    pixels = targets.flatten()[:, None].expand(-1, logits.shape[-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), pixels)
