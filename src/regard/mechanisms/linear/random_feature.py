"""Random feature attention: softmax of cosines estimated by random waves, in linear time, with a gate that forgets.

Peng et al. 2021, arXiv:2103.02143, sections 3.1 to 3.3. With x^ = x / |x| and R random rows W = sigma * W~ / tau, W~
normal and the widths sigma learned::

    gaussian   phi(x) = R^(-1/2) [sin(W x^), cos(W x^)]      E[phi(q) . phi(k)] = exp(-|sigma (q^ - k^)|^2 / (2 tau^2))
    arccos     phi(x) = R^(-1/2) relu(W x^)

    y_i = phi(q_i)^T S / (phi(q_i) . z)        S = sum_j phi(k_j) v_j^T        z = sum_j phi(k_j)

where j runs over the real keys, in the causal case over those up to i. For sigma = 1 the first kernel is a constant
times exp(q^ . k^ / tau^2). With a gate the causal sums forget: g_t = sigmoid(w . x_t + b), one for each head, and::

    S_t = g_t S_(t-1) + (1 - g_t) phi(k_t) v_t^T        z_t = g_t z_(t-1) + (1 - g_t) phi(k_t)

Sums of waves may come near 0 or below, so the denominator has a floor, which the paper does not mention: as in the
authors' code it is max(s, eps) in the causal case and max(|s|, eps) otherwise; they multiply phi by 0.1 instead of
R^(-1/2) and take eps = 1, which shrinks the first rows; eps = 100 / R does the same here.

Time O((N + M) R (D + Dv)) a head, causal O(N R (D + Dv + c)) in chunks of c = 64; the state has 2 R (Dv + 1) numbers.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.layers import head_width
from regard.memory import LinearState, check_memory
from regard.ops.fading_sums import fading_products
from regard.ops.features import orthogonal_rows
from regard.ops.masks import admit_one_sequence, check_mask, check_tokens, check_values, hide, hide_rows
from regard.ops.packing import Documents
from regard.ops.scan import causal_products
from regard.ops.token_runs import in_token_runs
from regard.registry import Card, Layer, Sample, UnsupportedError, register

Waves = Literal["gaussian", "arccos"]
SHORTEST = 1e-6
"""What the length of a query or key is at least taken for, so that one of length 0 has a gradient."""


def random_features(
    x: Float[Tensor, "B H T D"],
    projection: Float[Tensor, "#H R D"],
    features: Waves = "gaussian",
    *,
    norm_offset: float = 0.0,
) -> Float[Tensor, "B H T m"]:
    """phi(x) of queries or keys, in float32 at least: m = 2 R features if "gaussian", R if "arccos".

    Args:
        x: queries or keys, heads first.
        projection: W, one set of rows for all heads or one for each.
        features: which.
        norm_offset: added to |x|; the authors' code has 1e-3.

    Example:
        >>> x = torch.randn(1, 2, 5, 4)
        >>> phi = random_features(x, torch.randn(1, 8, 4))
        >>> torch.allclose(phi.square().sum(-1), torch.ones(1, 2, 5))
        True
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, projection = x.to(wide), projection.to(wide)
    x = x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=SHORTEST) + norm_offset)
    u, scale = x @ projection.mT, projection.shape[-2] ** -0.5
    return F.relu(u) * scale if features == "arccos" else torch.cat((u.sin(), u.cos()), -1) * scale


