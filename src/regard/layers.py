"""Projections around a core: what makes of attention between q, k and v a layer on sequences."""

import inspect
from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard.memory import LayerMemory, check_memory
from regard.ops.masks import (
    check_mask,
    check_segments,
    check_tokens,
    check_values,
    from_key_padding_mask,
    hide,
    hide_rows,
    positions,
)
from regard.ops.packing import Documents
from regard.ops.rotary import Rotary
from regard.registry import Core, Layer, UnsupportedError

__all__ = ["MultiHead", "from_key_padding_mask", "head_width"]


class MultiHead(Layer):
    """out_proj(concat_h core(q_proj x, k_proj c, v_proj c)): any core between four projections.

    Head h owns the features h D .. (h + 1) D - 1 of each projection. Weights start Xavier-uniform, biases at 0 (Vaswani
    et al. 2017, arXiv:1706.03762, section 3.2.2; torch.nn.MultiheadAttention draws q, k, v as one matrix instead).

    Args:
        dim: C, the width of input and output.
        num_heads: H.
        core: what happens between the projections.
        num_kv_heads: G, fewer key and value heads, each shared by H / G query heads; repeated for cores that want H.
        head_dim: D, the default is C / H.
        qkv_bias: biases on the projections of queries, keys and values; the output always has one.
        qk_norm: root-mean-square norm of each query and key (Henry et al. 2020, arXiv:2010.04245, as in Qwen 3).
        rotary: the base of rotary positions, or a module ``(x (B, H, N, D), positions (B or 1, N)) -> x``.
        attn_drop: dropout on the weights: sets ``core.attn_drop``.
        proj_drop: dropout on the output.
        device, dtype: of the parameters around the core.

    Raises:
        ValueError: sizes that do not divide.
        UnsupportedError: ``attn_drop`` for a core that has no weights to drop.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        core: Core,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        rotary: float | nn.Module | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = head_width(dim, num_heads, head_dim)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_heads={num_heads} is no multiple of num_kv_heads={num_kv_heads}")
        if isinstance(rotary, (int, float)):
            if head_dim % 2:
                raise ValueError(f"rotary positions turn pairs of features, but head_dim={head_dim} is odd")
            rotary = Rotary(rotary)
        self.card, self.mechanism = core.card, core.mechanism
        self.dim, self.num_heads, self.num_kv_heads, self.head_dim = dim, num_heads, num_kv_heads, head_dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=qkv_bias, **factory)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=qkv_bias, **factory)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=qkv_bias, **factory)
        self.out_proj = nn.Linear(num_heads * head_dim, dim, **factory)
        self.q_norm = nn.RMSNorm(head_dim, eps=1e-6, **factory) if qk_norm else None
        self.k_norm = nn.RMSNorm(head_dim, eps=1e-6, **factory) if qk_norm else None
        self.rotary = rotary
        self.core = core
        self.proj_drop = nn.Dropout(proj_drop)
        if attn_drop:
            if not hasattr(core, "attn_drop"):
                reason = core.card.refuses.get("attn_drop", "it has no dropout on its weights")
                raise UnsupportedError(f"{self._name} cannot honour attn_drop={attn_drop}: {reason}")
            core.attn_drop = attn_drop
        self._core_has_aux = "return_aux" in inspect.signature(core.forward).parameters
        self._reset_projections()  # not the core, which may be shared or trained already

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices and biases 0; norms start as the identity, the core as its paper says."""
        self._reset_projections()
        for part in (self.q_norm, self.k_norm, self.core):
            if reset := getattr(part, "reset_parameters", None):
                reset()

    def _reset_projections(self) -> None:
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            for parameter in linear.parameters():
                _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)

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
        """Attend from x to itself, or to a context.

        Args:
            x: what asks, (B, N, C).
            context: what is asked, (B, M, C), where it is another sequence.
            key_mask: Bool (B, M), True for real tokens of what is asked; in self-attention also for those that ask.
            query_mask: Bool (B, N), True for real tokens of x; in self-attention also the default for ``key_mask``.
            segments: Int (B, N), one id a packed document, which then sees only itself.
            generator: the source of everything random in the core.
            return_aux: also return what the core has to tell.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, dict of tensors).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context or an option that this core cannot have.
        """
        q, k, v, key_mask, query_mask = self._enter(x, context, key_mask, query_mask, segments)
        out, aux = self._attend(q, k, v, key_mask, query_mask, segments, generator)
        y = hide(self._join(out), query_mask)
        return (y, aux) if return_aux else y

    def weigh(
        self,
        x: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """What the attention of x makes of other values: A v, before the output projection.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H or 1, M, Dv), one for each token that is asked.

        Returns:
            (B, H, N, Dv), 0 for masked queries.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: what ``forward`` refuses, or a core whose output is no weighted sum of its values.
        """
        if not self.core.weighs_values:
            raise UnsupportedError(f"{self._name} has no weights: its output is no weighted sum of its values")
        q, k, v, key_mask, query_mask = self._enter(x, context, key_mask, query_mask, segments)
        check_values(values, len(k), self.num_heads, k.shape[2])
        k = k.repeat_interleave(max(1, values.shape[1] // k.shape[1]), 1)  # values may differ where heads share a key
        values = values.to(v.dtype).expand(len(k), k.shape[1], -1, -1)
        out, _ = self._attend(q, k, values, key_mask, query_mask, segments, generator)
        return hide_rows(out, query_mask)

    def memory(
        self,
        batch: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        static: int | None = None,
    ) -> LayerMemory:
        """The memory of ``batch`` sequences of which nothing has been seen.

        Args:
            batch: B.
            device, dtype: the default is where and what the weights are.
            static: the longest sequence; then the memory has its final size and may be overwritten by ``stream``.

        Raises:
            UnsupportedError: the mechanism needs the whole sequence.
        """
        weight = self.q_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        heads = self.num_kv_heads if self.card.gqa else self.num_heads
        core = self.core.memory(batch, heads, self.head_dim, self.head_dim, device=device, dtype=dtype, static=static)
        return LayerMemory(core, torch.zeros(batch, device=device, dtype=torch.long))

    def stream(self, x: Tensor, memory: LayerMemory) -> tuple[Tensor, LayerMemory]:
        """Continue with the next N tokens x (B, N, C), a prompt or a single one.

        Returns:
            What ``forward`` would give for these tokens at the end of all seen so far, and the grown memory.

        Raises:
            TypeError, ValueError: the memory of another layer, of other sequences or on another device.
        """
        self._check(x, None, None)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        steps = torch.arange(x.shape[1], device=x.device)
        q, k, v = self._project(x, x, memory.position[:, None] + steps)
        out, core = self.core.stream(q, k, v, memory.core)
        return self._join(out), LayerMemory(core, memory.position + x.shape[1])

    def _enter(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Queries, keys and values of what has passed the door, and the mask of each side."""
        x, source, key_mask, query_mask = self._admit(x, context, key_mask, query_mask, segments)
        places = None if self.rotary is None else positions(x, key_mask, segments)
        return *self._project(x, source, places), key_mask, query_mask

    def _admit(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What asks and what is asked, with padding set to 0, and the mask of each."""
        self._check(x, context, segments)
        source = x if context is None else context
        check_mask(key_mask, source.shape[0], source.shape[1])
        check_mask(query_mask, x.shape[0], x.shape[1], "query_mask")
        if context is None:
            key_mask = query_mask if key_mask is None else key_mask
            query_mask = key_mask if query_mask is None else query_mask
        # whatever stands in padding, NaN too, stays out of every core
        return hide(x, query_mask), hide(source, key_mask), key_mask, query_mask

    def _check(self, x: Tensor, context: Tensor | None, segments: Tensor | None) -> None:
        check_tokens(x, self.dim)
        if context is not None:
            check_tokens(context, self.dim, "context")
            if not self.card.cross:
                raise UnsupportedError(f"{self._name} attends within one sequence: it takes no context")
            if len(context) != len(x):
                raise ValueError(f"x and context hold {len(x)} and {len(context)} sequences, the numbers must be equal")
            if self.rotary is not None:
                raise UnsupportedError("rotary positions need one origin: they are for self-attention, without context")
            if segments is not None:
                raise UnsupportedError("segments divide one sequence: they are for self-attention, without context")
        check_segments(segments, x.shape[0], x.shape[1])

    def _project(self, x: Tensor, source: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, N, D), keys and values (B, G, M, D), repeated to H heads where the core wants it."""
        q, k, v = (
            linear(t).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear, t in ((self.q_proj, x), (self.k_proj, source), (self.v_proj, source))
        )
        if self.q_norm is not None and self.k_norm is not None:
            precise = self.q_norm.weight.dtype  # under autocast the projections are not
            q, k = self.q_norm(q.to(precise)).to(v.dtype), self.k_norm(k.to(precise)).to(v.dtype)
        if self.rotary is not None:
            q, k = self.rotary(q, places), self.rotary(k, places)
        if self.num_kv_heads < self.num_heads and not self.card.gqa:
            k, v = (t.repeat_interleave(self.num_heads // self.num_kv_heads, 1) for t in (k, v))
        return q, k, v

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
        generator: Generator | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        options: dict[str, Any] = {"generator": generator, "key_mask": key_mask, "query_mask": query_mask}
        documents = None
        if segments is not None and self.card.segments:
            options["segments"] = segments
        elif segments is not None:
            documents = Documents.of(segments)
            q, k, v = documents.unpack(q), documents.unpack(k), documents.unpack(v)
            options |= {"key_mask": documents.mask(key_mask), "query_mask": documents.mask(query_mask)}
        out = self.core(q, k, v, **options, return_aux=True) if self._core_has_aux else self.core(q, k, v, **options)
        out, aux = out if self._core_has_aux else (out, {})
        return (out if documents is None else documents.pack(out)), aux

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    @property
    def _name(self) -> str:
        return self.mechanism or type(self.core).__name__

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}"


def head_width(dim: int, num_heads: int, head_dim: int | None = None) -> int:
    """D: as given, or the width divided by the heads.

    Raises:
        ValueError: sizes that are no positive numbers, or do not divide.
    """
    if min(dim, num_heads, 1 if head_dim is None else head_dim) < 1:
        raise ValueError(f"dim={dim}, num_heads={num_heads}, head_dim={head_dim}: sizes must be positive")
    if head_dim is None and dim % num_heads:
        raise ValueError(f"dim={dim} is no multiple of num_heads={num_heads}: choose another, or pass head_dim")
    return dim // num_heads if head_dim is None else head_dim
