"""Time-aware large kernels (TaLK): every token averages a window whose two ends it predicts itself.

Lioutas and Guo 2020, arXiv:2002.03184, section 3. For one head, with a_i = sigmoid(W u_i + b) for the left end, a'_i
likewise for the right one, and the largest reaches l and r::

    lo = max(i - a_i l, 0)        hi = min(i + a'_i r, N - 1)        y_i = (u_lo + ... + u_hi) / (l + r + 1)

where a window ends in fractions: u at its outermost places counts as far as the window reaches into it. The divisor is
constant, at the borders and beside padding too, which counts as 0. With P the prefix sums of u, between their entries
by linear interpolation, the sum is P(hi + 1) - P(lo): no window is ever formed. An end that falls on a token exactly,
or outside of the sequence, has gradient 0.

Causal: r = 0, and the window ends with the token itself. The authors sum in the dtype of the input, here it is float32
at least. Streaming keeps the last l values instead of all sums, and so does not drift.

Time O(N C), whatever l and r are.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from regard.layers import head_width
from regard.memory import check_memory
from regard.ops.dropout import drop
from regard.ops.masks import admit_one_sequence, check_tokens, check_values, hide, hide_rows
from regard.ops.packing import Documents
from regard.ops.prefix_sums import prefix_sums, read_between
from regard.registry import Card, Layer, Sample, UnsupportedError, register


def talk_convolution(
    u: Float[Tensor, "B H M D"],
    left: Float[Tensor, "B H N"],
    right: Float[Tensor, "B H N"] | None = None,
    *,
    max_left: int,
    max_right: int = 0,
) -> Float[Tensor, "B H N D"]:
    """(u_lo + ... + u_hi) / (l + r + 1) with lo = i - left_i l and hi = i + right_i r, in fractions of tokens.

    Args:
        u: what is averaged, heads first; 0 for padding.
        left: how far each window reaches back, from 0 to 1; the last of N windows stands at the last of M >= N tokens.
        right: how far it reaches forwards; None: not at all.
        max_left, max_right: l and r.

    Raises:
        ValueError: more windows than tokens, or one of ``right`` and ``max_right`` without the other.

    Example:
        >>> u = torch.arange(1.0, 5.0).reshape(1, 1, 4, 1)
        >>> talk_convolution(u, torch.full((1, 1, 4), 0.75), max_left=2).flatten() * 3  # 1.5 tokens back
        tensor([1.0000, 3.0000, 5.5000, 8.0000])
    """
    n, m = left.shape[-1], u.shape[-2]
    if n > m:
        raise ValueError(f"{n} windows over {m} tokens: the last window stands at the last token")
    if (right is None) != (max_right == 0):
        given = "no right ends" if right is None else "right ends"
        raise ValueError(f"max_right={max_right} with {given}: both or neither")
    wide = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        sums = prefix_sums(u.to(wide))
        place = torch.arange(m - n, m, device=u.device, dtype=wide)
        start = read_between(sums, (place - left.to(wide) * max_left).clamp(min=0))
        if right is None:
            stop = sums[:, :, m - n + 1 :]
        else:
            stop = read_between(sums, (place + right.to(wide) * max_right).clamp(max=m - 1) + 1)
        return ((stop - start) / (max_left + max_right + 1)).to(u.dtype)


class Windows(nn.Module):
    """Predicts from each token how far its windows reach.

    Args:
        width, num_heads: of the tokens.
        both: also to the right.
        drop: dropout on the reaches, after the sigmoid.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        both: bool,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.both, self.drop = num_heads, both, drop
        self.offsets = nn.Linear(width, (1 + both) * num_heads, device=device, dtype=dtype)

    def forward(self, u: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """From (B, N, H D), the shares of the largest reach to the left and to the right, (B, H, N) each."""
        reach = drop(self.reaches(u), self.drop * self.training, generator)
        return reach[:, : self.num_heads], reach[:, self.num_heads :] if self.both else None

    def reaches(self, u: Tensor) -> Tensor:
        """Both together, (B, H or 2 H, N), in float32 at least and without dropout."""
        reach = self.offsets(u).mT
        return reach.to(torch.promote_types(reach.dtype, torch.float32)).sigmoid()


class Recent(NamedTuple):
    """The last l values, the newest in the last slot, zeros where there were none.

    Attributes:
        value: (B, H, l, D).
    """

    value: Float[Tensor, "B H L D"]


@register(
    "talk_convolutions",
    samples=[
        Sample(dim=12, num_heads=3, max_left=3, max_right=5),
        Sample(dim=12, num_heads=3, head_dim=5, max_left=4, causal=True, attn_drop=0.1),
    ],
)
class TalkConvolutions(Layer):
    """out_proj(windows over GLU(v_proj x)): :func:`talk_convolution` of H heads between two projections.

    Args:
        dim, num_heads, head_dim: C, H and D, by default C / H.
        max_left, max_right: l and r, in tokens; ``max_right`` is l by default, and 0 if causal. The authors let them
            grow with the depth: 3, 7, 15 and then 31.
        causal: no token sees a later one.
        attn_drop: dropout on the reaches of the windows, after the sigmoid.
        proj_drop: dropout on the output.

    Raises:
        ValueError: sizes that do not fit, or a reach to the right in a causal layer.
        UnsupportedError: streaming without ``causal=True``.
    """

    card = Card(
        title="TaLK Convolutions",
        paper="arXiv:2002.03184",
        year=2020,
        family="linear",
        data="sequence",
        causal="strict",
        streaming=True,
        smooth=True,
        stochastic=("dropout",),
        refuses={"num_kv_heads": "it has no queries and keys"},
        cost="N C",
        summary="Sequence mixing without a map: each token averages a window of predicted length, in time linear in N.",
        formula="y_i = (u_lo + ... + u_hi) / (l + r + 1), lo = i - l sigmoid(w u_i), hi = i + r sigmoid(w' u_i)",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        max_left: int = 31,
        max_right: int | None = None,
        *,
        causal: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = head_width(dim, num_heads, head_dim)
        if max_right is None:
            max_right = 0 if causal else max_left
        if max_left < 1 or max_right < 0:
            raise ValueError(f"max_left={max_left}, max_right={max_right}: windows reach 1 token or more to the left")
        if causal and max_right:
            raise ValueError(f"max_right={max_right}: a causal window ends with the token itself")
        self.dim, self.num_heads, self.head_dim = dim, num_heads, head_dim
        self.max_left, self.max_right, self.causal = max_left, max_right, causal
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width = num_heads * head_dim
        self.v_proj = nn.Sequential(nn.Linear(dim, 2 * width, **factory), nn.GLU())
        self.windows = Windows(width, num_heads, both=max_right > 0, drop=attn_drop, **factory)
        self.out_proj = nn.Linear(width, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections Xavier-uniform with biases 0, as in the authors' models; the windows as torch starts them."""
        for linear in (self.v_proj[0], self.out_proj):
            for parameter in linear.parameters():
                _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)
        self.windows.offsets.reset_parameters()

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
        """Average windows of x.

        Args:
            x: (B, N, C).
            context: refused; it stands here as in every layer.
            key_mask: Bool (B, N), True for real tokens; the others count as 0 in every window.
            query_mask: Bool (B, N), True for real queries; each mask is the default for the other.
            segments: Int (B, N), one id a packed document, beyond which no window reaches.
            generator: draws the dropout.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context.
        """
        x, key_mask, query_mask = admit_one_sequence(
            "talk_convolutions", x, self.dim, context, key_mask, query_mask, segments
        )
        u = self.v_proj(x)
        y = hide(self._join(self._average(u, self._heads(u), key_mask, segments, generator)), query_mask)
        return (y, {}) if return_aux else y

    def weigh(
        self,
        x: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """What the windows of x make of other values, before the output projection.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H or 1, N, Dv), one for each token.

        Returns:
            (B, H, N, Dv), 0 for masked queries.
        """
        x, key_mask, query_mask = admit_one_sequence(
            "talk_convolutions", x, self.dim, context, key_mask, query_mask, segments
        )
        check_values(values, len(x), self.num_heads, x.shape[1])
        values = values.to(x.dtype).expand(len(x), self.num_heads, -1, -1)
        out = self._average(self.v_proj(x), values, key_mask, segments, generator)
        return hide_rows(out, query_mask)

    def memory(self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None) -> Recent:
        """What the next windows can reach; its size is constant, so ``static`` has nothing to reserve."""
        if not self.causal:
            raise UnsupportedError("talk_convolutions streams only with causal=True: here windows reach later tokens")
        weight = self.out_proj.weight
        shape = (batch, self.num_heads, self.max_left, self.head_dim)
        return Recent(torch.zeros(shape, device=device or weight.device, dtype=dtype or weight.dtype))

    def stream(self, x: Tensor, memory: Recent) -> tuple[Tensor, Recent]:
        """Continue with one token or many, without dropout on the reaches: -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        u = self.v_proj(x)
        seen = torch.cat((memory.value, self._heads(u).to(memory.value.dtype)), 2)
        out = talk_convolution(seen.to(u.dtype), self.windows.reaches(u), max_left=self.max_left)
        # a view would keep a long prompt alive
        return self._join(out), Recent(seen[:, :, x.shape[1] :].clone())

    def _average(
        self, u: Tensor, v: Tensor, key_mask: Tensor | None, segments: Tensor | None, generator: Generator | None
    ) -> Tensor:
        """(B, H, N, Dv), by the windows that u predicts, each document by itself."""
        left, right = self.windows(u, generator)
        if key_mask is not None:
            v = v.masked_fill(~key_mask[:, None, :, None], 0.0)
        if segments is None:
            return self._look(v, left, right)
        documents = Documents.of(segments)
        v = documents.unpack(v).masked_fill(~documents.taken[:, None, :, None], 0.0)
        left = documents.unpack(left[..., None]).squeeze(-1)
        right = None if right is None else documents.unpack(right[..., None]).squeeze(-1)
        return documents.pack(self._look(v, left, right))

    def _look(self, v: Tensor, left: Tensor, right: Tensor | None) -> Tensor:
        return talk_convolution(v, left, right, max_left=self.max_left, max_right=self.max_right)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"
        return f"{sizes}, max_left={self.max_left}, max_right={self.max_right}, causal={self.causal}"
