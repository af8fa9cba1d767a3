"""A plain pre-norm Transformer over any mechanism by name: the body in which mechanisms are compared.

GPT-2's block (Radford et al. 2019): x + attention(norm(x)), then x + mlp(norm(x)), with learned absolute positions at
the input, GELU in the MLP, and a last norm. Positions count the real tokens of each document, so neither padding on
either side nor packing changes anything.
"""

import inspect
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.factory import create
from regard.memory import ModelMemory, check_memory
from regard.ops.masks import check_mask, check_segments, positions
from regard.registry import Layer, UnsupportedError


class Block(nn.Module):
    """One attention and one MLP, each added to what it reads.

    Args:
        attention: a layer of ours, (B, N, C) -> (B, N, C).
        dim: C.
        mlp_ratio: the hidden width of the MLP, in multiples of C.
        dropout: on both branches.
    """

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        *,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = int(dim * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim, **factory), nn.LayerNorm(dim, **factory)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(dim, hidden, **factory), nn.GELU(), nn.Linear(hidden, dim, **factory))
        self.dropout = nn.Dropout(dropout)
        self._has_aux = "return_aux" in inspect.signature(attention.forward).parameters
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The MLP Xavier-uniform with biases 0; norms start as the identity, the attention as its paper says."""
        for parameter in self.mlp.parameters():
            _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, N, C) and what the attention has to tell; the options go to the attention."""
        out = self.attention(self.norm1(x), **options, **({"return_aux": True} if self._has_aux else {}))
        out, aux = out if self._has_aux else (out, {})
        return self._think(x + self.dropout(out)), aux

    def stream(self, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """The next tokens x (B, N, C), given the attention's memory of those before: -> (y, the new memory)."""
        out, memory = cast(Layer, self.attention).stream(self.norm1(x), memory)
        return self._think(x + self.dropout(out)), memory

    def _think(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.mlp(self.norm2(x)))


class TransformerEncoder(nn.Module):
    """Tokens in, one vector a token out; every token may see every other.

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes.
        mechanism: the registry name of the attention.
        mlp_ratio: the hidden width of the MLP, in multiples of ``dim``.
        dropout: on the embeddings and on both branches of each block.
        mechanism_options: what else :func:`regard.create` shall pass on.

    Raises:
        UnsupportedError: something that the mechanism cannot do.

    Example:
        >>> model = TransformerEncoder(256, 16, 2, 2, 64, "linear_transformer")
        >>> model(torch.randint(256, (3, 10))).shape
        torch.Size([3, 10, 16])
    """

    causal: ClassVar[bool] = False

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        mechanism: str = "full",
        *,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mechanism_options: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"max_length": max_length, "causal": self.causal, **factory, **mechanism_options}
        self.max_length = max_length
        self.token_embedding = nn.Embedding(vocab_size, dim, **factory)
        self.position_embedding = nn.Embedding(max_length, dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            attention = create(mechanism, dim=dim, num_heads=num_heads, **options)
            self.blocks.append(Block(attention, dim, mlp_ratio=mlp_ratio, dropout=dropout, **factory))
        self.norm = nn.LayerNorm(dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Embeddings from N(0, 0.02^2) as in GPT-2; the blocks start by themselves."""
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        *,
        key_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """What the class says comes out, for each token or sequence.

        Args:
            tokens: Int (B, N), ids below ``vocab_size``.
            key_mask: Bool (B, N), True for real tokens.
            segments: Int (B, N), one id a packed document, which then sees only itself, from position 0.
            generator: the source of everything random in the attention.
            return_aux: also return what the layers have to tell, as "loss/blocks.0.attention/..." and so on.

        Returns:
            The output; with ``return_aux`` a pair of it and a dict of tensors.

        Raises:
            ValueError: more tokens than ``max_length``.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens, but this model was built with max_length={self.max_length}")
        check_mask(key_mask, len(tokens), length)
        check_segments(segments, len(tokens), length)
        places = self.position_embedding(positions(tokens, key_mask, segments))
        x = self.dropout(self.token_embedding(tokens) + places)
        aux: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x, told = block(x, key_mask=key_mask, segments=segments, generator=generator)
            for name, value in told.items():
                kind, _, rest = name.partition("/")
                aux[f"{kind}/blocks.{number}.attention/{rest}"] = value
        y = self.read_out(self.norm(x), key_mask)
        return (y, aux) if return_aux else y

    def read_out(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """The vectors themselves, (B, N, dim)."""
        return x


class TransformerLM(TransformerEncoder):
    """A causal language model: logits (B, N, vocab_size) of the token after each. The output matrix is the embedding.

    Args and errors are those of :class:`TransformerEncoder`; a mechanism that cannot be causal is refused.

    Example:
        >>> model = TransformerLM(256, 16, 2, 2, 64, "linear_transformer")
        >>> model(torch.randint(256, (3, 10))).shape
        torch.Size([3, 10, 256])
    """

    causal = True

    def read_out(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """Logits by the embedding matrix."""
        return F.linear(x, self.token_embedding.weight)

    def memory(
        self,
        batch: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        static: int | None = None,
    ) -> ModelMemory:
        """The memory of ``batch`` sequences of which nothing has been seen.

        Args:
            batch: B.
            device, dtype: the default is where and what the weights are.
            static: the longest sequence; then the caches have their final size and may be overwritten by ``stream``.

        Raises:
            UnsupportedError: the mechanism, or an embedding that was put in later, needs the whole sequence.
        """
        if type(self.token_embedding) is not nn.Embedding:
            kind = type(self.token_embedding).__name__
            raise UnsupportedError(f"a model that reads its tokens through a {kind} does not stream: it reads several")
        layers = [cast(Layer, cast(Block, block).attention) for block in self.blocks]
        options: dict[str, Any] = {"device": device, "dtype": dtype, "static": static}
        place = device or self.token_embedding.weight.device
        position = torch.zeros(batch, dtype=torch.long, device=place)
        return ModelMemory(tuple(layer.memory(batch, **options) for layer in layers), position)

    def stream(self, tokens: Tensor, memory: ModelMemory) -> tuple[Tensor, ModelMemory]:
        """Continue with the next tokens, a prompt or a single one.

        Args:
            tokens: Int (B, N).
            memory: of all tokens before them.

        Returns:
            The logits that ``forward`` would give for these tokens at the end of all so far, and the grown memory.

        Raises:
            TypeError, ValueError: the memory of another model, or more than ``max_length`` tokens in all.
        """
        check_memory(memory, self.memory(len(tokens), device="meta"), tokens)
        n, seen = tokens.shape[1], memory.position
        # reading a value makes a device wait; there, and in a graph, the table itself complains
        if not torch.compiler.is_compiling() and seen.device.type == "cpu" and int(seen.max()) + n > self.max_length:
            raise ValueError(
                f"{int(seen.max())} tokens and {n} more, but this model was built with max_length={self.max_length}"
            )
        places = self.position_embedding(seen[:, None] + torch.arange(n, device=seen.device))
        x, layers = self.dropout(self.token_embedding(tokens) + places), list[Any]()
        for block, before in zip(self.blocks, memory.layers, strict=True):
            x, after = cast(Block, block).stream(x, before)
            layers.append(after)
        return self.read_out(self.norm(x), None), ModelMemory(tuple(layers), seen + n)


class TransformerClassifier(TransformerEncoder):
    """One of several classes a sequence: logits (B, num_classes) of the mean over real tokens.

    Args and errors are those of :class:`TransformerEncoder`.

    Example:
        >>> model = TransformerClassifier(256, 16, 2, 2, 64, "linear_transformer", num_classes=4)
        >>> model(torch.randint(256, (3, 10))).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        mechanism: str = "full",
        *,
        num_classes: int,
        **options: Any,
    ) -> None:
        super().__init__(vocab_size, dim, depth, num_heads, max_length, mechanism, **options)
        factory = {key: options[key] for key in ("device", "dtype") if key in options}
        self.classes = nn.Linear(dim, num_classes, **factory)

    def read_out(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """Logits of the mean; a sequence without real tokens has mean 0."""
        if key_mask is None:
            return self.classes(x.mean(1))
        real = key_mask[..., None]
        return self.classes(x.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1))
