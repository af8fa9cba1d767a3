"""Product-key memory: each token reads a few rows of a table of up to millions of values.

Lample et al. 2019, arXiv:1907.05242, section 3. The n^2 slots of a head have pairs of sub-keys as their keys, one of n
for each half of the query q = norm(W x + b), and their scores are sums::

    s(i, j) = q' . c_i + q'' . c'_j         slot(i, j) = i n + j
    y = sum over heads, sum over the K slots of largest s, of softmax(s) V[slot]

The K best slots are found exactly, from 2 n products and their K best halves. Scores are not divided by
sqrt(k); V is shared by the heads, whose readings are summed without a projection. Nothing mixes tokens, but for the
statistics of ``norm="batch"`` in training: a later token then moves them, and padding does not.

Time O(H (n k + K C)) a token, memory n^2 C for the table, of which a batch of T tokens touches T H K rows at most. The
table is for an optimiser of its own, see :func:`parameter_groups`. The layer stands for a feed-forward network or
beside one; it replaces no attention. It starts as in the authors' code.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.memory import check_memory
from regard.ops.batch_norm import TokenBatchNorm
from regard.ops.masks import admit_one_sequence, check_tokens, hide
from regard.ops.product_keys import product_key_search, read_slots, slot_softmax
from regard.registry import Card, Layer, Sample, register


def product_key_memory(
    q: Float[Tensor, "T H 2 d"],
    keys: Float[Tensor, "H 2 n d"],
    values: Float[Tensor, "S C"],
    *,
    topk: int = 32,
    sparse: bool = False,
) -> Float[Tensor, "T C"]:
    """sum_h softmax(s) V over the K best of S = n^2 slots, see the head of this file.

    Args:
        q: both halves of each query.
        keys: the sub-keys for the first and for the second half.
        values: V, shared by the heads.
        topk: K.
        sparse: the gradient of V is a sparse tensor.

    Returns:
        One row a token.

    Example:
        >>> q, keys, values = torch.randn(5, 4, 2, 8), torch.randn(4, 2, 16, 8), torch.randn(256, 12)
        >>> product_key_memory(q, keys, values, topk=6).shape
        torch.Size([5, 12])
    """
    score, slot = product_key_search(q, keys, topk)
    return read_slots(values, slot, slot_softmax(score), sparse=sparse)


def slot_weights(
    slot: Int[Tensor, "T H K"], weight: Float[Tensor, "T H K"], size: int, mask: Bool[Tensor, " T"] | None = None
) -> Float[Tensor, " S"]:
    """The weight that each of ``size`` slots got from all real tokens; those of several batches may be summed."""
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if mask is not None:
        weight = weight.masked_fill(~mask[:, None, None], 0.0)
    return torch.zeros(size, device=weight.device, dtype=weight.dtype).index_add_(0, slot.flatten(), weight.flatten())


def memory_metrics(weights: Float[Tensor, " S"]) -> dict[str, Tensor]:
    """The health of a memory (section 4.4): the share of slots in use, and KL of their use from an even one.

    Args:
        weights: of each slot, from :func:`slot_weights`, best over a whole evaluation set.

    Returns:
        "metric/usage" in [0, 1], the larger the better, and "metric/kl" = ln S + sum z ln z for the shares z, 0 where
        all slots are used alike, ln S where one is used alone; both 0 where nothing was read.

    Example:
        >>> {name: float(value) for name, value in memory_metrics(torch.tensor([2.0, 2.0, 0.0, 0.0])).items()}
        {'metric/usage': 0.5, 'metric/kl': 0.6931471824645996}
    """
    total = weights.sum()
    share = weights / torch.where(total > 0, total, 1.0)
    kl = (share.xlogy(share).sum() + torch.log(torch.full_like(total, len(weights)))) * (total > 0)
    return {"metric/usage": (weights > 0).to(weights.dtype).mean(), "metric/kl": kl}


def parameter_groups(model: nn.Module, value_lr: float = 1e-3) -> list[dict[str, Any]]:
    """Two groups for an optimiser: all other parameters, and the tables of values with a learning rate of their own.

    The authors train the tables with Adam at a constant 1e-3. They get no weight decay, which would shrink every row at
    every step, read or not. With ``sparse=True`` give the second group to ``torch.optim.SparseAdam`` and leave it out
    of the clipping of gradients. A table shared by several memories appears once.

    Example:
        >>> memory = ProductKeyMemory(12, num_keys=8, topk=4)
        >>> optimiser = torch.optim.AdamW(parameter_groups(memory), lr=1e-4)
        >>> [group["lr"] for group in optimiser.param_groups]
        [0.0001, 0.001]
    """
    tables = {id(part.values): part.values for part in model.modules() if isinstance(part, ProductKeyMemory)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    return [{"params": rest}, {"params": list(tables.values()), "lr": value_lr, "weight_decay": 0.0}]


class Position(NamedTuple):
    """All that is carried along where no token sees another.

    Attributes:
        position: (B,), the position of the next token.
    """

    position: Int[Tensor, " B"]


@register(
    "product_key_memory",
    samples=[
        Sample(dim=12, num_heads=2, key_dim=8, num_keys=9, topk=4),
        Sample(dim=12, num_heads=3, key_dim=6, num_keys=5, topk=5, norm=None),
    ],
)
class ProductKeyMemory(Layer):
    """The layer around :func:`product_key_memory`: it owns the query network, the sub-keys and the table.

    Args:
        dim: C, of what comes in.
        num_heads: H, readers of the same table, each with its own queries and sub-keys.
        key_dim: k, the width of a query, even.
        num_keys: n sub-keys a half; the table has n^2 rows.
        topk: K, the rows that each head reads.
        value_dim: the width of what comes out; ``dim`` by default.
        norm: of the queries: "batch", which spreads them over more slots and takes its statistics from real tokens
            (causal in evaluation only, and no two sequences of a training batch are independent), or None.
        proj_drop: dropout on the output.
        sparse: the gradient of the table is a sparse tensor, for ``torch.optim.SparseAdam``.

    Raises:
        ValueError: sizes that do not fit.
        UnsupportedError: a context: tokens read alone.
    """

    card = Card(
        title="Product-key memory",
        paper="arXiv:1907.05242",
        year=2019,
        family="chosen",
        data="sequence",
        causal="strict",
        streaming=True,
        stochastic=("batch_norm",),
        cost="N",
        summary="A feed-forward layer with a huge table: many more parameters at next to no cost. It mixes no tokens.",
        formula="sum over heads of softmax(s) V over the K best of n^2 slots, s(i, j) = q' . c_i + q'' . c'_j",
    )

    causal = True
    """Token by token, hence always; ``norm="batch"`` mixes the tokens of a batch in training."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        key_dim: int = 256,
        num_keys: int = 512,
        topk: int = 32,
        *,
        value_dim: int | None = None,
        norm: Literal["batch"] | None = "batch",
        proj_drop: float = 0.0,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        value_dim = dim if value_dim is None else value_dim
        if min(dim, num_heads, key_dim, num_keys, topk, value_dim) < 1:
            sizes = f"num_heads={num_heads}, key_dim={key_dim}, num_keys={num_keys}, topk={topk}"
            raise ValueError(f"dim={dim}, {sizes}, value_dim={value_dim}: sizes must be positive")
        if key_dim % 2:
            raise ValueError(f"key_dim={key_dim} is odd, but a query has two halves: pass an even number")
        if topk > num_keys:
            raise ValueError(f"topk={topk} slots cannot be found among num_keys={num_keys} a half: topk <= num_keys")
        if norm not in ("batch", None):
            raise ValueError(f'norm={norm!r} is neither "batch" nor None')
        self.dim, self.num_heads, self.topk, self.sparse = dim, num_heads, topk, sparse
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query_proj = nn.Linear(dim, num_heads * key_dim, **factory)
        self.query_norm = TokenBatchNorm(num_heads * key_dim, **factory) if norm == "batch" else None
        self.keys = nn.Parameter(torch.empty(num_heads, 2, num_keys, key_dim // 2, **factory))
        self.values = nn.Parameter(torch.empty(num_keys**2, value_dim, **factory))
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sub-keys uniform within 1/sqrt(k/2), values N(0, 1/C), the query network as torch starts it."""
        self.query_proj.reset_parameters()
        if self.query_norm is not None:
            self.query_norm.reset_parameters()
        bound = self.keys.shape[-1] ** -0.5
        nn.init.uniform_(self.keys, -bound, bound)
        nn.init.normal_(self.values, std=self.values.shape[-1] ** -0.5)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Read for each token; nobody sees another one, so ``segments`` separate nothing and nothing is drawn.

        Args:
            x: (B, N, C).
            context: refused.
            key_mask: Bool (B, N), True for real tokens: those whose queries enter the batch norm's statistics.
            query_mask: Bool (B, N), True for tokens that read; each mask is the default for the other.
            segments: Int (B, N), one id a packed document.
            generator: idle.
            return_aux: also return how the slots are used, see :func:`memory_metrics`.

        Returns:
            y (B, N, value_dim), 0 for masked queries; with ``return_aux`` (y, dict of tensors).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context.
        """
        name = "product_key_memory"
        x, key_mask, query_mask = admit_one_sequence(name, x, self.dim, context, key_mask, query_mask, segments)
        slot, weight = self.slots(x, key_mask)
        y = read_slots(self.values, slot, weight, sparse=self.sparse).view(*x.shape[:2], -1)
        y = hide(self.proj_drop(y), query_mask)
        if not return_aux:
            return y
        mask = None if query_mask is None else query_mask.flatten()
        return y, memory_metrics(slot_weights(slot, weight, len(self.values), mask))

    def slots(self, x: Tensor, key_mask: Tensor | None = None) -> tuple[Int[Tensor, "T H K"], Float[Tensor, "T H K"]]:
        """Which rows of the table each head reads for each of the T = B N tokens, and with which weights."""
        score, slot = product_key_search(self.queries(x, key_mask), self.keys, self.topk)
        return slot, slot_softmax(score)

    def queries(self, x: Tensor, key_mask: Tensor | None = None) -> Float[Tensor, "T H 2 d"]:
        """Both halves of each head's query for each of the T = B N tokens."""
        q = self.query_proj(x)
        q = q if self.query_norm is None else self.query_norm(q, key_mask)
        return q.reshape(-1, self.num_heads, 2, self.keys.shape[-1])

    def memory(
        self,
        batch: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        static: int | None = None,
    ) -> Position:
        """No token is remembered, so neither ``dtype`` nor a ``static`` length makes a difference."""
        return Position(torch.zeros(batch, device=device or self.keys.device, dtype=torch.long))

    def stream(self, x: Tensor, memory: Position) -> tuple[Tensor, Position]:
        """Continue with the next N tokens x (B, N, C): -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        return self(x), Position(memory.position + x.shape[1])

    def extra_repr(self) -> str:
        heads, _, n, half = self.keys.shape
        return f"dim={self.dim}, num_heads={heads}, key_dim={2 * half}, num_keys={n}, topk={self.topk}"
