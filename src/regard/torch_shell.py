"""torch.nn.MultiheadAttention's constructor, forward and parameters around any mechanism that has a core.

For code that was written for torch's module: the name of the class is all that changes. What torch computes is computed
here to rounding, gradients and returned weights too, and four things differ on purpose:

- A query that may look at nothing gives the output bias and weights of 0. torch gives NaN, or not, by its path.
- ``is_causal=True`` works without ``attn_mask`` (torch refuses): the last query stands at the last key. With a mask it
  is torch's hint, that the mask is the causal one, but never instead of the mask: a wrong hint lets nobody see more.
- Train and eval take one path. torch's own layers keep away from their fused one, which would not call this module:
  ``_qkv_same_embed_dim`` is False here. Give ``enable_nested_tensor=False`` to ``nn.TransformerEncoder``.
- The weights that are returned are those before dropout.

Masks have torch's polarity, True = leave out, in this file and nowhere else in regard.
"""

import functools
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard import factory
from regard.attention import attend, merge
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.ops.masks import hide
from regard.ops.torch_masks import check_torch_masks, keep_mask, real_keys, says_causal
from regard.patterns import Causal, Full, Pattern
from regard.registry import Core, UnsupportedError

__all__ = ["MultiheadAttention"]

COLUMNS = 64
"""Of the identity that a core is asked at once, where weights are wanted."""


