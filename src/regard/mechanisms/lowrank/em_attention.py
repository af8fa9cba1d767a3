"""Expectation-maximisation attention: a few bases are fitted to each map, and every pixel is rebuilt from them.

Li et al. 2019, arXiv:1907.13426, section 3. With h = W_1 x + b for N pixels, and K bases mu of unit length that are
the same for all maps at the start, T times::

    z  = softmax_k(h^T mu)                       (N, K), the share that each basis has in a pixel
    mu = h z' / |h z'|                           (C, K), z' = z / sum_n z, the length is that of each basis

and y = ReLU(BN(W_2 ReLU(mu z^T)) + x). In training the start follows the bases that were found, as a moving average
over batches, which the authors' code leaves to the training loop. ``grad`` says how far gradients flow back:

    "none"   not through the bases or shares, as in the authors' code: W_1 keeps its random values, and takes none
    "last"   through the last z and mu
    "full"   through all steps

Masked pixels take no part in any basis. Both divisions add 1e-6. Time is O(T N C K), memory O(N K).
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.map_layers import WeighingLayer
from regard.ops.batch_norm import MapBatchNorm
from regard.ops.masks import hide
from regard.ops.moving_average import follow
from regard.ops.pixelwise import pixelwise
from regard.registry import Card, Sample, register

Grad = Literal["none", "last", "full"]
EPS = 1e-6
"""Added to sums of shares and to lengths of bases."""


def em_attention(
    h: Float[Tensor, "B N C"],
    bases: Float[Tensor, "C K"],
    *,
    stages: int = 3,
    grad: Grad = "none",
    key_mask: Bool[Tensor, "B N"] | None = None,
) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B C K"]]:
    """Fit the bases to each set of pixels and rebuild these from them; see the head of this file.

    Args:
        h: pixels in any order.
        bases: where the fit starts.
        stages: T.
        grad: "none", "last" or "full".
        key_mask: True for pixels that the bases are fitted to.

    Returns:
        mu z^T and mu, in float32 at least.

    Example:
        >>> y, bases = em_attention(torch.randn(2, 7, 4), torch.randn(4, 3))
        >>> y.shape, bases.norm(dim=1).round()
        (torch.Size([2, 7, 4]), tensor([[1., 1., 1.],
                [1., 1., 1.]]))
    """
    share, mixed, length = _fitted(h, bases, stages, grad, key_mask)
    fitted = mixed / length
    return (fitted @ share.mT).mT, fitted  # stored as a map is, feature by feature


def _fitted(
    h: Tensor, bases: Tensor, stages: int, grad: Grad, key_mask: Tensor | None
) -> tuple[Float[Tensor, "B N K"], Float[Tensor, "B C K"], Float[Tensor, "B 1 K"]]:
    """Of the last step z, h z', and the lengths that this is divided by."""
    dtype = torch.promote_types(h.dtype, torch.float32)
    h, found = h.to(dtype), bases.to(dtype).expand(h.shape[0], -1, -1)
    flowing = {"none": 0, "last": 1, "full": stages}[grad]
    share, mixed, length = h, h, h
    for left in range(stages, 0, -1):
        with torch.set_grad_enabled(torch.is_grad_enabled() and left <= flowing), _precise(h):
            share = (h @ found).softmax(-1)
            mixed = h.mT @ _averaging(share, key_mask)
            length = mixed.norm(dim=1, keepdim=True) + EPS
            found = mixed / length
    return share, mixed, length


def _averaging(share: Float[Tensor, "B N K"], key_mask: Bool[Tensor, "B N"] | None) -> Float[Tensor, "B N K"]:
    """z': the share of each pixel in a basis."""
    share = hide(share, key_mask)
    return share / (share.sum(1, keepdim=True) + EPS)


