"""Informer: a long stretch of a series in one forward pass, as published.

Zhou et al. 2020, arXiv:2012.07436, section 3 and table 7. Values pass a circular convolution of width 3 and meet
sinusoids and time marks. The encoder's layers are ProbSparse attention (:mod:`regard.mechanisms.chosen.informer`) and a
feed-forward network, each as LayerNorm(x + Dropout(branch(x))); between two of them "distilling" halves the length::

    x <- MaxPool(ELU(BatchNorm(Conv(x))))         N -> ceil(N / 2), widths 3, the pool in steps of 2

The decoder reads the last known steps and, for the steps to come, zeros with their time marks: one pass of causal
ProbSparse attention and attention to the encoder's output gives all of them. Several encoders may stand side by side:
number i, from 0, reads the last N // 2^i steps, and their outputs are joined along time (InformerStack).

The authors' code runs the decoder's self-attention out of its causal order, see :class:`MixedHeads`, and sums where
ProbSparse takes the mean; ``mix=True`` and ``lazy="sum"`` are for their checkpoints.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.layers import MultiHead
from regard.mechanisms.chosen.informer import Lazy, ProbSparse
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.models.transformer_2017 import sinusoids

__all__ = ["Distil", "Informer", "InformerBlock", "InformerEncoder", "MixedHeads", "SeriesEmbedding"]

Marks = Literal["linear", "fixed", "learned"]
Attention = Literal["prob", "full"]
TABLES = {"month": 13, "day": 32, "weekday": 7, "hour": 24, "quarter": 4}
"""Time marks as numbers, in their order, and how many values each may have."""


class SeriesEmbedding(nn.Module):
    """conv(values) + sinusoids + time marks, each step a vector.

    Args:
        inputs: variables of the series.
        dim: C.
        num_marks: time marks a step.
        marks: "linear": numbers near 0, through a matrix. "fixed", "learned": whole numbers (month, day, weekday, hour,
            quarter of the hour; the first ``num_marks`` of them), each with a table of sinusoids or of its own.
        dropout: on the sum.
    """

    def __init__(self, inputs: int, dim: int, num_marks: int, marks: Marks, dropout: float, **factory: Any) -> None:
        super().__init__()
        if marks not in ("linear", "fixed", "learned"):
            raise ValueError(f'marks={marks!r} is none of "linear", "fixed" and "learned"')
        if marks != "linear" and num_marks > len(TABLES):
            raise ValueError(f"num_marks={num_marks}, but there are tables for {', '.join(TABLES)} only")
        self.dim, self.num_marks, self.marks = dim, num_marks, marks
        self.values = nn.Conv1d(inputs, dim, 3, padding=1, padding_mode="circular", **factory)
        self.linear = nn.Linear(num_marks, dim, **factory) if marks == "linear" else None
        sizes = list(TABLES.values())[:num_marks] if marks == "learned" else []
        self.tables = nn.ModuleList(nn.Embedding(size, dim, **factory) for size in sizes)
        self.drop = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The convolution Kaiming-normal, as the authors have it; the rest as torch draws it."""
        nn.init.kaiming_normal_(self.values.weight, nonlinearity="leaky_relu")

    def forward(self, x: Float[Tensor, "B N V"], marks: Float[Tensor, "B N F"]) -> Float[Tensor, "B N C"]:
        """The vectors of all steps."""
        if marks.shape != (*x.shape[:2], self.num_marks):
            raise ValueError(
                f"marks has shape {tuple(marks.shape)}, expected {(*x.shape[:2], self.num_marks)}: a step of x each"
            )
        vectors = self.values(x.mT).mT + sinusoids(torch.arange(x.shape[1], device=x.device), self.dim).to(x.dtype)
        if self.linear is not None:
            return self.drop(vectors + self.linear(marks))
        parts = marks.long().unbind(-1)
        if self.tables:
            return self.drop(sum((table(part) for table, part in zip(self.tables, parts, strict=True)), vectors))
        return self.drop(sum((sinusoids(part, self.dim).to(x.dtype) for part in parts), vectors))


class MixedHeads(MultiHead):
    """A layer that reads the (heads, steps, features) of a result as (steps, heads x features), as its authors did.

    A step is then made of other steps, later ones too: nothing causal is left. For their checkpoints only.
    """

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.reshape(len(out), out.shape[2], -1)))


