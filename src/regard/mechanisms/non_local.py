"""Non-local block: every pixel of a line, an image or a volume looks at every other one, as a residual.

Wang et al. 2017, arXiv:1711.07971, eqs. 2 to 6. With theta, phi and g linear in x, and M the number of keys::

    z_i = W y_i + x_i        y_i = sum_j a_ij g_j

    "embedded_gaussian"      a_ij = softmax_j(theta_i . phi_j)                     not scaled
    "gaussian"               a_ij = softmax_j(x_i . x_j)                           which saturates for large x
    "dot_product"            a_ij = theta_i . phi_j / M
    "concatenation"          a_ij = relu(w . [theta_i; phi_j]) / M

None of them stores the N x M weights. The first two are :func:`regard.attend`. The dot product is theta (phi^T g) / M.
In the last, w . [theta_i; phi_j] = u_i + v_j, and with v sorted the sum over all v_j > -u_i comes from two prefix sums
(:mod:`regard.ops.relu_sums`), exactly.

Sub-sampled, keys and values are the maxima of phi and of g in windows of 2 along each axis, 2 x 2 of each frame in
volumes; what is left over at the end of an axis is dropped, so a side of 1 has no keys and y = 0. Here this comes after
phi and g, as in the paper's text; the authors' Caffe2 code (facebookresearch/video-nonlocal-net) takes the maxima of x
before, and scales the logits by 1 / sqrt(I): the options :data:`CAFFE2`. A window counts if all of its pixels do, so
padding has to stand at the end.

The block starts as the identity, by the scale of its batch norm or, without one, by W. For N pixels, time is O(N M C)
for the Gaussian forms, O((N + M) C^2) for the dot product and O((N + M) (C + log M)) beside projections for the last.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.map_layers import WeighingLayer
from regard.ops.batch_norm import MapBatchNorm
from regard.ops.descriptors import distribute, gather
from regard.ops.pixelwise import pixelwise
from regard.ops.relu_sums import relu_sums
from regard.registry import Card, Sample, register

Form = Literal["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
SubSample = Literal["after", "before"]

CAFFE2: dict[str, Any] = {"sub_sample": "before", "scale": True, "std": 0.01}
"""Options of the authors' code, where it differs from the paper: ``NonLocal(dim, **CAFFE2)``."""


