"""Exact softmax attention over any pattern: ``attend``, and what belongs to it."""

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.autograd import forward_ad

import regard.engines as engines
from regard.engines import CALLS, choose, merge
from regard.engines.door import admit
from regard.engines.explaining import Explanation, explanation
from regard.patterns import Pattern
from regard.scores import Term

__all__ = ["Explanation", "attend", "engines", "explain", "merge"]


@overload
def attend(
    query: Float[Tensor, "*B H N D"],
    key: Float[Tensor, "*B G M D"],
    value: Float[Tensor, "*B G M Dv"],
    pattern: Pattern | None = None,
    *,
    attn_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    score: Term | Sequence[Term] | None = None,
    is_causal: bool = False,
    q_offset: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
    return_lse: Literal[False] = False,
    engine: str = "auto",
    generator: Generator | None = None,
) -> Float[Tensor, "*B H N Dv"]: ...


@overload
def attend(
    query: Float[Tensor, "*B H N D"],
    key: Float[Tensor, "*B G M D"],
    value: Float[Tensor, "*B G M Dv"],
    pattern: Pattern | None = None,
    *,
    attn_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    score: Term | Sequence[Term] | None = None,
    is_causal: bool = False,
    q_offset: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
    return_lse: Literal[True],
    engine: str = "auto",
    generator: Generator | None = None,
) -> tuple[Float[Tensor, "*B H N Dv"], Float[Tensor, "*B H N"]]: ...


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Any = None,
    *,
    attn_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    score: Term | Sequence[Term] | None = None,
    is_causal: bool = False,
    q_offset: int | None = None,
    scale: float | int | None = None,
    dropout_p: float | int = 0.0,
    enable_gqa: bool = False,
    return_lse: bool = False,
    engine: str = "auto",
    generator: Generator | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale query key^T + terms + attn_mask, where pattern, masks and causality allow) value, exactly.

    torch's ``scaled_dot_product_attention`` and more: any pattern at a cost that follows its allowed pairs, score
    terms with gradients, lse, empty rows that are 0 rather than NaN. It compiles with dynamic lengths, exports, and
    works under ``torch.func.vmap`` and ``jvp`` and in gradients of gradients. Two announced differences: the fourth
    positional argument is a pattern, and causality aligns the last query with the last key.

    Args:
        query: (..., H, N, D), heads first, with any leading dimensions or none.
        key, value: (..., G, M, D) and (..., G, M, Dv), with the same leading dimensions. H is a multiple of G.
        pattern: who may look at whom (:mod:`regard.patterns`); everyone at everyone by default.
        attn_mask: broadcasts to (..., H, N, M) and is never expanded. bool: True takes part; float: is added to the
            scores, and may have a gradient.
        key_mask: Bool (..., M), True for keys that take part. Pattern, masks and ``is_causal`` are combined by AND.
        score: terms of :mod:`regard.scores`, applied in order to scale * query . key.
        is_causal: a query sees keys at its own position and before.
        q_offset: query r stands at position r + q_offset, by default M - N. Causality, patterns and terms speak of
            positions.
        scale: 1 / sqrt(D) by default.
        dropout_p: share of weights dropped, applied as given (pass 0 in evaluation).
        enable_gqa: allow H != G; query head h reads key head h // (H / G).
        return_lse: also return the log of each row's sum of exponentials, with a gradient; see :func:`merge`.
        engine: one of the engines ("dense", "sdpa", "native", "tiles", "flex"), or "auto"; see :func:`explain`.
        generator: where dropout draws its seed; not inside a compiled region.

    Returns:
        (..., H, N, Dv) in the query's dtype. A query that may look at nothing gets 0, with gradient 0. With
        ``return_lse`` also (..., H, N), -inf for such queries; float32, or float64 for float64 inputs.

    Raises:
        TypeError: a wrong type or dtype (an integer mask, a tensor in the place of the pattern).
        ValueError: shapes or options that contradict each other.
        UnsupportedError: the engine asked for cannot serve this; the message holds the reasons.

    Example:
        >>> import torch, regard
        >>> from regard.patterns import Causal, Global, Window
        >>> q = k = v = torch.randn(2, 8, 1000, 64)
        >>> regard.attend(q, k, v, Causal() & (Window(128) | Global(4))).shape
        torch.Size([2, 8, 1000, 64])
    """
    admitted = admit(
        query,
        key,
        value,
        pattern,
        attn_mask=attn_mask,
        key_mask=key_mask,
        score=score,
        is_causal=is_causal,
        q_offset=q_offset,
        scale=scale,
        dropout_p=dropout_p,
        enable_gqa=enable_gqa,
        return_lse=return_lse,
        generator=generator,
    )
    calls = CALLS[choose(engine, admitted.request)]
    if forward_ad._current_level >= 0:  # an operator would drop forward-mode tangents without a word
        out, lse = calls.composite(*admitted.arguments)
    else:
        out, lse = calls(*admitted.arguments)
    return (out, lse) if return_lse else out


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Any = None,
    *,
    attn_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    score: Term | Sequence[Term] | None = None,
    is_causal: bool = False,
    q_offset: int | None = None,
    scale: float | int | None = None,
    dropout_p: float | int = 0.0,
    enable_gqa: bool = False,
    return_lse: bool = False,
    engine: str = "auto",
    generator: Generator | None = None,
) -> Explanation:
    """What :func:`attend` would do with these arguments, without doing it: which engine and why, and what it costs.

    The arguments are those of :func:`attend`; their numbers are not looked at, and no random number is drawn.

    Returns:
        An :class:`Explanation`; printing it tells everything.

    Raises:
        TypeError, ValueError, UnsupportedError: as ``attend`` would.

    Example:
        >>> import torch, regard
        >>> q = k = v = torch.randn(1, 2, 64, 8)
        >>> regard.explain(q, k, v, is_causal=True, engine="sdpa").engine
        'sdpa'
    """
    options: dict[str, Any] = {
        "attn_mask": attn_mask,
        "key_mask": key_mask,
        "score": score,
        "is_causal": is_causal,
        "q_offset": q_offset,
        "scale": scale,
        "dropout_p": dropout_p,
        "enable_gqa": enable_gqa,
        "return_lse": return_lse,
        "generator": torch.Generator() if generator is None else generator.clone_state(),
    }
    return explanation(admit(query, key, value, pattern, **options), engine)
