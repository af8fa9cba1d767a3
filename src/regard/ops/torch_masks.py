"""The masks of ``torch.nn.MultiheadAttention``, True = leave out or floats that are added, on their way to ours.

torch's encoder and decoder layers turn every Bool mask into floats of 0 and -inf before they hand it on, so floats have
to be understood. Inside a compiled region the numbers of a tensor cannot be looked at; each function says what it does
there.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def check_torch_masks(
    key_padding_mask: Tensor | None, attn_mask: Tensor | None, batch: int, num_heads: int, n: int, m: int
) -> None:
    """Refuse masks that are no Bool or float (B, M), and (N, M) or (B H, N, M).

    Raises:
        TypeError: another dtype.
        ValueError: another shape.
    """
    allowed = {"key_padding_mask": [(batch, m)], "attn_mask": [(n, m), (batch * num_heads, n, m)]}
    for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
        if mask is None:
            continue
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"{name} is {mask.dtype}: pass Bool, True = leave out, or floats, which are added")
        if tuple(mask.shape) not in allowed[name]:
            shapes = " or ".join(map(str, allowed[name]))
            raise ValueError(f"{name} has shape {tuple(mask.shape)}, expected {shapes}")


def real_keys(
    key_padding_mask: Shaped[Tensor, "B M"], only: bool = False
) -> tuple[Bool[Tensor, "B M"] | None, Float[Tensor, "B M"] | None]:
    """The keys that take part or, where the floats are others than 0 and -inf, what is added to the scores.

    In a compiled region floats are always added; with ``only`` they are read as keys, and checked when the region runs.

    Example:
        >>> real_keys(torch.tensor([[0.0, 0.0, -torch.inf]]))
        (tensor([[ True,  True, False]]), None)
        >>> real_keys(torch.tensor([[0.0, 0.5, -torch.inf]]))
        (None, tensor([[0.0000, 0.5000,   -inf]]))
    """
    if key_padding_mask.dtype == torch.bool:
        return ~key_padding_mask, None
    kept = key_padding_mask != -torch.inf
    plain = (key_padding_mask.masked_fill(~kept, 0.0) == 0.0).all()
    if not torch.compiler.is_compiling():
        return (kept, None) if plain else (None, key_padding_mask)
    if not only:
        return None, key_padding_mask
    torch.ops.aten._assert_async.msg(plain, "floats in key_padding_mask must be 0 or -inf for this mechanism")
    return kept, None


def says_causal(attn_mask: Shaped[Tensor, "*H N M"], hint: bool) -> bool:
    """Whether this is the causal mask of a square; in a compiled region the hint decides.

    Example:
        >>> says_causal(torch.nn.Transformer.generate_square_subsequent_mask(5), hint=False)
        True
        >>> says_causal(torch.zeros(5, 5), hint=True)
        False
    """
    if torch.compiler.is_compiling():
        return hint
    n, m = attn_mask.shape[-2:]
    later = torch.ones(n, m, dtype=torch.bool, device=attn_mask.device).triu(1)
    causal = later if attn_mask.dtype == torch.bool else attn_mask.new_zeros(n, m).masked_fill(later, -torch.inf)
    return n == m and torch.equal(attn_mask, causal.expand_as(attn_mask))


def keep_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, num_heads: int, dtype: torch.dtype
) -> Tensor | None:
    """torch's two masks as one of ours (B or 1, H or 1, N, M): Bool, True = takes part, if both are, else float."""
    masks: list[Tensor] = []
    if attn_mask is not None:
        masks.append(attn_mask[None, None] if attn_mask.ndim == 2 else attn_mask.unflatten(0, (-1, num_heads)))
    if key_padding_mask is not None:
        masks.append(key_padding_mask[:, None, None])
    if not masks:
        return None
    if all(mask.dtype == torch.bool for mask in masks):
        return ~masks[0] if len(masks) == 1 else ~(masks[0] | masks[1])
    added = [
        torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
        if mask.dtype == torch.bool
        else mask.to(dtype)
        for mask in masks
    ]
    return added[0] if len(added) == 1 else added[0] + added[1]
