"""BERT's encoder with any attention in it: what Longformer, BigBird, Linformer and Nystromformer are.

Devlin et al. 2018, arXiv:1810.04805; Vaswani et al. 2017, arXiv:1706.03762. Each token enters as the sum of what it is,
where it stands and which segment it belongs to; then, with the norm behind every residual::

    x = norm(x + attention(x))
    x = norm(x + mlp(x))

Positions count the real tokens, so padding on either side changes nothing.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from regard.ops.masks import check_mask, check_tokens, positions

Activation = Literal["gelu", "gelu_tanh", "relu"]
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "relu": nn.ReLU,
}


class EncoderBlock(nn.Module):
    """One attention and one MLP, each followed by the norm of its sum with what it read.

    Args:
        attention: a layer, (B, N, C) -> (B, N, C).
        dim: C.
        mlp_dim: the hidden width of the MLP.
        activation: in the MLP; "gelu_tanh" is the approximation that some checkpoints were trained with.
        norm_eps: added to the variance in both norms.
        dropout: on both branches.
    """

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        mlp_dim: int,
        *,
        activation: Activation = "gelu",
        norm_eps: float = 1e-12,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attention = attention
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=norm_eps, **factory) for _ in range(2))
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim, **factory), _ACTIVATIONS[activation](), nn.Linear(mlp_dim, dim, **factory)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """(B, N, C); the options go to the attention."""
        x = self.norm1(x + self.dropout(self.attention(x, **options)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class BertEncoder(nn.Module):
    """Tokens in, one vector a token out.

    Args:
        vocab_size, dim, depth, max_length: sizes.
        attention: makes the attention of each layer from its number.
        mlp_dim: the hidden width of the MLPs, 4 C by default.
        num_types: kinds of segments.
        position_offset: rows of the position table before that of the first token; RoBERTa's has two.
        scale_embeddings: multiply token embeddings by sqrt(C).
        activation, norm_eps: see :class:`EncoderBlock`.
        dropout: on the embeddings and on both branches of each block.

    Raises:
        ValueError: an unknown activation.

    Example:
        >>> import regard
        >>> model = BertEncoder(99, 16, 2, 32, lambda number: regard.create("full", dim=16, num_heads=2))
        >>> model(torch.randint(99, (3, 10))).shape
        torch.Size([3, 10, 16])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        max_length: int,
        attention: Callable[[int], nn.Module],
        *,
        mlp_dim: int | None = None,
        num_types: int = 2,
        position_offset: int = 0,
        scale_embeddings: bool = False,
        activation: Activation = "gelu",
        norm_eps: float = 1e-12,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is none of {', '.join(_ACTIVATIONS)}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        block: dict[str, Any] = {"activation": activation, "norm_eps": norm_eps, "dropout": dropout, **factory}
        self.dim, self.max_length, self.position_offset = dim, max_length, position_offset
        self.scale = dim**0.5 if scale_embeddings else 1.0
        self.token_embedding = nn.Embedding(vocab_size, dim, **factory)
        self.position_embedding = nn.Embedding(max_length + position_offset, dim, **factory)
        self.type_embedding = nn.Embedding(num_types, dim, **factory)
        self.norm = nn.LayerNorm(dim, eps=norm_eps, **factory)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(attention(number), dim, mlp_dim or 4 * dim, **block) for number in range(depth)
        )
        self.pool = nn.Linear(dim, dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices from N(0, 0.02^2), biases 0, norms the identity; attentions as their papers say."""
        attentions = {part for block in self.blocks for part in block.get_submodule("attention").modules()}
        for part in set(self.modules()) - attentions:
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=0.02)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)

    def forward(
        self,
        tokens: Tensor,
        *,
        key_mask: Tensor | None = None,
        token_types: Tensor | None = None,
        generator: Generator | None = None,
        **attention_options: Any,
    ) -> Tensor:
        """One vector a token.

        Args:
            tokens: Int (B, N), ids below ``vocab_size``.
            key_mask: Bool (B, N), True for real tokens.
            token_types: Int (B, N), the segment of each token, 0 by default.
            generator: the source of everything random in the attention.
            attention_options: what else the attention takes, such as Longformer's ``global_mask``.

        Returns:
            (B, N, C); :meth:`pooled` makes one vector a sequence of it.

        Raises:
            ValueError: more tokens than ``max_length``, or shapes that do not fit.
        """
        x = self.embed(tokens, key_mask, token_types)
        for block in self.blocks:
            x = block(x, key_mask=key_mask, generator=generator, **attention_options)
        return x

    def embed(self, tokens: Tensor, key_mask: Tensor | None = None, token_types: Tensor | None = None) -> Tensor:
        """What enters the first block, (B, N, C)."""
        if tokens.ndim != 2:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}, expected (batch, length)")
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens, but this model was built with max_length={self.max_length}")
        check_mask(key_mask, len(tokens), tokens.shape[1])
        if token_types is not None and token_types.shape != tokens.shape:
            raise ValueError(
                f"token_types has shape {tuple(token_types.shape)}, tokens {tuple(tokens.shape)}: make them equal"
            )
        places = self.position_embedding(positions(tokens, key_mask, None) + self.position_offset)
        types = self.type_embedding(torch.zeros_like(tokens) if token_types is None else token_types)
        return self.dropout(self.norm(self.token_embedding(tokens) * self.scale + types + places))

    def pooled(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """tanh(W x + b) of the first real token, (B, C): what classifiers read."""
        check_tokens(x, self.dim)
        if key_mask is None:
            return self.pool(x[:, 0]).tanh()
        first = key_mask.to(torch.uint8).argmax(-1)
        return self.pool(x.take_along_dim(first[:, None, None], 1)[:, 0]).tanh()
