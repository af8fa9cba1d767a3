"""BERT that is asked: a question guides every layer, and the first token answers it (QACG-BERT, CG-BERT).

Wu & Ong 2020, arXiv:2010.07523. The question, such as "what about the price of LOCATION1", is one of a fixed list and
has an embedding e. Each layer makes a context for every token out of it, and attends under that context::

    c = W_l [e; x] + b_l + e
    x = norm(x + attention(x, c))      x = norm(x + mlp(x))

The attention is a :class:`~regard.mechanisms.pairs.quasi_attention.QuasiAttention`, "quasi" or "mixed" (CG-BERT), or
"plain": BERT's softmax, which cannot see c; there, e is added to the embedded tokens and the W_l are left out.
"""

from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from regard.layers import MultiHead
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.mechanisms.pairs.quasi_attention import QuasiAttention
from regard.models.bert import BertEncoder

Kind = Literal["quasi", "mixed", "plain"]


class ContextGuidedBert(nn.Module):
    """Tokens and the number of a question in, a score for each answer out.

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes of the encoder.
        num_contexts: how many questions there are.
        num_labels: how many answers each of them has.
        kind: "quasi", "mixed" or "plain".
        mlp_dim: the hidden width of the MLPs, 4 C by default.
        num_types: kinds of segments.
        attn_drop: dropout inside of the attention.
        dropout: on the embeddings, on both branches of each block and before the classifier.

    Raises:
        ValueError: an unknown kind, or sizes that do not fit.

    Example:
        >>> model = ContextGuidedBert(99, 16, 2, 2, 32, num_contexts=8, num_labels=3)
        >>> model(torch.randint(99, (4, 10)), torch.tensor([0, 7, 2, 2])).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        num_contexts: int,
        num_labels: int,
        kind: Kind = "quasi",
        *,
        mlp_dim: int | None = None,
        num_types: int = 2,
        attn_drop: float = 0.1,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r} is none of {', '.join(get_args(Kind))}")
        if min(num_contexts, num_labels) < 1:
            raise ValueError(f"num_contexts={num_contexts}, num_labels={num_labels}: sizes must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.kind: Kind = kind
        self.num_contexts = num_contexts
        make = partial(_attention, kind, dim, num_heads, attn_drop, **factory)
        options: dict[str, Any] = {"mlp_dim": mlp_dim, "num_types": num_types, "dropout": dropout, **factory}
        self.encoder = BertEncoder(vocab_size, dim, depth, max_length, make, **options)
        self.context_embedding = nn.Embedding(num_contexts, dim, **factory)
        guided = depth if kind != "plain" else 0
        self.context_maps = nn.ModuleList(nn.Linear(2 * dim, dim, **factory) for _ in range(guided))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, num_labels, **factory)
        self._reset_own()

    def reset_parameters(self) -> None:
        """BERT as BERT, the classifier from N(0, 0.02^2), and what is new about contexts as torch draws it."""
        self.encoder.reset_parameters()
        for module in self.modules():
            if isinstance(module, (MultiHead, QuasiAttention, nn.LayerNorm)):
                module.reset_parameters()
        self._reset_own()

    def _reset_own(self) -> None:
        self.context_embedding.reset_parameters()
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        for linear in self.context_maps:
            linear.reset_parameters()  # pyright: ignore[reportCallIssue]

    def forward(
        self,
        tokens: Tensor,
        contexts: Tensor,
        *,
        key_mask: Tensor | None = None,
        token_types: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Scores of the answers, (B, labels).

        Args:
            tokens: Int (B, N), ids below ``vocab_size``, the first of which answers.
            contexts: Int (B,), the question that is put to each sequence.
            key_mask: Bool (B, N), True for real tokens.
            token_types: Int (B, N), the segment of each token, 0 by default.
            generator: the source of everything random in the attention.

        Raises:
            ValueError: more tokens than ``max_length``, or shapes that do not fit.
        """
        x = self.encode(tokens, contexts, key_mask=key_mask, token_types=token_types, generator=generator)
        return self.classifier(self.dropout(self.encoder.pooled(x, key_mask)))

    def encode(
        self,
        tokens: Tensor,
        contexts: Tensor,
        *,
        key_mask: Tensor | None = None,
        token_types: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """One vector a token, (B, N, C); arguments are those of ``forward``."""
        if contexts.shape != tokens.shape[:1]:
            raise ValueError(
                f"contexts has shape {tuple(contexts.shape)} for tokens of {tuple(tokens.shape)}: one for each sequence"
            )
        x = self.encoder.embed(tokens, key_mask, token_types)
        asked = self.context_embedding(contexts)[:, None].expand_as(x)
        options: dict[str, Any] = {"key_mask": key_mask, "generator": generator}
        if self.kind == "plain":
            x = x + asked
        for number, block in enumerate(self.encoder.blocks):
            if self.kind != "plain":
                options["context"] = self.context_maps[number](torch.cat((asked, x), -1)) + asked
            x = block(x, **options)
        return x


def _attention(kind: Kind, dim: int, num_heads: int, attn_drop: float, number: int, **factory: Any) -> nn.Module:
    if kind == "plain":
        return MultiHead(dim, num_heads, ScaledDotProduct(), attn_drop=attn_drop, **factory)
    return QuasiAttention(dim, num_heads, kind=kind, attn_drop=attn_drop, **factory)
