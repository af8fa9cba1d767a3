"""Clustering by a network that has never seen this data: a mixture of Gaussians from a set of points, at one look.

Set Transformer's experiment (Lee et al. 2018, arXiv:1810.00825, section 5.3), as the authors' code has it: four
Gaussians in the plane with centres uniform in (-4, 4)^2, deviation 0.3 and weights uniform among all that sum to 1. A
model gives for each a weight before the softmax, a centre and a deviation before the softplus, the same along both
axes. Quality is the log-likelihood of a point under the mixture, which needs no labels; beside it stands the oracle's,
who knows the true one.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from regard.tasks.set_galleries import ClusterGallery
from regard.tasks.sets import DrawnSets
from regard.tasks.task import Batch, Metric

DEVIATION, REACH = 0.3, 4.0

SHOWN_SETS = 5
"""Of the test part, for the report."""


def log_likelihood(
    x: Float[Tensor, "B N 2"],
    weights: Float[Tensor, "B K"],
    centres: Float[Tensor, "B K 2"],
    deviations: Float[Tensor, "B K"],
) -> Float[Tensor, " B"]:
    """The mean over the points of a set of log sum_k w_k N(x; c_k, d_k^2 I).

    Example:
        >>> one = torch.ones(1, 1)
        >>> round(float(log_likelihood(torch.zeros(1, 3, 2), one, torch.zeros(1, 1, 2), one)), 4)
        -1.8379
    """
    squares = (x[:, :, None] - centres[:, None]).square().sum(-1)
    d = deviations[:, None]
    logs = (weights[:, None] + 1e-10).log() - math.log(2 * math.pi) - 2 * d.log() - squares / (2 * d.square())
    return logs.logsumexp(-1).mean(-1)


class Mixtures(DrawnSets):
    """See above. The sets of a batch have the same size, between half and the whole of ``length``.

    Args:
        length: the most points of a set.
        batch: sets per step.
        seed: of all sets.

    Example:
        >>> task = Mixtures(length=100, batch=3, seed=0)
        >>> batch = task.batch(0)
        >>> batch.tokens.shape[0], batch.targets.shape
        (3, torch.Size([3, 4, 3]))
    """

    metric = Metric("log-likelihood of a point", lower_is_better=False, digits=3, items="sets")
    dim_input, num_outputs, dim_output = 2, 4, 4
    decoder_depth = 1

    def draw(self, rows: int, generator: Generator) -> Batch:
        """Points in no order; the targets, which only the oracle looks at, are the weights and centres."""
        kinds = self.num_outputs
        size = (
            int(torch.randint((self.length + 1) // 2, self.length, (), generator=generator)) if self.length > 1 else 1
        )
        shares = torch.rand(rows, kinds, generator=generator).clamp(min=1e-9).log()
        weights = shares / shares.sum(1, keepdim=True)  # Dirichlet(1, 1, 1, 1)
        centres = REACH * (2 * torch.rand(rows, kinds, 2, generator=generator) - 1)
        own = torch.multinomial(weights, size, replacement=True, generator=generator)
        noise = DEVIATION * torch.randn(rows, size, 2, generator=generator)
        return Batch(centres.take_along_dim(own[..., None], 1) + noise, torch.cat((weights[..., None], centres), -1))

    def gallery(self) -> ClusterGallery:
        """The first sets of the test part."""
        return ClusterGallery(next(self.held_out("test")).first(SHOWN_SETS), REACH + 3 * DEVIATION, DEVIATION)

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Less the mean log-likelihood."""
        return -self._judged(prediction.float(), batch).mean()

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """The mean log-likelihood of the points of each set."""
        return self._judged(prediction.double(), batch)

    def baselines(self) -> dict[str, float]:
        """The true mixture; and one Gaussian, the likeliest for each set."""
        oracle, single = list[Tensor](), list[Tensor]()
        for batch in self.held_out("test"):
            x, truth = batch.tokens.double(), batch.targets.double()
            true_deviation = torch.full_like(truth[..., 0], DEVIATION)
            oracle.append(log_likelihood(x, truth[..., 0], truth[..., 1:], true_deviation))
            centre, one = x.mean(1, keepdim=True), torch.ones_like(x[:, :1, 0])
            deviation = (x - centre).square().mean((1, 2))[:, None].sqrt()
            single.append(log_likelihood(x, one, centre, deviation.clamp(min=1e-3)))
        return {name: float(torch.cat(found).mean()) for name, found in (("oracle", oracle), ("one Gaussian", single))}

    def _judged(self, prediction: Float[Tensor, "B K 4"], batch: Batch) -> Float[Tensor, " B"]:
        """A deviation below a thousandth would be a point, whose likelihood has no bound."""
        weights, centres, deviations = prediction[..., 0], prediction[..., 1:3], prediction[..., 3]
        deviations = F.softplus(deviations).clamp(min=1e-3)
        return log_likelihood(batch.tokens.to(prediction.dtype), weights.softmax(-1), centres, deviations)