class MultiheadAttention(nn.MultiheadAttention):
    """out_proj(concat_h core(q, k, v)) where torch has softmax(q k^T / sqrt(D)) v; ``state_dict`` is torch's.

    Parameters that a core has of its own are added as ``core.*``; torch's checkpoints load into such a module with
    ``strict=False``. ``isinstance(layer, torch.nn.MultiheadAttention)`` holds.

    Args:
        embed_dim, num_heads: C and H.
        dropout: on the attention weights, in training.
        bias: on all four projections.
        add_bias_kv: one learned key and value that every query sees.
        add_zero_attn: a key and a value of zeros that every query sees.
        kdim, vdim: widths of keys and values, C by default.
        batch_first: (B, N, C) instead of (N, B, C).
        device, dtype: of all parameters.
        mechanism: a name of :func:`regard.names` that has a core; "full" is torch's softmax.
        pattern: who may look at whom (:mod:`regard.patterns`), for "full" and for mechanisms with this option.
        options: those of the mechanism, as :func:`regard.core` takes them, e.g. ``window=128, causal=True``.

    Raises:
        ValueError: sizes that do not divide, or an unknown mechanism.
        TypeError: an option that nobody takes, or one that is needed and was not given.
        UnsupportedError: a mechanism without a core, or an option that it cannot honour, as dropout without weights.

    Example:
        >>> x = torch.randn(5, 2, 8)
        >>> out, weights = MultiheadAttention(8, 2, mechanism="linear_transformer")(x, x, x)
        >>> out.shape, weights.shape
        (torch.Size([5, 2, 8]), torch.Size([2, 5, 5]))
        >>> layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> layer.self_attn = MultiheadAttention(8, 2, batch_first=True, mechanism="local", window=4)
        >>> layer(torch.randn(2, 50, 8)).shape
        torch.Size([2, 50, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mechanism: str = "full",
        pattern: Pattern | None = None,
        **options: Any,
    ) -> None:
        if num_heads > 0 and embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is no multiple of num_heads={num_heads}: choose another")
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        exact = factory.find(mechanism).cls is ScaledDotProduct
        if not exact and (add_bias_kv or add_zero_attn):
            raise UnsupportedError(
                f"{mechanism} has no place for the keys of add_bias_kv and add_zero_attn, which every query sees: "
                'mechanism="full" has'
            )
        if not exact and pattern is not None:
            options["pattern"] = pattern
        sizes: dict[str, Any] = {"num_heads": num_heads, "head_dim": self.head_dim, "device": device, "dtype": dtype}
        self.core: Core = factory.core(mechanism, attn_drop=dropout, **sizes, **options)
        self.pattern = None
        if isinstance(self.core, ScaledDotProduct):
            self.pattern = self.core.pattern if pattern is None else self.core.pattern & pattern

    def reset_parameters(self) -> None:
        """torch's start of the projections, the mechanism's of its core."""
        self._reset_parameters()
        if reset := getattr(self.core, "reset_parameters", None):
            reset()

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self._parameters["in_proj_weight"] is not None  # what torch's initialisation goes by
        super()._reset_parameters()
        self._qkv_same_embed_dim = False  # what its fused encoder layer asks before it goes round this module

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's.

        Args:
            query: (N, B, C), (B, N, C) with ``batch_first``, or (N, C).
            key, value: the same with M for N, and their own widths. Self-attention is where ``key is query``.
            key_padding_mask: (B, M) or (M,): bool, True = leave this key out, or float, added to the scores; for other
                mechanisms than "full" the floats are 0 and -inf.
            need_weights: also return the weights, exact for every mechanism: O(N M) memory, and beyond "full" one more
                run for each 64 keys. Without them nothing of size N M is made.
            attn_mask: (N, M) or (B H, N, M): bool, True = leave this pair out, or float, added to the scores. Other
                mechanisms than "full" take the causal mask only, if they were built with ``causal=True``.
            average_attn_weights: the mean over heads.
            is_causal: no query sees a later key; with a mask a hint, see the head of this file.

        Returns:
            The output in the layout of ``query``, and weights (B, N, M), per head (B, H, N, M), or None.

        Raises:
            ValueError, TypeError: shapes or dtypes that do not fit.
            UnsupportedError: a mask, causality, other keys than one's own, or nested tensors that cannot be served.
        """
        if query.is_nested:
            raise UnsupportedError(
                "nested tensors are not taken: build nn.TransformerEncoder with enable_nested_tensor=False, or set its "
                "use_nested_tensor = False"
            )
        single, itself = query.ndim == 2, query is key
        if single:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        self._check(query, key, value, key_padding_mask, attn_mask)
        key_mask, added = None, None
        if key_padding_mask is not None:
            key_mask, added = real_keys(key_padding_mask, only=self.pattern is None)
        q, k, v = self._project(query, hide(key, key_mask), hide(value, key_mask))
        if self.pattern is None:
            self._refuse(itself, added, attn_mask, is_causal)
            out, weights = self._ask_core(q, k, v, key_mask, key_mask if itself else None, need_weights)
        else:
            if is_causal and attn_mask is not None and q.shape[-2] != k.shape[-2]:
                is_causal = False  # the mask says where it is aligned
            mask = keep_mask(attn_mask, added, self.num_heads, q.dtype)
            out, weights = self._attend(q, k, v, key_mask, mask, is_causal, need_weights)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return out[0], None if weights is None else weights[0]
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _check(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> None:
        """Refuse what does not fit, batch first."""
        for name, x, width in (("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim)):
            if x.ndim != 3 or x.shape[-1] != width:
                raise ValueError(
                    f"{name}, batch first, has shape {tuple(x.shape)}, expected (batch, length, {width}), "
                    "or query, key and value all without a batch"
                )
        (batch, n, _), m = query.shape, key.shape[1]
        if key.shape[0] != batch or value.shape[:2] != key.shape[:2]:
            shapes = [tuple(x.shape[:2]) for x in (query, key, value)]
            raise ValueError(f"query, key and value are (batch, length) = {shapes}: one batch, key as long as value")
        check_torch_masks(key_padding_mask, attn_mask, batch, self.num_heads, n, m)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads first: (B, H, N, D) and twice (B, H, M, D)."""
        joint, bias = self._parameters["in_proj_weight"], self._parameters["in_proj_bias"]
        matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight) if joint is None else joint.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = (
            F.linear(x, matrix, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, matrix, bias in zip((query, key, value), matrices, biases, strict=True)
        )
        return q, k, v

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        mask: Tensor | None,
        is_causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The exact softmax: -> (B, H, N, D) and, if needed, its weights, those of the extra keys last."""
        pattern = cast(Pattern, self.pattern)
        pattern = pattern & Causal() if is_causal else pattern
        scale = cast(ScaledDotProduct, self.core).scale or self.head_dim**-0.5
        extra, drop = self._extra_keys(k), self.dropout * self.training
        if need_weights:
            scores = _scores(scale * q, k, pattern, key_mask, mask)
            if extra is not None:
                scores, v = torch.cat([scores, scale * q @ extra[0].mT], -1), torch.cat([v, extra[1]], -2)
            seen = extra is not None or (key_mask is None and mask is None and isinstance(pattern, Full))
            weights = scores.softmax(-1) if seen else _softmax(scores)
            return F.dropout(weights, drop) @ v, weights
        options: dict[str, Any] = {"scale": scale, "dropout_p": drop}
        masks: dict[str, Any] = {"attn_mask": mask, "key_mask": key_mask}
        if extra is None:
            return attend(q, k, v, pattern, **masks, **options), None
        # the extra keys are a second part, as every query sees them wherever the pattern stands
        parts = [
            attend(q, k, v, pattern, **masks, **options, return_lse=True),
            attend(q, *extra, **options, return_lse=True),
        ]
        return merge([out for out, _ in parts], [lse for _, lse in parts])[0], None

    def _extra_keys(self, k: Tensor) -> tuple[Tensor, Tensor] | None:
        """The learned key and value, then the zero ones: twice (B, H, 1 or 2, D)."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        if self.bias_k is not None and self.bias_v is not None:
            for parts, extra in ((keys, self.bias_k), (values, self.bias_v)):
                parts.append(extra.to(k.dtype).unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        if self.add_zero_attn:
            for parts in (keys, values):
                parts.append(k.new_zeros(1, self.num_heads, 1, self.head_dim))
        if not keys:
            return None
        return torch.cat(keys, 2).expand(len(k), -1, -1, -1), torch.cat(values, 2).expand(len(k), -1, -1, -1)

    def _refuse(self, itself: bool, added: Tensor | None, attn_mask: Tensor | None, is_causal: bool) -> None:
        """What only the exact softmax can do."""
        name, card = self.core.mechanism, self.core.card
        if not card.cross and not itself:
            raise UnsupportedError(
                f"{name} attends within one sequence: pass the same tensor as query and key, or take a mechanism whose "
                "card says cross"
            )
        if added is not None:
            raise UnsupportedError(
                f"{name} takes a key or leaves it out: pass a Bool key_padding_mask, or floats that are 0 or -inf; "
                'mechanism="full" adds them'
            )
        if attn_mask is not None and not says_causal(attn_mask, is_causal):
            raise UnsupportedError(
                f"{name} takes no attn_mask but the causal one, (length, length): leave out keys by key_padding_mask, "
                'or take mechanism="full", with pattern= for one that is the same in every call'
            )
        if (is_causal or attn_mask is not None) and not getattr(self.core, "causal", card.causal):
            reason = f"cannot be causal: {card.refuses.get('causal', '')}"
            raise UnsupportedError(
                f"{name} {reason if card.causal is None else 'was built bidirectional: pass causal=True to do so here'}"
            )

    def _ask_core(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Any core: -> (B, H, N, D) and, asked with columns of the identity as values, its weights."""
        if need_weights and not self.core.weighs_values:
            raise UnsupportedError(
                f"{self.core.mechanism} has no weights, its output is no weighted sum: pass need_weights=False"
            )
        masks: dict[str, Any] = {"key_mask": key_mask, "query_mask": query_mask}
        draws = None
        if need_weights and self.training and set(self.core.card.stochastic) - {"dropout"}:
            draws = Generator(q.device).manual_seed(int(torch.randint(1 << 62, ())))  # the same in every run
        weights = None
        if need_weights:
            self._drop(0.0)
            identity = torch.eye(k.shape[-2], device=v.device, dtype=v.dtype).expand(*v.shape[:2], -1, -1)
            columns = [
                self.core(q, k, some, **masks, generator=None if draws is None else draws.clone_state())
                for some in identity.split(COLUMNS, -1)
            ]
            weights = torch.cat(columns, -1)
        self._drop(self.dropout)
        return self.core(q, k, v, **masks, generator=draws), weights

    def _drop(self, share: float) -> None:
        """Hand on the dropout, which users of torch's module may change at any time."""
        if getattr(self.core, "attn_drop", share) != share:
            self.core.attn_drop = share

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, batch_first={self.batch_first}, pattern={self.pattern!r}"


def _scores(q: Tensor, k: Tensor, pattern: Pattern, key_mask: Tensor | None, mask: Tensor | None) -> Tensor:
    """q k^T as a whole, -inf for pairs that are not allowed; (B, H, N, M)."""
    scores = q @ k.mT
    (_, heads, n, _), m = q.shape, k.shape[-2]
    allowed = [] if isinstance(pattern, Full) else [pattern.dense(n, m, heads, device=q.device)]
    if key_mask is not None:
        allowed.append(key_mask[:, None, None])
    if mask is not None and mask.dtype == torch.bool:
        allowed.append(mask)
    elif mask is not None:
        scores = scores + mask
    return scores.masked_fill(~functools.reduce(torch.logical_and, allowed), -torch.inf) if allowed else scores


def _softmax(scores: Tensor) -> Tensor:
    """Rows that sum to 1, or to 0 where nothing may be looked at."""
    empty = (scores.amax(-1, keepdim=True) == -torch.inf).detach()
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
