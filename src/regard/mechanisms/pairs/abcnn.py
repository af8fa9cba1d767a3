"""ABCNN: two sentences look at each other inside a small convolutional network.

Yin et al. 2015, arXiv:1512.05193, section 4. Sentences are columns, x_0 (d x s_0) and x_1 (d x s_1); match(u, v) =
1 / (1 + |u - v|). One layer, of which all parts are shared by both sentences::

    input:    A_ij = match(x_0i, x_1j);  F_0 = W_0 A^T, F_1 = W_1 A   a second channel beside x_0 and x_1 (ABCNN-1)
    conv:     c = tanh(conv(x) + b), over the whole height and w columns, w - 1 columns of 0 on both sides: s + w - 1
    pooling:  A'_ij = match(c_0i, c_1j);  a_0i = sum_j A'_ij, a_1j = sum_i A'_ij                             (ABCNN-2)
    y_i     = a_i c_i + ... + a_{i+w-1} c_{i+w-1}, or without attention on the pooling the mean of these w columns

``attention`` "input", "pooling", "both" or "none" makes it ABCNN-1, 2, 3 or BCNN. W (d x max_length) has a column for
each place of the other sentence; the paper shares W_0 = W_1. With ``normalise`` the weights a of a sentence have the
sum 1, as in the authors' code; in the paper they are sums, and y grows with the other sentence.

Padding: the convolution, A, the tables and the means see real words only, counted from the first, so it may stand
anywhere; the published codes let padding in. Where two columns are equal the distance has the gradient 0.

Time O(s_0 s_1 d + s w d di), memory O(s_0 s_1 + s w d).
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.ops.distances import euclidean
from regard.ops.masks import hide
from regard.ops.positions import put_back, real_first
from regard.pair_layers import Met, PairLayer
from regard.registry import Card, Sample, register

Attention = Literal["input", "pooling", "both", "none"]


class Columns(NamedTuple):
    """A sentence of which real words stand first: x (B, s, d), Bool (B, s) for these, None where all are real."""

    x: Float[Tensor, "B S D"]
    real: Bool[Tensor, "B S"] | None


class Answers(NamedTuple):
    """Both sentences behind a layer, and of each one vector for all of its columns, which classifiers compare."""

    first: Columns
    second: Columns
    first_mean: Float[Tensor, "B O"]
    second_mean: Float[Tensor, "B O"]


def match(u: Float[Tensor, "B S D"], v: Float[Tensor, "B M D"]) -> Float[Tensor, "B S M"]:
    """1 / (1 + |u_i - v_j|) for all pairs, in float32 at least; no differences of all pairs are kept.

    Example:
        >>> match(torch.zeros(1, 1, 2), torch.tensor([[[0.0, 0.0], [0.6, 0.8]]])).tolist()
        [[[1.0, 0.5]]]
    """
    wide = torch.promote_types(u.dtype, torch.float32)
    return 1 / (1 + euclidean(u.to(wide), v.to(wide)))


def matched(first: Columns, second: Columns) -> Float[Tensor, "B S M"]:
    """:func:`match` of two sentences, 0 where one of a pair is padding."""
    found = match(first.x, second.x).to(first.x.dtype)
    if first.real is None or second.real is None:
        return found
    return found.masked_fill(~(first.real[:, :, None] & second.real[:, None]), 0.0)


def wide_convolution(sentence: Columns, weight: Float[Tensor, "O D W"], bias: Float[Tensor, " O"]) -> Columns:
    """tanh(conv(x) + b) over w columns, with w - 1 columns of 0 on both sides: (B, s + w - 1, O), padding 0.

    Example:
        >>> x, one = torch.tensor([[[1.0], [2.0]]]), torch.ones(1, 1, 2)
        >>> wide_convolution(Columns(x, None), one, torch.zeros(1)).x.atanh().flatten().round().tolist()
        [1.0, 3.0, 2.0]
    """
    more = weight.shape[-1] - 1
    out = F.conv1d(sentence.x.mT, weight, bias, padding=more).mT.tanh()
    if sentence.real is None:
        return Columns(out, None)
    length = sentence.real.sum(-1, keepdim=True)
    length = length + more * (length > 0)
    real = torch.arange(out.shape[1], device=out.device) < length
    return Columns(hide(out, real), real)


def window_pooling(
    columns: Float[Tensor, "B L O"], width: int, weights: Float[Tensor, "B L"] | None = None
) -> Float[Tensor, "B S O"]:
    """Every w neighbouring columns become one, s + w - 1 become s: their mean, or their sum with weights.

    Example:
        >>> x = torch.tensor([[[1.0], [3.0], [7.0]]])
        >>> window_pooling(x, 2).flatten().tolist(), window_pooling(x, 2, torch.ones(1, 3)).flatten().tolist()
        ([2.0, 5.0], [4.0, 10.0])
    """
    columns = columns if weights is None else width * weights[..., None] * columns
    return F.avg_pool1d(columns.mT, width, 1).mT


def mean_of(sentence: Columns) -> Float[Tensor, "B D"]:
    """The mean of the real columns, 0 where there are none.

    Example:
        >>> mean_of(Columns(torch.tensor([[[2.0], [4.0]]]), None)).tolist()
        [[3.0]]
    """
    if sentence.real is None:
        return sentence.x.mean(1)
    return sentence.x.sum(1) / sentence.real.sum(1, keepdim=True).clamp(min=1)


@register(
    "abcnn",
    samples=[
        Sample(dim=8, max_length=19, attention="both", share=False),
        Sample(dim=8, max_length=17, filters=6, attention="input", width=2),
        Sample(dim=8, filters=6, attention="pooling", normalise=True),
    ],
)
class ABCNNLayer(PairLayer):
    """One layer of ABCNN on two sentences, both of which are answered. See the head of this file.

    Args:
        dim: d, of the words of both sentences.
        max_length: the most words of a sentence, where there is attention on the input.
        filters: di, features of the output; the default is ``dim``.
        width: w, of the convolution and of the pooling.
        attention: "input", "pooling", "both" or "none".
        share: one table for both sentences.
        normalise: attention on the pooling has weights of the sum 1.

    Raises:
        ValueError: sizes that are not positive, attention on the input without ``max_length``, an unknown word, or an
            option of an attention that is not there.

    Example:
        >>> layer = ABCNNLayer(8, max_length=10, filters=6)
        >>> y, z = layer(torch.randn(2, 7, 8), torch.randn(2, 10, 8))
        >>> y.shape, z.shape
        (torch.Size([2, 7, 6]), torch.Size([2, 10, 6]))
    """

    card = Card(
        title="ABCNN",
        paper="arXiv:1512.05193",
        year=2015,
        family="pairs",
        data="pair",
        cross=True,
        smooth=True,
        cost="N M",
        summary="Two sentences weigh each other's words inside a small convolutional network; quick on any machine.",
        formula="F_0 = W A^T, A_ij = 1 / (1 + |x_0i - x_1j|); y = pool(a c), c = tanh(conv(x, F))",
    )

    def __init__(
        self,
        dim: int,
        max_length: int | None = None,
        *,
        filters: int | None = None,
        width: int = 4,
        attention: Attention = "both",
        share: bool = True,
        normalise: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        filters = dim if filters is None else filters
        if min(dim, filters, width, 1 if max_length is None else max_length) < 1:
            raise ValueError(f"dim={dim}, filters={filters}, width={width}, max_length={max_length}: at least 1")
        if attention not in get_args(Attention):
            raise ValueError(f"attention={attention!r} is none of {', '.join(map(repr, get_args(Attention)))}")
        self.on_input, self.on_pooling = attention in ("input", "both"), attention in ("pooling", "both")
        if self.on_input and max_length is None:
            raise ValueError(f"attention={attention!r} has a table with a column for each place: pass max_length")
        if not share and not self.on_input:
            raise ValueError(f"share=False is about the tables of attention on the input, not of {attention!r}")
        if normalise and not self.on_pooling:
            raise ValueError(f"normalise=True is about attention on the pooling, not {attention!r}")
        self.dim = self.context_dim = dim
        self.filters, self.width, self.normalise = filters, width, normalise
        self.attention: Attention = attention
        self.max_length = max_length if self.on_input else None
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        shape = (1 if share else 2, dim, max_length or 0)
        self.tables = nn.Parameter(torch.empty(shape, **factory)) if self.on_input else None
        self.weight = nn.Parameter(torch.empty(filters, (1 + self.on_input) * dim, width, **factory))
        self.bias = nn.Parameter(torch.empty(filters, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform, the convolution as one over a field of d x w with one or two channels; biases 0.0001."""
        if self.tables is not None:
            for table in self.tables:
                nn.init.xavier_uniform_(table)
        field = self.dim * self.width
        bound = math.sqrt(6 / (field * (1 + self.on_input) + field * self.filters))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.constant_(self.bias, 1e-4)

    def meet(
        self,
        x: Tensor,
        context: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        generator: Generator | None,
    ) -> Met:
        """Real words to the front, the layer, and every column back."""
        answers = self.convolve(to_front(x, query_mask), to_front(context, key_mask))
        return _back(answers.first.x, query_mask), _back(answers.second.x, key_mask)

    def convolve(self, first: Columns, second: Columns) -> Answers:
        """Both sentences behind the pooling, and what stands for each of them as a whole.

        Raises:
            ValueError: a sentence with more words than the tables have columns.
        """
        first, second = _both_masked(first, second)
        inside = [wide_convolution(one, self.weight, self.bias) for one in self._beside(first, second)]
        weights: list[Tensor | None] = [None, None]
        if self.on_pooling:
            found = matched(*inside)
            weights = [found.sum(2), found.sum(1)]
            if self.normalise:
                weights = [some / some.sum(-1, keepdim=True).clamp(min=1e-12) for some in (found.sum(2), found.sum(1))]
        pooled: list[Columns] = []
        means: list[Tensor] = []
        for given, one, some in zip((first, second), inside, weights, strict=True):
            pooled.append(Columns(hide(window_pooling(one.x, self.width, some), given.real), given.real))
            means.append(mean_of(one) if some is None or not self.normalise else (some[:, None] @ one.x)[:, 0])
        return Answers(pooled[0], pooled[1], means[0], means[1])

    def _beside(self, first: Columns, second: Columns) -> tuple[Columns, Columns]:
        """Each sentence, with what its words match in the other one beside it."""
        if self.tables is None:
            return first, second
        for sentence, name in ((first, "x"), (second, "context")):
            count = sentence.x.shape[1]
            if self.max_length is not None and count > self.max_length:
                raise ValueError(
                    f"{name} has {count} words, but this layer was built with max_length={self.max_length}"
                )
        found = matched(first, second)
        return (
            _with_channel(first, found @ _columns(self.tables[0], found.shape[2])),
            _with_channel(second, found.mT @ _columns(self.tables[-1], found.shape[1])),
        )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, filters={self.filters}, width={self.width}, attention={self.attention!r}"