def non_local(
    q: Float[Tensor, "B N D"],
    k: Float[Tensor, "B M D"],
    v: Float[Tensor, "B M Dv"],
    form: Form = "embedded_gaussian",
    *,
    pair: Float[Tensor, "2 D"] | None = None,
    scale: float = 1.0,
    key_mask: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B N Dv"]:
    """y_i = sum_j a_ij v_j; see the head of this file.

    Args:
        q, k, v: theta, phi and g of all pixels.
        form: which a_ij.
        pair: w of "concatenation", for q and for k.
        scale: of the logits of the Gaussian forms.
        key_mask: True for keys that take part; M is their number.

    Example:
        >>> x = torch.randn(2, 35, 4)
        >>> non_local(x, x, x, "dot_product").shape
        torch.Size([2, 35, 4])
    """
    if form in ("embedded_gaussian", "gaussian"):
        q, k, v = (t.contiguous()[:, None] for t in (q, k, v))
        return attend(q, k, v, scale=scale, key_mask=key_mask)[:, 0]
    if pair is None:
        return distribute(q[:, None], gather(k[:, None], v[:, None], "scaling", key_mask), "scaling")[:, 0]
    if key_mask is None:
        return relu_sums(q @ pair[0], k @ pair[1], v / v.shape[1])
    count = key_mask.sum(-1).clamp(min=1)[:, None, None]
    return relu_sums(q @ pair[0], k @ pair[1], v.masked_fill(~key_mask[..., None], 0.0) / count)


@register(
    "non_local",
    samples=[
        Sample(dim=8, zero_init=False),
        Sample(
            dim=8, form="concatenation", sub_sample=None, norm=False, zero_init=False, claims={"padding": "anywhere"}
        ),
        Sample(dim=8, form="dot_product", inner=3, sub_sample="before", zero_init=False),
    ],
)
class NonLocal(WeighingLayer):
    """The residual block; see the head of this file.

    Args:
        dim: C.
        form: of the weights.
        inner: I, the width of theta, phi and g; half of C by default.
        sub_sample: "after" or "before" phi and g, or None for as many keys as pixels.
        scale: the logits of the Gaussian forms by 1 / sqrt(D), D the width of what is multiplied.
        norm: a batch norm after W.
        zero_init: start as the identity.
        group_size: volumes are cut into groups of so many frames, each of which sees itself only; None: one group.
        std: theta, phi, g and W start normal with this deviation, biases at 0; None: as torch draws linear layers.

    Raises:
        ValueError: sizes or options that do not fit.
    """

    card = Card(
        title="Non-local block",
        paper="arXiv:1711.07971",
        year=2017,
        family="softmax",
        data="map",
        smooth=True,
        stochastic=("batch_norm",),
        padding="end",
        refuses={"causal": "every pixel looks at all others"},
        cost="N^2 / 4",
        summary="The block that puts full attention between the layers of a CNN, in one to three axes.",
        formula="x + W sum_j a_ij g_j, a = softmax(theta phi^T) or theta phi^T / M or relu(w [theta; phi]) / M",
    )
    num_axes = None

    def __init__(
        self,
        dim: int,
        form: Form = "embedded_gaussian",
        inner: int | None = None,
        *,
        sub_sample: SubSample | None = "after",
        scale: bool = False,
        norm: bool = True,
        zero_init: bool = True,
        group_size: int | None = None,
        std: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        inner = max(1, dim // 2) if inner is None else inner
        if form not in get_args(Form):
            raise ValueError(f"form={form!r} is none of {', '.join(map(repr, get_args(Form)))}")
        if sub_sample not in (None, *get_args(SubSample)):
            raise ValueError(f'sub_sample={sub_sample!r} is none of "after", "before" and None')
        if min(dim, inner, group_size or 1) < 1:
            raise ValueError(f"dim={dim}, inner={inner}, group_size={group_size}: sizes must be positive")
        if scale and "gaussian" not in form:
            raise ValueError(f"scale=True belongs to the softmax of the Gaussian forms, {form!r} divides by M")
        self.dim, self.inner, self.zero_init, self.group_size, self.std = dim, inner, zero_init, group_size, std
        self.form: Form = form
        self.sub_sample: SubSample | None = sub_sample
        self.weighs_values = sub_sample is None  # else keys are maxima of windows
        self.scale = (dim if form == "gaussian" else inner) ** -0.5 if scale else 1.0
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        embeds = form != "gaussian"
        self.q_proj = nn.Linear(dim, inner, **factory) if embeds else None
        self.k_proj = nn.Linear(dim, inner, **factory) if embeds else None
        self.v_proj = nn.Linear(dim, inner, **factory)
        self.pair = nn.Parameter(torch.empty(2, inner, **factory)) if form == "concatenation" else None
        self.out_proj = nn.Linear(inner, dim, **factory)
        self.norm = MapBatchNorm(dim, **factory) if norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the arguments say; w of the concatenation as torch draws a linear layer."""
        for linear in (part for part in self.children() if isinstance(part, nn.Linear)):
            linear.reset_parameters()
            if self.std is not None:
                nn.init.normal_(linear.weight, std=self.std)
                nn.init.zeros_(linear.bias)
        if self.pair is not None:
            bound = (2 * self.inner) ** -0.5
            nn.init.uniform_(self.pair, -bound, bound)
        if self.norm is not None:
            self.norm.reset_parameters()
        last = self.out_proj if self.norm is None else self.norm
        if self.zero_init:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Add what each pixel sees to it; see :class:`regard.map_layers.MapLayer`."""
        y = _project(self.out_proj, self._look(x, key_mask))
        return x + (y if self.norm is None else self.norm(y, query_mask))

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
        """What the same weights make of other values, before W and the residual; sub-sampled keys are no pixels."""
        given = values[:, 0].mT.unflatten(-1, x.shape[2:])
        return self._look(x, key_mask, given).flatten(2).mT[:, None]

    def _look(self, x: Tensor, key_mask: Tensor | None, values: Tensor | None = None) -> Tensor:
        """y as a map (B, I, *sides), or what the weights make of a map of other values."""
        if self.group_size is None:
            return self._look_around(x, key_mask, values)
        if x.ndim != 5:
            raise ValueError(f"x has shape {tuple(x.shape)}: group_size={self.group_size} cuts (batch, dim, T, H, W)")
        batch, frames = x.shape[0], x.shape[2]
        if key_mask is None and frames % self.group_size:
            key_mask = torch.ones_like(x[:, 0], dtype=torch.bool)
        key_mask = None if key_mask is None else _groups(key_mask, self.group_size, 1)
        values = None if values is None else _groups(values, self.group_size, 2)
        y = self._look_around(_groups(x, self.group_size, 2), key_mask, values)
        return y.unflatten(0, (batch, -1)).movedim(1, 2).flatten(2, 3).narrow(2, 0, frames)

    def _look_around(self, x: Tensor, key_mask: Tensor | None, values: Tensor | None) -> Tensor:
        if self.sub_sample is not None and min(x.shape[2 + (x.ndim > 4) :]) < 2:
            return x.new_zeros(x.shape[0], self.inner, *x.shape[2:])  # no window, no key
        source = _windows(x) if self.sub_sample == "before" else x
        key = source if self.k_proj is None else _project(self.k_proj, source)
        value = _project(self.v_proj, source) if values is None else values
        if self.sub_sample == "after":
            key, value = _windows(key), _windows(value)
        if self.sub_sample is not None and key_mask is not None:
            key_mask = _windows((~key_mask).to(x.dtype)[:, None])[:, 0] == 0
        query = x if self.q_proj is None else _project(self.q_proj, x)
        q, k, v = (t.flatten(2).mT for t in (query, key, value))
        mask = None if key_mask is None else key_mask.flatten(1)
        y = non_local(q, k, v, self.form, pair=self.pair, scale=self.scale, key_mask=mask)
        return y.mT.unflatten(-1, x.shape[2:])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, form={self.form!r}, inner={self.inner}, sub_sample={self.sub_sample!r}"


def _project(linear: nn.Linear, x: Float[Tensor, "B C *grid"]) -> Float[Tensor, "B I *grid"]:
    """A convolution of width 1."""
    return pixelwise(linear, x.flatten(2)).unflatten(-1, x.shape[2:])


def _windows(x: Float[Tensor, "B C *grid"]) -> Float[Tensor, "B C *windows"]:
    """The maxima in windows of 2 along each axis but that of time."""
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    return pool(x, (2,) if x.ndim == 3 else (2, 2) if x.ndim == 4 else (1, 2, 2))


def _groups(x: Tensor, size: int, axis: int) -> Tensor:
    """Groups of frames instead of volumes, the last of each filled up with zeros."""
    after = 2 * (x.ndim - axis - 1)
    filled = F.pad(x, (*(0,) * (after + 1), -x.shape[axis] % size))
    return filled.unflatten(axis, (-1, size)).movedim(axis, 1).flatten(0, 1)
