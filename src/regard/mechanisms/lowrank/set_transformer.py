"""Set Transformer: attention blocks for sets, where order means nothing and a few learned points may stand between.

Lee et al. 2018, arXiv:1810.00825, section 3. One block does everything, from a set X (N points) to a set Y (M points)::

    MAB(X, Y)  = norm(O + relu(O W_o + b_o)),  O = norm(Q + concat_h softmax(Q_h K_h^T / sqrt(C)) V_h)
                 Q = X W_q + b_q, K = Y W_k + b_k, V = Y W_v + b_v, each of C features
    SAB(X)     = MAB(X, X)                   every point sees every other
    ISAB(X)    = MAB(X, MAB(I, X))           through m learned inducing points I
    PMA(Z)     = MAB(S, rFF(Z))              pools a set into k vectors, by k learned seeds S

As the authors' code computes it, from which every published number comes: it divides by the root of the full width C
(``scale="head"`` takes the paper's C / H), the residual is the projected query with no output matrix behind the heads,
rFF is one matrix and a ReLU, PMA has none around Z (``rff_in_pma=True`` adds the paper's), and there are no norms
(``layer_norm=True``). A masked point takes part in nothing; inducing points and seeds always do. A query that may look
at nothing keeps O = Q. No dropout.

Time O(N^2 C) for SAB, O(N m C) for ISAB, O(N k C) for PMA, and O(N C^2) for the projections; memory O(N C).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.attention import attend
from regard.layers import head_width
from regard.ops.masks import admit_one_sequence, check_mask, check_tokens, hide
from regard.ops.packing import Documents
from regard.registry import Card, Layer, Sample, UnsupportedError, register

Scale = Literal["width", "head"]


def set_attention(
    q: Float[Tensor, "#B N C"],
    k: Float[Tensor, "B M C"],
    v: Float[Tensor, "B M C"],
    num_heads: int,
    *,
    scale: Scale = "width",
    key_mask: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B N C"]:
    """q + concat_h softmax(q_h k_h^T / sqrt(C)) v_h: what each query takes from a set, added to the query itself.

    Args:
        q: projected queries; a single row of them serves all sets.
        k, v: projected points. Head h owns the features h C/H .. (h + 1) C/H - 1 of all three.
        num_heads: H.
        scale: divide by the root of the full "width" C, or of the width C / H of a "head".
        key_mask: True for points that take part.

    Returns:
        q alone where no point takes part.

    Example:
        >>> q, k = torch.randn(1, 3, 8), torch.randn(2, 5, 8)
        >>> set_attention(q, k, k, num_heads=2).shape
        torch.Size([2, 3, 8])
    """
    query, key, value = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    width = q.shape[-1] if scale == "width" else query.shape[-1]
    out = attend(query.expand(k.shape[0], -1, -1, -1), key, value, scale=width**-0.5, key_mask=key_mask)
    return q + out.transpose(1, 2).flatten(2)


class MAB(nn.Module):
    """Multihead attention block: from a set of queries to a set of points; see the head of this file.

    Args:
        query_dim, key_dim: features of the queries and of the points.
        dim: C, of the output.
        num_heads: H.
        scale: see :func:`set_attention`.
        layer_norm: a norm behind each of the two sums.

    Raises:
        ValueError: C is no multiple of H, or an unknown scale.

    Example:
        >>> block = MAB(3, 2, 8, num_heads=2)
        >>> block(torch.randn(4, 5, 3), torch.randn(4, 7, 2)).shape
        torch.Size([4, 5, 8])
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        dim: int,
        num_heads: int,
        *,
        scale: Scale = "width",
        layer_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_width(dim, num_heads)
        if scale not in ("width", "head"):
            raise ValueError(f'scale={scale!r} is neither "width" nor "head"')
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.scale: Scale = scale
        self.q_proj = nn.Linear(query_dim, dim, **factory)
        self.k_proj, self.v_proj = nn.Linear(key_dim, dim, **factory), nn.Linear(key_dim, dim, **factory)
        self.feed_forward = nn.Linear(dim, dim, **factory)
        self.norm1 = nn.LayerNorm(dim, **factory) if layer_norm else None
        self.norm2 = nn.LayerNorm(dim, **factory) if layer_norm else None

    def reset_parameters(self) -> None:
        """As torch draws each part, which is what the authors do."""
        for part in (self.q_proj, self.k_proj, self.v_proj, self.feed_forward, self.norm1, self.norm2):
            if part is not None:
                part.reset_parameters()

    def forward(
        self,
        x: Float[Tensor, "#B N _"],
        points: Float[Tensor, "B M _"],
        *,
        key_mask: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Queries (a single row of them serves all sets), points, and which points take part -> (B, N, C)."""
        q, k, v = self.q_proj(x), self.k_proj(points), self.v_proj(points)
        y = set_attention(q, k, v, self.num_heads, scale=self.scale, key_mask=key_mask)
        y = y if self.norm1 is None else self.norm1(y)
        y = y + F.relu(self.feed_forward(y))
        return y if self.norm2 is None else self.norm2(y)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, scale={self.scale!r}"


class SAB(nn.Module):
    """Set attention block: MAB(X, Y), by default with Y = X.

    Args:
        input_dim, dim, num_heads: features in and out, and H.
        options: those of :class:`MAB`.

    Example:
        >>> SAB(3, 8, 2)(torch.randn(4, 5, 3)).shape
        torch.Size([4, 5, 8])
    """

    def __init__(self, input_dim: int, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__()
        self.block = MAB(input_dim, input_dim, dim, num_heads, **options)

    def reset_parameters(self) -> None:
        """As the block does."""
        self.block.reset_parameters()

    def forward(self, x: Tensor, points: Tensor | None = None, *, key_mask: Tensor | None = None) -> Tensor:
        """x (B, N, C_in), perhaps other points (B, M, C_in), and Bool (B, M), True for points that take part."""
        return self.block(x, x if points is None else points, key_mask=key_mask)


class ISAB(nn.Module):
    """Induced set attention block: MAB(X, MAB(I, Y)), by default with Y = X, for a cost that is linear in points.

    Args:
        input_dim, dim, num_heads: features in and out, and H.
        num_inducing: m, how many learned points stand between.
        options: those of :class:`MAB`.

    Raises:
        ValueError: no inducing point.

    Example:
        >>> ISAB(3, 8, 2, num_inducing=4)(torch.randn(4, 5, 3)).shape
        torch.Size([4, 5, 8])
    """

    def __init__(self, input_dim: int, dim: int, num_heads: int, num_inducing: int, **options: Any) -> None:
        super().__init__()
        if num_inducing < 1:
            raise ValueError(f"num_inducing={num_inducing}: without inducing points nobody sees anybody")
        self.inducing = nn.Parameter(_empty_points(num_inducing, dim, options))
        self.gather = MAB(dim, input_dim, dim, num_heads, **options)
        self.spread = MAB(input_dim, dim, dim, num_heads, **options)
        nn.init.xavier_uniform_(self.inducing)

    def reset_parameters(self) -> None:
        """Inducing points Xavier-uniform over all three axes, as the authors have it: within sqrt(6 / ((m + 1) C))."""
        nn.init.xavier_uniform_(self.inducing)
        self.gather.reset_parameters()
        self.spread.reset_parameters()

    def forward(self, x: Tensor, points: Tensor | None = None, *, key_mask: Tensor | None = None) -> Tensor:
        """x (B, N, C_in), perhaps other points (B, M, C_in), and Bool (B, M), True for points that take part."""
        return self.spread(x, self.gather(self.inducing, x if points is None else points, key_mask=key_mask))


class PMA(nn.Module):
    """Pooling by multihead attention: a set becomes k vectors, whatever its size and order.

    Args:
        dim, num_heads: C and H.
        num_seeds: k.
        rff_in_pma: a row-wise matrix and a ReLU before the set is pooled, as in the paper's equation.
        options: those of :class:`MAB`.

    Raises:
        ValueError: no seed.

    Example:
        >>> PMA(8, 2, num_seeds=3)(torch.randn(4, 5, 8)).shape
        torch.Size([4, 3, 8])
    """

    def __init__(self, dim: int, num_heads: int, num_seeds: int, rff_in_pma: bool = False, **options: Any) -> None:
        super().__init__()
        if num_seeds < 1:
            raise ValueError(f"num_seeds={num_seeds}: a set is pooled into 1 vector or more")
        factory = {key: options[key] for key in ("device", "dtype") if key in options}
        self.seeds = nn.Parameter(_empty_points(num_seeds, dim, options))
        self.feed_forward = nn.Linear(dim, dim, **factory) if rff_in_pma else None
        self.block = MAB(dim, dim, dim, num_heads, **options)
        nn.init.xavier_uniform_(self.seeds)

    def reset_parameters(self) -> None:
        """Seeds as the inducing points of :class:`ISAB`, the rest as torch draws it."""
        nn.init.xavier_uniform_(self.seeds)
        self.block.reset_parameters()
        if self.feed_forward is not None:
            self.feed_forward.reset_parameters()

    def forward(self, z: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """z (B, N, C) and Bool (B, N), True for points that take part -> (B, k, C)."""
        z = z if self.feed_forward is None else F.relu(self.feed_forward(z))
        return self.block(self.seeds, z, key_mask=key_mask)


def _empty_points(count: int, dim: int, options: dict[str, Any]) -> Tensor:
    return torch.empty(1, count, dim, device=options.get("device"), dtype=options.get("dtype"))


@register(
    "set_transformer",
    samples=[
        Sample(dim=12, num_heads=3, num_inducing=4),
        Sample(dim=12, num_heads=2, num_inducing=None, scale="head", layer_norm=True),
    ],
)
class SetTransformerLayer(Layer):
    """ISAB, or SAB with ``num_inducing=None``, as a layer (B, N, C) -> (B, N, C); see the head of this file.

    It holds its own residual and feed-forward part. With a context, the points of the context are asked.

    Args:
        dim, num_heads: C and H.
        num_inducing: m, how many learned points stand between; None: every point sees every other.
        scale: divide by the root of the full "width" (the authors' code) or of the width of a "head" (the paper).
        layer_norm: a norm behind each of the two sums of each block.

    Raises:
        ValueError: sizes that do not fit, or an unknown scale.
        UnsupportedError: segments together with a context.

    Example:
        >>> layer = SetTransformerLayer(12, 3, num_inducing=4)
        >>> layer(torch.randn(2, 100, 12)).shape
        torch.Size([2, 100, 12])
    """

    card = Card(
        title="Set Transformer",
        paper="arXiv:1810.00825",
        year=2018,
        family="lowrank",
        data="set",
        cross=True,
        smooth=True,
        refuses={"causal": "a set has no order"},
        cost="N m",
        summary="Sets of any size meet through a few learned inducing points: for points, bags, any unordered data.",
        formula="MAB(X, MAB(I, X)), MAB(X, Y) = O + relu(O W), O = Q + softmax(Q K^T / sqrt(C)) V",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_inducing: int | None = 32,
        scale: Scale = "width",
        layer_norm: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        options: dict[str, Any] = {"scale": scale, "layer_norm": layer_norm, "device": device, "dtype": dtype}
        self.block: SAB | ISAB = (
            SAB(dim, dim, num_heads, **options)
            if num_inducing is None
            else ISAB(dim, dim, num_heads, num_inducing, **options)
        )

    def reset_parameters(self) -> None:
        """As the block does."""
        self.block.reset_parameters()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Attend within a set, or from it to another one.

        Args:
            x: what asks, (B, N, C).
            context: what is asked, (B, M, C), where it is another set.
            key_mask: Bool (B, M), True for points of what is asked that take part.
            query_mask: Bool (B, N), True for real points of x; within one set each mask is the other's default.
            segments: Int (B, N), one id a set of several in a row, which then sees only itself.
            generator: nothing is drawn; it stands here as in every layer.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: segments together with a context.
        """
        if context is None:
            x, key_mask, query_mask = admit_one_sequence(
                "set_transformer", x, self.dim, None, key_mask, query_mask, segments
            )
        else:
            x, context = self._admit_two(x, context, key_mask, query_mask, segments)
        if segments is None:
            y = self.block(x, context, key_mask=key_mask)
        else:
            documents = Documents.of(segments)
            rows = documents.unpack(x[:, None])[:, 0]
            y = documents.pack(self.block(rows, key_mask=documents.mask(key_mask))[:, None])[:, 0]
        y = hide(y, query_mask)
        return (y, {}) if return_aux else y

    def _admit_two(
        self,
        x: Tensor,
        context: Tensor,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What asks and what is asked, with padding set to 0."""
        for name, points, title, mask in (
            ("x", x, "query_mask", query_mask),
            ("context", context, "key_mask", key_mask),
        ):
            check_tokens(points, self.dim, name)
            check_mask(mask, points.shape[0], points.shape[1], title)
        if x.shape[0] != context.shape[0]:
            raise ValueError(f"x and context hold {len(x)} and {len(context)} sets, the numbers must be equal")
        if segments is not None:
            raise UnsupportedError("segments divide one row of sets: they are for a set with itself, without context")
        return hide(x, query_mask), hide(context, key_mask)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"
