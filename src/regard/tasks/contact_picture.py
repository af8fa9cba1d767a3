"""A contact map as a picture: predicted probabilities above the diagonal, the truth or the same again below."""

import io

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.tasks.protein_scores import CONTACT


def contact_picture(
    contacts: Float[Tensor, "R R"],
    title: str,
    *,
    points: Float[Tensor, "R 3"] | None = None,
    mask: Bool[Tensor, " R"] | None = None,
    confidence: Float[Tensor, " R"] | None = None,
) -> bytes:
    """A PNG of a contact map, with the confidence of each residue below it.

    Args:
        contacts: probabilities.
        title: above the picture.
        points, mask: true C-betas and where they are known: true contacts stand below the diagonal.
        confidence: 0 to 100.

    Example:
        >>> contact_picture(torch.eye(5), "five residues")[:4]
        b'\\x89PNG'
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = contacts.float().cpu().clone()
    below = torch.ones_like(shown, dtype=torch.bool).tril(-1)
    if points is not None:
        true = (torch.cdist(points, points) < CONTACT).float()
        if mask is not None:
            true[~(mask[:, None] & mask)] = torch.nan
        shown[below] = true[below]
    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(6, 6.4 if confidence is None else 7.4), layout="constrained")
        heights = [1.0] if confidence is None else [6.0, 1.0]
        panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        extent = (0.5, len(shown) + 0.5, len(shown) + 0.5, 0.5)  # residues are counted from 1
        image = panels[0].imshow(shown.numpy(), cmap="magma_r", vmin=0, vmax=1, interpolation="nearest", extent=extent)
        panels[0].axline((0.5, 0.5), slope=1, color="#888888", linewidth=0.6)
        lower = "" if points is None else "; below the diagonal: true contacts (< 8 Å)"
        panels[0].set(title=f"{title}\npredicted contact probability{lower}", xlabel="residue", ylabel="residue")
        figure.colorbar(image, ax=panels[0], shrink=0.7)
        if confidence is not None:
            panels[1].plot(range(1, len(confidence) + 1), confidence.tolist(), color="#2563a8", linewidth=1)
            panels[1].set(ylim=(0, 100), xlim=(1, max(2, len(confidence))), ylabel="confidence", xlabel="residue")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()
