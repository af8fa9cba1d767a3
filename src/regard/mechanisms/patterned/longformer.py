"""Longformer: a sliding window for every token, and a few global tokens that see all and are seen by all.

Beltagy et al. 2020, arXiv:2004.05150, section 3. With one-sided window w, dilation d and the set G of global tokens,
token i outside G sees the keys {i + d o : |o| <= w} and G in one softmax, by the projections q, k, v; a token of G sees
every token by three projections of its own. Causal (the paper's language model): o <= 0, and no global tokens. Scale
1/sqrt(D). Padded keys are left out; the authors add -10000 to their scores, the Hugging Face port the lowest float.

``attention_window`` is 2 w in the port and w in the authors' code. Their modules end before the output projection, ours
does with ``project_out=False``. Time and memory O(N (w + |G|) D) a head; with ``global_mask`` all tokens pass through
all six projections, with ``num_global`` alone only the global ones ask.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard.attention import attend, merge
from regard.memory import RollingWindow, check_memory
from regard.ops.masks import admit_one_sequence, check_mask, check_tokens, check_values, hide, hide_rows
from regard.ops.packing import Documents
from regard.patterns import Causal, Dilated, Global, Pattern, PerHead, Window
from regard.patterns.algebra import Not
from regard.registry import Card, Layer, Sample, UnsupportedError, register


def longformer_pattern(window: int, dilation: Sequence[int] = (1,), causal: bool = False) -> Pattern:
    """The window of every head: one dilation for all heads, or one for each.

    Example:
        >>> longformer_pattern(1, [2], causal=True).dense(4)[3].int().tolist()
        [0, 1, 0, 1]
    """
    heads = [_dilated(window, step, causal) for step in dilation]
    return heads[0] if len(set(dilation)) == 1 else PerHead(*heads)


def _dilated(window: int, step: int, causal: bool) -> Pattern:
    if step == 1:
        return Window(window, 0 if causal else window)
    return Causal() & Dilated(window, step) if causal else Dilated(window, step)


@register(
    "longformer",
    samples=[
        Sample(dim=12, num_heads=3, window=2),
        Sample(dim=12, num_heads=2, window=2, num_global=2, dilation=2, attn_drop=0.1),
        Sample(dim=12, num_heads=3, window=2, dilation=(1, 2, 3), causal=True),
    ],
)
class Longformer(Layer):
    """A layer with six projections, or three if causal; see the head of this file.

    Args:
        dim, num_heads: C and H.
        window: w, keys to each side.
        dilation: d, one number or one for each head.
        num_global: the first so many real tokens are global; by default 1 (the paper's [CLS]), none if causal.
        causal: no token sees a later one.
        qkv_bias: biases on the six projections.
        project_out: end with an output projection.
        attn_drop, proj_drop: dropout on the weights and on the output.

    Raises:
        ValueError: sizes that do not fit.
        UnsupportedError: ``causal`` with global tokens, a context, or streaming without ``causal``.
    """

    card = Card(
        title="Longformer",
        paper="arXiv:2004.05150",
        year=2020,
        family="patterned",
        data="sequence",
        causal="strict",
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        cost="N w",
        summary="A sliding window plus global tokens: the drop-in for BERT-like encoders on long documents.",
        formula="softmax over |i - j| <= w and global j of q k^T / sqrt(D); global i: over all j",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int = 256,
        dilation: int | Sequence[int] = 1,
        num_global: int | None = None,
        causal: bool = False,
        *,
        qkv_bias: bool = True,
        project_out: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dilations = (dilation,) if isinstance(dilation, int) else tuple(dilation)
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not divisible by num_heads={num_heads}")
        if len(dilations) not in (1, num_heads):
            raise ValueError(f"{len(dilations)} dilations for {num_heads} heads: pass one, or one for each")
        if causal and num_global:
            raise UnsupportedError(f"longformer cannot be causal with num_global={num_global}: they see the future")
        self.dim, self.num_heads, self.causal = dim, num_heads, causal
        self.window, self.reach = window, window * max(dilations)
        self.num_global = int(not causal) if num_global is None else num_global
        self.attn_drop, self.pattern = attn_drop, longformer_pattern(window, dilations, causal)
        options: dict[str, Any] = {"bias": qkv_bias, "device": device, "dtype": dtype}
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, **options) for _ in range(3))
        if not causal:
            self.q_global, self.k_global, self.v_global = (nn.Linear(dim, dim, **options) for _ in range(3))
        self.out_proj = nn.Linear(dim, dim, device=device, dtype=dtype) if project_out else nn.Identity()
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in BERT: matrices N(0, 0.02^2), biases 0."""
        for parameter in self.parameters():
            _ = nn.init.normal_(parameter, std=0.02) if parameter.ndim == 2 else nn.init.zeros_(parameter)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        global_mask: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Any:
        """Attend within x.

        Args:
            x: (B, N, C).
            context: refused; it stands here as in every layer.
            key_mask, query_mask: Bool (B, N), True for real tokens; one serves as both.
            segments: Int (B, N), one id a packed document, which then has its own window and its own first tokens.
            global_mask: Bool (B, N), True for global tokens, besides the first ``num_global``; their number may
                differ by row.
            generator: draws the dropout.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context, or global tokens in a causal layer.
        """
        x, key_mask, query_mask = self._admit(x, context, key_mask, query_mask, segments, global_mask)
        y = hide(self._join(self._look(x, None, key_mask, global_mask, segments, generator)), query_mask)
        return (y, {}) if return_aux else y

    def weigh(
        self,
        x: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        global_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """What the weights of all tokens make of other values, in place of both value projections.

        Args:
            x, context, key_mask, query_mask, segments, global_mask, generator: as in ``forward``.
            values: (B or 1, H or 1, N, Dv), one for each token.

        Returns:
            (B, H, N, Dv), 0 for masked queries.

        Raises:
            ValueError, TypeError, UnsupportedError: as in ``forward``.
        """
        x, key_mask, query_mask = self._admit(x, context, key_mask, query_mask, segments, global_mask)
        check_values(values, len(x), self.num_heads, x.shape[1])
        values = values.expand(len(x), self.num_heads, -1, -1)
        out = self._look(x, values, key_mask, global_mask, segments, generator)
        return hide_rows(out, query_mask)

    def memory(self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None) -> RollingWindow:
        """The keys and values in reach of the next token; their number is constant, so ``static`` reserves nothing."""
        if not self.causal:
            raise UnsupportedError("longformer streams only with causal=True: here tokens see later ones")
        width, weight = self.dim // self.num_heads, self.q_proj.weight
        place = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        return RollingWindow.start(batch, self.num_heads, self.reach, width, width, **place)

    def stream(self, x: Tensor, memory: RollingWindow) -> tuple[Tensor, RollingWindow]:
        """Continue with one token or many: -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        q, k, v = self._project(x, x, *self._local)
        keys, values, real, rolled = memory.append(k, v)
        return self._join(attend(q, keys.to(q.dtype), values.to(q.dtype), self.pattern, **self._options(real))), rolled

    def _admit(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
        global_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x with padding set to 0 and the masks of keys and of queries; what does not fit is refused."""
        admitted = admit_one_sequence("longformer", x, self.dim, context, key_mask, query_mask, segments)
        check_mask(global_mask, *x.shape[:2], name="global_mask")
        if global_mask is not None and self.causal:
            raise UnsupportedError("a causal longformer takes no global_mask: a global token would see the future")
        return admitted

    def _look(
        self,
        x: Tensor,
        values: Tensor | None,
        key_mask: Tensor | None,
        global_mask: Tensor | None,
        segments: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """What all tokens see (B, H, N, D), each in its document: the given values or, without, projected ones."""
        if segments is None:
            return self._attend(x, values, key_mask, global_mask, generator)
        documents = Documents.of(segments)
        x, values = documents.unpack(x[:, None]).squeeze(1), None if values is None else documents.unpack(values)
        marks = None if global_mask is None else documents.mask(global_mask)
        return documents.pack(self._attend(x, values, documents.mask(key_mask), marks, generator))

    def _attend(
        self,
        x: Tensor,
        values: Tensor | None,
        key_mask: Tensor | None,
        global_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """What all tokens see (B, H, N, D), the rows of global tokens by their own projections."""
        options = self._options(key_mask, generator)
        q, k, v = self._project(x, x, *self._local, values=values)
        if global_mask is None and not self.num_global:
            out = self._look_around(q, k, v, self.pattern, **options)
            # unused projections stay in the graph: distributed training wants a gradient of each, here zero
            return out + 0.0 * sum(weight.sum() for linear in self._global for weight in linear.parameters())
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if key_mask is None else key_mask
        first = real & (real.cumsum(-1) <= self.num_global)
        if global_mask is not None:
            marks = first | (real & global_mask)
            out = self._look_around(q, k, v, self.pattern | Global(marks), **options)
            q, k, v = self._project(x, x, *self._global, values=values)
            seen = attend(q, k, v, Global(marks), **options)
            return torch.where(marks[:, None, :, None], seen, out)
        rows = first.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[:, : self.num_global]
        out = self._look_at_few(q, k, v, first, rows, **options)
        asking = x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
        seen = self._ask_all(asking, x, values, **options).to(out.dtype)  # autocast may have parted them
        return out.scatter(2, rows[:, None, :, None].expand_as(seen), seen)

    def _look_at_few(
        self, q: Tensor, k: Tensor, v: Tensor, first: Tensor, rows: Tensor, *, key_mask: Tensor | None, **options: Any
    ) -> Tensor:
        """The window without the few global tokens, and these by themselves, joined; the rows of the few are idle."""
        marks = self.num_global if key_mask is None else first
        near = attend(q, k, v, self.pattern & Not(Global(marks)), key_mask=key_mask, **options, return_lse=True)
        k, v = (t.gather(2, rows[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[-1])) for t in (k, v))
        real = None if key_mask is None else first.gather(1, rows)
        far = attend(q, k, v, key_mask=real, **options, return_lse=True)
        return merge(*zip(near, far, strict=True))[0]

    def _ask_all(self, asking: Tensor, x: Tensor, values: Tensor | None, **options: Any) -> Tensor:
        """What few global tokens see (B, H, g, D): those that ask and all others meet by projections of their own.

        All others need not be projected: q (W x_j + b) = (q W) x_j + q b, whose last term is the same for every j, and
        sum_j p_j (W x_j + b) = W sum_j p_j x_j + b. So the tokens themselves are keys and values, shared by all heads.
        """
        many = asking.shape[1] * self.num_heads >= self.dim
        if many or values is not None or options["dropout_p"]:
            q, k, v = self._project(asking, x, *self._global, values=values)
            return attend(q, k, v, **options)
        to_key, to_value = (linear.weight.unflatten(0, (self.num_heads, -1)) for linear in self._global[1:])
        q = self.q_global(asking).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scale, tokens = q.shape[-1] ** -0.5, x[:, None]
        mixed, lse = attend(q @ to_key, tokens, tokens, scale=scale, enable_gqa=True, return_lse=True, **options)
        seen = mixed @ to_value.mT
        if self.v_global.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            shift = self.v_global.bias + 0.0 * self.k_global.bias  # the gradient of the latter is zero, and is there
            shift = shift.unflatten(0, (self.num_heads, 1, -1))
            seen = seen + torch.where(lse[..., None] == -torch.inf, 0.0, shift)
        return seen

    def _look_around(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **options: Any) -> Tensor:
        return attend(q, k, v, pattern, **options)

    def _options(self, key_mask: Tensor | None, generator: Generator | None = None) -> dict[str, Any]:
        return {"key_mask": key_mask, "dropout_p": self.attn_drop * self.training, "generator": generator}

    @property
    def _local(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj

    @property
    def _global(self) -> tuple[nn.Linear, ...]:
        return () if self.causal else (self.q_global, self.k_global, self.v_global)

    def _project(
        self, asking: Tensor, asked: Tensor, *linears: nn.Linear, values: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values (B, H, N, D); given values instead of projected ones."""
        pairs = zip(linears, (asking, asked, asked), strict=True)
        q, k, v = (linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for linear, x in pairs)
        return q, k, v if values is None else values.to(v.dtype)

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, {self.pattern!r}, num_global={self.num_global}"
