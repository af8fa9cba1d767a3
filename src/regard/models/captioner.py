"""The network of "Show, Attend and Tell": annotations of an image in, a caption out, one word after the other.

Xu et al. 2015, arXiv:1502.03044, section 3.1. With the attention of :mod:`regard.mechanisms.pairs.show_attend_tell`::

    h_0 = tanh(W mean(a) + b), c_0 = tanh(W' mean(a) + b')      behind ``init_layers`` - 1 layers with ReLU
    z_t = attention(h_{t-1}, a)
    i, f, o, g = W E y_{t-1} + U h_{t-1} + W_z z_t + b,  E y_0 = 0
    c_t = sig(f) c_{t-1} + sig(i) tanh(g),  h_t = sig(o) tanh(c_t)
    logits_t = W_o tanh(L_h h_t + E y_{t-1} + L_z z_t)          the last two with ``previous_out`` and ``context_out``

A padded word leaves h and c as they are. Dropout is the authors', not today's: a kept number stays as it is in
training, and in evaluation all shrink to the share that is kept, so weights trained with it need it in evaluation too.
Time O(T L D) a caption, step by step; what the annotations give to the scores is computed once. What there is to
minimise: :mod:`regard.models.caption_losses`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.mechanisms.pairs.show_attend_tell import Looking, draw_matrix_
from regard.models.attentive_lstm import AttentiveLSTM, Seen, scaled_drop
from regard.ops.masks import check_mask, check_tokens, hide
from regard.registry import UnsupportedError


class CaptionMemory(NamedTuple):
    """What a captioner carries from word to word: the image, and h and c of each layer."""

    seen: Seen
    state: tuple[Tensor, ...]
    cell: tuple[Tensor, ...]


class Run(NamedTuple):
    """A pass over captions: the logits (B, T, V), and of the last layer log alpha and what z was summed with."""

    logits: Float[Tensor, "B T V"]
    log_weights: Float[Tensor, "B T L"]
    chosen: Float[Tensor, "B T L"]


class Captioner(nn.Module):
    """Captions of images; see the head of this file.

    Args:
        vocab_size: V; the authors end a caption with word 0.
        dim, embedding_dim, context_dim: n of the state, of E y, and D of the annotations.
        attention: "soft" or "hard".
        num_layers: of the decoder; those above the first read the states below them.
        attention_layers, init_layers, output_layers: of the networks behind annotations, start and logits.
        encoder: an LSTM in both directions over the annotations first, which makes them 2 n wide.
        selector, temperature, sampling, argmax: of the attention.
        previous_out, context_out: what the logits also see.
        dropout: how many numbers are 0 on the last state, before the logits and between the layers of the start.
        gate_dropout: a half of the inputs of the gates i, f and o too.

    Raises:
        ValueError: sizes that are not positive, or options that the attention refuses.

    Example:
        >>> model = Captioner(17, dim=12, embedding_dim=8, context_dim=10)
        >>> model(torch.randint(17, (2, 6)), torch.randn(2, 9, 10)).shape
        torch.Size([2, 6, 17])
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int = 1800,
        embedding_dim: int = 512,
        context_dim: int = 512,
        attention: Looking = "soft",
        num_layers: int = 1,
        attention_layers: int = 2,
        init_layers: int = 2,
        output_layers: int = 1,
        encoder: bool = False,
        selector: bool = True,
        temperature: float = 1.0,
        sampling: float = 0.5,
        argmax: bool = False,
        previous_out: bool = True,
        context_out: bool = True,
        dropout: float = 0.0,
        gate_dropout: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "dim": dim, "embedding_dim": embedding_dim, "context_dim": context_dim}
        sizes |= {"num_layers": num_layers, "attention_layers": attention_layers}
        sizes |= {"init_layers": init_layers, "output_layers": output_layers}
        if wrong := [f"{name}={size}" for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{', '.join(wrong)}: at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is no share below 1")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.context_dim, self.attention, self.dropout = dim, context_dim, attention, dropout
        self.previous_out = previous_out
        looking: dict[str, Any] = {"attention": attention, "num_layers": attention_layers, "selector": selector}
        looking |= {"temperature": temperature, "sampling": sampling, "argmax": argmax, "gate_dropout": gate_dropout}
        width = 2 * dim if encoder else context_dim
        self.encoder = nn.LSTM(context_dim, dim, bidirectional=True, batch_first=True, **factory) if encoder else None
        self.embedding = nn.Embedding(vocab_size, embedding_dim, **factory)
        self.start = nn.ModuleList(nn.Linear(width, width, **factory) for _ in range(init_layers - 1))
        self.decoder = nn.ModuleList(
            AttentiveLSTM(dim if number else embedding_dim, dim, width, **looking, **factory)
            for number in range(num_layers)
        )
        self.state_out = nn.Linear(dim, embedding_dim, **factory)
        self.context_out = nn.Linear(width, embedding_dim, **factory) if context_out else None
        self.hidden = nn.ModuleList(
            nn.Linear(embedding_dim, embedding_dim, **factory) for _ in range(output_layers - 1)
        )
        self.output = nn.Linear(embedding_dim, vocab_size, **factory)
        self.register_buffer("baseline", torch.zeros((), **factory))  # of REINFORCE: what a choice is expected to cost
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Square matrices orthogonal, others N(0, 0.01^2), biases 0."""
        draw_matrix_(self.embedding.weight)
        for part in (*self.start, self.state_out, self.context_out, *self.hidden, self.output):
            if isinstance(part, nn.Linear):
                draw_matrix_(part.weight)
                nn.init.zeros_(part.bias)
        for layer in self.decoder:
            assert isinstance(layer, AttentiveLSTM)
            layer.reset_parameters()
        if self.encoder is not None:
            for name, parameter in self.encoder.named_parameters():
                _ = (
                    [draw_matrix_(gate) for gate in parameter.chunk(4)]
                    if "weight" in name
                    else nn.init.zeros_(parameter)
                )
        nn.init.zeros_(self.get_buffer("baseline"))

    def forward(
        self,
        words: Int[Tensor, "B T"],
        annotations: Float[Tensor, "B L D"],
        *,
        word_mask: Bool[Tensor, "B T"] | None = None,
        location_mask: Bool[Tensor, "B L"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of each word, from the words before it.

        Args:
            words: captions, with the word that ends them.
            annotations: of the places of each image.
            word_mask: True for real words.
            location_mask: True for real places.
            generator: the source of dropout and of hard attention.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a mask of places where an LSTM reads all annotations.
        """
        return self.run(
            words, annotations, word_mask=word_mask, location_mask=location_mask, generator=generator
        ).logits

    def run(
        self,
        words: Int[Tensor, "B T"],
        annotations: Float[Tensor, "B L D"],
        *,
        word_mask: Bool[Tensor, "B T"] | None = None,
        location_mask: Bool[Tensor, "B L"] | None = None,
        samples: Float[Tensor, "B T L"] | None = None,
        sampled: Bool[Tensor, ""] | None = None,
        generator: Generator | None = None,
    ) -> Run:
        """As :meth:`forward`, with all that losses need.

        Args:
            words, annotations, word_mask, location_mask, generator: as in ``forward``.
            samples: one-hot places for each step of hard attention, instead of its own draws; of a single layer.
            sampled: whether they are taken; the default is one draw for the whole pass.
        """
        if words.ndim != 2 or words.shape[0] != annotations.shape[0] or not words.shape[1]:
            raise ValueError(f"words {tuple(words.shape)} are no captions of {len(annotations)} images: (batch, words)")
        check_mask(word_mask, *words.shape, name="word_mask")
        if samples is not None and len(self.decoder) > 1:
            raise UnsupportedError(f"samples are those of one layer, and this decoder has {len(self.decoder)}")
        seen, state, cell = self.begin(annotations, location_mask, generator)
        earlier = F.pad(self._embed(words, word_mask), (0, 0, 1, -1))  # a word is told from those before it
        rows: list[Tensor] = [earlier]
        for number, layer in enumerate(self.decoder):
            assert isinstance(layer, AttentiveLSTM)
            if self.attention == "hard" and self.training and sampled is None:
                sampled = layer.attention.draw(annotations, generator)
            enter, h, c = layer.from_below(rows[0]), state[number], cell[number]
            steps: list[tuple[Tensor, ...]] = []
            for t in range(words.shape[1]):  # a true recurrence: each look depends on the state before
                drawn = None if samples is None else samples[:, t : t + 1]
                options: dict[str, Any] = {"samples": drawn, "sampled": sampled, "generator": generator}
                new_h, new_c, *rest = layer.step(enter[:, t], h, c, seen, number, **options)
                real = None if word_mask is None else word_mask[:, t : t + 1]
                h, c = (new_h, new_c) if real is None else (torch.where(real, new_h, h), torch.where(real, new_c, c))
                steps.append((h, *rest))
            rows = [torch.stack(parts, 1) for parts in zip(*steps, strict=True)]
        h, z, log_weights, chosen = rows
        return Run(self._read_out(h, earlier, z, generator), log_weights, chosen)

    def begin(
        self,
        src: Float[Tensor, "B L D"],
        src_mask: Bool[Tensor, "B L"] | None = None,
        generator: Generator | None = None,
    ) -> CaptionMemory:
        """Look at images: the memory before the first word; arguments as ``annotations`` and ``location_mask``."""
        check_tokens(src, self.context_dim, "annotations")
        check_mask(src_mask, *src.shape[:2], name="location_mask")
        if src_mask is not None and self.encoder is not None:
            raise UnsupportedError("location_mask cannot be: with encoder=True an LSTM reads the annotations as a row")
        annotations = hide(src, src_mask)
        if self.encoder is not None:
            annotations = self.encoder(annotations)[0]
        mask = torch.ones(src.shape[:2], dtype=torch.bool, device=src.device) if src_mask is None else src_mask
        mean = annotations.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        for layer in self.start:
            mean = scaled_drop(F.relu(layer(mean)), self.dropout, self.training, generator)
        layers = [layer for layer in self.decoder if isinstance(layer, AttentiveLSTM)]
        seen = Seen(annotations, mask, tuple(layer.attention.keys(annotations) for layer in layers))
        states = tuple(layer.start_state(mean).tanh() for layer in layers)
        return CaptionMemory(seen, states, tuple(layer.start_cell(mean).tanh() for layer in layers))

    def step(
        self, tokens: Int[Tensor, " B"], memory: CaptionMemory, generator: Generator | None = None
    ) -> tuple[Float[Tensor, "B V"], CaptionMemory]:
        """Logits of the word after these, and the grown memory; a word below 0 is none: the first step's."""
        below = earlier = self._embed(tokens)
        z, states, cells = below, list[Tensor](), list[Tensor]()
        for number, layer in enumerate(self.decoder):
            assert isinstance(layer, AttentiveLSTM)
            h, c = memory.state[number], memory.cell[number]
            below, c, z, _, _ = layer.step(layer.from_below(below), h, c, memory.seen, number, generator=generator)
            states.append(below)
            cells.append(c)
        logits = self._read_out(below, earlier, z, generator)
        return logits, CaptionMemory(memory.seen, tuple(states), tuple(cells))

    @torch.no_grad()
    def caption(
        self,
        annotations: Float[Tensor, "B L D"],
        *,
        location_mask: Bool[Tensor, "B L"] | None = None,
        end: int = 0,
        max_length: int = 30,
        temperature: float = 0.0,
        generator: Generator | None = None,
    ) -> Int[Tensor, "B T"]:
        """Captions up to the word ``end``, which fills the rest: each word the likeliest, or drawn.

        Args:
            annotations, location_mask: as in ``forward``.
            end: the word that ends a caption.
            max_length: the most words.
            temperature: 0 takes the likeliest word; others are drawn from softmax(logits / temperature).
            generator: draws them, and places of hard attention in training mode.

        Example:
            >>> model = Captioner(9, dim=6, embedding_dim=4, context_dim=5).eval()
            >>> model.caption(torch.randn(2, 4, 5), max_length=7).shape[0]
            2
        """
        if max_length < 1 or temperature < 0:
            raise ValueError(f"max_length={max_length}, temperature={temperature}: at least 1 word, and no less than 0")
        memory = self.begin(annotations, location_mask, generator)
        words = [torch.full(annotations.shape[:1], -1, device=annotations.device)]
        ended = torch.zeros(annotations.shape[:1], dtype=torch.bool, device=annotations.device)
        while len(words) <= max_length and not ended.all():
            logits, memory = self.step(words[-1], memory, generator)
            if temperature:
                chances = (logits.float() / temperature).softmax(-1)
                word = torch.multinomial(chances, 1, generator=generator)[:, 0]
            else:
                word = logits.argmax(-1)
            words.append(word.masked_fill(ended, end))
            ended = ended | (words[-1] == end)
        return torch.stack(words[1:], 1)

    def _embed(self, words: Int[Tensor, "*B"], mask: Bool[Tensor, "*B"] | None = None) -> Float[Tensor, "*B E"]:
        """E y; 0 for what is no word."""
        real = words >= 0 if mask is None else mask & (words >= 0)
        return hide(self.embedding(words.clamp(min=0)), real)

    def _read_out(self, h: Tensor, earlier: Tensor, z: Tensor, generator: Generator | None) -> Tensor:
        out = self.state_out(scaled_drop(h, self.dropout, self.training, generator))
        out = out + earlier if self.previous_out else out
        out = out if self.context_out is None else out + self.context_out(z)
        out = scaled_drop(out.tanh(), self.dropout, self.training, generator)
        for layer in self.hidden:
            out = scaled_drop(F.relu(layer(out)), self.dropout, self.training, generator)
        return self.output(out)
