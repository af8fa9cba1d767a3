"""One attention problem as every engine sees it: leading dimensions flattened to B, masks and terms left unexpanded.

Letters: B batch, H query heads, G key heads (H = G * rep, query head h reads key head h // rep), N queries, M keys,
D head width, Dv value width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from regard.patterns import Pattern
from regard.scores import Term


@dataclass(frozen=True)
class Shared:
    """A tensor that several batch entries share; it is never expanded over the batch.

    Attributes:
        tensor: flattened over its own leading dimensions only.
        index: Long (B,), the row of ``tensor`` that each batch entry reads; None when all read row 0.
    """

    tensor: Tensor
    index: Tensor | None

    def rows(self) -> Tensor:
        """The tensor once per batch entry, (B, ...), or (1, ...) when all share one row; copied only for groups."""
        # As many rows as entries: each reads its own, in order.
        alone = self.index is None or self.index.shape[0] == self.tensor.shape[0]
        return self.tensor if alone else self.tensor[self.index]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """softmax(scale query key^T, then the terms, then attn_mask and pattern) value.

    Attributes:
        query: (B, H, N, D).
        key: (B, G, M, D).
        value: (B, G, M, Dv).
        pattern: who may look at whom; ``is_causal`` is already part of it.
        q_offset: row r stands at position r + q_offset.
        key_mask: Bool (Bk, M), True for keys that take part.
        attn_mask: bool (True takes part) or float (added to the logits), (Bm, H or 1, N or 1, M or 1).
        terms: what is added to the scaled scores, in order.
        scale: the factor of query . key.
        dropout_p: the share of weights dropped.
        seed: 0-dim int64, the only source of randomness; None without dropout.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    pattern: Pattern
    q_offset: int
    key_mask: Shared | None = None
    attn_mask: Shared | None = None
    terms: tuple[Term, ...] = ()
    scale: float = 1.0
    dropout_p: float = 0.0
    seed: Tensor | None = None

    @property
    def rep(self) -> int:
        """Query heads per key head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def wide(self) -> torch.dtype:
        """The dtype of softmax, sums and lse: float32 for half inputs, the input's own otherwise."""
        return widen(self.query.dtype)

    def term_tensors(self) -> tuple[Tensor, ...]:
        """The tensors of all terms, in the order of ``Gradients.terms``."""
        return tuple(tensor for term in self.terms for tensor in term.tensors)


class Gradients(NamedTuple):
    """What a backward pass returns; None where no gradient was asked for.

    Attributes:
        query, key, value: shaped like the problem's.
        attn_mask: shaped like ``Shared.tensor`` of the mask (summed over what it was broadcast over).
        terms: one per entry of :meth:`Problem.term_tensors`.
    """

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    attn_mask: Tensor | None = None
    terms: tuple[Tensor | None, ...] = ()


def widen(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, otherwise the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an engine must know to say whether it serves: a problem without its numbers.

    Attributes:
        device: "cpu", "cuda", ...
        dtype: of query, key and value.
        shape: (B, H, G, N, M, D, Dv).
        pattern: the pattern's canonical text, ``is_causal`` included.
        shifted: ``q_offset`` was given explicitly, so rows need not end where the keys end.
        key_mask: there is a key mask.
        attn_mask: None, or the dtype of the mask.
        mask_rows: the mask differs from query to query.
        mask_groups: groups of batch entries share the mask, rather than all of them or none.
        mask_grad: the mask wants a gradient.
        terms: the texts of the score terms.
        lse: the caller asked for lse.
        dropout: ``dropout_p`` is not 0.
        grad: something wants a gradient.
    """

    device: str
    dtype: torch.dtype
    shape: tuple[int, int, int, int, int, int, int]
    pattern: str = "Full()"
    shifted: bool = False
    key_mask: bool = False
    attn_mask: torch.dtype | None = None
    mask_rows: bool = False
    mask_groups: bool = False
    mask_grad: bool = False
    terms: tuple[str, ...] = ()
    lse: bool = False
    dropout: bool = False
    grad: bool = False

    @property
    def plain(self) -> bool:
        """Whether the pattern is full or causal and nothing else."""
        return self.pattern in ("Full()", "Causal()")


def rows_only(request: Request, pairs: int) -> tuple[int, int]:
    """The workspace of an engine that keeps one number per query and a few tiles: lse, and its gradient's row sums."""
    batch, heads, _, n, *_ = request.shape
    width = torch.finfo(widen(request.dtype)).bits // 8
    return batch * heads * n * width, 2 * batch * heads * n * width


@dataclass(frozen=True, kw_only=True)
class Serves:
    """What an engine serves, as data; calling it with a request gives the reasons why it cannot serve that one.

    Attributes:
        devices, dtypes: what it runs on; None means anything.
        trains: devices on which it has a backward; None means all of ``devices``.
        patterns: "any", or "plain" for full and causal only.
        terms: the names of the score terms it knows; None means all.
        attn_mask, mask_grad, lse, dropout: whether it takes them.
        also: what a table cannot say; a function from the request to more reasons.
        workspace: bytes that a forward, and a forward with backward, need beyond inputs, outputs and gradients, from
            the request and the number of allowed pairs: an estimate.
    """

    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    trains: tuple[str, ...] | None = None
    patterns: str = "any"
    terms: tuple[str, ...] | None = None
    attn_mask: bool = True
    mask_grad: bool = True
    lse: bool = True
    dropout: bool = True
    also: Callable[[Request], list[str]] | None = None
    workspace: Callable[[Request, int], tuple[int, int]] = rows_only

    def __call__(self, request: Request) -> list[str]:
        """The reasons why this request cannot be served, in words; empty when it can."""
        reasons: list[str] = []
        if self.devices is not None and request.device not in self.devices:
            reasons.append(f"it runs on {', '.join(self.devices)}, not on {request.device}")
        if self.dtypes is not None and request.dtype not in self.dtypes:
            reasons.append(f"it has no {_name(request.dtype)}, only {', '.join(map(_name, self.dtypes))}")
        if request.grad and self.trains is not None and request.device not in self.trains:
            reasons.append(f"it has no backward on {request.device}")
        if self.patterns == "plain" and not request.plain:
            reasons.append("it knows the full and the causal pattern only")
        if self.terms is not None:
            unknown = [term for term in request.terms if term.split("(")[0] not in self.terms]
            if unknown:
                reasons.append(f"it does not know the score terms {', '.join(unknown)}")
        if request.attn_mask is not None and not self.attn_mask:
            reasons.append("it takes no attn_mask")
        if request.mask_grad and not self.mask_grad:
            reasons.append("it gives attn_mask no gradient")
        if request.lse and not self.lse:
            reasons.append("it does not return lse")
        if request.dropout and not self.dropout:
            reasons.append("it has no dropout")
        return reasons + self.also(request) if self.also is not None else reasons


class Engine(Protocol):
    """What an engine's module holds.

    ``composite`` is the same computation in differentiable torch operations without a backward of its own; engines
    without one borrow that of ``tiles``.
    """

    serves: Serves

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """-> out (B, H, N, Dv) in the query's dtype and lse (B, H, N) in ``problem.wide``."""
        ...

    def backward(
        self,
        problem: Problem,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        needs: tuple[bool, ...],
    ) -> Gradients:
        """Gradients for query, key, value, attn_mask and every term tensor, in this order, where ``needs`` says so."""
        ...


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
