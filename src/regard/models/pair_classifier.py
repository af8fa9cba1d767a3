"""Two sequences of tokens to the class of the pair, over any mechanism by name that goes from one to another.

Both sequences share everything. Tokens are embedded with their positions, and pass blocks of

    u, v = norm(x), norm(z);    a, b = attention(u, v), attention(v, u);
    x <- x + mlp([u, a, u * a]);    z <- z + mlp([v, b, v * b])

in which each compares its tokens with what they found in the other, as in ESIM (Chen et al. 2016, arXiv:1609.06038),
and nothing sees its own side. Mean and maximum over the tokens of each go through one hidden layer. Positions count
real tokens, so padding anywhere changes nothing.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.map_layers import MapLayer
from regard.models.both_ways import Across, across
from regard.models.plugs import under
from regard.ops.masks import check_mask, hide, positions
from regard.registry import UnsupportedError

Told = dict[str, Tensor]


class PairBlock(nn.Module):
    """Each side looks at the other, and compares what it has with what it found.

    Args:
        attention: between two sequences of width ``dim``, or None: nothing is found.
        dim: C.
        mlp_ratio: the hidden width of the MLP, in multiples of C.
    """

    def __init__(self, attention: Across | None, dim: int, mlp_ratio: float, **factory: Any) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm = nn.LayerNorm(dim, **factory)
        self.attention = attention
        width = dim if attention is None else 3 * dim
        self.mlp = nn.Sequential(nn.Linear(width, hidden, **factory), nn.GELU(), nn.Linear(hidden, dim, **factory))
        for parameter in self.mlp.parameters():
            _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        z: Float[Tensor, "B M C"],
        x_mask: Tensor | None,
        z_mask: Tensor | None,
        generator: Generator | None,
    ) -> tuple[Tensor, Tensor, Told]:
        """Both sequences, what becomes of them, and what the attention has to tell."""
        u, v = self.norm(x), self.norm(z)
        if self.attention is None:
            return x + self.mlp(u), z + self.mlp(v), {}
        masks = {"query_mask": x_mask, "key_mask": z_mask}
        found = self.attention(u, v, **masks, generator=generator, return_aux=True)
        (to_u, to_v), told = cast(tuple[tuple[Tensor, Tensor], Told], found)
        if to_u.shape != u.shape or to_v.shape != v.shape:
            raise UnsupportedError(
                f"{self.attention.layer.mechanism} makes {tuple(to_u.shape)} of {tuple(u.shape)}: a block of this "
                "classifier needs a layer that keeps the width"
            )
        return x + self._compare(u, to_u), z + self._compare(v, to_v), told

    def _compare(self, has: Tensor, found: Tensor) -> Tensor:
        return self.mlp(torch.cat((has, found, has * found), -1))


class PairClassifier(nn.Module):
    """Logits of what two sequences are to each other.

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes, as of :class:`regard.models.TransformerEncoder`.
        mechanism: the registry name of the attention; None: the sides stay apart until they are compared.
        num_classes: of the answers.
        mlp_ratio: the hidden width of the MLPs, in multiples of ``dim``.
        mechanism_options: what else :func:`regard.create` shall pass on.

    Raises:
        UnsupportedError: something that the mechanism cannot do, such as going from one sequence to another.

    Example:
        >>> model = PairClassifier(300, 16, 1, 2, 64, "linear_transformer")
        >>> model(torch.randint(300, (3, 10)), context=torch.randint(300, (3, 7))).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        mechanism: str | None = "full",
        *,
        num_classes: int = 2,
        mlp_ratio: float = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mechanism_options: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"max_length": max_length, **factory, **mechanism_options}
        self.max_length = max_length
        self.token_embedding = nn.Embedding(vocab_size, dim, **factory)
        self.position_embedding = nn.Embedding(max_length, dim, **factory)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            attention = across(mechanism, dim=dim, num_heads=num_heads, **options) if mechanism else None
            if attention is not None and isinstance(attention.layer, MapLayer):
                raise UnsupportedError(f"{mechanism} works on maps: it cannot go from one sequence to another")
            self.blocks.append(PairBlock(attention, dim, mlp_ratio, **factory))
        self.norm = nn.LayerNorm(dim, **factory)
        self.hidden = nn.Linear(4 * dim, dim, **factory)
        self.classes = nn.Linear(dim, num_classes, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Tokens N(0, 1/C), positions as small as in GPT-2; all else starts by itself."""
        nn.init.normal_(self.token_embedding.weight, std=self.token_embedding.embedding_dim**-0.5)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(
        self,
        tokens: Int[Tensor, "B N"],
        *,
        context: Int[Tensor, "B M"],
        key_mask: Bool[Tensor, "B N"] | None = None,
        context_mask: Bool[Tensor, "B M"] | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, Told]:
        """Classify pairs.

        Args:
            tokens, context: the one sequence and the other, ids below ``vocab_size``.
            key_mask, context_mask: True for real tokens of each.
            generator: the source of everything random in the attention.
            return_aux: also return what the layers have to tell, as "loss/blocks.0.attention/..." and so on.

        Returns:
            (B, num_classes); with ``return_aux`` a pair of it and a dict of tensors.

        Raises:
            ValueError, TypeError: sequences that are too long, or masks that do not fit.
        """
        x, z = self._embed(tokens, key_mask, "key_mask"), self._embed(context, context_mask, "context_mask")
        aux: Told = {}
        for number, block in enumerate(self.blocks):
            x, z, told = block(x, z, key_mask, context_mask, generator)
            aux |= under(f"blocks.{number}.attention", told)
        pooled = (*_pooled(self.norm(x), key_mask), *_pooled(self.norm(z), context_mask))
        logits = self.classes(F.gelu(self.hidden(torch.cat(pooled, -1))))
        return (logits, aux) if return_aux else logits

    def _embed(self, tokens: Tensor, mask: Tensor | None, name: str) -> Tensor:
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens, but this model was built with max_length={self.max_length}")
        check_mask(mask, len(tokens), length, name)
        return self.token_embedding(tokens) + self.position_embedding(positions(tokens, mask))


def _pooled(x: Float[Tensor, "B N C"], mask: Bool[Tensor, "B N"] | None) -> tuple[Tensor, Tensor]:
    """Mean and maximum over real tokens; 0 where there are none."""
    if mask is None:
        return x.mean(1), x.amax(1)
    real = mask.any(1, keepdim=True)
    top = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min).amax(1)
    return hide(x, mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1), hide(top, real[:, 0])
