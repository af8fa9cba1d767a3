"""The attention function that transformers' models call: exact, over the model's mask and a pattern of ours."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from regard.attention import attend, merge
from regard.integrations.huggingface.masks import FAR, DescribedMask
from regard.integrations.huggingface.positions import by_places, refuse_laid_out, speaks_of_distances
from regard.patterns import Causal, Full, Pattern, Window, from_mask_mod
from regard.registry import UnsupportedError
from regard.scores import SoftCap

__all__ = ["Allowed", "allowed_pairs", "exact_attention", "is_cross", "refuse_unknown", "wants_weights"]

_HARMLESS = {  # on their way to somebody else: none of them changes what attention gives
    *("cache_position", "deterministic", "layer_idx", "num_items_in_batch", "output_attentions"),
    *("output_hidden_states", "output_router_logits", "position_embeddings", "position_ids", "return_dict"),
    "use_cache",
}
_REASONS = {
    "head_mask": "gate heads with regard.inspect.gate_heads",
    "cu_seq_lens_q": "packed sequences are told by position_ids, without an attention_mask",
    "indices": "the model chooses its keys itself",
    "block_indices": "the model chooses its keys itself",
}


class Allowed(NamedTuple):
    """Who may look at whom, in the words of :func:`regard.attend`."""

    pattern: Pattern
    key_mask: Tensor | None = None
    attn_mask: Tensor | None = None
    q_offset: int | None = None


def exact_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    pattern: Pattern | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the model's own "eager" gives it, over fewer pairs where a pattern is given.

    Args:
        module: the attention of the model.
        query, key, value: (B, H, L, D), (B, G, S, D), (B, G, S, Dv).
        attention_mask: of :func:`regard.integrations.huggingface.masks.describe_mask`; or (B, 1 or H, L, S), bool (True
            takes part) or float (is added).
        scaling: of the scores; 1 / sqrt(D) by default.
        dropout: share of weights dropped, in training only.
        is_causal: where the model makes no mask; ``module.is_causal`` by default.
        position_bias: (B or 1, H, L, S), added to the scores.
        sliding_window: where the model makes no mask; otherwise the mask has it.
        softcap: bound of the scores.
        s_aux: (H,), a logit of each head that takes its share of the weights and gives nothing.
        pattern: ANDed with the mask; cross attention, between two sequences, has no use for it.
        others: must be known to change nothing, or None.

    Returns:
        (B, L, H, Dv), and the weights (B, H, L, S) where ``output_attentions`` asks for them. A query that may look
        at nothing gets 0.

    Raises:
        UnsupportedError: something that would change the result and cannot be honoured.
    """
    refuse_unknown(module, others)
    if is_cross(module):
        pattern = None
    allowed = allowed_pairs(module, query, key, attention_mask, is_causal, sliding_window, pattern)
    options: dict[str, Any] = {
        **allowed._replace(attn_mask=_biased(allowed.attn_mask, position_bias))._asdict(),
        "score": None if softcap is None else SoftCap(softcap),
        "scale": scaling,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    out = _attend(query, key, value, s_aux, dropout_p=dropout if module.training else 0.0, **options)
    weights = None
    if wants_weights(others):
        identity = torch.eye(key.shape[2], dtype=value.dtype, device=value.device)
        weights = _attend(query, key, identity.expand(*key.shape[:3], -1), s_aux, **options)
    return out.transpose(1, 2).contiguous(), weights


def allowed_pairs(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Any,
    is_causal: bool | None,
    sliding_window: int | None,
    pattern: Pattern | None,
) -> Allowed:
    """What the model's mask, or the lack of one, and our pattern allow together.

    Raises:
        UnsupportedError: positions that nobody can know, or a mask of another implementation.
    """
    queries, keys = query.shape[2], key.shape[2]
    if isinstance(mask, DescribedMask):
        return _of_described(mask, pattern)
    if mask is None:
        plain = _without_mask(module, queries, keys, is_causal, sliding_window)
        return Allowed(plain if pattern is None else plain & pattern)
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        found = f"{mask.ndim} dimensions" if isinstance(mask, Tensor) else f"the type {type(mask).__name__}"
        raise UnsupportedError(f"{_name(module)} hands over a mask of {found}; attention takes (B, 1 or H, L, S)")
    if hasattr(mask, "plain"):  # a traced graph drew it, and says what it drew
        plain, key_mask, offset = mask.plain  # pyright: ignore[reportAttributeAccessIssue]
        return Allowed(plain, key_mask, q_offset=offset)
    return Allowed(Full() if pattern is None else _of_drawn(mask, pattern), attn_mask=mask)


def is_cross(module: nn.Module) -> bool:
    """Whether an attention of transformers looks at another sequence than its own."""
    decoder, causal = getattr(module, "is_decoder", False), getattr(module, "is_causal", True)
    return (
        bool(getattr(module, "is_cross_attention", False))
        or "cross" in type(module).__name__.lower()
        or (decoder is True and causal is False)
    )


def refuse_unknown(module: nn.Module, others: Mapping[str, Any]) -> None:
    """Refuse whatever is not known to be harmless: nothing is ignored silently.

    Raises:
        UnsupportedError: names it.
    """
    for name, given in others.items():
        if given is not None and name not in _HARMLESS:
            reason = _REASONS.get(name, "it is not known to change nothing")
            raise UnsupportedError(f"{_name(module)} hands {name} to its attention, which cannot be honoured: {reason}")


def wants_weights(others: Mapping[str, Any]) -> bool:
    """Whether the model was asked for attention maps, by an argument or by transformers' collector of outputs."""
    if others.get("output_attentions"):
        return True
    from transformers.utils import output_capturing

    collected = output_capturing._active_collector.get()
    return any("attentions" in name for name in collected or ())


def _attend(query: Tensor, key: Tensor, value: Tensor, sink: Tensor | None, **options: Any) -> Tensor:
    """Attention, beside a sink where there is one: a part of value 0 whose lse is the sink's logit."""
    if sink is None:
        return _kept(attend(query, key, value, **options), options["pattern"])
    out, lse = attend(query, key, value, **options, return_lse=True)
    parts = (_kept(out, options["pattern"]), torch.zeros_like(out))
    return merge(parts, (lse, sink.to(lse.dtype)[:, None]))[0]


def _kept(out: Tensor, pattern: Pattern) -> Tensor:
    """A pattern that is a function must live as long as the graph: the backward pass asks it again."""
    if isinstance(pattern, from_mask_mod) and out.grad_fn is not None:
        cast(dict[str, Any], out.grad_fn.metadata)["pattern"] = pattern
    return out


def _biased(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Mask and bias as one ``attn_mask``."""
    if mask is None or bias is None:
        return bias if mask is None else mask
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _without_mask(
    module: nn.Module, queries: int, keys: int, is_causal: bool | None, sliding_window: int | None
) -> Pattern:
    """As transformers' sdpa reads a missing mask: causal where the module says so, for more queries than one."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if causal and 1 < queries != keys:
        raise UnsupportedError(
            f"{_name(module)} is causal and makes no mask: where its {queries} queries stand among {keys} keys cannot "
            "be known; give an attention_mask"
        )
    if sliding_window is not None and not causal:
        raise UnsupportedError(f"{_name(module)} has sliding_window={sliding_window}, no mask, and is not causal")
    plain = Causal() if causal else Full()
    return plain if sliding_window is None else plain & Window(sliding_window - 1, FAR)


def _of_described(mask: DescribedMask, pattern: Pattern | None) -> Allowed:
    queries, keys = mask.shape[2:]
    offset = mask.q_offset - mask.kv_offset
    whole = mask.pattern if pattern is None else mask.pattern & pattern
    found = Allowed(whole, mask.padding, mask.dense, None if offset == keys - queries else offset)
    if pattern is None or speaks_of_distances(pattern):
        return found
    if queries != keys or offset or mask.padding is not None:
        refuse_laid_out(pattern)
    if mask.starts is None and not mask.kv_offset:
        return found
    if pattern not in mask.moved:
        mask.moved[pattern] = by_places(whole, len(mask), mask.starts, mask.q_offset, mask.kv_offset)
    return found._replace(pattern=mask.moved[pattern], q_offset=None)


def _of_drawn(mask: Tensor, pattern: Pattern) -> Pattern:
    """What is left of our pattern beside a mask that is a tensor: a user's, or one that a traced graph drew."""
    if hasattr(mask, "has_pattern"):
        return Full() if mask.has_pattern else pattern  # pyright: ignore[reportAttributeAccessIssue]
    if mask.shape[2] != mask.shape[3] or (torch.compiler.is_compiling() and not speaks_of_distances(pattern)):
        raise UnsupportedError(
            f"{pattern!r} speaks of positions, and a 4-D mask of {mask.shape[2]} x {mask.shape[3]} does not say where "
            "its queries and its padding stand: give the 2-D attention_mask, or fold the pattern into the 4-D mask and "
            'use "regard"'
        )
    return pattern


def _name(module: nn.Module) -> str:
    return type(module).__name__
