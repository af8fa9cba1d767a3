"""Additive scores, those of Bahdanau et al. 2014 and of "concat" in Luong et al. 2015: v . tanh(q_i + k_j)."""

from jaxtyping import Float
from torch import Tensor

from regard.ops.row_runs import by_rows


def additive_scores(
    query: Float[Tensor, "B N P"], key: Float[Tensor, "B M P"], vector: Float[Tensor, " P"]
) -> Float[Tensor, "B N M"]:
    """v . tanh(q_i + k_j) for all pairs, in O(B N M) memory and that of a run of rows.

    The tanh of all pairs, B N M P numbers, never stands in memory at once: some rows of queries are computed at a
    time, and in training once more for the gradient. A compiled graph fuses the tanh with the sum instead.

    Args:
        query, key: both already projected to the P units.
        vector: v.

    Example:
        >>> import torch
        >>> scores = additive_scores(torch.zeros(1, 2, 1), torch.tensor([[[0.0], [20.0], [-20.0]]]), torch.ones(1))
        >>> scores.tolist()
        [[[0.0, 1.0, -1.0], [0.0, 1.0, -1.0]]]
    """
    return by_rows(_scores, [query], [key, vector], key.shape[0] * key.shape[1] * key.shape[2], again=True)


def _scores(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
    return (query[:, :, None] + key[:, None]).tanh() @ vector
