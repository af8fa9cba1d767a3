"""The dropout of the native kernels in torch operations, bit for bit (``native/cpp/scores.h`` has the C++).

Derivatives that the kernels do not have are taken through tiles' composite, which must drop what the kernels dropped.
"""

from __future__ import annotations

from torch import Tensor

from regard.engines.tile_schedule import Chunk
from regard.engines.tile_scores import Place, TileScores

_BITS = (1 << 32) - 1


def drop(scores: TileScores, chunk: Chunk, weights: Tensor, number: int) -> Tensor | None:
    """What dropout multiplies a chunk's weights with; None without it."""
    if scores.problem.seed is None:
        return None
    kept = _kept(int(scores.problem.seed), scores.problem.dropout_p, scores.place(chunk))
    return kept.flatten(1, 2).to(weights.dtype).div_(1 - scores.problem.dropout_p)


def _kept(seed: int, dropout_p: float, place: Place) -> Tensor:
    """Whether dropout keeps the pairs at these places."""
    x = _mix(place.batch.new_tensor(seed & _BITS) ^ 0x9E3779B9)
    x = _mix(x ^ (seed >> 32))
    x = _mix(x + place.batch & _BITS)
    x = _mix(x + place.head & _BITS)
    x = _mix(x ^ place.query_row & _BITS)
    stream = _mix(x + (place.query_row >> 32) & _BITS)
    drawn = _mix(stream ^ (place.key_row * 0x9E3779B9 + (place.key_row >> 32) & _BITS))
    return drawn >= int(dropout_p * 2**32)


def _mix(x: Tensor) -> Tensor:
    """``mix`` of 32 bits, held in int64: a product's low bits are right although it overflows."""
    x = (x ^ x >> 16) * 0x21F0AAAD & _BITS
    x = (x ^ x >> 15) * 0xD35A2D97 & _BITS
    return x ^ x >> 15
