"""transformers' mask, described instead of drawn: a pattern, a key mask and two offsets, never L x S by itself.

What passes through a model is still a Bool (B, 1, L, S) tensor to everybody who looks: whatever touches it (a slice, a
cat, a comparison) gets the drawn mask. Only our attention function takes the description.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from regard.integrations.huggingface.positions import drawn, refuse_laid_out, speaks_of_distances
from regard.patterns import Causal, Full, Pattern, Window

__all__ = ["FAR", "DescribedMask", "describe_mask", "pattern_of"]

MaskFunction = Callable[..., Any]
FAR = 2**40  # beyond every position
_COPIES = {
    torch.ops.aten.alias.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.detach.default,
    torch.ops.aten._to_copy.default,
}


class DescribedMask(Tensor):
    """A mask Bool (B, 1, L, S), True where a pair takes part, that is drawn only when somebody looks.

    Args:
        size: (B, L, S).
        pattern: who may look at whom, by position: row r stands at ``q_offset + r``, column c at ``kv_offset + c``.
        padding: Bool (B, S), True for real keys; None where all are.
        starts: Long (B,), the position of each sequence's first real token; None where it is 0 everywhere.
        dense: Bool (B, 1, L, S), what no pattern describes; None where there is nothing of it.
        q_offset, kv_offset: positions of the first query and of the first key.
        device: where it is drawn.
    """

    pattern: Pattern
    padding: Tensor | None
    starts: Tensor | None
    dense: Tensor | None
    q_offset: int
    kv_offset: int
    moved: dict[Pattern, Pattern]
    """What our pattern became under these offsets and starts, kept for the layers to come."""

    def __new__(
        cls,
        size: tuple[int, int, int],
        pattern: Pattern,
        padding: Tensor | None = None,
        starts: Tensor | None = None,
        dense: Tensor | None = None,
        q_offset: int = 0,
        kv_offset: int = 0,
        device: torch.device | str = "cpu",
    ) -> DescribedMask:
        batch, queries, keys = size
        shape, place = (batch, 1, queries, keys), torch.device(device)
        mask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=place)
        mask.pattern, mask.padding, mask.starts, mask.dense = pattern, padding, starts, dense
        mask.q_offset, mask.kv_offset, mask.moved = q_offset, kv_offset, {}
        return mask

    def draw(self) -> Tensor:
        """The same mask as an ordinary tensor."""
        queries = torch.arange(self.shape[2], device=self.device) + self.q_offset
        keys = torch.arange(self.shape[3], device=self.device) + self.kv_offset
        parts = [drawn(self.pattern, queries, keys, None)]
        parts += [] if self.padding is None else [self.padding[:, None, None]]
        parts += [] if self.dense is None else [self.dense]
        return reduce(torch.logical_and, parts).expand(self.shape)

    def _copied(self, device: torch.device) -> DescribedMask:
        batch, _, queries, keys = self.shape
        padding, starts, dense = (
            None if part is None else part.to(device) for part in (self.padding, self.starts, self.dense)
        )
        places = (self.q_offset, self.kv_offset)
        copy = DescribedMask((batch, queries, keys), self.pattern, padding, starts, dense, *places, device)
        copy.moved = self.moved
        return copy

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Whatever looks at the mask looks at the drawn one; copies, to other devices too, stay descriptions."""
        if func in _COPIES and (kwargs or {}).get("dtype") in (None, torch.bool):
            return args[0]._copied((kwargs or {}).get("device") or args[0].device)
        drawn_args = tree_map_only(DescribedMask, DescribedMask.draw, args)
        return func(*drawn_args, **tree_map_only(DescribedMask, DescribedMask.draw, kwargs or {}))

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        more = [word for word, part in (("padding", self.padding), ("a dense mask", self.dense)) if part is not None]
        return f"DescribedMask({list(self.shape)}, {' and '.join([repr(self.pattern), *more])})"


