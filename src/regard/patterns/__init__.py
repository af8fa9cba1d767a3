"""Patterns: who may look at whom, composable with & | ~."""

from regard.patterns.algebra import PerHead
from regard.patterns.bigbird import BigBird, ListedBlocks
from regard.patterns.blocks import from_blocks, from_mask, from_mask_mod
from regard.patterns.grid import Axis, Columns, CrissCross, Halo, Neighborhood, Rows
from regard.patterns.pattern import Full, Pattern
from regard.patterns.sequence import Blocks, Causal, Dilated, Fixed, Global, Segments, Strided, Summary, Window
from regard.patterns.spec import from_spec

__all__ = [
    "Axis",
    "BigBird",
    "Blocks",
    "Causal",
    "Columns",
    "CrissCross",
    "Dilated",
    "Fixed",
    "Full",
    "Global",
    "Halo",
    "ListedBlocks",
    "Neighborhood",
    "Pattern",
    "PerHead",
    "Rows",
    "Segments",
    "Strided",
    "Summary",
    "Window",
    "from_blocks",
    "from_mask",
    "from_mask_mod",
    "from_spec",
]