def to_front(x: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"] | None) -> Columns:
    """A sentence with its real words first; what stands behind them is 0.

    Example:
        >>> to_front(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[False, True]])).real.tolist()
        [[True, False]]
    """
    if mask is None:
        return Columns(x, None)
    real = torch.arange(x.shape[1], device=x.device) < mask.sum(-1, keepdim=True)
    return Columns(real_first(mask, hide(x, mask)[:, None])[0][:, 0], real)


def _back(x: Tensor, mask: Tensor | None) -> Tensor:
    """Columns of real words where the words came from."""
    return x if mask is None else put_back(mask, x[:, None])[:, 0]


def _columns(table: Tensor, count: int) -> Tensor:
    """The first columns as rows; copied, as a graph through a view would hold for fewer than all of them only."""
    return table.index_select(1, torch.arange(count, device=table.device)).mT


def _with_channel(sentence: Columns, channel: Tensor) -> Columns:
    return Columns(torch.cat((sentence.x, channel), -1), sentence.real)


def _both_masked(first: Columns, second: Columns) -> tuple[Columns, Columns]:
    """Both with a mask where one has it."""
    if (first.real is None) == (second.real is None):
        return first, second
    return _masked(first), _masked(second)


def _masked(sentence: Columns) -> Columns:
    if sentence.real is not None:
        return sentence
    return Columns(sentence.x, torch.ones(sentence.x.shape[:2], dtype=torch.bool, device=sentence.x.device))