def _precise(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


@register(
    "em_attention",
    samples=[
        Sample(dim=12, num_bases=5, grad="full"),
        Sample(dim=12, num_bases=3, stages=2, claims={"smooth": False}),
    ],
)
class EMAttention(WeighingLayer):
    """The unit around the fit, EMAU: two projections, batch norm and a residual; see the head of this file.

    Args:
        dim: C.
        num_bases: K.
        stages: T, the number of steps.
        grad: "none", "last" or "full": how far gradients flow back through the steps.
        decay: of the moving average of the bases.

    Raises:
        ValueError: sizes that do not fit.
    """

    card = Card(
        title="Expectation-maximisation attention",
        paper="arXiv:1907.13426",
        year=2019,
        family="lowrank",
        data="map",
        smooth=True,
        stochastic=("batch_norm", "ema"),
        refuses={"causal": "the bases are fitted to the whole map"},
        cost="N K",
        summary="Pixels are rebuilt from a few bases fitted to each image: global context for segmentation, linear.",
        formula="mu softmax(h^T mu)^T, with mu = h z' / |h z'| of the step before",
    )
    num_axes = None
    bases: Tensor

    def __init__(
        self,
        dim: int,
        num_bases: int = 64,
        stages: int = 3,
        grad: Grad = "none",
        *,
        decay: float = 0.9,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(dim, num_bases, stages) < 1:
            raise ValueError(f"dim={dim}, num_bases={num_bases}, stages={stages}: numbers must be positive")
        if grad not in get_args(Grad):
            raise ValueError(f'grad={grad!r} is none of "none", "last" and "full"')
        if not 0 <= decay <= 1:
            raise ValueError(f"decay={decay} is no share of the old bases: it lies between 0 and 1")
        self.dim, self.stages, self.decay = dim, stages, decay
        self.grad: Grad = grad
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(dim, dim, **factory).requires_grad_(grad != "none")
        self.out_proj = nn.Linear(dim, dim, bias=False, **factory)
        self.norm = MapBatchNorm(dim, **factory)
        self.register_buffer("bases", torch.empty(dim, num_bases, **factory))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal matrices of variance 2 / C, the bias as torch draws it; bases in random directions."""
        self.in_proj.reset_parameters()
        for linear in (self.in_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=(2 / self.dim) ** 0.5)
        self.norm.reset_parameters()
        self.bases.normal_()
        self.bases.div_(self.bases.norm(dim=0, keepdim=True) + EPS)

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Fit, rebuild and add; see :class:`regard.map_layers.MapLayer`."""
        pixels = x.flatten(2)
        keys, queries = (None if mask is None else mask.flatten(1) for mask in (key_mask, query_mask))
        rebuilt, bases = self.rebuild(pixels, keys)
        if self.training:
            follow(self.bases, bases, self.decay, None if keys is None else keys.any(1))
        y = self.norm(pixelwise(self.out_proj, rebuilt.relu()), queries) + pixels
        return y.relu().unflatten(-1, x.shape[2:])

    def rebuild(
        self, pixels: Float[Tensor, "B C N"], key_mask: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B C N"], Float[Tensor, "B C K"]]:
        """Pixels made of fitted bases, and these bases."""
        options: dict[str, Any] = {"stages": self.stages, "grad": self.grad, "key_mask": key_mask}
        start = self.bases.clone()  # the bases themselves move on before the backward pass
        rebuilt, bases = em_attention(pixelwise(self.in_proj, pixels).mT, start, **options)
        return rebuilt.mT.to(pixels.dtype), bases

    def mix(
        self,
        x: Tensor,
        source: Tensor,
        values: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """What the same shares and lengths make of other values."""
        keys = None if key_mask is None else key_mask.flatten(1)
        share, _, length = _fitted(pixelwise(self.in_proj, x.flatten(2)).mT, self.bases, self.stages, self.grad, keys)
        mixed = values[:, 0].to(share.dtype).mT @ _averaging(share, keys)
        return (share @ (mixed / length).mT)[:, None].to(values.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_bases={self.bases.shape[1]}, stages={self.stages}, grad={self.grad!r}"
