"""The masks of other people in our words: which keys are real, and whether the future is hidden; nothing else."""

import torch
from torch import Tensor

from regard.integrations.huggingface.masks import DescribedMask
from regard.patterns import Causal, Full
from regard.registry import UnsupportedError

HIDDEN = -1e4
"""A float mask hides what it lowers by at least this much; -inf, the lowest float and -10000 are in use."""


def key_mask_of(mask: Tensor | None, causal: bool, label: str) -> Tensor | None:
    """Bool (B, M), True for real keys, of a mask as the models of transformers hand it to their attentions.

    Args:
        mask: (B, M), or (B or 1, H or 1, N, M): bool with True = may attend, or floats that are added to the scores.
        causal: whether the layer hides the future by itself.
        label: the module's name, for messages.

    Raises:
        UnsupportedError: the mask says more than which keys are real and, for a causal layer, that the future is
            hidden; or a causal mask reaches a layer that is not.
    """
    if mask is None:
        return None
    if isinstance(mask, DescribedMask) and _says_no_more(mask, causal):
        return mask.padding
    if mask.ndim == 2:
        return mask.bool()
    allowed = allowed_by(mask, label)
    if allowed.ndim != 4:
        raise UnsupportedError(f"{label}: a mask of shape {tuple(mask.shape)}; known are (B, M) and (B, H, N, M)")
    real = allowed[:, 0].any(-2)
    if not torch.compiler.is_compiling():  # what follows depends on the numbers
        check_pairs(allowed, real, causal, label)
    return real


def _says_no_more(mask: DescribedMask, causal: bool) -> bool:
    """Whether a described mask is padding and, for a causal layer, causality; then it need not be drawn."""
    starts_at_zero = mask.q_offset == mask.kv_offset and mask.shape[2] == mask.shape[3]
    return mask.dense is None and starts_at_zero and mask.pattern == (Causal() if causal else Full())


def allowed_by(mask: Tensor, label: str) -> Tensor:
    """Bool, True for pairs that may attend, of a mask of bools or of floats that are added to the scores.

    Raises:
        UnsupportedError: a float mask that does more than to hide.
    """
    if mask.dtype == torch.bool:
        return mask
    allowed, hidden = mask == 0, mask <= HIDDEN
    if not torch.compiler.is_compiling() and not bool((allowed | hidden).all()):
        raise UnsupportedError(
            f"{label}: its mask adds other numbers than 0 and -inf to the scores (a bias on pairs), "
            "and the new attention has no place for them"
        )
    return allowed


def check_pairs(allowed: Tensor, real: Tensor, causal: bool, label: str) -> None:
    """The pairs must be those of real keys, and of the past where the layer is causal.

    Args:
        allowed: Bool (B, H or 1, N, M).
        real: Bool (B, M).
        causal: of the layer.
        label: for messages.

    Raises:
        UnsupportedError: they are not.
    """
    n, m = allowed.shape[-2:]
    past = torch.ones(n, m, dtype=torch.bool, device=allowed.device).tril(m - n)
    asking = real[:, None, :, None] if n == m else torch.ones_like(allowed[..., :1])  # padding may see anything
    expected = real[:, None, None] & past if causal else real[:, None, None].expand(-1, -1, n, -1)
    if bool(((allowed == expected) | ~asking).all()):
        return
    if not causal and bool(((allowed == (expected & past)) | ~asking).all()):
        raise UnsupportedError(
            f"{label} was called with a causal mask, but the new attention is not causal: pass causal=True to "
            "swap_attention, with a mechanism that can be"
        )
    rule = "padding and the future" if causal else "padding"
    raise UnsupportedError(
        f"{label}: its mask hides more or less than {rule}, and the new attention takes which keys are real, "
        "not which pairs may meet"
    )
