"""The SLiM Performer: a causal language model whose training needs the activations of one piece of the sequence only.

Likhosherstov et al. 2020, arXiv:2012.11346, sections 3 and 4; the way it is trained is that of
:mod:`regard.models.rewinding`.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.mechanisms.linear.slim_performer import Kind, SlimPerformer
from regard.memory import LinearState, ModelMemory, check_memory
from regard.models.rewinding import cross_entropy, loss_in_pieces

MASK_EPS = 1e-8
"""The authors', added to the number of tokens that the loss counts."""


class SlimBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the attention has no output projection.

    Args:
        dim, num_heads, ffn_dim: sizes.
        features, num_features: as for :class:`SlimPerformer`.
        post_norm: x + norm(attention(x)), and so on, instead.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        features: Kind = "elu",
        num_features: int | None = None,
        *,
        post_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads, self.post_norm = num_heads, post_norm
        self.norm1, self.norm2 = nn.LayerNorm(dim, **factory), nn.LayerNorm(dim, **factory)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, **factory) for _ in range(3))
        self.core = SlimPerformer(num_heads, dim // num_heads, features, num_features, **factory)
        self.mlp = nn.Sequential(nn.Linear(dim, ffn_dim, **factory), nn.GELU(), nn.Linear(ffn_dim, dim, **factory))

    def forward(self, x: Tensor, memory: LinearState) -> tuple[Tensor, LinearState]:
        """The next tokens x (B, N, C), given the sums over those before: -> (y, the sums after them)."""
        inner = self._enter(x)
        q, k, v = (self._heads(linear(inner)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        out, memory = self.core.stream(q, k, v, memory)
        out = out.transpose(1, 2).flatten(2)
        if self.post_norm:
            x = x + self.norm1(out)
            return x + self.norm2(self.mlp(x)), memory
        x = x + out
        return x + self.mlp(self.norm2(x)), memory

    def rewind(self, x: Tensor, memory: LinearState) -> LinearState:
        """The sums before the tokens x, from those after them."""
        inner = self._enter(x)
        return self.core.rewind(self._heads(self.k_proj(inner)), self._heads(self.v_proj(inner)), memory)

    def _enter(self, x: Tensor) -> Tensor:
        return x if self.post_norm else self.norm1(x)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SlimPerformerLM(nn.Module):
    """Logits of the token after each, trained by :meth:`loss` in pieces.

    A token is C / 2 learned numbers beside C / 4 sines and C / 4 cosines of its position; there is no last norm.

    Args:
        vocab_size, dim, depth, num_heads, ffn_dim: sizes; ``dim`` is C, a multiple of 4 and of the heads.
        features, num_features, post_norm: as for :class:`SlimBlock`.

    Raises:
        ValueError: a width that does not divide.

    Example:
        >>> model = SlimPerformerLM(50, 16, 2, 2, 32)
        >>> tokens = torch.randint(50, (3, 41))
        >>> model.loss(tokens, step=8).backward()  # as model.loss(tokens).backward(), in less memory
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        ffn_dim: int,
        features: Kind = "elu",
        num_features: int | None = None,
        *,
        post_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim % 4 or dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of 4 and of num_heads={num_heads}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"post_norm": post_norm, **factory}
        self.token_embedding = nn.Embedding(vocab_size, dim // 2, **factory)
        self.blocks = nn.ModuleList(
            SlimBlock(dim, num_heads, ffn_dim, features, num_features, **options) for _ in range(depth)
        )
        self.read_out = nn.Linear(dim, vocab_size, **factory)

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw other rows in every block: before each step of training, if the features are random."""
        for block in self.slim_blocks:
            block.core.redraw(generator)

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N V"]:
        """Logits of the token after each, from itself and those before."""
        return self.stream(tokens, self.memory(len(tokens)))[0]

    def memory(
        self,
        batch: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        static: int | None = None,
    ) -> ModelMemory:
        """Sums over nothing, for each block; their size is constant, so ``static`` has nothing to reserve."""
        weight = self.read_out.weight
        place: dict[str, Any] = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        layers: list[LinearState] = []
        for block in self.slim_blocks:
            width = weight.shape[1] // block.num_heads
            layers.append(block.core.memory(batch, block.num_heads, width, width, **place))
        return ModelMemory(tuple(layers), torch.zeros(batch, device=place["device"], dtype=torch.long))

    def stream(self, tokens: Int[Tensor, "B N"], memory: ModelMemory) -> tuple[Float[Tensor, "B N V"], ModelMemory]:
        """Continue with one token or many: -> (logits, the new memory)."""
        check_memory(memory, self.memory(len(tokens), device="meta"), tokens)
        x, layers = self.embed(tokens, memory.position), list[LinearState]()
        for block, before in zip(self.slim_blocks, memory.layers, strict=True):
            x, after = block(x, before)
            layers.append(after)
        return self.read_out(x), ModelMemory(tuple(layers), memory.position + tokens.shape[1])

    def embed(self, tokens: Int[Tensor, "B N"], position: Int[Tensor, " B"]) -> Float[Tensor, "B N C"]:
        """Tokens beside their positions, of which the first is ``position``."""
        x = self.token_embedding(tokens)
        width = x.shape[-1]
        place = position[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        steps = torch.arange(0, width, 2, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        angles = place[..., None] * torch.exp(steps * (-math.log(10000) / width))
        return torch.cat((x, angles.sin().to(x.dtype), angles.cos().to(x.dtype)), -1)

    def loss(
        self,
        tokens: Int[Tensor, "B N"],
        loss_mask: Bool[Tensor, "B N"] | None = None,
        *,
        step: int | None = None,
        keep: int | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of each token but the first given those before it.

        Args:
            tokens: 2 or more of each sequence.
            loss_mask: True for tokens that count; it hides nothing from the attention.
            step: how many tokens a piece has; None: all at once, with all activations.
            keep: with ``step``, store the sums before every so many pieces instead of taking terms back all the way.

        Raises:
            ValueError: a piece without tokens, or ``keep`` without pieces.
        """
        if (step is not None and step < 1) or (keep is not None and (keep < 1 or step is None)):
            raise ValueError(f"step={step}, keep={keep}: pieces have 1 token or more, and keep counts pieces")
        given, targets = tokens[:, :-1], tokens[:, 1:]
        count = torch.ones_like(targets, dtype=torch.bool) if loss_mask is None else loss_mask[:, 1:]
        share = count.to(self.read_out.weight.dtype)
        share = share / (share.sum() + MASK_EPS)
        if step is None:
            return cross_entropy(self(given), targets, share)
        return loss_in_pieces(_Piece(self), self.memory(len(tokens)), given, targets, share, step=step, keep=keep)

    @property
    def slim_blocks(self) -> list[SlimBlock]:
        """The blocks, in order."""
        return list(self.blocks)  # pyright: ignore[reportReturnType]


class _Piece(nn.Module):
    """A piece of the sequence as a forward, so that ``functional_call`` can put the saved weights in place."""

    def __init__(self, model: SlimPerformerLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, memory: ModelMemory, *, known: bool
    ) -> tuple[Tensor, tuple[LinearState, ...], tuple[LinearState, ...]]:
        """Logits, the sums before as leaves of the graph, and the sums after.

        Args:
            tokens: the piece.
            memory: the position of its first token, and the sums before it if ``known``, else after it.
        """
        x, befores, afters = self.model.embed(tokens, memory.position), list[LinearState](), list[LinearState]()
        for block, sums in zip(self.model.slim_blocks, memory.layers, strict=True):
            with torch.no_grad():
                before = sums if known else block.rewind(x, sums)
            befores.append(LinearState(*(t.detach().requires_grad_() for t in before)))
            x, after = block(x, befores[-1])
            afters.append(after)
        return self.model.read_out(x), tuple(befores), tuple(afters)
