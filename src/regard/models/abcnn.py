"""ABCNN, the whole network: two sentences in, what they are to each other out.

Yin et al. 2015, arXiv:1512.05193. Behind each layer of :mod:`regard.mechanisms.pairs.abcnn`, and before the first, the
mean of all columns stands for a sentence. How alike the two means are is a feature, one a layer, and a logistic
regression sees these features and those that are given: word counts, overlaps and the like. Without attention it is
BCNN. ``vocab_size`` gives it an embedding of its own, and tokens for input; the paper has fixed vectors of words.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from regard.mechanisms.pairs.abcnn import ABCNNLayer, Attention, Columns, mean_of, to_front
from regard.ops.masks import check_mask, check_tokens

Similarity = Literal["cosine", "euclid", "both"]


class ABCNN(nn.Module):
    """Logits of a pair of sentences.

    Args:
        dim: d_0, features of a word.
        num_classes: of the answers.
        filters, width, depth: di, w and the number of layers.
        max_length: the most words of a sentence, where there is attention on the input.
        attention: "input", "pooling", "both" or "none": ABCNN-1, 2, 3 or BCNN.
        num_features: how many further features each pair brings.
        similarity: of the means: "cosine", "euclid" for 1 / (1 + distance), or "both", as in the authors' code.
        share, normalise: see :class:`regard.mechanisms.pairs.abcnn.ABCNNLayer`. With ``normalise`` the weighted sum
            takes the place of the mean behind a convolution, and the means have length 1, as in the authors' code.
        vocab_size: kinds of tokens, for an embedding of the network's own.

    Raises:
        ValueError: sizes that are not positive, or options that the layers refuse.

    Example:
        >>> model = ABCNN(8, max_length=10, depth=2)
        >>> model(torch.randn(3, 7, 8), torch.randn(3, 10, 8)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        dim: int = 300,
        num_classes: int = 2,
        *,
        filters: int = 50,
        width: int = 4,
        depth: int = 2,
        max_length: int | None = None,
        attention: Attention = "both",
        num_features: int = 0,
        similarity: Similarity = "cosine",
        share: bool = True,
        normalise: bool = False,
        vocab_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(depth, num_classes, 1 if vocab_size is None else vocab_size) < 1 or num_features < 0:
            sizes = f"depth={depth}, num_classes={num_classes}, vocab_size={vocab_size}, num_features={num_features}"
            raise ValueError(f"{sizes}: at least 1, features at least 0")
        if similarity not in get_args(Similarity):
            raise ValueError(f"similarity={similarity!r} is none of {', '.join(map(repr, get_args(Similarity)))}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"filters": filters, "width": width, "attention": attention, "share": share}
        self.dim, self.num_features, self.normalise = dim, num_features, normalise
        self.similarity: Similarity = similarity
        self.embedding = None if vocab_size is None else nn.Embedding(vocab_size, dim, **factory)
        self.layers = nn.ModuleList(
            ABCNNLayer(filters if number else dim, max_length, normalise=normalise, **options, **factory)
            for number in range(depth)
        )
        kinds = 2 if similarity == "both" else 1
        self.output = nn.Linear(num_features + kinds * (depth + 1), num_classes, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform logistic regression, biases 0.0001; the embedding as torch draws it, the layers as theirs."""
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.constant_(self.output.bias, 1e-4)
        for part in (self.embedding, *self.layers):
            if isinstance(part, (nn.Embedding, ABCNNLayer)):
                part.reset_parameters()

    def forward(
        self,
        x: Num[Tensor, "B N *D"],
        context: Num[Tensor, "B M *D"],
        features: Float[Tensor, "B F"] | None = None,
        *,
        query_mask: Bool[Tensor, "B N"] | None = None,
        key_mask: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B K"]:
        """Logits of each pair.

        Args:
            x, context: the words of both sentences, or tokens for a network with an embedding.
            features: what else is known of a pair.
            query_mask, key_mask: True for the real words of x and of the context.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit, sentences that are too long, features that are
                missing or not asked for.
        """
        similarities = self.similarities(x, context, query_mask=query_mask, key_mask=key_mask)
        given = 0 if features is None else features.shape[-1]
        if given != self.num_features:
            raise ValueError(f"{given} features were given, but this network was built with {self.num_features}")
        return self.output(similarities if features is None else torch.cat((features, similarities), -1))

    def similarities(
        self,
        x: Num[Tensor, "B N *D"],
        context: Num[Tensor, "B M *D"],
        *,
        query_mask: Bool[Tensor, "B N"] | None = None,
        key_mask: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """How alike the sentences are: their words, then behind each layer. Arguments as in :meth:`forward`."""
        first, second = (self._enter(*given) for given in ((x, query_mask, "x"), (context, key_mask, "context")))
        found = [self._compare(mean_of(first), mean_of(second))]
        for layer in self.layers:
            assert isinstance(layer, ABCNNLayer)
            first, second, *means = layer.convolve(first, second)
            found.append(self._compare(*means))
        return torch.cat(found, -1)

    def _enter(self, x: Tensor, mask: Tensor | None, name: str) -> Columns:
        check_mask(mask, *x.shape[:2], name=f"the mask of {name}")
        words = x if self.embedding is None else self.embedding(x)
        check_tokens(words, self.dim, name)
        return to_front(words, mask)

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        """Similarities of two means, (B, 1) or (B, 2)."""
        found: list[Tensor] = []
        if self.similarity != "euclid":
            found.append(F.cosine_similarity(u, v))
        if self.similarity != "cosine":
            if self.normalise:
                u, v = F.normalize(u, dim=-1), F.normalize(v, dim=-1)
            distance = ((u - v).square().sum(-1) + 1e-12).sqrt()  # equal sentences have a gradient too
            found.append(1 / (1 + distance))
        return torch.stack(found, -1)
