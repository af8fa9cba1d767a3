"""An alignment and its pairs of residues at the door: what does not fit is refused with the shapes and the rule."""

import torch
from torch import Tensor


def admit_alignment(
    msa: Tensor, pair: Tensor, msa_mask: Tensor | None, pair_mask: Tensor | None, dim: int, pair_dim: int
) -> tuple[Tensor, Tensor]:
    """The door: an alignment and its pairs with masked places set to 0, whatever stood there; the rest is refused.

    Args:
        msa, pair, msa_mask, pair_mask: as in :class:`regard.mechanisms.pairs.alphafold2.AlphaFold2`.
        dim, pair_dim: the widths expected.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: masks that are not Bool.

    Example:
        >>> msa, pair = torch.full((1, 1, 2, 4), torch.nan), torch.ones(1, 2, 2, 3)
        >>> float(admit_alignment(msa, pair, torch.zeros(1, 1, 2, dtype=torch.bool), None, 4, 3)[0].sum())
        0.0
    """
    if msa.ndim != 4 or msa.shape[-1] != dim:
        raise ValueError(f"msa has shape {tuple(msa.shape)}, expected (batch, sequences, residues, {dim})")
    residues = msa.shape[2]
    if pair.shape != (msa.shape[0], residues, residues, pair_dim):
        expected = (msa.shape[0], residues, residues, pair_dim)
        raise ValueError(f"pair has shape {tuple(pair.shape)}, expected {expected}: one row for each pair of residues")
    for name, mask, tensor in (("msa_mask", msa_mask, msa), ("pair_mask", pair_mask, pair)):
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"{name} is {mask.dtype}: pass Bool, True for what takes part, e.g. {name}.bool()")
        if mask is not None and mask.shape != tensor.shape[:3]:
            raise ValueError(f"{name} has shape {tuple(mask.shape)}, expected {tuple(tensor.shape[:3])}")
    return hide_pairs(msa, msa_mask), hide_pairs(pair, pair_mask)


def hide_pairs(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, N, M, C) with places masked in Bool (B, N, M) set to exactly 0, whatever stood there, NaN too.

    Example:
        >>> x = torch.full((1, 1, 2, 1), torch.nan)
        >>> hide_pairs(x, torch.tensor([[[False, True]]])).flatten().tolist()
        [0.0, nan]
    """
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)