def random_feature_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H M D"],
    v: Float[Tensor, "B H M Dv"],
    projection: Float[Tensor, "#H R D"],
    gate: Float[Tensor, "B H M"] | None = None,
    *,
    features: Waves = "gaussian",
    causal: bool = False,
    key_mask: Bool[Tensor, "B M"] | None = None,
    eps: float = 1e-3,
    norm_offset: float = 0.0,
    before: LinearState | None = None,
) -> tuple[Float[Tensor, "B H N Dv"], LinearState]:
    """phi(q_i)^T S / max(phi(q_i) . z, eps), with S and z over all real keys or, if causal, those up to query i.

    Args:
        q, k, v: queries, keys and values, heads first.
        projection: the random rows W, one set for all heads or one for each.
        gate: the logits of g, one for each key; the sums then forget. Causal only.
        features: "gaussian" or "arccos".
        causal: the last query stands at the last key; earlier ones see one key less each. Needs M >= N.
        key_mask: True for real keys; the others leave both sums, and close no gate.
        eps: the least denominator; of its absolute value if not causal.
        norm_offset: added to the lengths of queries and keys.
        before: the sums over keys that come before these.

    Returns:
        One row per query, 0 where it sees no key; and the sums over all keys so far, from which to continue.

    Raises:
        ValueError: causal with fewer keys than queries, or a gate without ``causal``.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4)
        >>> out, memory = random_feature_attention(q, k, v, torch.randn(2, 8, 4), causal=True)
        >>> out.shape, memory.state.shape
        (torch.Size([1, 2, 5, 4]), torch.Size([1, 2, 16, 4]))
    """
    ahead = k.shape[-2] - q.shape[-2]
    if causal and ahead < 0:
        raise ValueError(
            f"causal random features of {q.shape[-2]} queries need at least as many keys, got {k.shape[-2]}"
        )
    if gate is not None and not causal:
        raise ValueError("a gate forgets what came earlier: it needs causal=True")
    if before is None:
        width = projection.shape[-2] * (1 if features == "arccos" else 2)
        dtype = torch.promote_types(k.dtype, torch.float32)
        before = LinearState.start(len(k), k.shape[1], width, v.shape[-1], device=v.device, dtype=dtype)
    phi = partial(random_features, projection=projection, features=features, norm_offset=norm_offset)
    if causal:
        step = partial(_step, phi=phi, eps=eps)
        q = F.pad(q, (0, 0, ahead, 0))  # nobody asks at the keys before the first query
        out, sums = in_token_runs(step, (q, k, v, gate, key_mask), before)
        return out[:, :, ahead:], sums
    _, sums = in_token_runs(partial(_gathered, phi=phi), (k, v, key_mask), before)
    return in_token_runs(partial(_read, phi=phi, eps=eps, dtype=v.dtype), (q,), sums)


def _gathered(
    k: Tensor, v: Tensor, key_mask: Tensor | None, before: LinearState, *, phi: Callable[[Tensor], Tensor]
) -> tuple[Tensor, LinearState]:
    """Some keys enter the sums."""
    with torch.autocast(k.device.type, enabled=False):
        phi_k, values = _terms(k, v, key_mask, phi)
        return v[..., :0], LinearState(before.state + phi_k.mT @ values, before.normaliser + phi_k.sum(-2))


def _read(
    q: Tensor, sums: LinearState, *, phi: Callable[[Tensor], Tensor], eps: float, dtype: torch.dtype
) -> tuple[Tensor, LinearState]:
    """Some queries read the sums over all keys."""
    with torch.autocast(q.device.type, enabled=False):
        phi_q = phi(q)
        total = (phi_q @ sums.normaliser[..., None]).abs().clamp(min=eps)
        return (phi_q @ sums.state / total).to(dtype), sums


