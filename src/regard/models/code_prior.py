"""The language model of codes that Jukebox's priors are made of.

Dhariwal et al. 2020, arXiv:2005.00341, section 4. Codes are embedded and moved one place to the right, behind a start
(a learned one, or what the labels say); learned positions are added, and what each position is conditioned on. Then
comes :class:`regard.models.JukeboxTransformer`. The output matrix is the embedding, before which the condition is added
once more; or ("separate") it is one of its own, as in the authors' largest priors, and nothing is added.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.memory import ModelMemory, check_memory
from regard.models.jukebox_transformer import JukeboxTransformer
from regard.ops.masks import check_mask, positions

Head = Literal["tied", "separate", "none"]


class PriorMemory(NamedTuple):
    """What a prior carries from code to code.

    Attributes:
        transformer: of its layers.
        pending: (B, 1, C), what stands before the first code, until it has been read; then (B, 0, C).
        condition: (B, max_length or 1, C).
    """

    transformer: ModelMemory
    pending: Tensor
    condition: Tensor


class CodePrior(nn.Module):
    """Logits (B, N, num_codes) of each code, given those before it.

    Unlike those of :class:`regard.models.TransformerLM`, ``logits[:, t]`` belong to ``codes[:, t]`` itself.

    Args:
        num_codes: V, how many codes there are.
        max_length: the longest sequence.
        transformer: of width C.
        head: where logits come from; "none": the states (B, N, C) come out.
        labelled: what stands before the first code is given, ``start=``, not learned.
        init_scale: embeddings start from N(0, (0.02 init_scale)^2), start and positions from half of that.
        embedding_drop: dropout on codes and on positions.

    Raises:
        ValueError: an unknown head, or sizes that do not fit.

    Example:
        >>> prior = CodePrior(11, 24, JukeboxTransformer(16, 3, 2, row_length=6))
        >>> prior(torch.randint(11, (2, 20))).shape
        torch.Size([2, 20, 11])
    """

    def __init__(
        self,
        num_codes: int,
        max_length: int,
        transformer: JukeboxTransformer,
        *,
        head: Head = "tied",
        labelled: bool = False,
        init_scale: float = 1.0,
        embedding_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if head not in ("tied", "separate", "none"):
            raise ValueError(f'head={head!r} is none of "tied", "separate" and "none"')
        if num_codes < 1 or max_length < 1:
            raise ValueError(f"num_codes={num_codes}, max_length={max_length}: both must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        dim = transformer.dim
        self.num_codes, self.max_length, self.dim = num_codes, max_length, dim
        self.head, self.init_scale = head, init_scale
        self.embedding = nn.Embedding(num_codes, dim, **factory)
        self.start = None if labelled else nn.Parameter(torch.empty(dim, **factory))
        self.position = nn.Parameter(torch.empty(max_length, dim, **factory))
        self.drop = nn.Dropout(embedding_drop)
        self.transformer = transformer
        self.out = nn.Linear(dim, num_codes, bias=False, **factory) if head == "separate" else None
        self._reset_tables()  # not the transformer, which may be trained already

    def reset_parameters(self) -> None:
        """As the authors: see ``init_scale``; an output matrix of its own as torch draws it."""
        self._reset_tables()
        self.transformer.reset_parameters()

    def _reset_tables(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02 * self.init_scale)
        for table in (self.start, self.position):
            if table is not None:
                nn.init.normal_(table, std=0.01 * self.init_scale)
        if self.out is not None:
            self.out.reset_parameters()

    def forward(
        self,
        codes: Int[Tensor, "B N"],
        *,
        start: Float[Tensor, "B C"] | None = None,
        condition: Float[Tensor, "B T C"] | None = None,
        context: Float[Tensor, "B M C"] | None = None,
        key_mask: Bool[Tensor, "B N"] | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Any:
        """The logits of all codes at once.

        Args:
            codes: below ``num_codes``; what stands in padding does not matter.
            start: stands before the first code of a prior with ``labelled=True``.
            condition: is added to every position; T is N or 1.
            context: what layers of kind "encoder_decoder" attend to.
            key_mask: True for real codes; positions count only these.
            generator: draws the dropout of the weights.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            (B, N, V), or (B, N, C) without a head; with ``return_aux`` a pair of it and {}.

        Raises:
            ValueError, TypeError: more than ``max_length`` codes, a start or a condition that does not fit.
        """
        batch, length = self._check(codes)
        check_mask(key_mask, batch, length)
        if condition is not None and condition.shape not in ((batch, length, self.dim), (batch, 1, self.dim)):
            shape = tuple(condition.shape)
            raise ValueError(f"condition has shape {shape}, expected ({batch}, {length} or 1, {self.dim})")
        x = self.embedding(codes if key_mask is None else codes.masked_fill(~key_mask, 0))
        x = self.drop(_moved_right(x, self._begin(batch, start), key_mask))
        places = self.position[:length] if key_mask is None else self.position[positions(codes, key_mask)]
        x = x + self.drop(places)
        if condition is not None:
            x = x + condition
        x = self.transformer(x, context, key_mask=key_mask, generator=generator)
        y = self._read_out(x, condition)
        return (y, {}) if return_aux else y

    def memory(
        self,
        batch: int,
        *,
        start: Float[Tensor, "B C"] | None = None,
        condition: Float[Tensor, "B T C"] | None = None,
        context: Float[Tensor, "B M C"] | None = None,
    ) -> PriorMemory:
        """The memory of ``batch`` sequences without a code.

        Args:
            batch: B.
            start, context: as in ``forward``.
            condition: of all positions that will come, or (B, 1, C).
        """
        weight = self.embedding.weight
        if condition is None:
            condition = weight.new_zeros(batch, 1, self.dim)
        return PriorMemory(self.transformer.memory(batch, context), self._begin(batch, start)[:, None], condition)

    def stream(self, codes: Int[Tensor, "B n"], memory: PriorMemory) -> tuple[Tensor, PriorMemory]:
        """Read the codes that have been chosen, none or many.

        Returns:
            Logits (B, n, V) of what follows each of them, and the new memory. At the start n + 1, the first of them of
            the first code: ``logits[:, -1]`` always belong to the next one.

        Raises:
            TypeError, ValueError: the memory of another model, or more than ``max_length`` codes in all.
        """
        transformer = self.transformer.empty_memory(len(codes))
        any_number = torch.empty(len(codes), 0, self.dim, device="meta")
        check_memory(memory, PriorMemory(transformer, any_number, any_number), codes)
        return self.resume(codes, memory)

    def resume(self, codes: Int[Tensor, "B n"], memory: PriorMemory) -> tuple[Tensor, PriorMemory]:
        """As ``stream``, for callers who made the memory themselves: only the length is checked."""
        x = torch.cat((memory.pending, self.embedding(codes)), 1)
        seen, n = memory.transformer.position, x.shape[1]
        # reading a value makes a device wait; there, and in a graph, the table itself complains
        if not torch.compiler.is_compiling() and seen.device.type == "cpu" and int(seen.max()) + n > self.max_length:
            raise ValueError(
                f"{int(seen.max())} codes and {n} more, but this prior was built with max_length={self.max_length}"
            )
        places = seen[:, None] + torch.arange(n, device=seen.device)
        condition = memory.condition
        if condition.shape[1] > 1:
            condition = condition.take_along_dim(places[..., None], 1)
        x = x + self.position[places] + condition
        x, transformer = self.transformer.resume(x, memory.transformer)
        return self._read_out(x, condition), PriorMemory(transformer, memory.pending[:, :0], memory.condition)

    def _begin(self, batch: int, start: Tensor | None) -> Tensor:
        """(B, C), what stands before the first code."""
        if (start is None) == (self.start is None):
            wanted = "was built with labelled=True and needs start=" if start is None else "has learned its start"
            raise ValueError(f"this prior {wanted}, what stands before the first code")
        if self.start is not None:
            return self.start.expand(batch, -1)
        assert start is not None
        if start.shape != (batch, self.dim):
            raise ValueError(f"start has shape {tuple(start.shape)}, expected {(batch, self.dim)}: (batch, dim)")
        return start

    def _read_out(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.out is not None:
            return self.out(x)
        x = x if condition is None else x + condition
        return x if self.head == "none" else F.linear(x, self.embedding.weight)

    def _check(self, codes: Tensor) -> tuple[int, int]:
        if codes.ndim != 2 or codes.is_floating_point():
            raise ValueError(
                f"codes are {codes.dtype} of shape {tuple(codes.shape)}, expected integers (batch, length)"
            )
        if codes.shape[1] > self.max_length:
            raise ValueError(f"{codes.shape[1]} codes, but this prior was built with max_length={self.max_length}")
        return codes.shape[0], codes.shape[1]


def _moved_right(x: Tensor, start: Tensor, key_mask: Tensor | None) -> Tensor:
    """Each place gets the real code before it, the first real one the start."""
    if key_mask is None:
        return torch.cat((start[:, None], x), 1)[:, : x.shape[1]]
    place = torch.arange(x.shape[1], device=x.device)
    before = torch.where(key_mask, place, -1).cummax(1).values
    before = F.pad(before, (1, 0), value=-1)[:, : x.shape[1]]
    return torch.where((before < 0)[..., None], start[:, None], x.take_along_dim(before.clamp(min=0)[..., None], 1))


def bits(logits: Float[Tensor, "B N V"], codes: Int[Tensor, "B N"]) -> Float[Tensor, ""]:
    """The mean of -log2 p(code).

    Example:
        >>> round(float(bits(torch.zeros(1, 3, 8), torch.tensor([[0, 5, 7]]))), 6)
        3.0
    """
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten()) / math.log(2)
