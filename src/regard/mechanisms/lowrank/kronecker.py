"""Kronecker attention: a map attends to the means of its rows and columns instead of to every pixel.

Gao, Wang and Ji 2020, arXiv:2007.08442, sections 3.3 and 3.4. With r_i and c_j the means of row i and of column j, the
tokens T = [r_1, ..., r_H, c_1, ..., c_W] are keys and values; volumes have one family of means more::

    queries="pixels" (KAO_KV):    y[i, j] = attend(x[i, j])                attend(q) = softmax(q T^T) T, unscaled
    queries="lines" (KAO_QKV):    y[i, j] = attend(r_i) + attend(c_j)

The paper's operators have no weights: ``project=False``. Otherwise q, k, v and the output of each token pass a matrix;
projecting a mean is the mean of what is projected, so only n = H + W tokens are. As in the one public code, lucidrains'
kronecker-attention-pytorch, with lines as queries the output matrix meets the tokens before they are added, so a pixel
gets its bias once an axis. Masked pixels are in no mean, and a line of nothing else is no token.

A pixel of "lines" is the sum of one number for its row and one for its column: keep a residual around the layer. For P
pixels, time is O(P n D) a head with pixels as queries and O(n^2 D + P C) with lines; full attention takes O(P^2 D).
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.map_layers import MapLayer, pixels_of
from regard.ops.line_means import line_means, outer_sum
from regard.registry import Card, Sample, UnsupportedError, register

Queries = Literal["pixels", "lines"]


def kronecker_attention(
    x: Float[Tensor, "B C *grid"],
    context: Float[Tensor, "B C *other"] | None = None,
    *,
    queries: Queries = "pixels",
    num_heads: int = 1,
    scale: float = 1.0,
    key_mask: Bool[Tensor, "B *other"] | None = None,
) -> Float[Tensor, "B C *grid"]:
    """The paper's operators, without weights; see the head of this file.

    Args:
        x: a map of any number of axes.
        context: a map, of other sides perhaps, whose line means are keys and values; x itself by default.
        queries: "pixels" or "lines", for which there is no context.
        num_heads: head h has the features h C / H to (h + 1) C / H - 1.
        scale: of the scores.
        key_mask: True for pixels that count.

    Returns:
        A map of the shape of x, 0 where no pixel counts.

    Raises:
        ValueError: a context for "lines".

    Example:
        >>> x = torch.randn(1, 4, 3, 5)
        >>> kronecker_attention(x).shape, kronecker_attention(x, queries="lines").shape
        (torch.Size([1, 4, 3, 5]), torch.Size([1, 4, 3, 5]))
    """
    if context is not None and queries == "lines":
        raise ValueError('queries="lines" are those of what is asked: they take no context')
    tokens, filled = line_means(x if context is None else context, key_mask)
    asking = tokens if queries == "lines" else x.flatten(2)
    q, k = (t.unflatten(1, (num_heads, -1)).mT for t in (asking, tokens))
    out = attend(q, k, k, scale=scale, key_mask=filled).mT.flatten(1, 2)
    return outer_sum(out, x.shape[2:]) if queries == "lines" else out.unflatten(-1, x.shape[2:])


@register(
    "kronecker",
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=12, num_heads=2, head_dim=5, queries="lines", scale="sqrt", claims={"cross": False}),
        Sample(dim=12, project=False),
    ],
)
class Kronecker(MapLayer):
    """Projections, or none, around row and column means; see the head of this file.

    Args:
        dim: C.
        num_heads: H.
        queries: "pixels" (KAO_KV) or "lines" (KAO_QKV, the cheapest).
        head_dim: D, the default is C / H.
        project: False for the paper's operators without weights.
        scale: None, as in the paper and its port, or "sqrt" for 1 / sqrt(D), without which wide heads saturate.
        num_axes: 2 for images, 3 for volumes, 1 for a sequence of which each step is a token.

    Raises:
        ValueError: sizes that do not fit.
        UnsupportedError: segments, or a context for "lines".
    """

    card = Card(
        title="Kronecker attention",
        paper="arXiv:2007.08442",
        year=2020,
        family="lowrank",
        data="map",
        cross=True,
        refuses={"causal": "the mean of a line has seen all of its pixels"},
        cost="N (H + W)",
        summary="Every pixel attends to the means of rows and columns: global context for images at hardly any cost.",
        formula="softmax(q T^T) T, T the row and column means, q each pixel, or each mean with y_ij = y_i + y_j",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        queries: Queries = "pixels",
        head_dim: int | None = None,
        *,
        project: bool = True,
        scale: Literal["sqrt"] | None = None,
        num_axes: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if queries not in ("pixels", "lines"):
            raise ValueError(f'queries={queries!r} is neither "pixels" nor "lines"')
        if scale not in (None, "sqrt"):
            raise ValueError(f'scale={scale!r} is neither None nor "sqrt"')
        if num_axes < 1:
            raise ValueError(f"num_axes={num_axes}: a map has one axis at least")
        width = head_width(dim, num_heads, head_dim)
        if not project and width * num_heads != dim:
            raise ValueError(f"head_dim={head_dim} needs project=True: without, {num_heads} heads share dim={dim}")
        self.dim, self.num_heads, self.num_axes, self.project = dim, num_heads, num_axes, project
        self.queries: Queries = queries
        self.scale = width**-0.5 if scale else 1.0
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if project:
            inner = width * num_heads
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner, bias=False, **factory) for _ in range(3))
            self.out_proj = nn.Linear(inner, dim, **factory)

    def reset_parameters(self) -> None:
        """As torch draws linear layers; the paper has none."""
        for linear in self.children():
            if isinstance(linear, nn.Linear):
                linear.reset_parameters()

    def admit(
        self,
        x: Tensor,
        context: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The door of all layers on maps, which lines pass without a context."""
        if context is not None and self.queries == "lines":
            raise UnsupportedError('kronecker takes a context only with queries="pixels": lines ask lines of their own')
        return super().admit(x, context, key_mask, query_mask, segments)

    def respond(
        self,
        x: Tensor,
        source: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Attend from a map to the line means of it, or of a context; see :class:`regard.map_layers.MapLayer`."""
        return self._attend(x, source, key_mask)

    def _attend(self, x: Tensor, source: Tensor, key_mask: Tensor | None) -> Tensor:
        lines = self.queries == "lines"
        if not self.project:
            maps = (source,) if lines else (x, source)
            options: dict[str, Any] = {"queries": self.queries, "num_heads": self.num_heads, "scale": self.scale}
            return kronecker_attention(*maps, **options, key_mask=key_mask)
        means, filled = line_means(source, key_mask)
        tokens = means.mT
        q, k, v = (
            linear(t).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, t in (
                (self.q_proj, tokens if lines else pixels_of(x)),
                (self.k_proj, tokens),
                (self.v_proj, tokens),
            )
        )
        out = attend(q, k, v, scale=self.scale, key_mask=filled).transpose(1, 2).flatten(2)
        y = self.out_proj(out).mT
        return outer_sum(y, x.shape[2:]) if lines else y.unflatten(-1, x.shape[2:])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, queries={self.queries!r}, project={self.project}"
