"""The MAC network: a question and an image go in, and the logits of all answers come out.

Hudson & Manning 2018, arXiv:1803.03067, section 3: an LSTM in both directions reads the question, two 3 x 3
convolutions make cells of the image (or of features that another network made of it),
:class:`regard.mechanisms.pairs.mac.Mac` reasons p steps, and a classifier answers from [m_p; L(q)]. Sizes, activations
and dropouts are those of the authors' code; the classifier's hidden layer is one of "outClassifierDims".
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.mechanisms.pairs.mac import Mac, Variant
from regard.models.question_encoder import QuestionEncoder
from regard.ops.reasoning_units import Asker, Gate


class Dropouts(NamedTuple):
    """Shares that are dropped; the authors' defaults."""

    words: float = 0.15
    question: float = 0.08
    stem: float = 0.18
    memory: float = 0.15
    read: float = 0.15
    output: float = 0.15


class ImageStem(nn.Module):
    """3 x 3 convolutions with an ELU behind each: maps (B, C, H, W) -> maps of ``dim`` channels.

    Args:
        channels: of the image, or of its features.
        dim: of all maps behind it.
        strides: of each convolution; (1, 1) for features, larger ones for pixels.
        positions: two more channels say where each pixel lies, from -1 to 1 downwards and to the right.
        drop: dropout in front of each convolution.

    Example:
        >>> ImageStem(3, 8, strides=(2, 2))(torch.randn(1, 3, 20, 20)).shape
        torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        *,
        strides: Sequence[int] = (1, 1),
        positions: bool = False,
        drop: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.positions, self.drop = positions, nn.Dropout(drop)
        widths = [channels + 2 * positions, *(dim for _ in strides)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, **factory)
            for (inputs, outputs), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform, biases 0."""
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            nn.init.xavier_uniform_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        """What the image holds, place by place."""
        if self.positions:
            down, right = (torch.linspace(-1, 1, side, device=x.device, dtype=x.dtype) for side in x.shape[2:])
            place = torch.stack(torch.meshgrid(down, right, indexing="ij"))
            x = torch.cat((x, place.expand(x.shape[0], -1, -1, -1)), 1)
        for convolution in self.convolutions:
            x = F.elu(convolution(self.drop(x)))
        return x


class Classifier(nn.Module):
    """Two maps with an ELU between them, dropout in front of both.

    Args:
        inputs, hidden, outputs: widths.
        drop: of the dropout.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, drop: float = 0.0, **factory: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, hidden, **factory), nn.Linear(hidden, outputs, **factory)
        self.drop = nn.Dropout(drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform, biases 0."""
        for linear in (self.first, self.last):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.last(self.drop(F.elu(self.first(self.drop(x)))))


class MACNetwork(nn.Module):
    """Answer a question about an image; see the head of this file.

    Args:
        vocab_size, num_answers: kinds of words, and of answers.
        dim: C of everything.
        steps: p.
        channels: of the image, 1024 for the features that the authors used.
        embedding_dim: of words.
        hidden_dim: of the classifier.
        strides, positions: of :class:`ImageStem`.
        variant, feed_control, self_attention, gate: of :class:`regard.mechanisms.pairs.mac.Mac`.
        dropouts: see :class:`Dropouts`.

    Raises:
        ValueError: an odd width, or images of other channels.

    Example:
        >>> model = MACNetwork(20, 5, dim=8, steps=3, channels=3, strides=(2, 2))
        >>> model(torch.randint(20, (2, 6)), context=torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        vocab_size: int,
        num_answers: int,
        *,
        dim: int = 512,
        steps: int = 12,
        channels: int = 1024,
        embedding_dim: int = 300,
        hidden_dim: int = 512,
        strides: Sequence[int] = (1, 1),
        positions: bool = False,
        variant: Variant = "authors",
        feed_control: bool | None = None,
        self_attention: Asker = "none",
        gate: Gate = "none",
        dropouts: Dropouts | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        drops = Dropouts() if dropouts is None else dropouts
        self.channels = channels
        self.encoder = QuestionEncoder(
            vocab_size, embedding_dim, dim, word_drop=drops.words, question_drop=drops.question, **factory
        )
        self.stem = ImageStem(channels, dim, strides=strides, positions=positions, drop=drops.stem, **factory)
        self.mac = Mac(
            dim,
            steps=steps,
            variant=variant,
            feed_control=feed_control,
            self_attention=self_attention,
            gate=gate,
            memory_drop=drops.memory,
            read_drop=drops.read,
            **factory,
        )
        self.question_proj = nn.Linear(dim, dim, **factory)
        self.classifier = Classifier(2 * dim, hidden_dim, num_answers, drops.output, **factory)
        self._reset_question_proj()

    def reset_parameters(self) -> None:
        """Of all parts; Xavier-uniform matrices, biases 0."""
        for part in (self.encoder, self.stem, self.mac, self.classifier):
            part.reset_parameters()
        self._reset_question_proj()

    def _reset_question_proj(self) -> None:
        nn.init.xavier_uniform_(self.question_proj.weight)
        nn.init.zeros_(self.question_proj.bias)

    def forward(
        self,
        tokens: Int[Tensor, "B S"],
        *,
        context: Float[Tensor, "B C H W"],
        key_mask: Bool[Tensor, "B S"] | None = None,
        context_mask: Bool[Tensor, "B N"] | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits of the answers.

        Args:
            tokens: numbers of words.
            context: images, or their features.
            key_mask: True for real words, which may stand anywhere.
            context_mask: True for cells that count, row by row of the map that the stem makes.
            return_aux: also return "map/mac/words" (B, p, S) and "map/mac/knowledge" (B, p, N).

        Returns:
            (B, K); with ``return_aux`` (that, dict of tensors).
        """
        if context.ndim != 4 or context.shape[1] != self.channels:
            raise ValueError(
                f"context has shape {tuple(context.shape)}, expected (batch, {self.channels}, height, width)"
            )
        words, question = self.encoder(tokens, key_mask)
        cells = self.stem(context).flatten(2).mT
        memory, told = self.mac(
            words, cells, question=question, query_mask=key_mask, key_mask=context_mask, return_aux=True
        )
        logits = self.classifier(torch.cat((memory, self.question_proj(question)), -1))
        if not return_aux:
            return logits
        return logits, {name.replace("/", "/mac/", 1): value for name, value in told.items()}
