"""Compressive Transformer: old states are squeezed into fewer slots instead of being thrown away.

Rae et al. 2019, arXiv:1911.05507; with no compressed slots it is Transformer-XL (Dai et al. 2019, arXiv:1901.02860).
The sequence is cut into segments of n_s tokens, counted from the first real one. A token sees the earlier ones of its
segment, the memory m of the n_m states before the segment, and the compressed memory cm of the n_cm slots before
that::

    kv = [cm; m; h]     score_ij = ((q_i + u) . k_j + (q_i + w) . W_r r_t) / sqrt(D)     out = W_o softmax(score) v

where t counts places in kv (a slot is one place) and r_t are sinusoids. At the end of a segment the n_s oldest states
of m become floor(n_s / c) slots at the end of cm, and h enters m (Algorithm 1). States are inputs of the layer.

Memories have no gradient. A compression f_c that learns has a loss of its own, which reaches nothing else (section
3.2): ``"reconstruction"``, the mean square of A(h, old) - A(h, f_c(old)), where A is the layer's attention without
positions and W_o (the paper writes a norm and no scale; public code takes the mean and 1/sqrt(D)), or
``"autoencoding"``, that of old - g(f_c(old)). With ``"bptt"`` nothing is stopped, and the output's loss trains f_c.
Empty places of a memory are masked, as in Transformer-XL; ``start="zeros"`` attends to zeros, as the paper writes.

Time O(N (n_s + n_m + n_cm) D) a head, the same for a long history as for a short one.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.layers import head_width
from regard.memory import check_memory
from regard.ops.compression import Compression, Function, groups, reconstruction_gap
from regard.ops.compressive_memory import CompressiveMemory
from regard.ops.masks import admit_one_sequence, check_tokens, hide
from regard.ops.relative_attention import distance_sinusoids, relative_attention, relative_weights
from regard.ops.rows import Rows
from regard.ops.segments import Segments
from regard.registry import Card, Layer, Sample, register

Objective = Literal["reconstruction", "autoencoding", "bptt"]


_STOPPED: dict[str, Any] = {"smooth": False}  # gradients end at memories: no slope of anything


@register(
    "compressive",
    samples=[
        Sample(dim=16, num_heads=2, segment_length=4, ratio=2, attn_drop=0.1, claims=_STOPPED),
        Sample(
            dim=12,
            num_heads=3,
            segment_length=2,
            memory_length=3,
            compressed_length=2,
            ratio=2,
            compression="dilated",
            objective="bptt",
            start="zeros",
        ),
        Sample(
            dim=12,
            num_heads=2,
            segment_length=5,
            ratio=2,
            compression="most_used",
            claims={**_STOPPED, "compile": False, "export": False, "onnx": False},
        ),
        Sample(dim=12, num_heads=2, head_dim=5, segment_length=3, compressed_length=0, claims=_STOPPED),
    ],
)
class Compressive(Layer):
    """Projections without biases around a segment and its memories; see the head of this file.

    ``layer(x)`` takes any number of tokens, starts with empty memories and works on all segments at once;
    ``layer.stream`` continues from a memory, so that training goes on where the last batch ended.

    Args:
        dim, num_heads: C and H.
        head_dim: D, the default is C / H.
        segment_length: n_s.
        memory_length: n_m; n_s by default.
        compressed_length: n_cm; n_m by default. 0 is Transformer-XL, which compresses nothing.
        ratio: c, how many states become one slot.
        compression: f_c, see :class:`regard.ops.compression.Compression`. "most_used" goes from segment to segment,
            because which states are kept depends on the weights of a segment.
        objective: what trains f_c, see the head of this file; None: "reconstruction" where f_c learns.
        loss_weight: of the loss in ``aux``.
        start: whether memories are "empty" at first, or full of "zeros".
        attn_drop, proj_drop: dropout on the weights and on the output.

    Raises:
        ValueError: sizes that do not fit, or an objective for an f_c that has nothing to learn.
        UnsupportedError: a context.
    """

    card = Card(
        title="Compressive Transformer",
        paper="arXiv:1911.05507",
        year=2019,
        family="memory",
        data="sequence",
        causal="strict",
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N (n_s + n_m + n_cm)",
        summary="A long past at bounded cost: recent states as they were, older ones squeezed; also Transformer-XL.",
        formula="softmax((q + u) . k + (q + w) . W_r r_t) v over [compressed; memory; segment]",
    )
    causal = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        segment_length: int = 512,
        memory_length: int | None = None,
        compressed_length: int | None = None,
        ratio: int = 4,
        compression: Function = "conv",
        objective: Objective | None = None,
        *,
        loss_weight: float = 1.0,
        start: Literal["empty", "zeros"] = "empty",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = head_width(dim, num_heads, head_dim)
        memory_length = segment_length if memory_length is None else memory_length
        compressed_length = memory_length if compressed_length is None else compressed_length
        lengths = f"segment_length={segment_length}, memory_length={memory_length}"
        if dim % 2:
            raise ValueError(f"dim={dim} is odd: distances are pairs of a sine and a cosine")
        if segment_length < 1 or memory_length < 0 or compressed_length < 0:
            raise ValueError(f"{lengths}, compressed_length={compressed_length}: a segment needs a token")
        if compressed_length and not ratio <= segment_length <= memory_length:
            raise ValueError(f"{lengths}, ratio={ratio}: they must not fall, ratio <= segment <= memory")
        if start not in ("empty", "zeros"):
            raise ValueError(f'start={start!r} is neither "empty" nor "zeros"')
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.num_heads, self.head_dim, self.start = dim, num_heads, head_dim, start
        self.segment_length, self.memory_length = segment_length, memory_length
        self.compressed_length, self.attn_drop = compressed_length, attn_drop
        self.q_proj, self.k_proj, self.v_proj, self.r_proj = (
            nn.Linear(dim, num_heads * head_dim, bias=False, **factory) for _ in range(4)
        )
        self.out_proj = nn.Linear(num_heads * head_dim, dim, bias=False, **factory)
        self.content_bias, self.position_bias = (
            nn.Parameter(torch.empty(num_heads, head_dim, **factory)) for _ in range(2)
        )
        self.compression = Compression(compression, dim, ratio, **factory) if compressed_length else None
        self.objective = self._objective(objective)
        decodes = self.objective == "autoencoding"
        self.decoder = nn.ConvTranspose1d(dim, dim, ratio, stride=ratio, **factory) if decodes else None
        self.loss_weight = loss_weight
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices and both biases from N(0, 0.02^2), as Transformer-XL; convolutions as torch starts them."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.r_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=0.02)
        for bias in (self.content_bias, self.position_bias):
            nn.init.normal_(bias, std=0.02)
        for part in (self.compression, self.decoder):
            if part is not None:
                part.reset_parameters()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """All segments of x, from memories in which nothing is kept.

        Args:
            x: (B, N, C).
            context: refused.
            key_mask: Bool (B, N), True for real tokens; the segments count only these.
            query_mask: Bool (B, N), True for real queries; each mask is the default for the other.
            segments: Int (B, N), one id a packed document, which then sees only itself.
            generator: draws the dropout.
            return_aux: also return the loss of the compression, over segments that are complete.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, dict of tensors).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context.
        """
        x, key_mask, query_mask = admit_one_sequence(
            "compressive", x, self.dim, context, key_mask, query_mask, segments
        )
        rows = Rows.of(x, key_mask, query_mask, segments)
        look = self._segment_by_segment if self._counts_usage else self._all_segments
        out, loss = look(rows.x, rows.real, generator, return_aux)
        y = hide(self._join(rows.back(out)), query_mask)
        return (y, self._told(loss)) if return_aux else y

    def memory(
        self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None
    ) -> CompressiveMemory:
        """The memory of ``batch`` sequences of which nothing has been seen; its size is bounded with or without static.

        Args:
            batch: B.
            device, dtype: the default is where and what the weights are.
            static: the longest sequence, which needs no room here.
        """
        weight = self.q_proj.weight
        place: dict[str, Any] = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        used = self.segment_length if self._counts_usage else 0
        lengths = (self.compressed_length, self.memory_length)
        return CompressiveMemory.start(batch, *lengths, self.dim, used=used, full=self.start == "zeros", **place)

    def stream(
        self,
        x: Tensor,
        memory: CompressiveMemory,
        *,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Any:
        """Continue with the next N tokens x (B, N, C): one, a whole segment, or a long prompt.

        Returns:
            y (B, N, C), as ``forward`` would give it at the end of all seen so far, and the new memory, which has no
            gradient; with ``return_aux`` also the dict of tensors, of the segments that were completed.
        """
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        out, memory, loss = self._continue(x, None, memory, generator, return_aux)
        y = self._join(out)
        return (y, memory, self._told(loss)) if return_aux else (y, memory)

    # all segments at once, or one after the other

    def _all_segments(
        self, x: Tensor, real: Tensor | None, generator: Generator | None, wants_loss: bool
    ) -> tuple[Tensor, Tensor]:
        """From memories in which nothing is kept: what goes into ``out_proj``, (B, N, H D), and the loss."""
        batch, length, _ = x.shape
        segments = self._segments(length)
        real = torch.ones(batch, length, dtype=torch.bool, device=x.device) if real is None else real
        fill = segments.number * segments.length - length
        h, real = F.pad(x, (0, 0, 0, fill)), F.pad(real, (0, fill))
        old = self._kept(h)
        slots, kept, loss = self._all_slots(h, old, real, segments, wants_loss)
        before, own = (t[:, None, :, None] for t in (self._reached(real, segments.memory), real))
        each = 1 if slots is None else slots.shape[1] // segments.number
        if slots is not None and kept is not None:
            slots = F.pad(slots, (0, 0, segments.slots, 0))
            kept = self._reached(kept, segments.slots)[:, None, :, None]
        sides: list[Tensor] = []
        for linear in (self.k_proj, self.v_proj):
            new = self._heads(linear(h))
            known = new if old is h else self._heads(linear(old))
            known = F.pad(known, (0, 0, segments.memory, 0))  # no bias: the keys and values of zeros are zeros
            past = None if slots is None else self._heads(linear(slots))
            sides.append(segments.surrounded(past, known, new, each))
        q = segments.cut(self._heads(self.q_proj(h)))
        content, position = q + self.content_bias[:, None], q + self.position_bias[:, None]
        r = self._heads(self.r_proj(distance_sinusoids(segments.span, self.dim, x))[None]).squeeze(0)
        seen = segments.surrounded(kept, before, own, each).flatten(1)
        options: dict[str, Any] = {"attn_drop": self.attn_drop * self.training, "generator": generator}
        out = relative_attention(
            content, sides[0], sides[1], position, r, scale=self.head_dim**-0.5, key_mask=seen, **options
        )
        return out.transpose(1, 2).reshape(batch, length + fill, -1)[:, :length], loss

    def _segments(self, length: int) -> Segments:
        """How so many tokens are cut."""
        n, m, c = self.segment_length, self.memory_length, self.compressed_length
        if torch.compiler.is_compiling():
            return Segments(length // n + 2, n, m, c)  # one graph for every length needs two segments at every length
        count = -(-length // n)
        if self.start == "zeros":
            return Segments(count, n, m, c)
        # without the places that nothing has reached yet
        return Segments(count, min(n, length), min(m, (count - 1) * n), c if (count - 1) * n > m else 0)

    def _all_slots(
        self, h: Tensor, old: Tensor, real: Tensor, segments: Segments, wants_loss: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """The slots that each segment adds, which of them are real, and the loss; None where no segment sees any."""
        count, n, _, c = segments
        if self.compression is None or not (c or (wants_loss and count * n > self.memory_length)):
            return None, None, h.new_zeros(2)
        blocks = F.pad(old, (0, 0, self.memory_length, 0))[:, : count * n].reshape(-1, n, self.dim)
        block_real = self._reached(real, self.memory_length)[:, : count * n].reshape(-1, n)
        slots, kept = self.compression(blocks, block_real)
        loss = h.new_zeros(2)
        if wants_loss:
            loss = self._loss(h.reshape(blocks.shape), real.view(-1, n), blocks, block_real, slots, kept)
        if not c:
            return None, None, loss
        return self._stopped(slots).reshape(len(h), -1, self.dim), kept.reshape(len(h), -1), loss

    def _segment_by_segment(
        self, x: Tensor, real: Tensor | None, generator: Generator | None, wants_loss: bool
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`_all_segments`."""
        out, _, loss = self._continue(x, real, self.memory(len(x), dtype=x.dtype), generator, wants_loss)
        return out, loss

    def _continue(
        self,
        x: Tensor,
        real: Tensor | None,
        memory: CompressiveMemory,
        generator: Generator | None = None,
        wants_loss: bool = False,
    ) -> tuple[Tensor, CompressiveMemory, Tensor]:
        """The next tokens, in pieces that end with a segment: (B, N, H D), the new memory, and the loss."""
        outs: list[Tensor] = []
        loss = x.new_zeros(2)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if real is None else real
        start = 0
        while start < x.shape[1]:
            stop = min(x.shape[1], start + self.segment_length - memory.segment.shape[1])
            piece, there = x[:, start:stop], real[:, start:stop]
            out, memory = self._grown(piece, there, memory, generator)
            outs.append(out)
            if memory.segment.shape[1] == self.segment_length:
                memory, more = self._closed(there, memory, wants_loss)
                loss = loss + more
            start = stop
        return torch.cat(outs, 1), memory, loss

    def _grown(
        self, x: Tensor, real: Tensor, memory: CompressiveMemory, generator: Generator | None
    ) -> tuple[Tensor, CompressiveMemory]:
        """Tokens within the running segment: (B, N, H D), and the memory with them."""
        states, seen = memory.states(x), memory.seen(real)
        q, r = self._heads(self.q_proj(x)), distance_sinusoids(states.shape[1], self.dim, x)
        content, position = q + self.content_bias[:, None], q + self.position_bias[:, None]
        options: dict[str, Any] = {"scale": self.head_dim**-0.5, "key_mask": seen}
        if x.shape[1] < self.head_dim:
            # a few queries meet states and sinusoids themselves: cheaper than to project all of these
            w_k, w_v, w_r = (
                p.weight.unflatten(0, (-1, self.head_dim)) for p in (self.k_proj, self.v_proj, self.r_proj)
            )
            content, position, k, v, r = content @ w_k, position @ w_r, states[:, None], states[:, None], r[None]
        else:
            w_v, (k, v) = None, (self._heads(p(states)) for p in (self.k_proj, self.v_proj))
            r = self._heads(self.r_proj(r)[None]).squeeze(0)
        drop = self.attn_drop * self.training
        out = relative_attention(content, k, v, position, r, **options, attn_drop=drop, generator=generator)
        out = out if w_v is None else out @ w_v.mT
        usage = memory.usage
        if self._counts_usage:
            with torch.no_grad():
                weights, blind = relative_weights(content, k, position, r, **options)
                weights = weights.masked_fill(blind | ~real[:, None, :, None], 0.0)
                oldest = slice(self.compressed_length, self.compressed_length + self.segment_length)
                usage = usage + weights[..., oldest].sum((1, 2))
        segment = torch.cat((memory.segment, self._kept(x)), 1)
        return out.transpose(1, 2).flatten(2), memory._replace(segment=segment, usage=usage)

    def _closed(self, real: Tensor, memory: CompressiveMemory, wants_loss: bool) -> tuple[CompressiveMemory, Tensor]:
        """The running segment enters the memory, and what makes room is squeezed; ``real`` of its last piece."""
        h, loss = memory.segment, memory.segment.new_zeros(2)
        real = F.pad(real, (h.shape[1] - real.shape[1], 0), value=True)
        slots, found = h[:, :0], real[:, :0]
        if self.compression is not None:
            old, old_real = memory.oldest(h.shape[1])
            old = self._kept(old)
            slots, found = self.compression(old, old_real, memory.usage if self._counts_usage else None)
            if wants_loss:
                loss = self._loss(h, real, old, old_real, slots, found)
        return memory.closed(real, self._kept(slots), found), loss

    def _loss(self, h: Tensor, real: Tensor, old: Tensor, old_real: Tensor, slots: Tensor, slot_real: Tensor) -> Tensor:
        """The sum of the objective over the tokens of complete segments, and how many tokens that are."""
        asks, old = real & real.all(-1, keepdim=True), old.detach()
        if self.decoder is not None:
            told = groups(old, self.decoder.stride[0]).flatten(1, 2)
            gap = (self.decoder(slots.mT).mT - told).square().mean(-1)
            asks = asks[:, : told.shape[1]] & old_real[:, : told.shape[1]]
        elif self.objective == "reconstruction":
            projections = (self.k_proj, self.v_proj)
            with torch.no_grad():
                q = self._heads(self.q_proj(h))
                k, v = (self._heads(linear(old)) for linear in projections)
            new_k, new_v = (self._heads(F.linear(slots, linear.weight.detach())) for linear in projections)
            gap = reconstruction_gap(q, (k, v), (new_k, new_v), old_real, slot_real)
            asks = asks & old_real.any(-1, keepdim=True)
        else:
            return slots.new_zeros(2)
        return torch.stack((gap.masked_fill(~asks, 0.0).sum(), asks.sum().to(gap.dtype)))

    def _told(self, loss: Tensor) -> dict[str, Tensor]:
        if self.objective not in ("reconstruction", "autoencoding"):
            return {}
        return {f"loss/{self.objective}": self.loss_weight * loss[0] / loss[1].clamp(min=1)}

    def _objective(self, asked: Objective | None) -> Objective | None:
        learns = self.compression is not None and self.compression.conv is not None
        if asked not in (None, *get_args(Objective)):
            raise ValueError(f"objective={asked!r} is none of {', '.join(map(repr, get_args(Objective)))}")
        if asked in ("reconstruction", "autoencoding") and not learns:
            raise ValueError(f"objective={asked!r}, but there is no compression that learns: leave it out")
        return "reconstruction" if asked is None and learns else asked

    @property
    def _counts_usage(self) -> bool:
        return self.compression is not None and self.compression.function == "most_used"

    def _kept(self, states: Tensor) -> Tensor:
        """What enters a memory."""
        return states if self.objective == "bptt" or not states.requires_grad else states.detach()

    def _stopped(self, slots: Tensor) -> Tensor:
        """Slots for the segments after them: nothing of the output's gradient reaches f_c, but it gets a 0.

        With no gradient at all, distributed training would wait for it in steps that leave out the loss.
        """
        return slots if self.objective == "bptt" or not slots.requires_grad else slots.detach() + 0.0 * slots

    def _reached(self, real: Tensor, count: int) -> Tensor:
        """A mask behind so many places from the time before the first token."""
        return F.pad(real, (count, 0), value=self.start == "zeros")

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out))

    def extra_repr(self) -> str:
        lengths = f"{self.segment_length} + {self.memory_length} + {self.compressed_length}"
        return f"dim={self.dim}, num_heads={self.num_heads}, segment + memory + compressed: {lengths}"
