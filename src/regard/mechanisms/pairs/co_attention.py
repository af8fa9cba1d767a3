"""Co-attention: two maps summarise each other through one matrix of affinities.

Lu et al. 2019, "See More, Know More" (COSNet), arXiv:2001.06810, eqs. 1 to 10. For maps V_a (C, N_a), V_b (C, N_b)::

    S = V_b^T W V_a        Z_a = V_b softmax_b(S)        Z_b = V_a softmax_a(S^T)        not scaled by sqrt(C)
    X_a = [f(Z_a) Z_a; V_a]        f(z) = sigmoid(w_f . z + b_f), one number a pixel, the same w_f for both sides

    "vanilla"       W is any matrix
    "symmetric"     W = P^T D P, P orthogonal, D diagonal: S = (P V_b)^T D (P V_a)
    "channel"       W = D_a D_b, diagonal: S = (D_a V_b)^T (D_b V_a), two learned vectors
    "excitation"    the same, where each vector is sigmoid(FC(mean of the map that it scales)), a fully connected
                    layer of C nodes each, as squeeze and excitation has them

Each softmax runs over the map that is summed, so weights sum to 1 for every pixel that asks. P starts orthogonal and is
kept so as the paper says, by a penalty: |P P^T - I|^2 is told as "loss/orthogonality". Whoever wants it exactly so may
register ``torch.nn.utils.parametrizations.orthogonal(layer.p_proj)``.

Z_a and Z_b are :func:`regard.attend` with the affinities as logits: neither S nor a softmax of it is ever stored. At
60 x 60 pixels and C = 256, forward and backward on one CPU core, that took 0.73 of the time of one stored S and two
softmaxes of it, and 94 MB instead of 272 MB. Time is O(N_a N_b C), memory O((N_a + N_b) C).

The authors' code (carrierlxk/COSNet) has the vanilla form alone, and a gate without b_f: ``gate_bias=False``.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.map_layers import WeighingLayer, hide_pixels, like_format, pixels_of
from regard.registry import Card, Sample, register

Affinity = Literal["vanilla", "symmetric", "channel", "excitation"]


def co_attention(
    a: Float[Tensor, "B N D"],
    b: Float[Tensor, "B M D"],
    values_a: Float[Tensor, "B N C"],
    values_b: Float[Tensor, "B M C"],
    *,
    mask_a: Bool[Tensor, "B N"] | None = None,
    mask_b: Bool[Tensor, "B M"] | None = None,
) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B M C"]]:
    """softmax(a b^T) values_b and softmax(b a^T) values_a.

    Args:
        a, b: the two sides of the affinities a b^T.
        values_a, values_b: what is summed.
        mask_a, mask_b: True for pixels that take part; a side without any leaves 0 to the other one.

    Example:
        >>> a, b = torch.randn(2, 35, 4), torch.randn(2, 12, 4)
        >>> z_a, z_b = co_attention(a, b, a, b)
        >>> z_a.shape, z_b.shape
        (torch.Size([2, 35, 4]), torch.Size([2, 12, 4]))
    """
    a, b, values_a, values_b = (t[:, None] for t in (a, b, values_a, values_b))
    z_a = attend(a, b, values_b, scale=1.0, key_mask=mask_b)
    z_b = attend(b, a, values_a, scale=1.0, key_mask=mask_a)
    return z_a[:, 0], z_b[:, 0]


@register(
    "co_attention",
    samples=[
        Sample(dim=10),
        Sample(dim=8, kind="symmetric", gate_bias=False),
        Sample(dim=8, kind="channel", gate=False, join=False),
        Sample(dim=8, kind="excitation"),
    ],
)
class CoAttention(WeighingLayer):
    """Two maps in, both answered; see the head of this file.

    Args:
        dim: C, of both maps.
        kind: of W.
        gate: f; False: the summaries as they are.
        gate_bias: b_f.
        join: answer with [summary; own features], 2 C channels; False: with the summary, C channels.

    Raises:
        ValueError: sizes or options that do not fit.
    """

    card = Card(
        title="Co-attention (COSNet)",
        paper="arXiv:2001.06810",
        year=2019,
        family="pairs",
        data="pair",
        cross=True,
        smooth=True,
        refuses={"causal": "every pixel looks at all of the other map"},
        cost="N M",
        summary="Relates two images or frames symmetrically: what both show stands out in each.",
        formula="S = V_b^T W V_a; Z_a = V_b softmax_b(S), Z_b = V_a softmax_a(S^T), gated",
    )

    def __init__(
        self,
        dim: int,
        kind: Affinity = "vanilla",
        *,
        gate: bool = True,
        gate_bias: bool = True,
        join: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(Affinity):
            raise ValueError(f"kind={kind!r} is none of {', '.join(map(repr, get_args(Affinity)))}")
        if dim < 1:
            raise ValueError(f"dim={dim} must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.dim_out, self.join = dim, 2 * dim if join else dim, join
        self.kind: Affinity = kind
        if kind == "vanilla":
            self.affinity = nn.Linear(dim, dim, bias=False, **factory)
        elif kind == "symmetric":
            self.p_proj = nn.Linear(dim, dim, bias=False, **factory)
            self.diagonal = nn.Parameter(torch.empty(dim, **factory))
        elif kind == "channel":
            self.diagonal_a, self.diagonal_b = (nn.Parameter(torch.empty(dim, **factory)) for _ in range(2))
        else:
            self.excite_a, self.excite_b = (nn.Linear(dim, dim, **factory) for _ in range(2))
        self.gate = nn.Linear(dim, 1, bias=gate_bias, **factory) if gate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear layers as torch draws them, P orthogonal, diagonals at 1, the gate normal with deviation 0.01."""
        for linear in (part for part in self.children() if isinstance(part, nn.Linear)):
            linear.reset_parameters()
        if self.kind == "symmetric":
            _orthogonal_(self.p_proj.weight)
            nn.init.ones_(self.diagonal)
        elif self.kind == "channel":
            nn.init.ones_(self.diagonal_a)
            nn.init.ones_(self.diagonal_b)
        if self.gate is not None:
            nn.init.normal_(self.gate.weight, std=0.01)
            if self.gate.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                nn.init.zeros_(self.gate.bias)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]: both maps are answered
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Let two maps look at each other.

        Args:
            x: V_a, (B, C, H, W), in any memory format, which its answer has as well.
            context: V_b, (B, C, H', W'), likewise.
            key_mask: Bool (B, H', W'), True for pixels of the context that take part.
            query_mask: Bool (B, H, W), True for pixels of x that do: each side is asked by the other one.
            segments: refused: a map is no row of documents.
            generator: idle, nothing is random.
            return_aux: also return "loss/orthogonality", where kind is "symmetric".

        Returns:
            (X_a (B, 2C, H, W), X_b (B, 2C, H', W')), 0 for masked pixels; with ``return_aux`` (that, dict of tensors).

        Raises:
            ValueError, TypeError: no context, or shapes or masks that do not fit.
            UnsupportedError: segments.
        """
        x, context, key_mask, query_mask = self._admit_both(x, context, key_mask, query_mask, segments)
        z_x, z_context = self._summaries(x, context, key_mask, query_mask)
        found = self._answer(x, z_x, query_mask), self._answer(context, z_context, key_mask)
        return (found, self._told()) if return_aux else found

    def fuse(
        self,
        x: Tensor,
        references: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One map against several: what they say of it is averaged after the gate, and joined once.

        Args:
            x: V_a, (B, C, H, W).
            references: R maps for each, (B, R, C, H', W').
            key_mask: Bool (B, R, H', W'); a reference without any real pixel does not count in the mean.
            query_mask: Bool (B, H, W).

        Returns:
            (X_a (B, 2C, H, W), the answers of the references (B, R, 2C, H', W')).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.

        Example:
            >>> layer = CoAttention(8)
            >>> y, z = layer.fuse(torch.randn(2, 8, 5, 4), torch.randn(2, 3, 8, 6, 7))
            >>> y.shape, z.shape
            (torch.Size([2, 16, 5, 4]), torch.Size([2, 3, 16, 6, 7]))
        """
        if references.ndim != 5 or references.shape[0] != x.shape[0] or not references.shape[1]:
            raise ValueError(
                f"references have shape {tuple(references.shape)}, expected ({x.shape[0]}, R, {self.dim}, H, W), R > 0"
            )
        if key_mask is not None and key_mask.shape[:2] != references.shape[:2]:
            raise ValueError(
                f"key_mask has shape {tuple(key_mask.shape)}, but the references are {tuple(references.shape[:2])}"
            )
        count = references.shape[1]
        x, many, mask_many, query_mask = self._admit_both(
            x.repeat_interleave(count, 0),
            references.flatten(0, 1),
            None if key_mask is None else key_mask.flatten(0, 1),
            None if query_mask is None else query_mask.repeat_interleave(count, 0),
        )
        z_x, z_many = self._summaries(x, many, mask_many, query_mask)
        z = self._answer(many, z_many, mask_many).unflatten(0, (-1, count))
        parts = z_x.unflatten(0, (-1, count))
        if key_mask is None:
            mean = parts.mean(1)
        else:
            mean = parts.sum(1) / key_mask.flatten(2).any(-1).sum(-1).clamp(min=1)[:, None, None]
        return self._answer(x[::count], mean, None if query_mask is None else query_mask[::count]), z

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
        """What the weights of Z_a make of other values, before the gate."""
        a, b = (side[:, None] for side in self._sides(x, source, key_mask, query_mask))
        return attend(a, b, values, scale=1.0, key_mask=None if key_mask is None else key_mask.flatten(1))

    def _admit_both(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        if context is None:
            raise ValueError(f"{self.mechanism} relates two maps: pass the other one as context")
        return self.admit(x, context, key_mask, query_mask, segments)

    def _sides(
        self, x: Tensor, context: Tensor, key_mask: Tensor | None, query_mask: Tensor | None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B M C"]]:
        """The two sides of the affinities: what is V_a and what is V_b in S, pixel by pixel."""
        a, b = pixels_of(x), pixels_of(context)
        if self.kind == "vanilla":
            return self.affinity(a), b
        if self.kind == "symmetric":
            return self.p_proj(a) * self.diagonal, self.p_proj(b)
        if self.kind == "channel":
            return a * self.diagonal_b, b * self.diagonal_a
        return a * _excitation(self.excite_a, a, query_mask), b * _excitation(self.excite_b, b, key_mask)

    def _summaries(
        self, x: Tensor, context: Tensor, key_mask: Tensor | None, query_mask: Tensor | None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B M C"]]:
        """f(Z_a) Z_a and f(Z_b) Z_b."""
        masks = (None if mask is None else mask.flatten(1) for mask in (query_mask, key_mask))
        mask_a, mask_b = masks
        sides = self._sides(x, context, key_mask, query_mask)
        found = co_attention(*sides, pixels_of(x), pixels_of(context), mask_a=mask_a, mask_b=mask_b)
        z_a, z_b = found if self.gate is None else (z * self.gate(z).sigmoid() for z in found)
        return z_a, z_b

    def _answer(self, own: Tensor, summary: Float[Tensor, "B N C"], mask: Tensor | None) -> Tensor:
        """[summary; own features] as a map."""
        z = hide_pixels(summary.mT.unflatten(-1, own.shape[2:]), mask)
        return like_format(torch.cat((z, own), 1) if self.join else z, own)

    def _told(self) -> dict[str, Tensor]:
        if self.kind != "symmetric":
            return {}
        p = self.p_proj.weight
        return {"loss/orthogonality": (p @ p.mT - torch.eye(self.dim, device=p.device, dtype=p.dtype)).square().sum()}

    def extra_repr(self) -> str:
        return f"dim={self.dim}, kind={self.kind!r}, join={self.join}"


def _excitation(linear: nn.Linear, pixels: Float[Tensor, "B N C"], mask: Tensor | None) -> Float[Tensor, "B 1 C"]:
    """One number a channel, from the mean over real pixels; masked ones are 0."""
    count = pixels.shape[1] if mask is None else mask.flatten(1).sum(-1).clamp(min=1)[:, None]
    return linear(pixels.sum(1) / count).sigmoid()[:, None]


def _orthogonal_(weight: Tensor) -> None:
    """In float32 at least: no decomposition takes short floats."""
    with torch.no_grad():
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight.copy_(nn.init.orthogonal_(torch.empty_like(weight, dtype=wide)))