def describe_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction | None = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    *,
    ours: Pattern | None = None,
    step_drawn: bool = True,
    **others: Any,
) -> Tensor:
    """Our mask function for transformers' ``AttentionMaskInterface``; the arguments are theirs.

    Causal, sliding and full masks, and unions and intersections of these, are described together with the padding.
    All other mask functions (packed sequences, chunks, those of a user) are drawn by transformers' ``sdpa_mask``, at
    B L S bytes a forward pass; so is everything while a graph is being traced, where no number can be read.

    Args:
        batch_size, q_length, kv_length: B, L, S.
        q_offset, kv_offset: places of the first query and of the first key.
        mask_function: theirs, by places; causal by default.
        attention_mask: Bool (B, places seen so far), True for real tokens; or a mask that was made before.
        use_vmap: draw a user's function with vmap.
        device: where the mask belongs.
        ours: the pattern that our attention function will add; only a traced graph needs it here.
        step_drawn: draw the mask of a single query into a static cache too, as the step may be compiled. Cores, which
            need to know what a mask says, go without.
        others: meant for other implementations (``dtype``, ``config``, whether None may stand for a plain mask).
    """
    from transformers.masking_utils import (
        bidirectional_mask_function,
        causal_mask_function,
        prepare_padding_mask,
        sdpa_mask,
    )

    if isinstance(attention_mask, DescribedMask):  # generate() makes it and the model hands it in again
        return attention_mask
    function: MaskFunction = causal_mask_function if mask_function is None else mask_function
    offset: Any = q_offset  # a tensor where the cache is static
    draw = functools.partial(
        sdpa_mask,
        batch_size,
        q_length,
        kv_length,
        offset,
        kv_offset,
        function,
        allow_is_causal_skip=False,
        use_vmap=use_vmap,
        device=device,
    )
    real = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    step = step_drawn and q_length == 1 and isinstance(q_offset, Tensor)
    if torch.compiler.is_compiling() or step:
        mask = _traced(_certain(draw(attention_mask=attention_mask)), ours, real, q_offset, kv_offset)
        if not step_drawn and function in (causal_mask_function, bidirectional_mask_function):
            mask.plain = (  # pyright: ignore[reportAttributeAccessIssue]  what cores need to know
                Causal() if function is causal_mask_function else Full(),
                None if real is None else real[:, kv_offset : kv_offset + kv_length],
                offset - kv_offset,
            )
        return mask
    pattern = pattern_of(function)
    dense = _certain(draw()) if pattern is None else None
    size, places = (batch_size, q_length, kv_length), (int(q_offset), kv_offset)
    return DescribedMask(size, pattern or Full(), *_padding(real, kv_length, kv_offset), dense, *places, device)


def _traced(mask: Tensor, ours: Pattern | None, real: Tensor | None, q_offset: int | Tensor, kv_offset: int) -> Tensor:
    """The drawn mask of a graph in the making, marked with what is left for the attention function to do.

    Our pattern is left to it where the last query stands at the last key and places are as good as positions. Else the
    pattern is drawn into the mask.
    """
    if ours is None:
        return mask
    aligned = isinstance(q_offset, int) and (speaks_of_distances(ours) or (real is None and q_offset == kv_offset == 0))
    if not aligned:
        refuse_laid_out(ours)
        queries = torch.arange(mask.shape[2], device=mask.device) + q_offset
        keys = torch.arange(mask.shape[3], device=mask.device) + kv_offset
        mask = mask & drawn(ours, queries, keys, None if real is None else real.long().argmax(-1))
    mask.has_pattern = not aligned  # pyright: ignore[reportAttributeAccessIssue]  attributes live on in a graph
    return mask


def pattern_of(function: MaskFunction) -> Pattern | None:
    """The pattern of one of transformers' own mask functions; None for all others.

    Those with arguments are closures: told by the function that made them, with what they hold.
    """
    from transformers import masking_utils as theirs

    if function is theirs.causal_mask_function:
        return Causal()
    if function is theirs.bidirectional_mask_function:
        return Full()
    code = getattr(function, "__code__", None)
    if code is None or getattr(function, "__module__", None) != theirs.__name__:
        return None
    held = dict(zip(code.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True))
    match function.__qualname__.partition(".")[0]:
        case "sliding_window_overlay":
            return Window(held["sliding_window"] - 1, FAR)
        case "sliding_window_bidirectional_overlay":
            return Window(held["sliding_window"])
        case "and_masks" | "or_masks" as joint:
            parts = [pattern_of(part) for part in held["mask_functions"]]
            known = [part for part in parts if part is not None]
            if len(known) < len(parts):
                return None
            return reduce((lambda a, b: a & b) if joint == "and_masks" else (lambda a, b: a | b), known)
        case _:
            return None


def _padding(real: Tensor | None, keys: int, kv_offset: int) -> tuple[Tensor | None, Tensor | None]:
    """Which of the keys at hand are real, and where each sequence starts; None where there is nothing to say."""
    if real is None or bool(real.all()):
        return None, None
    starts = real.long().argmax(-1)
    return real[:, kv_offset : kv_offset + keys].bool(), starts if bool(starts.any()) else None


def _certain(mask: Tensor | None) -> Tensor:
    if mask is None:
        raise RuntimeError("transformers left the mask out although it was told not to")
    return mask