class InformerBlock(nn.Module):
    """Self-attention, attention to the encoder if there is one, and a feed-forward network; a norm after each sum.

    Args:
        dim, hidden: C and the width of the network.
        attention: of the tokens to each other.
        cross: attention to the encoder's output.
        activation: inside the network.
        dropout: inside the network and on it.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        attention: MultiHead,
        cross: MultiHead | None = None,
        *,
        activation: Literal["gelu", "relu"] = "gelu",
        dropout: float = 0.05,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.attention, self.cross = attention, cross
        self.first, self.second = nn.Linear(dim, hidden, **factory), nn.Linear(hidden, dim, **factory)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, **factory) for _ in range(2 if cross is None else 3))
        self.drop, self.activation = nn.Dropout(dropout), {"gelu": F.gelu, "relu": F.relu}[activation]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All matrices as torch draws them, as the authors have it, those of the attention too."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def forward(
        self, x: Float[Tensor, "B N C"], memory: Tensor | None = None, *, generator: Generator | None = None
    ) -> Float[Tensor, "B N C"]:
        """One layer; ``memory`` (B, M, C) is the encoder's output."""
        x = self.norms[0](x + self.attention(x, generator=generator))
        if self.cross is not None:
            x = self.norms[1](x + self.cross(x, memory, generator=generator))
        return self.norms[-1](x + self.drop(self.second(self.drop(self.activation(self.first(x))))))


class Distil(nn.Module):
    """MaxPool(ELU(BatchNorm(Conv(x)))): the length is halved, rounded up.

    Args:
        dim: C.

    Example:
        >>> Distil(4)(torch.randn(2, 25, 4)).shape
        torch.Size([2, 13, 4])
    """

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, padding=1, padding_mode="circular", **factory)
        self.norm = nn.BatchNorm1d(dim, **factory)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B n C"]:
        """Every second step, with the largest of its neighbours."""
        return F.max_pool1d(F.elu(self.norm(self.conv(x.mT))), 3, stride=2, padding=1).mT


