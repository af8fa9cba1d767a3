"""AlphaFold 2: from an alignment of sequences to the places of all atoms, and how sure it is of each residue.

Jumper et al. 2021, "Highly accurate protein structure prediction with AlphaFold", Nature 596, supplement algorithm 2::

    embed the alignment (m) and all pairs (z);  repeat 1 + cycles times:
        add what the pass before found;  [templates -> m, z;  extra alignment -> z]
        m, z <- Evoformer;  s = L(m_1);  frames, torsions, atoms <- structure module(s, z)

Only the last pass has gradients, and in training the number of cycles is drawn. The losses are those of supplement 1.9
but the distogram's, which is the task's own, and without violations of bond lengths and the predicted aligned error,
which the paper leaves for fine-tuning. ``structure=False`` is the same network up to the distogram.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.models.alphafold_door import Protein, admit_extra, admit_protein, admit_templates
from regard.models.alphafold_heads import ConfidenceHead, DistogramHead, LossWeights, MaskedMsaHead, structure_losses
from regard.models.alphafold_inputs import LETTER_KINDS, InputEmbedder, RecyclingEmbedder
from regard.models.evoformer import EvoformerStack
from regard.models.structure_losses import confidence, masked_msa_loss
from regard.models.structure_module import Structure, StructureModule
from regard.models.structure_truth import ProteinTruth, pseudo_beta
from regard.models.template_inputs import TemplateInputs, Templates
from regard.ops.masks import hide
from regard.ops.projection import Projection

__all__ = ["AlphaFold", "Fold", "LossWeights", "ProteinTruth", "Templates"]


class Fold(NamedTuple):
    """A prediction; the atoms and what hangs on them are None without a structure module.

    Attributes:
        distogram: logits of the 64 bins of distance of each pair.
        atoms: N, CA, C, CB and O in Angstrom; glycine's CB is 0 and no atom.
        plddt: the expected lDDT of each C-alpha, 0 .. 100.
        all_atoms, all_atom_mask: by the 37 names of :data:`regard.models.residue_atoms.ATOMS`.
    """

    distogram: Float[Tensor, "B R R 64"]
    atoms: Float[Tensor, "B R 5 3"] | None
    plddt: Float[Tensor, "B R"] | None
    all_atoms: Float[Tensor, "B R 37 3"] | None
    all_atom_mask: Bool[Tensor, "B R 37"] | None


class _State(NamedTuple):
    """What a pass leaves for the next one and for the heads."""

    msa: Tensor
    pair: Tensor
    structure: Structure | None
    points: Tensor | None


class AlphaFold(nn.Module):
    """Fold proteins; see the head of this file. Defaults are the paper's sizes, but for the extra alignment.

    The widths of heads follow from those of the representations, as in the paper: ``msa_dim / msa_heads``, and so on.

    Args:
        msa_dim, pair_dim, single_dim: c_m, c_z and c_s.
        depth: blocks of the Evoformer.
        msa_heads, pair_heads: heads of alignment and triangle attention.
        extra_depth: blocks for an extra alignment (4 in the paper), which is a quarter as wide.
        template_depth: blocks for the pairs of known structures (2 in the paper), which are half as wide as c_z.
        template_directions: tell these blocks directions too; the released models do not.
        structure: with the structure module; False: only as far as the distogram.
        structure_depth, structure_options: its steps, and further arguments of
            :class:`regard.models.structure_module.StructureModule`.
        recycles: the most cycles; each call in training draws 0 .. so many.
        msa_drop, pair_drop: of the Evoformer.
        loss_weights: of the losses; see :class:`regard.models.alphafold_heads.LossWeights`.
        checkpoint: keep only what stands between blocks for the backward pass.
        chunk_size: rows at a time in attention and transitions.

    Raises:
        ValueError: widths that heads do not divide, or letters and masks that do not fit.

    Example:
        >>> model = AlphaFold(16, 8, 16, 1, msa_heads=2, pair_heads=2, structure_depth=1).eval()
        >>> fold = model.predict(torch.randint(20, (1, 3, 7)))
        >>> fold.atoms.shape, fold.plddt.shape, fold.distogram.shape
        (torch.Size([1, 7, 5, 3]), torch.Size([1, 7]), torch.Size([1, 7, 7, 64]))
    """

    def __init__(
        self,
        msa_dim: int = 256,
        pair_dim: int = 128,
        single_dim: int = 384,
        depth: int = 48,
        *,
        msa_heads: int = 8,
        pair_heads: int = 4,
        extra_depth: int = 0,
        template_depth: int = 0,
        template_directions: bool = False,
        structure: bool = True,
        structure_depth: int = 8,
        structure_options: Mapping[str, Any] | None = None,
        recycles: int = 3,
        msa_drop: float = 0.15,
        pair_drop: float = 0.25,
        loss_weights: LossWeights | None = None,
        checkpoint: bool = False,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if recycles < 0:
            raise ValueError(f"recycles={recycles}: 0 cycles or more")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.recycles, self.loss_weights = recycles, loss_weights or LossWeights()
        shared: dict[str, Any] = {
            "pair_heads": pair_heads,
            "pair_head_dim": _head_dim("pair_dim", pair_dim, pair_heads),
            "triangle_width": pair_dim,
            "outer_width": max(1, msa_dim // 8),
            "num_heads": msa_heads,
            "msa_drop": msa_drop,
            "pair_drop": pair_drop,
            "checkpoint": checkpoint,
            "chunk_size": chunk_size,
            **factory,
        }
        self.embed = InputEmbedder(msa_dim, pair_dim, **factory)
        self.recycle = RecyclingEmbedder(msa_dim, pair_dim, structure=structure, **factory)
        width = _head_dim("msa_dim", msa_dim, msa_heads)
        self.extra_embed = self.extra_stack = None
        if extra_depth:
            narrow = max(1, width // 4)
            self.extra_embed = Projection(LETTER_KINDS + 2, narrow * msa_heads, **factory)
            self.extra_stack = EvoformerStack(
                extra_depth, narrow * msa_heads, pair_dim, head_dim=narrow, global_columns=True, **shared
            )
        self.templates = None
        if template_depth:
            self.templates = TemplateInputs(
                *(msa_dim, pair_dim, template_depth, pair_heads, max(1, pair_dim // pair_heads // 2)),
                directions=template_directions,
                drop=pair_drop,
                checkpoint=checkpoint,
                chunk_size=chunk_size,
                **factory,
            )
        self.evoformer = EvoformerStack(depth, msa_dim, pair_dim, head_dim=width, **shared)
        self.distogram = DistogramHead(pair_dim, **factory)
        self.masked_msa = MaskedMsaHead(msa_dim, **factory)
        self.single = self.structure = self.confidence = None
        if structure:
            self.single = Projection(msa_dim, single_dim, **factory)
            options = dict(structure_options or {})
            self.structure = StructureModule(single_dim, pair_dim, structure_depth, **options, **factory)
            self.confidence = ConfidenceHead(single_dim, **factory)

    def forward(
        self,
        tokens: Int[Tensor, "B S R"],
        *,
        key_mask: Bool[Tensor, "B R"] | None = None,
        sequence: Int[Tensor, "B R"] | None = None,
        residue_index: Int[Tensor, "B R"] | None = None,
        msa_mask: Bool[Tensor, "B S R"] | None = None,
        deletions: Float[Tensor, "B S R"] | None = None,
        extra_msa: Int[Tensor, "B E R"] | None = None,
        extra_mask: Bool[Tensor, "B E R"] | None = None,
        extra_deletions: Float[Tensor, "B E R"] | None = None,
        templates: Templates | None = None,
        truth: ProteinTruth | None = None,
        cycles: int | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Distances of all pairs of residues.

        Args:
            tokens: the alignment, the target in its first row; letters 0 .. 22 (twenty residues in the order of
                :data:`regard.models.residue_atoms.LETTERS`, X, gap, mask).
            key_mask: True for real residues.
            sequence: the target without masked letters, 0 .. 20; the first row by default.
            residue_index: places in the chain; consecutive by default.
            msa_mask: True for real letters; gaps are letters. Masked residues are masked in all rows anyway.
            deletions: letters deleted in front of each letter.
            extra_msa, extra_mask, extra_deletions: the same of a further, cheaper alignment.
            templates: known structures of related proteins; none changes nothing.
            truth: makes the losses.
            cycles: how often the result goes in again; by default ``recycles``, in training drawn up to there.
            generator: the source of dropout and of ``cycles``.
            return_aux: also return the weighted losses, where there is a truth.

        Returns:
            Logits of 64 bins, float32, symmetric, 0 for masked residues; with ``return_aux`` a pair of them and the
            losses "loss/masked_msa", "loss/fape", "loss/auxiliary" and "loss/confidence".

        Raises:
            ValueError, TypeError: letters or masks that do not fit.
        """
        given = admit_protein(tokens, key_mask, sequence, residue_index, msa_mask, deletions)
        given = self._with_more(given, extra_msa, extra_mask, extra_deletions, templates)
        state = self._run(given, cycles, generator)
        logits = self._distances(state, given)
        if not return_aux:
            return logits
        return logits, {} if truth is None else self._losses(state, given, truth, generator)

    @torch.no_grad()
    def predict(
        self,
        tokens: Int[Tensor, "B S R"],
        *,
        key_mask: Bool[Tensor, "B R"] | None = None,
        sequence: Int[Tensor, "B R"] | None = None,
        residue_index: Int[Tensor, "B R"] | None = None,
        msa_mask: Bool[Tensor, "B S R"] | None = None,
        deletions: Float[Tensor, "B S R"] | None = None,
        extra_msa: Int[Tensor, "B E R"] | None = None,
        extra_mask: Bool[Tensor, "B E R"] | None = None,
        extra_deletions: Float[Tensor, "B E R"] | None = None,
        templates: Templates | None = None,
        cycles: int | None = None,
    ) -> Fold:
        """Fold; call ``eval()`` first, or dropout is part of it. The arguments are those of ``forward``."""
        given = admit_protein(tokens, key_mask, sequence, residue_index, msa_mask, deletions)
        given = self._with_more(given, extra_msa, extra_mask, extra_deletions, templates)
        state = self._run(given, self.recycles if cycles is None else cycles, None)
        logits = self._distances(state, given)
        if state.structure is None or self.confidence is None:
            return Fold(logits, None, None, None, None)
        atoms = state.structure.atoms.masked_fill(~given.mask[..., None, None], 0.0)
        there = state.structure.atom_mask & given.mask[..., None]
        plddt = confidence(self.confidence(state.structure.single)).masked_fill(~given.mask, 0.0)
        return Fold(logits, atoms[:, :, :5], plddt, atoms, there)

    def _with_more(
        self,
        given: Protein,
        msa: Tensor | None,
        mask: Tensor | None,
        deletions: Tensor | None,
        templates: Templates | None,
    ) -> Protein:
        if msa is not None and self.extra_stack is None:
            raise ValueError("extra_msa needs a stack for it: build AlphaFold with extra_depth=4")
        if templates is not None and self.templates is None:
            raise ValueError("templates need a stack for them: build AlphaFold with template_depth=2")
        given = given if msa is None else admit_extra(given, msa, mask, deletions)
        return given if templates is None else admit_templates(given, templates)

    def _run(self, given: Protein, cycles: int | None, generator: Generator | None) -> _State:
        """All passes, the last one with gradients."""
        if cycles is None and self.training:
            device = None if generator is None else generator.device
            cycles = int(torch.randint(self.recycles + 1, (), generator=generator, device=device))
        cycles = self.recycles if cycles is None else cycles
        if cycles < 0:
            raise ValueError(f"cycles={cycles}: 0 or more")
        state = None
        with torch.no_grad():
            for _ in range(cycles):
                state = self._pass(given, state, generator)
        if torch.is_autocast_enabled(given.letters.device.type):
            torch.clear_autocast_cache()  # it holds weights that were cast without a gradient
        return self._pass(given, state, generator)

    def _pass(self, given: Protein, before: _State | None, generator: Generator | None) -> _State:
        msa, pair = self.embed(given.letters, given.sequence, given.residue_index)
        row, square = torch.zeros_like(msa[:, 0]), torch.zeros_like(pair)
        points = None if self.structure is None else torch.zeros_like(row[..., :3])
        if before is not None:
            row, square, points = before.msa[:, 0], before.pair, before.points
        new_row, new_pair = self.recycle(row, square, points)
        msa = torch.cat((msa[:, :1] + new_row[:, None], msa[:, 1:]), 1)
        pair, msa_mask = pair + new_pair, given.msa_mask
        if self.templates is not None and given.templates is not None:
            rows, seen = self.templates.rows(given.templates, given.residue_index)
            msa, msa_mask = torch.cat((msa, rows), 1), torch.cat((msa_mask, seen), 1)
            pair = pair + self.templates(pair, given.templates, given.pair_mask, generator=generator)
        if self.extra_stack is not None and self.extra_embed is not None and given.extra is not None:
            extra, extra_mask = given.extra
            embedded = self.extra_embed(extra.to(self.extra_embed.weight.dtype))
            _, pair = self.extra_stack(embedded, pair, extra_mask, given.pair_mask, generator=generator)
        msa, pair = self.evoformer(msa, pair, msa_mask, given.pair_mask, generator=generator)
        msa = msa[:, : given.msa_mask.shape[1]]  # without the rows of templates
        if self.structure is None or self.single is None:
            return _State(msa, pair, None, None)
        made = self.structure(self.single(msa[:, 0]), pair, given.sequence, mask=given.mask, generator=generator)
        beta, _ = pseudo_beta(made.atoms, made.atom_mask)
        return _State(msa, pair, made, hide(beta, given.mask))

    def _distances(self, state: _State, given: Protein) -> Tensor:
        return self.distogram(state.pair).masked_fill(~given.pair_mask[..., None], 0.0)

    def _losses(
        self, state: _State, given: Protein, truth: ProteinTruth, generator: Generator | None
    ) -> dict[str, Tensor]:
        weights = self.loss_weights
        corrupted = truth.corrupted & given.msa_mask
        letters = masked_msa_loss(self.masked_msa(state.msa), truth.msa, corrupted).mean()
        told = {"loss/masked_msa": weights.masked_msa * letters}
        if state.structure is None or self.structure is None or self.confidence is None:
            return told
        chain = (given.sequence, given.residue_index, given.mask)
        logits = self.confidence(state.structure.single)
        found = structure_losses(
            state.structure, logits, truth, *chain, self.structure.tables, self.training, generator
        )
        for name, loss in found._asdict().items():
            told[f"loss/{name}"] = getattr(weights, name) * loss
        return told


def _head_dim(name: str, width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise ValueError(f"{name}={width} is no multiple of its {heads} heads")
    return width // heads
