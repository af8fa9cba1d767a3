"""A plain Transformer from one sequence to another whose cross attention is any mechanism by name.

The body in which mechanisms between two sequences are compared. Encoder and decoder are pre-norm Transformers with full
attention, the same for everybody; between self-attention and MLP each block of the decoder has the mechanism, which
looks from the target at the source. One matrix embeds both and reads out, positions are sinusoids (Vaswani et al. 2017,
arXiv:1706.03762), so there is no longest sequence but the mechanism's own.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.factory import create
from regard.memory import LayerMemory
from regard.models import transformer, transformer_2017_layers
from regard.models.transformer_2017 import Stack, sinusoids
from regard.ops.masks import check_mask, positions
from regard.registry import Layer, UnsupportedError

Told = dict[str, Tensor]

CLOSE = 1e-3
"""Outputs of a layer, whose features have a size of about 1, that differ by no more than this are the same."""


class TargetMemory(NamedTuple):
    """What :meth:`TranslationModel.step` carries from token to token.

    Attributes:
        source: (B, S, C), the encoder's output.
        real: (B, S), True for real source tokens.
        layers: of each self-attention.
        asked: (B, T, C) each, what has asked each mechanism so far.
        position: (B,), of the next target token.
    """

    source: Float[Tensor, "B S C"]
    real: Bool[Tensor, "B S"]
    layers: tuple[LayerMemory, ...]
    asked: tuple[Float[Tensor, "B T C"], ...]
    position: Int[Tensor, " B"]


class LookBack(nn.Module):
    """x + attention(norm(x)), causal: how target tokens see those before them.

    Args:
        dim, num_heads: C and H.
    """

    def __init__(self, dim: int, num_heads: int, **factory: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, **factory)
        self.own = create("full", dim=dim, num_heads=num_heads, causal=True, **factory)

    def forward(self, x: Float[Tensor, "B T C"], key_mask: Tensor | None = None) -> Float[Tensor, "B T C"]:
        """All target tokens at once."""
        return x + self.own(self.norm(x), key_mask=key_mask)

    def stream(self, x: Float[Tensor, "B N C"], memory: LayerMemory) -> tuple[Float[Tensor, "B N C"], LayerMemory]:
        """The next ones."""
        out, memory = self.own.stream(self.norm(x), memory)
        return x + out, memory


class Unseen(nn.Module):
    """In the place of a cross attention: the source is never looked at."""

    def forward(self, x: Float[Tensor, "B T C"], context: Tensor, **options: Any) -> Float[Tensor, "B T C"]:
        """Nothing."""
        return torch.zeros_like(x)


class TranslationModel(nn.Module):
    """From source and target tokens to the logits of each target token's successor.

    Args:
        vocab_size, dim, depth, num_heads: sizes; ``depth`` blocks on each side.
        max_length: the longest source and target, for mechanisms that must know.
        mechanism: the registry name of the cross attention; None: the decoder sees no source, which is a language model
            of the target to compare with.
        mlp_ratio: the hidden width of the MLPs, in multiples of ``dim``.
        mechanism_options: what else :func:`regard.create` shall pass on.

    Raises:
        UnsupportedError: a mechanism that does not go from one sequence to another, or in whose answer to one token the
            other asking tokens have a part: the decoder would see what it is to predict.

    Example:
        >>> model = TranslationModel(300, 16, 1, 2, 64, "linear_transformer")
        >>> model(torch.randint(300, (3, 7)), torch.randint(300, (3, 5))).shape
        torch.Size([3, 5, 300])
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
        mlp_ratio: float = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mechanism_options: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.mechanism = dim, mechanism
        self.embedding = nn.Embedding(vocab_size, dim, **factory)
        sizes: dict[str, Any] = {"dropout": 0.0, "placement": "pre", **factory}
        encoder = transformer_2017_layers.Block
        layers = depth if mechanism else 0
        self.encoder = Stack(
            (encoder(dim, num_heads, int(dim * mlp_ratio), **sizes) for _ in range(layers)),
            nn.LayerNorm(dim, **factory),
        )
        self.backs, self.blocks = nn.ModuleList(), nn.ModuleList()
        for number in range(depth):
            attention = Unseen()
            if mechanism:
                options: dict[str, Any] = {"max_length": max_length, **factory, **mechanism_options}
                attention = create(mechanism, dim=dim, num_heads=num_heads, **options)
                if not number:
                    check_crossing(attention, dim, max_length)
            self.backs.append(LookBack(dim, num_heads, **factory))
            self.blocks.append(transformer.Block(attention, dim, mlp_ratio=mlp_ratio, **factory))
        self.norm = nn.LayerNorm(dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The embedding N(0, 1/C), as in the Transformer of 2017; all else starts by itself."""
        nn.init.normal_(self.embedding.weight, std=self.dim**-0.5)

    def forward(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        *,
        src_mask: Bool[Tensor, "B S"] | None = None,
        tgt_mask: Bool[Tensor, "B T"] | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, Told]:
        """Logits (B, T, V) of the token after each target token.

        Args:
            src, tgt: tokens.
            src_mask, tgt_mask: True for real tokens.
            generator: the source of everything random in the mechanism.
            return_aux: also return what the mechanism has to tell, as "loss/blocks.0.attention/..." and so on.
        """
        x, aux = self._target(src, tgt, src_mask, tgt_mask, len(self.blocks), generator)
        logits = self._logits(x)
        return (logits, aux) if return_aux else logits

    def align(
        self,
        src: Int[Tensor, "B S"],
        tgt: Int[Tensor, "B T"],
        *,
        src_mask: Bool[Tensor, "B S"] | None = None,
        tgt_mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T S"]:
        """Where the prediction of the token after each target token looks: the last block's weights, mean over heads.

        Raises:
            UnsupportedError: a mechanism without weights.
        """
        last = len(self.blocks) - 1
        x, _ = self._target(src, tgt, src_mask, tgt_mask, last, None)
        block = cast(transformer.Block, self.blocks[last])
        if not hasattr(block.attention, "weigh"):
            raise UnsupportedError(f"{self.mechanism} has no weights to show")
        query, source = block.norm1(self.backs[last](x, tgt_mask)), self._encode(src, src_mask)
        values = torch.eye(src.shape[1], device=x.device, dtype=x.dtype)[None, None]
        weigh: Any = block.attention.weigh
        return weigh(query, values, source, key_mask=src_mask, query_mask=tgt_mask).mean(1)

    def begin(self, src: Int[Tensor, "B S"], src_mask: Bool[Tensor, "B S"] | None = None) -> TargetMemory:
        """Read the source, once: what :meth:`step` continues from."""
        layers = tuple(cast(LookBack, back).own.memory(len(src)) for back in self.backs)
        real, source = (
            torch.ones_like(src, dtype=torch.bool) if src_mask is None else src_mask,
            self._encode(src, src_mask),
        )
        asked = tuple(source.new_empty(len(src), 0, self.dim) for _ in self.blocks)
        return TargetMemory(source, real, layers, asked, torch.zeros_like(src[:, 0]))

    def step(self, tokens: Int[Tensor, " B"], memory: TargetMemory) -> tuple[Float[Tensor, "B V"], TargetMemory]:
        """Logits of the token after the next target token, and the grown memory.

        The mechanism is asked again by all tokens so far, O(T S), since where a token stands may matter to it, and not
        every mechanism could carry something along.
        """
        x = self._embed(tokens[:, None], memory.position[:, None])
        layers, asked = list[LayerMemory](), list[Tensor]()
        for number, back in enumerate(self.backs):
            block = cast(transformer.Block, self.blocks[number])
            x, after = cast(LookBack, back).stream(x, memory.layers[number])
            asked.append(torch.cat((memory.asked[number], block.norm1(x)), 1))
            x = block._think(x + block.attention(asked[-1], context=memory.source, key_mask=memory.real)[:, -1:])
            layers.append(after)
        grown = memory._replace(layers=tuple(layers), asked=tuple(asked), position=memory.position + 1)
        return self._logits(x)[:, 0], grown

    def _target(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None,
        tgt_mask: Tensor | None,
        depth: int,
        generator: Generator | None,
    ) -> tuple[Tensor, Told]:
        """The target after ``depth`` blocks, and what they told."""
        check_mask(tgt_mask, *tgt.shape, name="tgt_mask")
        source, x = self._encode(src, src_mask), self._embed(tgt, positions(tgt, tgt_mask, None))
        masks = {"key_mask": src_mask, "query_mask": tgt_mask}
        aux: Told = {}
        for number, (back, block) in enumerate(zip(self.backs[:depth], self.blocks[:depth], strict=True)):
            x, told = block(back(x, tgt_mask), context=source, **masks, generator=generator)
            for name, value in told.items():
                kind, _, rest = name.partition("/")
                aux[f"{kind}/blocks.{number}.attention/{rest}"] = value
        return x, aux

    def _encode(self, src: Tensor, mask: Tensor | None) -> Tensor:
        check_mask(mask, *src.shape, name="src_mask")
        return self.encoder(
            self._embed(src, positions(src, mask, None)), mask=None if mask is None else mask[:, None, None]
        )

    def _embed(self, tokens: Tensor, places: Tensor) -> Tensor:
        x = self.embedding(tokens) * self.dim**0.5
        return x + sinusoids(places, self.dim).to(x.dtype)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.embedding.weight)


def check_crossing(layer: Layer, dim: int, length: int) -> None:
    """Refuse a layer that cannot stand between a decoder and a source: it is tried on random tokens.

    Raises:
        UnsupportedError: it takes no context, answers in another shape, or mixes the tokens that ask.
    """
    name, place = layer.mechanism or type(layer).__name__, next(layer.parameters(), torch.empty(0))
    if not layer.card.cross:
        raise UnsupportedError(f"{name} attends within one sequence: it cannot look from a target at a source")
    if place.is_meta:
        return
    training, half = layer.training, max(1, length // 2)
    generator = torch.Generator(place.device).manual_seed(0)
    one, other, context = (
        torch.randn(1, length, dim, generator=generator, device=place.device, dtype=place.dtype) for _ in range(3)
    )
    answers: list[Any] = []
    with torch.no_grad(), torch.random.fork_rng([place.device] if place.is_cuda else []):
        for late in (one, other):
            torch.manual_seed(0)
            try:
                answers.append(layer.eval()(torch.cat((one[:, :half], late[:, half:]), 1), context))
            except ValueError as error:
                raise UnsupportedError(f"{name} cannot look from a target at a source: {error}") from error
    layer.train(training)
    if not isinstance(answers[0], Tensor) or answers[0].shape != one.shape:
        raise UnsupportedError(f"{name} does not answer each target token with one vector of the same width")
    if (answers[0] - answers[1])[:, :half].abs().max() > CLOSE:
        raise UnsupportedError(f"{name} lets the tokens that ask see each other: a decoder would see what comes")