class InformerEncoder(nn.Module):
    """Layers with a :class:`Distil` between two of them, or none, and a last norm.

    Args:
        layers: the layers.
        dim: C.
        distil: halve the length between layers.
    """

    def __init__(self, layers: Sequence[InformerBlock], dim: int, distil: bool, **factory: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.between = nn.ModuleList(Distil(dim, **factory) for _ in layers[1:]) if distil else None
        self.norm = nn.LayerNorm(dim, **factory)

    def forward(self, x: Float[Tensor, "B N C"], *, generator: Generator | None = None) -> Float[Tensor, "B n C"]:
        """What the decoder attends to."""
        for number, layer in enumerate(self.layers):
            if number and self.between is not None:
                x = self.between[number - 1](x)
            x = layer(x, generator=generator)
        return self.norm(x)


class Informer(nn.Module):
    """From the past of a series and the time marks of its future to the values of its future.

    Args:
        inputs: variables of the past.
        outputs: variables of the forecast; ``inputs`` by default.
        decoder_inputs: variables that the decoder reads; ``inputs`` by default.
        horizon: how many of the decoder's steps, the last ones, are returned.
        dim, num_heads, hidden: C, H, width of the feed-forward networks.
        depth: layers of the encoder; several numbers: of encoders side by side, e.g. (3, 2, 1).
        decoder_depth: layers of the decoder.
        factor: c of ProbSparse.
        dropout: on every branch, on the embeddings, and on the weights of full attention.
        num_marks, marks: time marks a step, see :class:`SeriesEmbedding`.
        attention: "prob", or "full" softmax in its place.
        activation: inside the networks.
        distil: halve the length between the layers of an encoder.
        mix: the authors' layout of heads in the decoder, see :class:`MixedHeads`.
        lazy: "mean", or the authors' "sum", of the values before a query that does not attend.

    Example:
        >>> model = Informer(7, horizon=24, dim=16, num_heads=2, hidden=32)
        >>> past, marks, future = torch.randn(2, 96, 7), torch.zeros(2, 96, 4), torch.zeros(2, 24, 4)
        >>> model.forecast(past, marks, future, known=48).shape
        torch.Size([2, 24, 7])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | None = None,
        decoder_inputs: int | None = None,
        *,
        horizon: int,
        dim: int = 512,
        num_heads: int = 8,
        hidden: int = 2048,
        depth: int | Sequence[int] = 2,
        decoder_depth: int = 1,
        factor: int = 5,
        dropout: float = 0.05,
        num_marks: int = 4,
        marks: Marks = "linear",
        attention: Attention = "prob",
        activation: Literal["gelu", "relu"] = "gelu",
        distil: bool = True,
        mix: bool = False,
        lazy: Lazy = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if attention not in ("prob", "full"):
            raise ValueError(f'attention={attention!r} is neither "prob" nor "full"')
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        around: dict[str, Any] = {"proj_drop": dropout, **factory}

        def core(causal: bool) -> ProbSparse | ScaledDotProduct:
            if attention == "full":
                return ScaledDotProduct(causal, attn_drop=dropout)
            return ProbSparse(factor, causal, lazy=lazy if causal else "mean")

        def block(cross: bool) -> InformerBlock:
            layer = (MixedHeads if cross and mix else MultiHead)(dim, num_heads, core(cross), **around)
            other = MultiHead(dim, num_heads, ScaledDotProduct(attn_drop=dropout), **around) if cross else None
            return InformerBlock(dim, hidden, layer, other, activation=activation, dropout=dropout, **factory)

        depths = (depth,) if isinstance(depth, int) else tuple(depth)
        self.horizon = horizon
        embedding: Any = (dim, num_marks, marks, dropout)
        self.embedding = SeriesEmbedding(inputs, *embedding, **factory)
        self.decoder_embedding = SeriesEmbedding(decoder_inputs or inputs, *embedding, **factory)
        self.encoders = nn.ModuleList(
            InformerEncoder([block(False) for _ in range(count)], dim, distil, **factory) for count in depths
        )
        self.decoder = nn.ModuleList(block(True) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(dim, **factory)
        self.output = nn.Linear(dim, outputs or inputs, **factory)

    def forward(
        self,
        past: Float[Tensor, "B N V"],
        past_marks: Float[Tensor, "B N F"],
        given: Float[Tensor, "B T W"],
        given_marks: Float[Tensor, "B T F"],
        *,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B P O"]:
        """The last ``horizon`` steps of the decoder.

        Args:
            past: what the encoder reads.
            given: what the decoder reads: known steps, then zeros where the forecast comes.
            past_marks, given_marks: the time marks of both.
            generator: draws the keys that queries sample; in training they are drawn anyway.

        Raises:
            ValueError: fewer steps for the decoder than the horizon, or marks that do not fit.
        """
        if given.shape[1] < self.horizon:
            raise ValueError(f"the decoder is given {given.shape[1]} steps, fewer than horizon={self.horizon}")
        x = self.embedding(past, past_marks)
        memory = torch.cat(
            [encoder(x[:, -(x.shape[1] >> i) :], generator=generator) for i, encoder in enumerate(self.encoders)], 1
        )
        y = self.decoder_embedding(given, given_marks)
        for layer in self.decoder:
            y = layer(y, memory, generator=generator)
        return self.output(self.norm(y[:, -self.horizon :]))

    def forecast(
        self,
        past: Float[Tensor, "B N V"],
        past_marks: Float[Tensor, "B N F"],
        future_marks: Float[Tensor, "B P F"],
        *,
        known: int,
    ) -> Float[Tensor, "B P O"]:
        """The future after ``past``; its last ``known`` steps also start the decoder, followed by zeros.

        Raises:
            ValueError: fewer steps in ``past`` than ``known``, or variables that the decoder does not read.
        """
        steps, variables = past.shape[1:]
        if not 0 <= known <= steps or variables != self.decoder_embedding.values.in_channels:
            raise ValueError(
                f"known={known} of {steps} steps of {variables} variables, but the decoder reads "
                f"{self.decoder_embedding.values.in_channels} variables, of {steps} steps at most"
            )
        given = torch.cat((past[:, steps - known :], past.new_zeros(len(past), self.horizon, variables)), 1)
        return self(past, past_marks, given, torch.cat((past_marks[:, steps - known :], future_marks), 1))
