"""torch's own fused attention, for the full and the causal pattern.

On the CPU we call the flash kernel behind ``scaled_dot_product_attention`` directly: it returns lse, broadcasts masks
without expanding them, takes a mask and causality together and sums gradients over groups of query heads. Where torch's
causality differs from ours (it aligns the first query with the first key) the keys are cut in two parts,

    q_offset > 0:  every query sees the first q_offset keys; over the others torch's alignment is right
    q_offset < 0:  the first -q_offset queries see nothing; from there on torch's alignment is right

joined by lse, forward and backward. Other devices go through the public function, whose backward computes the forward
once more (torch keeps what it saves to itself).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.engines.joining import merge
from regard.engines.problem import Gradients, Problem, Request, Serves
from regard.engines.recompute import gradients

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _more(request: Request) -> list[str]:
    reasons: list[str] = []
    masked = request.key_mask or request.attn_mask is not None
    if request.attn_mask not in (None, torch.bool, request.dtype):
        reasons.append(f"its attn_mask is bool or of the query's {request.dtype}, not {request.attn_mask}")
    if request.key_mask and request.mask_rows:
        reasons.append(
            "key_mask and an attn_mask that differs between queries would need a joint mask for each sequence"
        )
    if request.mask_groups:
        reasons.append("an attn_mask shared by groups of sequences would have to be expanded")
    if request.device != "cpu" and masked:
        reasons.append(f"with a mask torch may give NaN for empty rows on {request.device}")
    if request.device != "cpu" and request.lse:
        reasons.append(f"torch keeps lse to itself on {request.device}")
    if (
        request.device != "cpu"
        and request.pattern == "Causal()"
        and (request.shape[3] != request.shape[4] or request.shifted)
    ):
        reasons.append(f"on {request.device} torch's causality is ours only for as many queries as keys")
    return reasons


serves = Serves(patterns="plain", terms=(), mask_grad=False, dropout=False, also=_more)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """-> out (B, H, N, Dv) and lse (B, H, N); lse is NaN where torch keeps it to itself."""
    if problem.query.device.type != "cpu":
        return _public(problem)
    width = max(problem.query.shape[-1], problem.value.shape[-1])
    query, key, value = (_padded(tensor, width) for tensor in (problem.query, problem.key, problem.value))
    mask, parts, outs, lses = _mask(problem), _parts(problem), [], []
    if not parts:  # every query stands before the first key
        return torch.zeros_like(query)[..., : problem.value.shape[-1]], query.new_full(
            query.shape[:-1], -torch.inf, dtype=problem.wide
        )
    for part in parts:
        here = part.of(mask)
        out, lse = flash(*part.cut(query, key, value), 0.0, part.causal, attn_mask=here, scale=problem.scale)
        if here is not None:
            lse = lse.masked_fill(part.empty(here, lse.shape[-1]), -torch.inf)
        outs.append(F.pad(out, (0, 0, part.row, 0)) if part.row else out)
        lses.append(F.pad(lse, (part.row, 0), value=-torch.inf) if part.row else lse)
    out, lse = (outs[0], lses[0]) if len(outs) == 1 else merge(outs, lses)
    return out[..., : problem.value.shape[-1]], lse


def backward(
    problem: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None, needs: tuple[bool, ...]
) -> Gradients:
    """Gradients of query, key and value; the kernel takes the joint out and lse of all parts."""
    if problem.query.device.type != "cpu":
        return gradients(_public, problem, grad_out, grad_lse, needs)
    query, key, value = problem.query, problem.key, problem.value
    if grad_lse is not None:
        # d lse / d logit is the weight, as if every key had one more value, 1, whose output has the gradient of lse.
        value = torch.cat([value, value.new_ones(*value.shape[:-1], 1)], -1)
        grad_out = torch.cat([grad_out, grad_lse[..., None].to(grad_out.dtype)], -1)
    width = max(query.shape[-1], value.shape[-1])
    query, key, value, out, grad_out = (_padded(tensor, width) for tensor in (query, key, value, out, grad_out))
    lse = lse.masked_fill(lse == -torch.inf, 0.0)
    mask, parts = _mask(problem), _parts(problem)
    pieces = [
        _flash_backward(
            grad_out[:, :, part.row :],
            *part.cut(query, key, value),
            out[:, :, part.row :],
            lse[:, :, part.row :],
            0.0,
            part.causal,
            attn_mask=part.of(mask),
            scale=problem.scale,
        )
        for part in parts
    ]
    if len(parts) == 1 and parts[0].row == 0:
        sums = pieces[0]
    else:
        sums = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for part, found in zip(parts, pieces, strict=True):
            for whole, piece in zip(part.cut(*sums), found, strict=True):
                whole.add_(piece)
    like = (problem.query, problem.key, problem.value)
    query, key, value = (
        grad[..., : tensor.shape[-1]] if need else None for grad, tensor, need in zip(sums, like, needs, strict=False)
    )
    return Gradients(query, key, value)


class _Part(NamedTuple):
    """Queries from ``row`` on meet the keys from ``start`` to ``stop``, causally in torch's alignment or fully."""

    row: int
    start: int
    stop: int
    causal: bool

    def cut(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = slice(self.start, self.stop)
        return query[:, :, self.row :], key[:, :, keys], value[:, :, keys]

    def of(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        mask = mask[:, :, self.row :] if mask.shape[2] > 1 else mask
        return mask[..., self.start : self.stop] if mask.shape[3] > 1 else mask

    def empty(self, mask: Tensor, rows: int) -> Tensor:
        """Which rows see nothing, (B or 1, H or 1, N or 1)."""
        seen = mask > -torch.inf
        found = seen.any(-1)
        if self.causal and mask.shape[3] > 1:
            first = seen.to(torch.uint8).argmax(-1)
            found = found & (first <= torch.arange(rows, device=mask.device))
        return ~found


def _parts(problem: Problem) -> list[_Part]:
    n, m, offset = problem.query.shape[2], problem.key.shape[2], problem.q_offset
    if problem.pattern.spec == "Full()" or offset >= m - 1:
        return [_Part(0, 0, m, False)]
    if offset > 0:
        return [_Part(0, 0, offset, False), _Part(0, offset, m, True)]
    return [_Part(-offset, 0, m, True)] if -offset < n else []


def _mask(problem: Problem) -> Tensor | None:
    """What is added to the scores, (B or 1, H or 1, N or 1, M) in the query's dtype."""
    masks: list[Tensor] = []
    if problem.key_mask is not None:
        masks.append(problem.key_mask.rows()[:, None, None, :])
    if problem.attn_mask is not None:
        masks.append(problem.attn_mask.rows())
    for place, mask in enumerate(masks):
        if mask.dtype == torch.bool:
            masks[place] = torch.zeros_like(mask, dtype=problem.query.dtype).masked_fill(~mask, -torch.inf)
    return sum(masks[1:], masks[0]) if masks else None


def _padded(tensor: Tensor, width: int) -> Tensor:
    """The tensor with zeros up to ``width``, its last dimension dense, as the kernel wants it."""
    if tensor.shape[-1] < width:
        return F.pad(tensor, (0, width - tensor.shape[-1]))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _public(problem: Problem) -> tuple[Tensor, Tensor]:
    out = F.scaled_dot_product_attention(
        problem.query,
        problem.key,
        problem.value,
        is_causal=problem.pattern.spec == "Causal()",
        scale=problem.scale,
        enable_gqa=problem.rep > 1,
    )
    return out, out.new_full(out.shape[:-1], torch.nan, dtype=problem.wide)
