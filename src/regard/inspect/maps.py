"""Attention maps: how much each token takes from each other one, also where no map is ever formed.

Two answers, and the kind is always shown with them:

- "exact": the weights A in out = A v, at the queries and keys of the given input, before the output projection and the
  residual. Each column of A is what the attention makes of values that are 1 at one token and 0 elsewhere, so columns
  are found in chunks by running the attention itself. Rows need not sum to 1 (linear attention divides by a little
  more), and weights may be negative (Nystromformer): they are shown as they are.
- "jacobian": J_ij = ||dy_i / dx_j||_F, the Frobenius norm over the features of the layer's output and input, rows
  scaled to sum 1. It answers for any module, in one head, and also counts what x_j does as a query or key.

The pixels of maps (B, C, H, W) are its tokens, row by row.
"""

import math
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from regard.inspect.tensors import first_tensor
from regard.registry import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

Kind = Literal["exact", "jacobian"]

IN_WORDS: dict[Kind, str] = {"exact": "exact weights", "jacobian": "Jacobian norm"}

COLUMNS = 64
"""Columns of A found at a time, as values of the usual width."""

ENTRIES = 1 << 21
"""Numbers in the output gradients of one pass: what bounds the memory of a Jacobian."""


@dataclass(frozen=True, eq=False)
class Map:
    """Weights of each query over the keys.

    Attributes:
        tensor: (B, H, N, M), queries by keys; one head where the kind is "jacobian".
        kind: what the numbers are, see the head of this file.
    """

    tensor: Float[Tensor, "B H N M"]
    kind: Kind

    def plot(
        self, batch: int = 0, head: int | None = None, tokens: "Sequence[str] | None" = None, ax: "Axes | None" = None
    ) -> "Axes":
        """Draw one sequence's map, queries downwards and keys to the right, each row relative to its largest weight.

        Args:
            batch: which sequence.
            head: which head; None: the mean over all.
            tokens: written along each axis that has as many places.
            ax: where to draw; None: a new figure.

        Returns:
            The matplotlib Axes; its title says the kind.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: a sequence or a head that does not exist, or tokens that are neither as many as the queries nor
                as many as the keys.
        """
        from regard.inspect.picture import plot

        return plot(self, batch, head, tokens, ax)

    def __repr__(self) -> str:
        batch, heads, n, m = self.tensor.shape
        return f"Map({IN_WORDS[self.kind]}: batch={batch}, heads={heads}, queries={n}, keys={m})"


def attention_map(
    layer: Callable[..., Any],
    x: Tensor,
    context: Tensor | None = None,
    *,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    segments: Tensor | None = None,
    kind: Kind | None = None,
    generator: torch.Generator | None = None,
) -> Map:
    """How much each token of x takes from each token of x or of the context; see the head of this file.

    The layer runs in eval mode and without gradients for its parameters; its mode and all random states are left as
    they were, and every pass makes the same draws: those that the next call of the layer would make.

    Args:
        layer: one of ours for "exact"; for "jacobian" any module or function (B, N, C) -> (B, N, C'); of several
            things that it returns the first tensor is taken.
        x: what asks, (B, N, C), or a map (B, C, H, W) of any number of axes.
        context: what is asked, (B, M, C) or a map, where it is another one.
        key_mask, query_mask, segments: as the layer takes them.
        kind: "exact", "jacobian", or None: exact where the layer has weights, else the Jacobian.
        generator: as the layer takes it.

    Returns:
        A map of (B, H, N, M), H = 1 for "jacobian". Masked queries have rows of 0, masked keys columns of 0. The row
        of the pixel in row r and column c is number r W + c; ``.unflatten(-1, (H, W))`` makes pictures of rows.

    Raises:
        UnsupportedError: ``kind="exact"`` of a layer without weights, or what the layer itself refuses.
        ValueError: x is neither (batch, length, dim) nor a map, or the kind is unknown.

    Example:
        >>> import regard
        >>> layer = regard.create("linear_transformer", dim=12, num_heads=3, causal=True)
        >>> found = attention_map(layer, torch.randn(2, 5, 12))
        >>> found
        Map(exact weights: batch=2, heads=3, queries=5, keys=5)
        >>> attention_map(torch.nn.Linear(12, 12), torch.randn(1, 3, 12)).tensor.tolist()
        [[[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]]
    """
    if kind not in (None, *get_args(Kind)):
        raise ValueError(f'kind={kind!r} is none of None, "exact" and "jacobian"')
    for name, side in (("x", x), ("context", context)):
        if side is not None and (side.ndim < 3 or side.ndim != x.ndim):
            raise ValueError(
                f"{name} has shape {tuple(side.shape)}, expected (batch, length, dim), or (batch, dim, *sides)"
            )
    masks = {"key_mask": key_mask, "query_mask": query_mask, "segments": segments}
    given = {name: value for name, value in masks.items() if value is not None}
    with _evaluated(layer):
        if kind != "jacobian":
            try:
                return Map(_weights(layer, x, context, given, generator), "exact")
            except UnsupportedError:
                if kind == "exact":
                    raise
        return Map(_jacobian(layer, x, context, given, generator), "jacobian")


