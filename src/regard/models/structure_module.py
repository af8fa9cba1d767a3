"""AlphaFold's structure module: every residue is a free frame, and the frames move until they are a protein.

Jumper et al. 2021, "Highly accurate protein structure prediction with AlphaFold", Nature 596, supplement algorithms 20
and 23. All frames start at the origin. One set of weights makes each of the L steps::

    s <- LN(s + IPA(s, z, T));  s <- LN(s + MLP(s));  T <- T o (1, b, c, d; t)(s);  angles <- ResNet(s, s_0)

Between the steps no gradient passes through the rotations. Inside, lengths are in units of 10 Angstrom; what comes out
is in Angstrom. As in the authors' code, ReLUs stand in front of the first maps of the ResNet.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.models.all_atoms import ANGLES, group_frames, slot_positions, to_atoms
from regard.models.invariant_point import InvariantPointAttention
from regard.models.residue_atoms import ResidueTables, residue_tables
from regard.ops.dropout import drop
from regard.ops.frames import Frames, identity, precise, small_rotation
from regard.ops.masks import check_mask, check_tokens, hide
from regard.ops.projection import Projection

UNIT = 10.0
"""Angstrom in a unit of length inside."""


class Structure(NamedTuple):
    """What the structure module makes; lengths in Angstrom, L steps.

    Attributes:
        single: the single representation behind the last step.
        trace: the backbone frames behind each step, (L, B, R).
        angles: (sine, cosine) of the seven torsions behind each step, of length 1.
        raw_angles: the same before they were scaled to length 1.
        groups: the eight frames of each residue at the end, (B, R, 8).
        atoms, atom_mask: all heavy atoms at the end, in the order of :data:`regard.models.residue_atoms.ATOMS`.
    """

    single: Float[Tensor, "B R C"]
    trace: Frames
    angles: Float[Tensor, "L B R 7 2"]
    raw_angles: Float[Tensor, "L B R 7 2"]
    groups: Frames
    atoms: Float[Tensor, "B R 37 3"]
    atom_mask: Bool[Tensor, "B R 37"]


class _Transition(nn.Module):
    """s + W_n ReLU(... ReLU(W_1 s))."""

    def __init__(self, dim: int, layers: int, **factory: Any) -> None:
        super().__init__()
        starts = ("relu",) * (layers - 1)
        self.layers = nn.ModuleList(Projection(dim, dim, start, **factory) for start in starts)
        self.last = Projection(dim, dim, "zero", **factory)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return x + self.last(hidden)


class TorsionNet(nn.Module):
    """Seven points in the plane a residue, from its vector now and at the start (algorithm 20, lines 11 to 14).

    Args:
        dim: C.
        width: of the residual blocks.
        blocks: how many of them.
    """

    def __init__(self, dim: int, width: int = 128, blocks: int = 2, **factory: Any) -> None:
        super().__init__()
        self.now, self.start = Projection(dim, width, **factory), Projection(dim, width, **factory)
        self.inner = nn.ModuleList(Projection(width, width, "relu", **factory) for _ in range(blocks))
        self.outer = nn.ModuleList(Projection(width, width, "zero", **factory) for _ in range(blocks))
        self.output = Projection(width, 2 * ANGLES, **factory)

    def forward(self, single: Float[Tensor, "B R C"], start: Float[Tensor, "B R C"]) -> Float[Tensor, "B R 7 2"]:
        """(sine, cosine) of any length, in float32 or better."""
        x = self.now(F.relu(single)) + self.start(F.relu(start))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(F.relu(inner(F.relu(x))))
        return precise(self.output(F.relu(x))).unflatten(-1, (ANGLES, 2))


class StructureModule(nn.Module):
    """Algorithm 20; see the head of this file.

    Args:
        dim: c_s, of the single representation.
        pair_dim: c_z.
        depth: L.
        num_heads, head_dim, query_points, value_points: of
            :class:`regard.models.invariant_point.InvariantPointAttention`.
        transition_layers: maps in the MLP.
        torsion_dim, torsion_blocks: of :class:`TorsionNet`.
        dropout: behind the attention and the MLP.

    Raises:
        ValueError: no step, or shapes that do not fit.

    Example:
        >>> module = StructureModule(8, 6, depth=2, num_heads=2)
        >>> single, pair, sequence = torch.randn(1, 5, 8), torch.randn(1, 5, 5, 6), torch.randint(20, (1, 5))
        >>> module(single, pair, sequence).atoms.shape
        torch.Size([1, 5, 37, 3])
    """

    def __init__(
        self,
        dim: int = 384,
        pair_dim: int = 128,
        depth: int = 8,
        *,
        num_heads: int = 12,
        head_dim: int = 16,
        query_points: int = 4,
        value_points: int = 8,
        transition_layers: int = 3,
        torsion_dim: int = 128,
        torsion_blocks: int = 2,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(depth, transition_layers) < 1:
            raise ValueError(f"depth={depth}, transition_layers={transition_layers}: at least 1 of each")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.pair_dim, self.depth, self.dropout = dim, pair_dim, depth, dropout
        self.single_norm, self.pair_norm = nn.LayerNorm(dim, **factory), nn.LayerNorm(pair_dim, **factory)
        self.enter = Projection(dim, dim, **factory)
        self.attention = InvariantPointAttention(
            *(dim, pair_dim, num_heads, head_dim), query_points=query_points, value_points=value_points, **factory
        )
        self.attention_norm = nn.LayerNorm(dim, **factory)
        self.transition = _Transition(dim, transition_layers, **factory)
        self.transition_norm = nn.LayerNorm(dim, **factory)
        self.backbone_update = Projection(dim, 6, "zero", **factory)
        self.torsions = TorsionNet(dim, torsion_dim, torsion_blocks, **factory)
        for name, table in residue_tables()._asdict().items():
            self.register_buffer(f"table_{name}", table.clone().to(device), persistent=False)

    @property
    def tables(self) -> ResidueTables:
        """Groups and atoms of the residues, where the module is."""
        return ResidueTables(*(getattr(self, f"table_{name}") for name in ResidueTables._fields))

    def forward(
        self,
        single: Float[Tensor, "B R C"],
        pair: Float[Tensor, "B R R Cz"],
        sequence: Int[Tensor, "B R"],
        *,
        mask: Bool[Tensor, "B R"] | None = None,
        generator: Generator | None = None,
    ) -> Structure:
        """Fold.

        Args:
            single: one vector a residue.
            pair: one vector a pair of residues.
            sequence: kinds of residues, 0 .. 20.
            mask: True for real residues; the others change nothing, and what they get means nothing.
            generator: the source of dropout.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
        """
        single, pair = self._admit(single, pair, sequence, mask)
        pair = self.pair_norm(pair)
        start = self.single_norm(single)
        single, frames = self.enter(start), identity(*sequence.shape, like=start)
        drop_rate = self.dropout * self.training
        trace, raw = list[Frames](), list[Tensor]()
        for step in range(self.depth):
            if step:
                frames = frames.with_fixed_rotation()
            single = single + self.attention.update(single, pair, frames, mask)
            single = self.attention_norm(drop(single, drop_rate, generator))
            single = self.transition_norm(drop(self.transition(single), drop_rate, generator))
            turn, shift = precise(self.backbone_update(single)).split(3, -1)
            frames = frames.compose(Frames(small_rotation(turn), shift))
            trace.append(frames.scaled(UNIT))
            raw.append(self.torsions(single, start))
        raw_angles = torch.stack(raw)
        angles = raw_angles * torch.rsqrt(raw_angles.square().sum(-1, keepdim=True).clamp(min=1e-12))
        groups = group_frames(trace[-1], angles[-1], sequence, self.tables)
        atoms, there = to_atoms(slot_positions(groups, sequence, self.tables), sequence, self.tables)
        steps = Frames(torch.stack([f.rotation for f in trace]), torch.stack([f.translation for f in trace]))
        return Structure(single, steps, angles, raw_angles, groups, atoms, there)

    def _admit(self, single: Tensor, pair: Tensor, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Single and pair with what is masked set to 0."""
        check_tokens(single, self.dim, "single")
        batch, length, _ = single.shape
        if pair.shape != (batch, length, length, self.pair_dim):
            expected = (batch, length, length, self.pair_dim)
            raise ValueError(f"pair has shape {tuple(pair.shape)}, expected {expected}: one vector a pair of residues")
        if sequence.shape != (batch, length):
            raise ValueError(
                f"sequence has shape {tuple(sequence.shape)}, expected {(batch, length)}: a kind a residue"
            )
        check_mask(mask, batch, length, "mask")
        if mask is None:
            return single, pair
        together = mask[:, :, None] & mask[:, None]
        return hide(single, mask), pair.masked_fill(~together[..., None], 0.0)
