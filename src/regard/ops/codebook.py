"""A codebook that follows its vectors: nearest code, straight-through gradient, moving averages, random restart.

van den Oord et al. 2017, arXiv:1711.00937, and Jukebox, Dhariwal et al. 2020, arXiv:2005.00341, section 3.1. With
z_i = argmin_j |x_i - e_j|^2, and s_j and n_j the sum and the number of the vectors of code j in this batch::

    S_j <- mu S_j + (1 - mu) s_j        n_j <- mu n_j + (1 - mu) count_j
    e_j <- S_j / n_j  where n_j >= threshold,  else a vector of the batch, drawn anew at every step

A restart leaves S_j and n_j as they are: a dead code is redrawn until vectors choose it often enough. What a step
returns is made with the codebook before the step. The first batch gives the first codebook; where it has fewer vectors
than there are codes they are repeated, with noise of deviation 0.01 / sqrt(D), for the restarts as well.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from regard.ops.recomputation import repeated
from regard.registry import UnsupportedError

DISTANCES_AT_ONCE = 2**22
"""So many are held at a time: 16 MB of float32."""

NOISE = 0.01
"""Deviation of repeated vectors, times sqrt(D)."""


class State(NamedTuple):
    """A codebook e (K, D) with its moving averages: sums S (K, D) and counts n (K,)."""

    table: Tensor
    sums: Tensor
    counts: Tensor


class Draw(NamedTuple):
    """Which vectors of a batch replace dead codes: the first K of a ``permutation`` of the vectors.

    Where the batch has fewer vectors than there are codes, of the repeated vectors, to which ``noise`` is added.
    """

    permutation: Tensor
    noise: Tensor | None


class Quantised(NamedTuple):
    """What a codebook makes of vectors (B, T, D).

    Attributes:
        codes: (B, T), whole numbers.
        vectors: the codes' vectors (B, T, D); their gradient goes straight through to x.
        commit: the mean over all numbers of (x - e)^2; only x has a gradient.
        figures: "fit", the mean squared distance to the nearest code, and "deviation" of all numbers of x; from a
            training step also "entropy" in nats of the codes of this batch, "used": codes that this batch chose,
            "alive": codes whose moving count is at the threshold, and "moved": root mean square of the codebook's step.
    """

    codes: Tensor
    vectors: Tensor
    commit: Tensor
    figures: dict[str, Tensor]


def nearest_code(x: Float[Tensor, "N D"], table: Float[Tensor, "K D"]) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """argmin_j |x_i - e_j|^2 and the squared distance, without gradient, in runs of rows: never all N K distances.

    Example:
        >>> nearest_code(torch.tensor([[0.0, 1.0], [3.0, 3.0]]), torch.tensor([[4.0, 3.0], [0.0, 0.0]]))
        (tensor([1, 0]), tensor([1., 1.]))
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x, lengths = x.to(table.dtype), table.square().sum(-1)
        rows = max(1, DISTANCES_AT_ONCE // table.shape[0])
        found = [(torch.addmm(lengths, part, table.T, alpha=-2)).min(-1) for part in x.split(rows)]
        least, codes = (torch.cat(parts) for parts in zip(*found, strict=True))
        return codes, (least + x.square().sum(-1)).clamp(min=0)


def draw(vectors: int, codes: int, width: int, generator: Generator | None = None, **where: Any) -> Draw:
    """Draw a permutation, and noise where it is needed; ``where``: device and dtype."""
    repeats = -(-codes // vectors) if vectors < codes else 1
    noise = None
    if vectors < codes:
        noise = torch.randn(repeats * vectors, width, generator=generator, **where)
    order = torch.randperm(repeats * vectors, generator=generator, device=where.get("device"))
    return Draw(order, noise)


def chosen_vectors(x: Float[Tensor, "N D"], drawn: Draw, codes: int) -> Float[Tensor, "K D"]:
    """The vectors of the batch that were drawn, one for each code.

    Raises:
        ValueError: fewer vectors than codes, and no noise.
    """
    if len(x) < codes:
        if drawn.noise is None:
            raise ValueError(f"{len(x)} vectors for {codes} codes: they are repeated, and that takes noise")
        x = x.repeat(-(-codes // len(x)), 1) + NOISE * x.shape[1] ** -0.5 * drawn.noise
    return x[drawn.permutation[:codes]]


def first_state(vectors: Float[Tensor, "K D"]) -> State:
    """The codebook of a first batch: each code as if one vector had chosen it."""
    return State(vectors, vectors.clone(), vectors.new_ones(len(vectors)))


def restored_state(table: Float[Tensor, "K D"], tokens: float | None = None) -> State:
    """Averages for a codebook that came without: as if ``tokens`` vectors a step chose all codes equally often.

    Args:
        table: the codebook.
        tokens: vectors of a training batch; None: as many as codes.
    """
    usual = 1.0 if tokens is None else tokens / len(table)
    return State(table, table * usual, table.new_full((len(table),), usual))


def counted(
    x: Float[Tensor, "N D"], codes: Int[Tensor, " N"], count: int
) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
    """The sum and the number of the vectors of each code; of all processes, where there are several."""
    joined = torch.cat((x, torch.ones_like(x[:, :1])), -1)
    found = x.new_zeros(count, joined.shape[1]).index_add_(0, codes, joined)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(found)
    return found[:, :-1], found[:, -1]


def step(
    state: State,
    batch: tuple[Float[Tensor, "K D"], Float[Tensor, " K"]],
    replacements: Float[Tensor, "K D"],
    decay: float,
    threshold: float,
) -> State:
    """The codebook after a batch.

    Args:
        state: before.
        batch: sums and counts, of :func:`counted`.
        replacements: what dead codes become.
        decay: mu.
        threshold: of the moving counts.
    """
    sums = decay * state.sums + (1 - decay) * batch[0]
    counts = decay * state.counts + (1 - decay) * batch[1]
    alive = (counts >= threshold)[:, None]
    return State(torch.where(alive, sums / counts[:, None], replacements), sums, counts)


class Codebook(nn.Module):
    """The buffers ``table``, ``sums``, ``counts`` and ``started``: all are saved, so training goes on where it stopped.

    In training each call takes one step of the averages; keep it in float32 at least, which autocast does not change.

    Args:
        codes, width: K and D.
        decay: mu of the moving averages.
        threshold: the moving count below which a code is replaced.
        device, dtype: of the buffers, float32 at least.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> found = Codebook(16, 4)(torch.randn(2, 10, 4))
        >>> found.codes.shape, found.vectors.shape, int(found.figures["used"]) <= 16
        (torch.Size([2, 10]), torch.Size([2, 10, 4]), True)
    """

    table: Tensor
    sums: Tensor
    counts: Tensor
    started: Tensor

    def __init__(
        self,
        codes: int,
        width: int,
        decay: float = 0.99,
        threshold: float = 1.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if codes < 1 or width < 1 or not 0 <= decay <= 1:
            raise ValueError(f"codes={codes}, width={width}, decay={decay}: at least 1, 1, and within [0, 1]")
        self.decay, self.threshold = decay, threshold
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        for name, shape in (("table", (codes, width)), ("sums", (codes, width)), ("counts", (codes,))):
            self.register_buffer(name, torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("started", torch.empty((), device=device, dtype=torch.bool))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Nothing is known until the first batch."""
        for tensor in (self.table, self.sums, self.counts):
            tensor.zero_()
        self.started.fill_(False)

    @property
    def state(self) -> State:
        """Table, sums and counts."""
        return State(self.table, self.sums, self.counts)

    @torch.no_grad()
    def put(self, state: State) -> None:
        """Go on from a state, such as that of :func:`restored_state`."""
        for name, tensor in state._asdict().items():
            getattr(self, name).copy_(tensor)
        self.started.fill_(True)

    def draw(self, vectors: int, generator: Generator | None = None) -> Draw:
        """What one step draws for a batch of so many vectors."""
        where: dict[str, Any] = {"device": self.table.device, "dtype": self.table.dtype}
        return draw(vectors, self.table.shape[0], self.table.shape[1], generator, **where)

    def look_up(self, codes: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        """The vectors of codes.

        Raises:
            ValueError: a code that there is not.
        """
        if codes.numel() and not (codes.min() >= 0 and codes.max() < len(self.table)):
            raise ValueError(f"codes from {codes.min()} to {codes.max()}: the codebook has 0 to {len(self.table) - 1}")
        return F.embedding(codes, self.table)

    def encode(self, x: Float[Tensor, "B T D"]) -> Int[Tensor, "B T"]:
        """The nearest codes."""
        return nearest_code(x.flatten(0, 1), self.table)[0].unflatten(0, x.shape[:2])

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        *,
        first: Draw | None = None,
        restart: Draw | None = None,
        generator: Generator | None = None,
    ) -> Quantised:
        """Quantise; in training, also take a step.

        Args:
            x: vectors.
            first, restart: the draws of the first batch and of this step; None: drawn here.
            generator: the source of the draws.

        Raises:
            ValueError: vectors of another width, or none.
            UnsupportedError: a training step that is recomputed in the backward pass.
        """
        if x.ndim != 3 or x.shape[2] != self.table.shape[1] or not x.numel():
            raise ValueError(
                f"x has shape {tuple(x.shape)}: the codebook takes (B, T, {self.table.shape[1]}), not empty"
            )
        if self.training and repeated():
            raise UnsupportedError("a codebook in training cannot be recomputed: the step has already moved it")
        flat = x.flatten(0, 1)
        known = flat.detach().to(self.table.dtype)
        if self.training and not self.started:
            self.put(first_state(chosen_vectors(known, first or self.draw(len(flat), generator), len(self.table))))
        codes, distances = nearest_code(known, self.table)
        vectors = F.embedding(codes, self.table)
        figures = {"fit": distances.mean(), "deviation": known.std(correction=0)}
        if self.training:
            figures |= self._step(known, codes, restart or self.draw(len(flat), generator))
        commit = F.mse_loss(flat.to(vectors.dtype), vectors)
        through = flat + (vectors.to(flat.dtype) - flat).detach()
        return Quantised(codes.unflatten(0, x.shape[:2]), through.unflatten(0, x.shape[:2]), commit, figures)

    @torch.no_grad()
    def _step(self, x: Tensor, codes: Tensor, drawn: Draw) -> dict[str, Tensor]:
        """Move, and say how."""
        batch = counted(x, codes, len(self.table))
        replacements = chosen_vectors(x, drawn, len(self.table))
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(replacements, 0)
        new = step(self.state, batch, replacements, self.decay, self.threshold)
        figures = {
            "entropy": entropy(batch[1]),
            "used": (batch[1] >= self.threshold).sum().to(x.dtype),
            "alive": (new.counts >= self.threshold).sum().to(x.dtype),
            "moved": (new.table - self.table).square().mean().sqrt(),
        }
        self.put(new)
        return figures

    def extra_repr(self) -> str:
        codes, width = self.table.shape
        return f"{codes} codes of width {width}, decay={self.decay}, threshold={self.threshold}"


def entropy(counts: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """-sum p ln(p + 1e-8) in nats of p = counts / their sum, as in Jukebox; exp of it is the perplexity.

    Example:
        >>> round(float(entropy(torch.tensor([2.0, 2.0, 0.0])).exp()), 3)
        2.0
    """
    share = counts / counts.sum()
    return -(share * (share + 1e-8).log()).sum()
