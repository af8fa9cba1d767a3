"""What a captioner minimises: the likelihood with soft attention, and two ways to learn hard attention.

Xu et al. 2015, arXiv:1502.03044, section 4. With places s drawn one a step, log p(y | a) is out of reach; by Jensen

    log p(y | a) >= sum_s p(s | a) log p(y | s, a)

``objective="bound"`` is the right side itself: exact, over all L^T rows of places (tiny images and captions), or with
``num_samples`` an estimate whose gradient has the right mean. ``objective="reinforce"`` is the authors' rule for one
sample of the bound's gradient, with a moving baseline b and an entropy that keeps alpha from collapsing::

    d NLL + lambda_r (NLL - b) d log p(s | a) - lambda_e d H(alpha),      b <- 0.9 b + 0.1 NLL   after the step

The paper leaves lambda_r and lambda_e open. The authors' code differs from it in four ways (``reward="mean"``): NLL in
the reward and in b is the mean over all steps of the batch, lambda_r = 1 / 10, and the two added terms are summed over
the batch and over padded steps, while NLL is averaged; ``reward="step"`` is its other mode, each step's own NLL without
a baseline. Where its entropy term replaces the gradient of the penalty, ours leaves the penalty in.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from regard.mechanisms.pairs.show_attend_tell import Penalty, doubly_stochastic
from regard.models.captioner import Captioner, Run
from regard.ops.drawn_places import entropy, score_gradient
from regard.registry import UnsupportedError

Objective = Literal["likelihood", "reinforce", "bound"]
Reward = Literal["caption", "mean", "step"]

MOST_PATHS = 65_536
"""Rows of places of all images together, beyond which the exact bound is refused."""


@dataclass(frozen=True, kw_only=True)
class CaptionLoss:
    """A loss of a :class:`regard.models.Captioner`: ``loss(model, words, annotations) -> (number, its parts)``.

    Attributes:
        objective: "likelihood" (of one pass, what soft attention needs), "reinforce" or "bound".
        num_samples: K of the bound's estimate; None: the bound exactly.
        reward: "caption", the paper's; "mean" or "step", those of the authors' code.
        reward_weight, entropy_weight: lambda_r and lambda_e.
        baseline_decay: what stays of b.
        doubly_stochastic, penalty: weight and kind of the penalty on places that are looked at too seldom or too often.
        eps: added to p(word) before its logarithm; the authors have 1e-8.

    Raises:
        ValueError: an unknown word, numbers out of range, or options of another objective.

    Example:
        >>> model = Captioner(9, dim=6, embedding_dim=4, context_dim=5, attention="hard")
        >>> loss, parts = CaptionLoss(objective="reinforce")(model, torch.randint(9, (2, 3)), torch.randn(2, 4, 5))
        >>> loss.backward()
        >>> sorted(parts)
        ['metric/entropy', 'metric/nll']
    """

    objective: Objective = "likelihood"
    num_samples: int | None = None
    reward: Reward = "caption"
    reward_weight: float = 1.0
    entropy_weight: float = 0.002
    baseline_decay: float = 0.9
    doubly_stochastic: float = 0.0
    penalty: Penalty = "paper"
    eps: float = 0.0

    def __post_init__(self) -> None:
        for name, words in (("objective", Objective), ("reward", Reward), ("penalty", Penalty)):
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(map(repr, get_args(words)))}")
        if self.num_samples is not None and (self.objective != "bound" or self.num_samples < 1):
            raise ValueError(f'num_samples={self.num_samples}: at least 1, with objective="bound"')
        if self.objective == "bound" and self.doubly_stochastic:
            raise ValueError('the bound is a likelihood: doubly_stochastic goes with "likelihood" and "reinforce"')
        weights = (self.reward_weight, self.entropy_weight, self.doubly_stochastic, self.eps)
        if min(weights) < 0 or not 0 <= self.baseline_decay < 1:
            raise ValueError(f"{self}: weights are at least 0, and baseline_decay is below 1")

    def __call__(
        self,
        model: Captioner,
        words: Int[Tensor, "B T"],
        annotations: Float[Tensor, "B L D"],
        *,
        word_mask: Bool[Tensor, "B T"] | None = None,
        location_mask: Bool[Tensor, "B L"] | None = None,
        samples: Float[Tensor, "B T L"] | None = None,
        sampled: Bool[Tensor, ""] | None = None,
        generator: Generator | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of captions, in nats a caption, and its parts.

        Args:
            model: whose moving baseline follows in training.
            words, annotations, word_mask, location_mask, samples, sampled, generator: as in :meth:`Captioner.run`.

        Raises:
            UnsupportedError: hard attention's objectives with soft attention, or an exact bound of too many paths.
        """
        if self.objective != "likelihood" and model.attention != "hard":
            raise UnsupportedError(
                f'objective="{self.objective}" is for attention="hard": soft attention draws nothing'
            )
        if self.objective == "bound":
            if samples is not None or sampled is not None:
                raise UnsupportedError("the bound goes over all places, or draws its own: it takes no samples")
            masks = {"word_mask": word_mask, "location_mask": location_mask}
            found = self.bound(model, words, annotations, **masks, generator=generator)
            return found, {"metric/nll": found.detach()}
        run = model.run(
            words, annotations, word_mask=word_mask, location_mask=location_mask,
            samples=samples, sampled=sampled, generator=generator,
        )  # fmt: skip
        nll = self.costs(run, words, word_mask)
        loss = nll.sum(1).mean()
        parts = {"metric/nll": loss.detach(), "metric/entropy": entropy(run.log_weights.detach()).mean()}
        if self.doubly_stochastic:
            masks = {"key_mask": location_mask, "query_mask": word_mask}
            missed = doubly_stochastic(run.log_weights.exp(), penalty=self.penalty, **masks)
            parts["loss/doubly_stochastic"] = self.doubly_stochastic * missed
            loss = loss + parts["loss/doubly_stochastic"]
        if self.objective == "reinforce":
            loss = loss + self._choices(model, run, nll.detach(), word_mask)
        return loss, parts

    def costs(
        self, run: Run, words: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T"]:
        """-log p of each word, 0 for padding."""
        log_p = run.logits.to(torch.promote_types(run.logits.dtype, torch.float32)).log_softmax(-1)
        if self.eps:
            log_p = (log_p.exp() + self.eps).log()
        cost = F.nll_loss(log_p.transpose(1, 2), words, reduction="none")
        return cost if mask is None else cost.masked_fill(~mask, 0.0)

    def _choices(self, model: Captioner, run: Run, nll: Tensor, mask: Tensor | None) -> Float[Tensor, ""]:
        """What REINFORCE adds, of value 0; the baseline follows."""
        baseline = model.get_buffer("baseline")
        if self.reward == "step":
            surprise = nll
        else:
            surprise = (nll.sum(1, True) if self.reward == "caption" else nll.mean(1, True)) - baseline
        told = self.reward_weight * score_gradient(run.log_weights, run.chosen, surprise)
        spread = self.entropy_weight * entropy(run.log_weights)
        told = told - (spread - spread.detach())
        if model.training:
            expected = nll.sum(1).mean() if self.reward == "caption" else nll.mean()
            baseline.lerp_(expected.to(baseline.dtype), 1 - self.baseline_decay)
        if self.reward != "caption":
            return told.sum()
        return (told if mask is None else told.masked_fill(~mask, 0.0)).sum(1).mean()

    def bound(
        self,
        model: Captioner,
        words: Int[Tensor, "B T"],
        annotations: Float[Tensor, "B L D"],
        *,
        word_mask: Bool[Tensor, "B T"] | None = None,
        location_mask: Bool[Tensor, "B L"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, ""]:
        """-sum_s p(s | a) log p(y | s, a), the mean over captions: exact, or estimated with ``num_samples`` rows.

        Raises:
            UnsupportedError: several layers, each of which looks, or an exact bound of too many paths.
        """
        if len(model.decoder) > 1:
            raise UnsupportedError("the bound is about the places of one layer, and each layer of this decoder looks")
        places, length = annotations.shape[1], words.shape[1]
        paths = None if self.num_samples else _all_paths(len(words), places, length, words.device)
        count = self.num_samples or places**length

        def again(t: Tensor) -> Tensor:
            return t.repeat_interleave(count, 0)

        real = None if word_mask is None else again(word_mask)
        run = model.run(
            again(words),
            again(annotations),
            word_mask=real,
            location_mask=None if location_mask is None else again(location_mask),
            samples=None if paths is None else F.one_hot(paths, places).to(annotations.dtype).repeat(len(words), 1, 1),
            sampled=torch.ones((), dtype=torch.bool, device=words.device),
            generator=generator,
        )
        nll = self.costs(run, again(words), real).sum(1).view(-1, count)
        log_p = (run.chosen * run.log_weights).sum(-1)
        log_p = (log_p if real is None else log_p.masked_fill(~real, 0.0)).sum(1).view(-1, count)
        if paths is None:
            others = (nll.sum(1, keepdim=True) - nll) / max(1, count - 1)
            told = (nll - others).detach() * log_p
            return (nll + told - told.detach()).mean()
        if word_mask is not None:  # a padded step looks somewhere too: every row of real places comes L times for it
            log_p = log_p - (~word_mask).sum(1, keepdim=True).to(log_p) * math.log(places)
        return (log_p.exp() * nll).sum(1).mean()


def _all_paths(batch: int, places: int, length: int, device: torch.device) -> Int[Tensor, "P T"]:
    """Every row of places there is."""
    if batch * places**length > MOST_PATHS:
        raise UnsupportedError(
            f"{batch} captions of {length} words over {places} places have {batch} x {places}^{length} rows of places, "
            f"more than {MOST_PATHS:,}: the exact bound is for tiny ones, pass num_samples"
        )
    return torch.cartesian_prod(*[torch.arange(places, device=device)] * length).view(-1, length)
