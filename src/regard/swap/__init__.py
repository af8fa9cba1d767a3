"""Another attention in a model that is trained already: :func:`swap_attention`, :func:`distill_attention`."""

from regard.swap.distill import DistilledRow, DistillReport, distill_attention
from regard.swap.report import LayerRow, SwapReport
from regard.swap.swap import swap_attention

__all__ = ["DistillReport", "DistilledRow", "LayerRow", "SwapReport", "distill_attention", "swap_attention"]
