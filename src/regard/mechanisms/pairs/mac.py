"""MAC: p steps of reasoning, each of which picks an operation from the question, looks it up, and remembers.

Hudson & Manning 2018, "Compositional attention networks for machine reasoning", arXiv:1803.03067, section 3.2. With
contextual words w_s, their whole q, and cells K_n of an image or of any other knowledge; each L is an affine map of its
own. A step i of ``variant="paper"``::

    q_i  = L_i(q),  cq = L([c_{i-1}; q_i]),  c_i = sum_s softmax_s(L(cq * w_s)) w_s            control
    I'_n = L([L(m_{i-1}) * L(K_n); K_n]),    r   = sum_n softmax_n(L(c_i * I'_n)) K_n          read
    m_i  = L([m_{i-1}; r])                                                                     write

and of ``variant="authors"``, what their code computes, from which their numbers and weights come::

    q_i  = L_i(tanh(L(q))),  cq = q_i, or with ``feed_control`` L(tanh(L([c_{i-1}; q_i]))),  c_i as above
    I'_n = L(ELU(L([L(m_{i-1}) * L(K_n); L(K_n)]))),  r = sum_n softmax_n(L(ELU(c_i * I'_n))) K_n

c_0 is learned where it is fed, else q; m_0 is learned. Self-attention to earlier steps and a gate are options of the
write unit (:class:`regard.ops.reasoning_units.WriteUnit` says how the two variants differ). Padded words and cells take
no part (the authors' code has no mask of cells). L(K), and in I' all that does not meet the memory, are computed once
for all steps; a step takes O(B (N A C + S C)) time with A the width where memory and cells meet.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.ops.dropout import drop
from regard.ops.reasoning_parts import Activation, activate, reset_maps, slope_of
from regard.ops.reasoning_units import Asker, ControlUnit, Gate, ReadUnit, WriteUnit
from regard.pair_layers import PairLayer
from regard.registry import Card, Sample, register

Variant = Literal["authors", "paper"]
Start = Literal["learned", "question", "zero"]
Words = Literal["none", "scores", "values", "both"]


class Cell(nn.Module):
    """What a step is made of.

    Args:
        control, read, write: its units.
    """

    def __init__(self, control: ControlUnit, read: ReadUnit, write: WriteUnit) -> None:
        super().__init__()
        self.control, self.read, self.write = control, read, write


class Trace(NamedTuple):
    """Every step of a chain of thought, without its start."""

    memories: Float[Tensor, "B P D"]
    controls: Float[Tensor, "B P C"]
    words: Float[Tensor, "B P S"]
    knowledge: Float[Tensor, "B P N"]


def _inputs() -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 7, 10), "context": (2, 11, 10), "question": (2, 10)}
    return {name: torch.randn(shape, generator=make) for name, shape in shapes.items()}


def _narrow_inputs() -> dict[str, Tensor]:
    return _inputs() | {"context": _inputs()["context"][..., :9]}


@register(
    "mac",
    samples=[
        Sample(dim=10, steps=3, inputs=_inputs),
        Sample(
            dim=10,
            steps=3,
            feed_control=True,
            self_attention="continuous",
            gate="vector",
            unshared_inputs=False,
            inputs=_inputs,
        ),
        Sample(
            dim=10,
            context_dim=9,
            steps=3,
            variant="paper",
            self_attention="control",
            gate="scalar",
            inputs=_narrow_inputs,
        ),
    ],
)
class Mac(PairLayer):
    """The chain of cells; see the head of this file.

    Args:
        dim: C of words, question and controls.
        context_dim: D of cells and memories; the default is C.
        steps: p.
        variant: "authors" or "paper".
        feed_control: each step sees the control before it; the default is that of the variant.
        self_attention: earlier memories are asked by the step's "control", or by "continuous", the same before the
            words were asked; "none".
        gate: "vector" or "scalar" in front of each new memory; "none".
        gate_bias: a constant in the gate; the default is 1 for a "vector", the authors', and 0 for a "scalar".
        unshared_inputs: each step has its own L_i; False: all share one.
        initial_control, initial_memory: "learned", "question" or "zero".
        memory_drop: dropout on the memory that enters the read unit.
        variational_drop: one mask of it for all steps; False: a new one each.
        read_drop: dropout on cells, memory and interactions in the read unit.
        write_drop: dropout on what was found.
        cell: another one than these options make, for ablations and their weights.
        unshared_cells: each step has a cell of its own.
        question_activation: in front of L_i; "tanh" by default; the paper has none.
        project_words: a map of the words for their "scores", as "values", or "both".

    Raises:
        ValueError: sizes or names that make no sense, or options of the cell together with a cell.

    Example:
        >>> mac = Mac(8, steps=4)
        >>> words, cells, question = torch.randn(2, 5, 8), torch.randn(2, 9, 8), torch.randn(2, 8)
        >>> memory, told = mac(words, cells, question=question, return_aux=True)
        >>> memory.shape, told["map/knowledge"].shape
        (torch.Size([2, 8]), torch.Size([2, 4, 9]))
    """

    card = Card(
        title="MAC",
        paper="arXiv:1803.03067",
        year=2018,
        family="pairs",
        data="pair",
        smooth=True,
        stochastic=("dropout",),
        refuses={"causal": "every step reads the whole question and all cells"},
        cost="p (N + S)",
        summary="Answers questions about an image in p steps of attention: over words, over cells, into a memory.",
        formula="c = softmax(L(cq * w)) w, r = softmax(L(c * I'(m, K))) K, m <- L([m; r])",
    )

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        steps: int = 12,
        variant: Variant = "authors",
        *,
        feed_control: bool | None = None,
        self_attention: Asker = "none",
        gate: Gate = "none",
        gate_bias: float | None = None,
        unshared_inputs: bool = True,
        initial_control: Start | None = None,
        initial_memory: Start = "learned",
        memory_drop: float = 0.0,
        variational_drop: bool = True,
        read_drop: float = 0.0,
        write_drop: float = 0.0,
        cell: Cell | None = None,
        unshared_cells: bool = False,
        question_activation: Activation | None = None,
        project_words: Words = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.context_dim, self.steps = dim, context_dim or dim, steps
        if min(dim, self.context_dim, steps) < 1:
            raise ValueError(f"dim={dim}, context_dim={context_dim}, steps={steps}: sizes must be positive")
        if variant not in ("authors", "paper"):
            raise ValueError(f'variant={variant!r} is neither "authors" nor "paper"')
        if cell is not None and (feed_control, self_attention, gate, gate_bias) != (None, "none", "none", None):
            raise ValueError(
                "feed_control, self_attention, gate and gate_bias are options of the cell: pass them there"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        paper = variant == "paper"
        if cell is None:
            feed = paper if feed_control is None else feed_control
            cell = _cell(dim, self.context_dim, paper, feed, self_attention, gate, gate_bias, factory)
        fed = cell.control.feed != "none"
        self.initial_control: Start = initial_control or ("learned" if fed else "question")
        self.initial_memory: Start = initial_memory
        if self.initial_memory == "question" and self.context_dim != dim:
            raise ValueError(f"a question of width {dim} cannot be a memory of width {self.context_dim}")
        self.memory_drop, self.variational_drop = memory_drop, variational_drop
        self.read_drop, self.write_drop = read_drop, write_drop
        self.project_words: Words = project_words
        self.question_activation: Activation = question_activation or ("none" if paper else "tanh")
        self.cells = nn.ModuleList(deepcopy(cell) for _ in range(steps if unshared_cells else 1))
        self.question_map = None if paper else nn.Linear(dim, dim, **factory)
        self.slope = None if paper else slope_of(self.question_activation, dim, factory)
        self.step_maps = nn.ModuleList(nn.Linear(dim, dim, **factory) for _ in range(steps if unshared_inputs else 1))
        self.words_proj = None if project_words == "none" else nn.Linear(dim, dim, **factory)
        self.control_0 = nn.Parameter(torch.empty(dim, **factory)) if self.initial_control == "learned" else None
        self.memory_0 = nn.Parameter(torch.empty(self.context_dim, **factory)) if initial_memory == "learned" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices are Xavier-uniform, biases 0, what is learned of the start is standard normal."""
        reset_maps(self)
        for start in (self.control_0, self.memory_0):
            if start is not None:
                nn.init.normal_(start)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        question: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Think about a question in ``steps`` steps.

        Args:
            x: contextual words, (B, S, C).
            context: cells, (B, N, D).
            question: the whole question, (B, C), such as the last states of the encoder that made the words.
            key_mask: Bool (B, N), True for cells that exist.
            query_mask: Bool (B, S), True for real words.
            segments: refused.
            generator: draws the dropout.
            return_aux: also return "map/words" (B, p, S) and "map/knowledge" (B, p, N), the weights of each step.

        Returns:
            The last memory, (B, D); with ``return_aux`` (that, dict of tensors).

        Raises:
            ValueError, TypeError: no context or question, or shapes or masks that do not fit.
            UnsupportedError: segments.
        """
        trace = self.reason(x, context, question, key_mask, query_mask, segments, generator)
        y = trace.memories[:, -1]
        return (y, {"map/words": trace.words, "map/knowledge": trace.knowledge}) if return_aux else y

    def reason(
        self,
        x: Tensor,
        context: Tensor | None,
        question: Tensor | None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Trace:
        """All steps; arguments as in ``forward``."""
        x, cells = self.admit(x, context, key_mask, query_mask, segments)
        if question is None:
            raise ValueError(
                f"mac thinks about a question: pass question=, ({x.shape[0]}, {self.dim}), beside its words"
            )
        if question.shape != (x.shape[0], self.dim):
            raise ValueError(f"question has shape {tuple(question.shape)}, expected {(x.shape[0], self.dim)}")
        words, asked = self._words(x), self._asked(question)
        memories = [self._start(self.initial_memory, self.memory_0, question)]
        controls = [self._start(self.initial_control, self.control_0, question)]
        continuous = controls[0]
        word_maps: list[Tensor] = []
        cell_maps: list[Tensor] = []
        steps = cast(Sequence[Cell], self.cells)
        p, q = self.read_drop * self.training, self.memory_drop * self.training
        once = [] if p else [cell.read.prepare(cells) for cell in steps]
        kept = drop(torch.ones_like(memories[0]), q, generator) if self.variational_drop else None
        for number in range(self.steps):
            cell = steps[number % len(steps)]
            thought = cell.control(asked[number % len(asked)], question, words, query_mask, controls[-1], continuous)
            memory = drop(memories[-1], q, generator) if kept is None else memories[-1] * kept
            known = cell.read.prepare(cells, p, generator) if p else once[number % len(steps)]
            found, weights = cell.read(known, memory, thought.control, key_mask, p, generator)
            found = drop(found, self.write_drop * self.training, generator)
            memories.append(cell.write(found, thought, memories, controls))
            controls.append(thought.control)
            continuous = thought.continuous
            word_maps.append(thought.weights)
            cell_maps.append(weights)
        return Trace(*(torch.stack(rows, 1) for rows in (memories[1:], controls[1:], word_maps, cell_maps)))

    def _words(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The words that are scored and those that are summed."""
        if self.words_proj is None:
            return x, x
        mapped = self.words_proj(x)
        return (x if self.project_words == "values" else mapped), (x if self.project_words == "scores" else mapped)

    def _asked(self, question: Tensor) -> list[Tensor]:
        """The question as each step has it."""
        if self.question_map is not None:
            question = activate(self.question_map(question), self.question_activation, self.slope)
        return [step(question) for step in self.step_maps]

    def _start(self, kind: Start, learned: Tensor | None, question: Tensor) -> Tensor:
        if learned is not None:
            return learned.expand(question.shape[0], -1)
        return question if kind == "question" else question.new_zeros(question.shape[0], self.context_dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, context_dim={self.context_dim}, steps={self.steps}"


def _cell(
    dim: int,
    context_dim: int,
    paper: bool,
    feed: bool,
    self_attention: Asker,
    gate: Gate,
    gate_bias: float | None,
    factory: dict[str, Any],
) -> Cell:
    """The cell of a variant."""
    if gate_bias is None:
        gate_bias = 1.0 if gate == "vector" else 0.0
    control = ControlUnit(dim, "attended" if feed else "none", True, "none" if paper else "tanh", **factory)
    read = ReadUnit(
        context_dim,
        dim,
        dim,
        beside="raw" if paper else "projected",
        merge="none" if paper else "elu",
        activation="none" if paper else "elu",
        **factory,
    )
    options: dict[str, Any] = {"self_attention": self_attention, "gate": gate, "gate_bias": gate_bias, **factory}
    return Cell(control, read, WriteUnit(context_dim, dim, two_stages=paper, **options))
