"""The units of a MAC cell: what to do now, what to look up for it, and what to keep of that.

Hudson & Manning 2018, "Compositional attention networks for machine reasoning", arXiv:1803.03067, section 3.2, with
every switch of the authors' code that works there; :mod:`regard.mechanisms.pairs.mac` puts them together. L is an
affine map with weights of its own at each place.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.ops.dropout import drop
from regard.ops.reasoning_parts import Activation, Affine, Interaction, Product, activate, pool, slope_of

Cells = Literal["none", "raw", "projected"]
Feed = Literal["none", "attended", "continuous"]
Answer = Literal["attended", "continuous", "question"]
Asker = Literal["none", "control", "continuous"]
Inputs = Literal["both", "product", "sum", "information", "memory"]
Gate = Literal["none", "vector", "scalar"]


class Thought(NamedTuple):
    """What the control unit says: the control, the same before the words were asked, and the weights of the words."""

    control: Float[Tensor, "B C"]
    continuous: Float[Tensor, "B C"]
    weights: Float[Tensor, "B S"]


class ControlUnit(nn.Module):
    """Pick the operation of a step from the words: c = sum_s softmax_s(L(cq * w_s)) w_s.

    cq is the question of this step, or a map of it and the previous control.

    Args:
        dim: C.
        feed: which previous control is fed: "none", the "attended" one, or the "continuous" one, before attention.
        with_question: the question of the step is fed beside it.
        activation: in the map of what is fed.
        with_words: the words once more beside cq * w.
        projection: a map before the scores, with this activation; None: no map.
        answer: "attended", or for ablations the "continuous" control or the whole "question".

    Raises:
        ValueError: neither the question nor a previous control.
    """

    def __init__(
        self,
        dim: int,
        feed: Feed = "none",
        with_question: bool = True,
        activation: Activation = "none",
        *,
        with_words: bool = False,
        projection: Activation | None = None,
        answer: Answer = "attended",
        **factory: Any,
    ) -> None:
        super().__init__()
        if feed == "none" and not with_question:
            raise ValueError("with_question=False: then a previous control must be fed")
        self.feed: Feed = feed
        self.answer: Answer = answer
        self.with_question, self.with_words = with_question, with_words
        self.merge = None if feed == "none" else Affine(dim * (1 + with_question), dim, activation, **factory)
        width = dim * (1 + with_words)
        self.project = None if projection is None else Affine(width, dim, projection, **factory)
        self.logits = nn.Linear(width if projection is None else dim, 1, **factory)

    def forward(
        self,
        step: Float[Tensor, "B C"],
        question: Float[Tensor, "B C"],
        words: tuple[Float[Tensor, "B S C"], Float[Tensor, "B S C"]],
        mask: Bool[Tensor, "B S"] | None,
        control: Float[Tensor, "B C"],
        continuous: Float[Tensor, "B C"],
    ) -> Thought:
        """What to do in this step.

        Args:
            step: the question as this step has it.
            question: the whole question.
            words: those that are scored, and those that are summed.
            mask: True for real words.
            control, continuous: of the step before.
        """
        scored, summed = words
        if self.merge is not None:
            fed = control if self.feed == "attended" else continuous
            step = self.merge(torch.cat((fed, step), -1) if self.with_question else fed)
        meeting = step[:, None] * scored
        meeting = torch.cat((meeting, scored), -1) if self.with_words else meeting
        meeting = meeting if self.project is None else self.project(meeting)
        attended, weights = pool(self.logits(meeting), summed, mask)
        return Thought({"attended": attended, "continuous": step, "question": question}[self.answer], step, weights)


class Knowledge(NamedTuple):
    """What the read unit makes of the cells once for all steps: raw, L(K), and what goes beside the interaction."""

    raw: Float[Tensor, "B N C"]
    projected: Float[Tensor, "B N A"]
    beside: Tensor | None


class ReadUnit(nn.Module):
    """Look up what the control asks for: r = sum_n softmax_n(L(act(I'_n * c))) K_n, I' = L([L(m) * L(K_n); cells]).

    :meth:`prepare` holds all that does not change from step to step, also the half of I' that does not.

    Args:
        dim: C of memory and cells.
        control_dim: C of the control.
        attention_dim: A, where memory and cells meet; the default is C.
        project: L(m) and L(K); False: they meet as they are.
        shared: one map for both.
        meeting: how they meet, see :class:`Interaction`.
        beside: cells beside the meeting: "none", "raw" or "projected" ones.
        merge: the map of both, with this activation; None: no map.
        ask: the control takes part.
        asking: how it meets the rest.
        asked_beside: cells beside that.
        activation: then.
        product_bias: of plain products.
        sum_projected: L(K) is summed instead of K.

    Raises:
        ValueError: widths that do not fit, or projected cells where nothing is projected.
    """

    def __init__(
        self,
        dim: int,
        control_dim: int,
        attention_dim: int | None = None,
        *,
        project: bool = True,
        shared: bool = False,
        meeting: Product = "product",
        beside: Cells = "projected",
        merge: Activation | None = "elu",
        ask: bool = True,
        asking: Product = "product",
        asked_beside: Cells = "none",
        activation: Activation = "elu",
        product_bias: float = 0.0,
        sum_projected: bool = False,
        **factory: Any,
    ) -> None:
        super().__init__()
        inner = attention_dim or dim
        if not project and ("projected" in (beside, asked_beside) or sum_projected or inner != dim):
            raise ValueError("project=False: there are no projected cells, and they meet in their own width")
        if sum_projected and inner != dim:
            raise ValueError(f"projected cells of width {inner} cannot become a memory of width {dim}")
        self.beside: Cells = beside
        self.asked_beside: Cells = asked_beside
        self.activation: Activation = activation
        self.inner, self.sum_projected = inner, sum_projected
        widths = {"none": 0, "raw": dim, "projected": inner}
        self.knowledge_proj = nn.Linear(dim, inner, **factory) if project else None
        self.memory_proj = nn.Linear(dim, inner, **factory) if project and not shared else None
        self.meet = Interaction(inner, meeting, product_bias, **factory)
        width = inner + widths[beside]
        self.merge = None if merge is None else Affine(width, inner, merge, **factory)
        width = width if merge is None else inner
        if ask and width != control_dim:
            raise ValueError(f"a control of width {control_dim} cannot meet interactions of width {width}")
        self.asking = Interaction(width, asking, product_bias, **factory) if ask else None
        width += widths[asked_beside] if ask else 0
        self.slope = slope_of(activation, width, factory) if ask else None
        self.logits = nn.Linear(width, 1, **factory)

    def prepare(
        self, knowledge: Float[Tensor, "B N C"], p: float = 0.0, generator: Generator | None = None
    ) -> Knowledge:
        """Once for all steps, where no dropout p draws anew in each."""
        projected = knowledge
        if self.knowledge_proj is not None:
            projected = self.knowledge_proj(drop(knowledge, p, generator))
        beside = {"none": None, "raw": knowledge, "projected": projected}[self.beside]
        if beside is not None and self.merge is not None:
            beside = F.linear(beside, self.merge.inner.weight[:, self.inner :], self.merge.inner.bias)
        return Knowledge(knowledge, projected, beside)

    def forward(
        self,
        knowledge: Knowledge,
        memory: Float[Tensor, "B C"],
        control: Float[Tensor, "B D"],
        mask: Bool[Tensor, "B N"] | None = None,
        p: float = 0.0,
        generator: Generator | None = None,
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B N"]]:
        """What is found, and the weights of the cells.

        Args:
            knowledge: the cells, prepared.
            memory, control: of the step.
            mask: True for cells that exist.
            p: dropout on memory and interactions.
            generator: draws it.
        """
        proj = self.knowledge_proj if self.memory_proj is None else self.memory_proj
        memory = memory if proj is None else proj(drop(memory, p, generator))
        x = self.meet(knowledge.projected, memory[:, None])
        if self.merge is not None:
            if knowledge.beside is None:
                x = self.merge(x)
            else:
                x = self.merge.finish(F.linear(x, self.merge.inner.weight[:, : self.inner]) + knowledge.beside)
        elif knowledge.beside is not None:
            x = torch.cat((x, knowledge.beside), -1)
        if self.asking is not None:
            x = self.asking(x, control[:, None])
            if self.asked_beside != "none":
                x = torch.cat((x, knowledge.raw if self.asked_beside == "raw" else knowledge.projected), -1)
            x = activate(x, self.activation, self.slope)
        values = knowledge.projected if self.sum_projected else knowledge.raw
        return pool(self.logits(drop(x, p, generator)), values, mask)


class WriteUnit(nn.Module):
    """Keep what was found: m' = L([m; r]), perhaps with earlier memories by self-attention, perhaps behind a gate.

    Self-attention: sa = softmax over the steps j before this one (L(c_j * L(c))), m_sa = sum_j sa_j m_j. The authors'
    code counts the start among the steps and has m' = L([m; r; m_sa]); in the paper there is no map of c, the start
    does not count, and m' = L([m_sa; L([m; r])]).

    Gate: "vector" z = sigmoid(L(c) + b), m' <- z m' + (1 - z) m, as in the authors' code; "scalar" has one g for all
    features in the opposite sense, m' <- g m + (1 - g) m', as in the paper.

    Args:
        dim, control_dim: C of memory and control.
        inputs: "both", with their "product" as well, their "sum", or one of them alone.
        self_attention: which of the step's controls asks; "none": no self-attention.
        gate: see above.
        gate_bias: b.
        two_stages: self-attention as in the paper.
        with_control: the control beside them.
        project: a map even where widths would allow none.
        information: a map of what was found first.
        information_activation, activation: on what was found, and on the new memory.

    Raises:
        ValueError: a control that is merged has another width.
    """

    def __init__(
        self,
        dim: int,
        control_dim: int,
        *,
        inputs: Inputs = "both",
        self_attention: Asker = "none",
        gate: Gate = "none",
        gate_bias: float = 0.0,
        two_stages: bool = False,
        with_control: bool = False,
        project: bool = True,
        information: bool = False,
        information_activation: Activation = "none",
        activation: Activation = "none",
        **factory: Any,
    ) -> None:
        super().__init__()
        if with_control and dim != control_dim:
            raise ValueError(f"the authors merge a control of width {control_dim} with a memory of another, {dim}")
        self.inputs: Inputs = inputs
        self.self_attention: Asker = self_attention
        self.gate_kind: Gate = gate
        self.gate_bias, self.two_stages, self.with_control = gate_bias, two_stages, with_control
        self.activations: tuple[Activation, Activation] = (information_activation, activation)
        asks = self_attention != "none"
        self.information = nn.Linear(dim, dim, **factory) if information else None
        self.self_query = nn.Linear(control_dim, control_dim, **factory) if asks and not two_stages else None
        self.self_logits = nn.Linear(control_dim, 1, **factory) if asks else None
        parts = {"both": 2, "product": 3}.get(inputs, 1) + (asks and not two_stages) + with_control
        self.merge = nn.Linear(parts * dim, dim, **factory) if project or parts > 1 else None
        self.second_merge = nn.Linear(2 * dim, dim, **factory) if asks and two_stages else None
        self.gate = None if gate == "none" else nn.Linear(control_dim, 1 if gate == "scalar" else dim, **factory)
        slopes = [slope for kind in self.activations if (slope := slope_of(kind, dim, factory)) is not None]
        self.slopes = nn.ParameterList(slopes)

    def forward(
        self,
        information: Float[Tensor, "B C"],
        thought: Thought,
        memories: list[Tensor],
        controls: list[Tensor],
    ) -> Float[Tensor, "B C"]:
        """The new memory; ``memories`` and ``controls`` are those before this step, the start first."""
        memory = memories[-1]
        if self.information is not None:
            information = self.information(information)
        first, last = (None, None) if not len(self.slopes) else (self.slopes[0], self.slopes[-1])
        information = activate(information, self.activations[0], first)
        both = {"both": (memory, information), "product": (memory, information, memory * information)}
        one = {"sum": memory + information, "information": information, "memory": memory}
        parts = list(both.get(self.inputs) or (one[self.inputs],))
        earlier = self._earlier(thought, memories, controls)
        parts += [earlier] if earlier is not None and not self.two_stages else []
        parts += [thought.control] if self.with_control else []
        new = torch.cat(parts, -1)
        new = new if self.merge is None else self.merge(new)
        if self.second_merge is not None and earlier is not None:
            new = self.second_merge(torch.cat((earlier, new), -1))
        new = activate(new, self.activations[1], last)
        if self.gate is None:
            return new
        gate = torch.sigmoid(self.gate(thought.control) + self.gate_bias)
        kept, taken = (memory, new) if self.gate_kind == "scalar" else (new, memory)
        return gate * kept + (1 - gate) * taken

    def _earlier(self, thought: Thought, memories: list[Tensor], controls: list[Tensor]) -> Tensor | None:
        """m_sa, 0 where there is no step before this one; None without self-attention."""
        if self.self_logits is None:
            return None
        if self.two_stages and len(controls) == 1:
            return torch.zeros_like(memories[0])
        start = 1 if self.two_stages else 0
        query = thought.continuous if self.self_attention == "continuous" else thought.control
        query = query if self.self_query is None else self.self_query(query)
        keys, values = torch.stack(controls[start:], 1), torch.stack(memories[start:], 1)
        return pool(self.self_logits(keys * query[:, None]), values)[0]