def bertviz(*maps: Map, batch: int | None = None) -> tuple[Shaped[Tensor, "B H N M"], ...]:
    """The tensors of one map a layer, as ``bertviz.head_view`` and ``model_view`` take them: float32, on the CPU.

    bertviz shows one sequence and wants the same number of heads in all layers.

    Args:
        maps: of the layers, in order.
        batch: which sequence, for maps of several; None: all.

    Raises:
        ValueError: layers with different numbers of heads, or none.

    Example:
        >>> found = attention_map(torch.nn.Linear(12, 12), torch.randn(2, 3, 12))
        >>> [tuple(tensor.shape) for tensor in bertviz(found, found, batch=1)]
        [(1, 1, 3, 3), (1, 1, 3, 3)]
    """
    heads = {found.tensor.shape[1] for found in maps}
    if len(heads) != 1:
        raise ValueError(f"bertviz shows layers of equal numbers of heads, these have {sorted(heads)}")
    chosen = slice(None) if batch is None else [batch]
    return tuple(found.tensor[chosen].float().cpu() for found in maps)


def _weights(
    layer: Any, x: Tensor, context: Tensor | None, given: dict[str, Tensor], generator: torch.Generator | None
) -> Tensor:
    """A, by its columns: (B, H, N, M)."""
    if not hasattr(layer, "weigh"):
        name = getattr(layer, "mechanism", "") or type(layer).__name__
        raise UnsupportedError(f'{name} has no weights to show: ask for kind="jacobian"')
    source = x if context is None else context
    length = math.prod(source.shape[2:]) if _on_maps(layer, source) else source.shape[1]
    identity = torch.eye(length, device=x.device, dtype=x.dtype)
    columns: list[Tensor] = []
    with torch.no_grad():
        for values in identity.split(COLUMNS, -1):
            with _same_draws(x, generator) as draws:
                columns.append(layer.weigh(x, values[None, None], context, **given, generator=draws))
    return torch.cat(columns, -1)


def _jacobian(
    layer: Callable[..., Any],
    x: Tensor,
    context: Tensor | None,
    given: dict[str, Tensor],
    generator: torch.Generator | None,
) -> Tensor:
    """J with rows that sum to 1, or to 0 where nothing depends on anything: (B, 1, N, M)."""
    rows: list[Tensor] = []
    for row in range(len(x)):
        own = {name: value[row : row + 1] for name, value in given.items()}
        # leaves of their own: a module may be asked under no_grad, in inference mode, or with an x from a graph
        with torch.inference_mode(False), torch.enable_grad(), _same_draws(x, generator) as draws:
            sides = [side[row : row + 1].detach().clone() for side in (x, context) if side is not None]
            grid = sides[-1].shape[2:] if _on_maps(layer, x) else None
            source = (sides[-1] if grid is None else sides[-1].flatten(2).mT).requires_grad_()
            sides[-1] = source if grid is None else source.mT.unflatten(-1, grid)
            y = first_tensor(layer(*sides, **own, **({} if draws is None else {"generator": draws})))
            rows.append(_slopes(y if grid is None else y.flatten(2).mT, source))
    norms = torch.stack(rows)[:, None]
    total = norms.sum(-1, keepdim=True)
    return (norms / total.where(total > 0, 1.0)).to(x.dtype)


def _on_maps(layer: Any, x: Tensor) -> bool:
    """Whether x is a map: by its axes, or by the layer's card for maps of one axis."""
    return x.ndim > 3 or getattr(getattr(layer, "card", None), "data", "") == "map"


def _slopes(y: Float[Tensor, "1 N Cy"], source: Float[Tensor, "1 M Cx"]) -> Float[Tensor, "N M"]:
    """||dy_i / dx_j||_F, by as many gradients of single outputs at a time as memory allows."""
    _, n, width = y.shape
    squares = torch.zeros(n, source.shape[1], device=y.device, dtype=torch.promote_types(y.dtype, torch.float32))
    if y.requires_grad:
        for outputs in torch.arange(n * width, device=y.device).split(max(1, ENTRIES // y.numel())):
            ask = torch.zeros(len(outputs), y.numel(), device=y.device, dtype=y.dtype)
            ask = ask.scatter_(1, outputs[:, None], 1.0).view(-1, *y.shape)
            slopes = _gradients(y, source, ask).to(squares.dtype)
            squares.index_add_(0, outputs // width, slopes.square().sum(-1).squeeze(1))
    return squares.sqrt()


def _gradients(y: Tensor, source: Tensor, ask: Float[Tensor, "R 1 N Cy"]) -> Float[Tensor, "R 1 M Cx"]:
    """One gradient for each of R output gradients: at once where every operation can be batched, else one by one."""

    def one(slope: Tensor) -> Tensor:
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(y, source, slope, **options)[0]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some operation is batched by a loop
            return torch.func.vmap(one)(ask)
    except RuntimeError:
        return torch.stack([one(slope) for slope in ask])


@contextmanager
def _evaluated(layer: Any) -> Generator[None]:
    """Eval mode; afterwards every part is in the mode that it was in."""
    modes = {part: part.training for part in layer.modules()} if isinstance(layer, nn.Module) else {}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def _same_draws(x: Tensor, generator: torch.Generator | None) -> Generator[torch.Generator | None]:
    """A copy of the generator; whatever is drawn inside, from it or from torch's own, leaves no trace."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        yield None if generator is None else generator.clone_state()
