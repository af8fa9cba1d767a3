"""Score terms: what is added to scale * query . key before the softmax.

A term is one broadcasting function ``term(score, b, h, i, j, tensors) -> score`` of positions i (query) and j (key);
every engine evaluates the same function, on whole matrices, on tiles or as FlexAttention's ``score_mod``. Terms apply
in the order in which they are given; pair bias needs no term, it is ``attn_mask``.

Bias and Dot read a table through an index: :class:`Relative`, :class:`T5Buckets`, :class:`RelativeGrid`, or any
function (i, j) -> int64 of your own.
"""

from regard.scores.index import Relative, RelativeGrid, T5Buckets
from regard.scores.spec import from_spec
from regard.scores.terms import Bias, Dot, Slope, SoftCap, Term, alibi_slopes

__all__ = [
    "Bias",
    "Dot",
    "Relative",
    "RelativeGrid",
    "Slope",
    "SoftCap",
    "T5Buckets",
    "Term",
    "alibi_slopes",
    "from_spec",
]
