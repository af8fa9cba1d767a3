"""FlexAttention: torch's attention over a BlockMask and a score function.

On CUDA it is compiled. On the CPU, where it has no backward and compiling one problem takes half a minute, it runs as
torch runs it uncompiled: on whole rows of scores, which chunks of queries keep small. That is never chosen, only asked
for.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from regard.engines.problem import Gradients, Problem, Request, Serves, Shared, widen
from regard.engines.recompute import gradients, inputs, with_inputs

BLOCK = 128
CPU_PAIRS = 1 << 24  # scores of one chunk of queries on the CPU: 64 MB in float32


def _more(request: Request) -> list[str]:
    reasons: list[str] = []
    width = request.shape[5]
    if request.device == "cuda" and request.dtype == torch.float64:
        reasons.append("compiled for CUDA it has no float64")
    if request.device == "cuda" and min(width, request.shape[6]) < 16:
        reasons.append(f"compiled for CUDA it needs widths of 16 or more, not {width} and {request.shape[6]}")
    return reasons


def _matrix(request: Request, pairs: int) -> tuple[int, int]:
    """On the CPU the scores of one chunk, three times; on CUDA the recomputed out and lse."""
    batch, heads, _, n, m, _, value_width = request.shape
    size = torch.finfo(widen(request.dtype)).bits // 8
    if request.device == "cuda":
        return batch * heads * n * size, batch * heads * n * (value_width + 2) * size
    return 3 * min(batch * heads * n * m, max(CPU_PAIRS, batch * heads * m)) * size, 0


serves = Serves(devices=("cuda", "cpu"), trains=("cuda",), dropout=False, also=_more, workspace=_matrix)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """-> out (B, H, N, Dv) and lse (B, H, N)."""
    return _attention(with_inputs(problem, [None if t is None else t.detach() for t in inputs(problem)]))


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None, needs: tuple[bool, ...]
) -> Gradients:
    """Gradients by FlexAttention's own backward, after one more forward (an operator cannot keep what that saves)."""
    return gradients(_attention, problem, grad_out, grad_lse, needs)


def _attention(problem: Problem) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.flex_attention import AuxRequest

    (_, heads, n, _), m = problem.query.shape, problem.key.shape[2]
    found: list[tuple[Tensor, Tensor]] = []
    step = n if problem.pattern.rectangular else _rows_at_once(problem)
    for start in range(0, n, step):
        query = problem.query[:, :, start : start + step]
        mask = problem.pattern.block_mask(
            query.shape[2],
            m,
            query.device,
            heads=heads,
            q_offset=None if problem.pattern.rectangular else problem.q_offset + start,
            block=BLOCK,
        )
        out, aux = _flex(query.device.type)(
            query,
            problem.key,
            problem.value,
            _score_mod(problem, start, query.shape[2]),
            mask,
            problem.scale,
            problem.rep > 1,
            return_aux=AuxRequest(lse=True),
        )
        found.append((out, aux.lse.to(problem.wide)))
    outs, lses = zip(*found, strict=True)
    out, lse = torch.cat(outs, 2), torch.cat(lses, 2)
    empty = lse == -torch.inf
    return out.masked_fill(empty[..., None], 0.0), lse


def _rows_at_once(problem: Problem) -> int:
    """How many queries: what the BlockMask's table may hold, and on the CPU what the scores may take."""
    from regard.patterns.block_mask import MOST_ENTRIES

    (batch, heads, n, _), m = problem.query.shape, problem.key.shape[2]
    entries = (problem.pattern.batch or 1) * heads * -(-m // BLOCK)
    rows = MOST_ENTRIES // entries * BLOCK
    if problem.query.device.type == "cpu":
        rows = min(rows, max(CPU_PAIRS // (batch * heads * m), 1))
    return min(max(rows, 1), n)


def _score_mod(problem: Problem, start: int, rows: int) -> Callable[..., Tensor] | None:
    """Terms, attn_mask and key_mask as one function of a score and its place; queries count from ``start``."""
    mods = [
        term.score_mod(
            [
                (tensor[:, :, start : start + rows] if by_row else tensor).to(problem.wide)
                for tensor, by_row in zip(term.tensors, term.row_tensors, strict=True)
            ],
            problem.q_offset + start,
        )
        for term in problem.terms
    ]
    mods += [_masked(mask, start) for mask in (problem.attn_mask,) if mask is not None]
    if problem.key_mask is not None:
        keys = problem.key_mask
        mods.append(_masked(Shared(keys.tensor[:, None, None, :], keys.index), start))
    if not mods:
        return None

    def changed(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        for mod in mods:
            score = mod(score, b, h, q_idx, kv_idx)
        return score

    return changed


def _masked(mask: Shared, start: int) -> Callable[..., Tensor]:
    numbers, index = mask.tensor, mask.index
    wide = [size > 1 for size in numbers.shape]

    def changed(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        row = b if index is None else index[b]
        places = zip((row, h, q_idx + start, kv_idx), wide, strict=True)
        found = numbers[tuple(place if varies else torch.zeros_like(place) for place, varies in places)]
        return torch.where(found, score, -torch.inf) if found.dtype == torch.bool else score + found.to(score.dtype)

    return changed


@lru_cache
def _flex(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    kernel = torch.compile(flex_attention, fullgraph=True) if device == "cuda" else flex_attention

    def quiet(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            return cast(Any, kernel)(*arguments, **options)

    return quiet
