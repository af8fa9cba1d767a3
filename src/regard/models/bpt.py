"""BP-Transformer: the published network over a binary tree of spans, for language models and classification.

Ye et al. 2019, arXiv:1911.04070, section 3. Tokens and spans are nodes with states h; leaves start as norm(dropout(
embedding)), spans as 0. Every layer updates all of them by the same weights::

    h = norm(h + dropout(attention(h)))        tokens read nodes near and far, spans read their own tokens
    h = norm(h + dropout(W2 dropout(relu(W1 h))))

so that in the first layer a span becomes the mean of its tokens' values. Logits come from the leaves, or from the root
for a class of the whole text. The order of tokens is told by the labels of what they read, or by learned positions.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.ops.binary_tree import level_sizes, span_counts
from regard.ops.masks import check_mask
from regard.ops.tree_attention import Tree, read_spans, read_tree

Read = Literal["tokens", "root"]

POSITIONS = 5000
"""Learned absolute positions, where there are no labels."""


class BPTLayer(nn.Module):
    """One layer over all nodes of a tree.

    Args:
        dim, num_heads, hidden: C, H and the width of the feed-forward part.
        num_labels: rows of the table of labels; None: no labels.
        dropout: on both branches and inside the feed-forward part.
        attn_drop: on the weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        num_labels: int | None,
        *,
        dropout: float = 0.0,
        attn_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is no multiple of num_heads={num_heads}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(dim, dim, bias=False, **factory) for _ in range(4)
        )
        self.table = None if num_labels is None else nn.Parameter(torch.empty(num_labels, dim // num_heads, **factory))
        self.norm1, self.norm2 = nn.LayerNorm(dim, **factory), nn.LayerNorm(dim, **factory)
        self.first, self.second = nn.Linear(dim, hidden, **factory), nn.Linear(hidden, dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every matrix Xavier-uniform, the table too."""
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        h: Float[Tensor, "B V C"],
        n: int,
        tree: Tree,
        real: Bool[Tensor, "B V"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B V C"]:
        """The next states of all nodes.

        Args:
            h: states of the n tokens, then of the spans, level by level.
            n: tokens.
            tree: how it is read.
            real: True for nodes with a real token.
            generator: draws the dropout on the weights of tokens.
        """
        h = self.norm1(h + self.dropout(self.out_proj(self.look(h, n, tree, real, generator))))
        return self.norm2(h + self.dropout(self.second(self.dropout(F.relu(self.first(h))))))

    def look(
        self, h: Tensor, n: int, tree: Tree, real: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """What all nodes read, the heads side by side: (B, V, C)."""
        q, k, v = (
            linear(h).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        drop = self.attn_drop * self.training
        options: dict[str, Any] = {"table": self.table, "attn_drop": drop, "generator": generator}
        tokens = read_tree(q[:, :, :n], k, v, tree, mask=real, **options)
        leaves = None if real is None else real[:, :n]
        spans = read_spans(q[:, :, n:], k[:, :, :n], v[:, :, :n], mask=leaves, drop=self._drop_weights)
        return torch.cat((tokens, spans), 2).transpose(1, 2).flatten(2)

    def _drop_weights(self, weights: Tensor) -> Tensor:
        return F.dropout(weights, self.attn_drop, self.training)


class BPT(nn.Module):
    """Embedding, layers, logits; see the head of this file.

    Args:
        vocab_size: of the tokens.
        dim, depth, num_heads, hidden: C, layers, H and the width of the feed-forward parts.
        num_classes: of the logits; None: the vocabulary, by the matrix of the embedding (a language model).
        read: logits of each token, or of the root.
        step, clip: of the tree, see :class:`regard.mechanisms.patterned.bpt.BPT`.
        causal: no token sees a later one; the authors' classifiers are causal too.
        relative: with labels; False: learned positions for at most 5000 tokens.
        authors_graph: with the stray edges of the authors' graph builder.
        embed_dim: of the embedding, projected to ``dim`` where that is another width.
        dropout, attn_drop, embed_drop, class_drop: in the layers, on the weights, on embeddings and before logits.

    Raises:
        ValueError: sizes that do not fit.

    Example:
        >>> model = BPT(256, dim=16, depth=2, num_heads=2, hidden=32, step=2, clip=2)
        >>> model(torch.randint(256, (3, 10))).shape
        torch.Size([3, 10, 256])
        >>> model = BPT(256, dim=16, depth=2, num_heads=2, hidden=32, num_classes=5, read="root", step=2, clip=2)
        >>> model(torch.randint(256, (3, 10))).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        hidden: int = 2048,
        num_classes: int | None = None,
        read: Read = "tokens",
        *,
        step: int = 64,
        clip: int = 6,
        causal: bool = True,
        relative: bool = True,
        authors_graph: bool = False,
        embed_dim: int | None = None,
        dropout: float = 0.0,
        attn_drop: float = 0.0,
        embed_drop: float = 0.0,
        class_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        embed_dim = dim if embed_dim is None else embed_dim
        if read not in ("tokens", "root"):
            raise ValueError(f'read={read!r} is neither "tokens" nor "root"')
        if num_classes is None and embed_dim != dim:
            raise ValueError(f"embed_dim={embed_dim} cannot also make logits from dim={dim}: pass num_classes")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.step, self.clip, self.causal, self.authors_graph = step, clip, causal, authors_graph
        self.read: Read = read
        self.embedding = nn.Embedding(vocab_size, embed_dim, **factory)
        self.widen = nn.Linear(embed_dim, dim, **factory) if embed_dim != dim else None
        self.position_embedding = None if relative else nn.Embedding(POSITIONS, dim, **factory)
        self.norm = nn.LayerNorm(dim, **factory)
        num_labels = (2 * step + 1) * (clip + 1) if relative else None
        options: dict[str, Any] = {"dropout": dropout, "attn_drop": attn_drop, **factory}
        self.layers = nn.ModuleList(BPTLayer(dim, num_heads, hidden, num_labels, **options) for _ in range(depth))
        self.output = nn.Linear(dim, vocab_size if num_classes is None else num_classes, **factory)
        if num_classes is None:
            self.output.weight = self.embedding.weight
        self.embed_drop, self.class_drop = nn.Dropout(embed_drop), nn.Dropout(class_drop)

    def forward(
        self, tokens: Int[Tensor, "B N"], *, key_mask: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Logits.

        Args:
            tokens: ids below ``vocab_size``.
            key_mask: Bool (B, N), True for real tokens.
            generator: draws the dropout on the weights of tokens.

        Returns:
            (B, N, classes), or (B, classes) of the root.

        Raises:
            ValueError, TypeError: a mask that does not fit, or more tokens than positions.
        """
        n = tokens.shape[1]
        check_mask(key_mask, len(tokens), n)
        if key_mask is None:
            h = self.nodes(self.embedding(tokens), None, generator)
            return self.logits(h[:, -1] if self.read == "root" else h[:, :n])
        order = key_mask.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
        lengths = key_mask.sum(-1)
        h = self.nodes(self.embedding(tokens.gather(1, order)), lengths, generator)
        if self.read == "root":
            return self.logits(h[torch.arange(len(h), device=h.device), roots(lengths, n)])
        h = h[:, :n].gather(1, order.argsort(-1)[..., None].expand(-1, -1, h.shape[-1]))
        return self.logits(h)

    def nodes(self, x: Tensor, lengths: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """The states of all nodes after the last layer: (B, V, C).

        Args:
            x: embedded tokens (B, N, embed_dim).
            lengths: (B,), how many tokens, the first ones, are real.
            generator: draws the dropout on the weights of tokens.
        """
        n, ends = x.shape[1], lengths
        h = x if self.widen is None else self.widen(x)
        if self.position_embedding is not None:
            if n > POSITIONS:
                raise ValueError(f"{n} tokens, but there are {POSITIONS} positions")
            h = h + self.position_embedding(torch.arange(n, device=x.device))
        h = self.norm(self.embed_drop(h))
        h = F.pad(h, (0, 0, 0, sum(level_sizes(n)) - n))
        real = None if lengths is None else span_counts(torch.arange(n, device=x.device) < lengths[:, None]) > 0
        if self.authors_graph and ends is None:
            ends = torch.full((len(x),), n, device=x.device)
        tree = Tree(self.step, self.clip, self.causal, ends if self.authors_graph else None)
        for layer in self.layers:
            h = layer(h, n, tree, real, generator)
        return h

    def logits(self, h: Tensor) -> Tensor:
        """From states of nodes."""
        return self.output(self.class_drop(h))


def roots(lengths: Int[Tensor, " B"], n: int) -> Int[Tensor, " B"]:
    """The number of the node that is the root of each text, in the tree over n tokens.

    Example:
        >>> roots(torch.tensor([1, 2, 3, 5]), 5)
        tensor([ 0,  5,  8, 10])
    """
    sizes = torch.tensor(level_sizes(n), device=lengths.device)
    spans = 2 ** torch.arange(len(sizes), device=lengths.device)
    level = (spans < lengths[:, None]).sum(-1)
    return (sizes.cumsum(0) - sizes)[level]