def _terms(k: Tensor, v: Tensor, key_mask: Tensor | None, phi: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Features and values of keys; a masked key has features 0."""
    if key_mask is None:
        phi_k = phi(k)
    else:
        hidden = ~key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        phi_k = phi(k).masked_fill(hidden, 0.0)
    return phi_k, v.to(phi_k.dtype)


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    key_mask: Tensor | None,
    before: LinearState,
    *,
    phi: Callable[[Tensor], Tensor],
    eps: float,
) -> tuple[Tensor, LinearState]:
    """Some tokens of the causal form."""
    with torch.autocast(q.device.type, enabled=False):
        phi_k, values = _terms(k, v, key_mask, phi)
        if gate is None:
            out, total, sums = causal_products(phi(q), phi_k, values, before)
        else:
            gate = gate.to(phi_k.dtype)
            log_gate, share = F.logsigmoid(gate), torch.sigmoid(-gate)
            if key_mask is not None:
                log_gate = log_gate.masked_fill(~key_mask[:, None], 0.0)
            out, total, sums = fading_products(phi(q), phi_k * share[..., None], values, log_gate, before)
        return (out / total.clamp(min=eps)[..., None]).to(v.dtype), sums


@register(
    "random_feature",
    samples=[
        Sample(dim=12, num_heads=3, num_rows=24),
        Sample(dim=12, num_heads=3, num_rows=24, causal=True, orthogonal=True),
        Sample(dim=12, num_heads=2, head_dim=5, num_rows=9, causal=True, features="arccos", gate=True),
    ],
)
class RandomFeature(Layer):
    """Four projections around :func:`random_feature_attention`, with learned widths and, if wanted, a gate.

    Rows are drawn at every training step, or whenever a ``generator`` is passed; otherwise the saved ones serve, the
    buffer ``projection``, also in ``stream``.

    Args:
        dim, num_heads, head_dim: C, H and D, by default C / H.
        num_rows: R, random rows a head; "gaussian" makes two features of each.
        features: "gaussian" or "arccos".
        causal: no query sees a later key.
        gate: the causal sums forget, by a gate for each head.
        learn_widths: sigma, one number for each head and dimension, is learned; otherwise it is 1.
        temperature: tau.
        orthogonal: rows that are orthogonal in blocks of D, with the lengths of normal ones.
        eps, norm_offset: as in :func:`random_feature_attention`.
        qkv_bias: biases on the projections of queries, keys and values; the output always has one.
        proj_drop: dropout on the output.

    Raises:
        ValueError: sizes that do not fit, an unknown kind of features, or a gate without ``causal``.
        UnsupportedError: streaming without ``causal=True``.
    """

    card = Card(
        title="Random Feature Attention",
        paper="arXiv:2103.02143",
        year=2021,
        family="linear",
        data="sequence",
        causal="strict",
        cross=True,
        streaming=True,
        smooth=True,
        stochastic=("resample",),
        refuses={
            "attn_drop": "it never forms weights that could be dropped",
            "num_kv_heads": "every head has random rows and widths of its own",
        },
        cost="N R D",
        summary="Bounded random waves in place of the softmax and a gate for recency: steady training, fast decoding.",
        formula="phi(q)^T sum_j phi(k_j) v_j^T / phi(q)^T sum_j phi(k_j), phi(x) = [sin(W x^), cos(W x^)] / sqrt(R)",
    )

    projection: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        num_rows: int = 64,
        features: Waves = "gaussian",
        *,
        causal: bool = False,
        gate: bool = False,
        learn_widths: bool = True,
        temperature: float = 1.0,
        orthogonal: bool = False,
        eps: float = 1e-3,
        norm_offset: float = 0.0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = head_width(dim, num_heads, head_dim)
        if features not in ("gaussian", "arccos"):
            raise ValueError(f'features={features!r} is neither "gaussian" nor "arccos"')
        if num_rows < 1 or temperature <= 0 or eps <= 0:
            raise ValueError(f"num_rows={num_rows}, temperature={temperature}, eps={eps}: all must be positive")
        if gate and not causal:
            raise ValueError("gate=True forgets what came earlier: it needs causal=True")
        self.dim, self.num_heads, self.head_dim, self.num_rows = dim, num_heads, head_dim, num_rows
        self.features: Waves = features
        self.causal, self.temperature, self.orthogonal = causal, temperature, orthogonal
        self.eps, self.norm_offset = eps, norm_offset
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width = num_heads * head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, width, bias=qkv_bias, **factory) for _ in range(3))
        self.gate_proj = nn.Linear(dim, num_heads, **factory) if gate else None
        self.out_proj: nn.Module = nn.Linear(width, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sigma = nn.Parameter(torch.empty(num_heads, head_dim, **factory)) if learn_widths else None
        self.register_buffer("projection", torch.empty(num_heads, num_rows, head_dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices Xavier-uniform with gain 1/sqrt(2), biases 0, widths 1, and new rows."""
        for name, parameter in self.named_parameters():
            if name == "sigma":
                nn.init.ones_(parameter)
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter, gain=math.sqrt(0.5))
            else:
                nn.init.zeros_(parameter)
        self.redraw()

    @torch.no_grad()
    def redraw(self, generator: Generator | None = None) -> None:
        """Draw and save other rows, in place; a memory is worth nothing afterwards."""
        self.projection.copy_(self._rows(generator))

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
        """Attend from x to itself, or to a context.

        Args:
            x: (B, N, C).
            context: (B, M, C), where the keys are another sequence; causal, its last token stands at the last of x.
            key_mask: Bool (B, M), True for real keys; in self-attention also for queries.
            query_mask: Bool (B, N), True for real tokens of x; in self-attention also the default for ``key_mask``.
            segments: Int (B, N), one id a packed document, which then sees only itself.
            generator: draws the rows.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: segments together with a context.
        """
        x, source, key_mask, query_mask = self._admit(x, context, key_mask, query_mask, segments)
        out = self._attend(x, source, self._heads(self.v_proj(source)), key_mask, segments, generator)
        y = hide(self._join(out), query_mask)
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
        """What the weights of x make of other values, before the output projection.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H or 1, M, Dv), one for each key.

        Returns:
            (B, H, N, Dv), 0 for masked queries.
        """
        x, source, key_mask, query_mask = self._admit(x, context, key_mask, query_mask, segments)
        check_values(values, len(x), self.num_heads, source.shape[1])
        values = values.to(x.dtype).expand(len(x), self.num_heads, -1, -1)
        out = self._attend(x, source, values, key_mask, segments, generator)
        return hide_rows(out, query_mask)

    def memory(self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None) -> LinearState:
        """Sums over nothing; their size is constant, so ``static`` has nothing to reserve."""
        if not self.causal:
            raise UnsupportedError("random_feature streams only with causal=True: here every query sees all keys")
        weight, width = self.q_proj.weight, self.num_rows * (2 if self.features == "gaussian" else 1)
        place = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        return LinearState.start(batch, self.num_heads, width, self.head_dim, **place)

    def stream(self, x: Tensor, memory: LinearState) -> tuple[Tensor, LinearState]:
        """Continue with one token or many, by the saved rows: -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        q, k, v = (self._heads(linear(x)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        out, memory = self._look(q, k, v, self._gate(x), self.projection, before=memory)
        return self._join(out), memory

    def _admit(
        self,
        x: Tensor,
        context: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        segments: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What asks and what is asked, with padding set to 0, and the mask of each."""
        if context is None:
            x, key_mask, query_mask = admit_one_sequence(
                "random_feature", x, self.dim, None, key_mask, query_mask, segments
            )
            return x, x, key_mask, query_mask
        check_tokens(x, self.dim)
        check_tokens(context, self.dim, "context")
        if len(context) != len(x):
            raise ValueError(f"x and context hold {len(x)} and {len(context)} sequences, the numbers must be equal")
        if segments is not None:
            raise UnsupportedError("segments divide one sequence: they are for self-attention, without context")
        check_mask(key_mask, len(context), context.shape[1])
        check_mask(query_mask, *x.shape[:2], name="query_mask")
        return hide(x, query_mask), hide(context, key_mask), key_mask, query_mask

    def _attend(
        self,
        x: Tensor,
        source: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        segments: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """(B, H, N, Dv), each document by itself."""
        q, k, gate, documents = self._heads(self.q_proj(x)), self._heads(self.k_proj(source)), self._gate(source), None
        if segments is not None:
            documents = Documents.of(segments)
            q, k, v, key_mask = *(documents.unpack(t) for t in (q, k, v)), documents.mask(key_mask)
            gate = None if gate is None else documents.unpack(gate[..., None]).squeeze(-1)
        rows = self._rows(generator) if self.training or generator is not None else self.projection
        out = self._look(q, k, v, gate, rows, key_mask=key_mask)[0]
        return out if documents is None else documents.pack(out)

    def _look(
        self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, rows: Tensor, **options: Any
    ) -> tuple[Tensor, LinearState]:
        widths = 1.0 if self.sigma is None else self.sigma[:, None]
        options |= {"features": self.features, "causal": self.causal, "eps": self.eps, "norm_offset": self.norm_offset}
        return random_feature_attention(q, k, v, widths * rows / self.temperature, gate, **options)

    def _rows(self, generator: Generator | None) -> Tensor:
        if not self.orthogonal:
            return torch.randn_like(self.projection, generator=generator)
        rows = orthogonal_rows(*self.projection.shape, generator=generator, device=self.projection.device)
        return rows.to(self.projection)

    def _gate(self, x: Tensor) -> Tensor | None:
        """The logits (B, H, N)."""
        return None if self.gate_proj is None else self.gate_proj(x).mT

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_heads={self.num_heads}, num_rows={self.num_rows}"
        return f"{sizes}, features={self.features!r}, causal={self.causal}"
