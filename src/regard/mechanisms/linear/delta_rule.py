"""Fast weights by the delta rule: linear attention whose writes correct what the memory holds for a key.

Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight Programmers", arXiv:2102.11174, eq. 24 to 33. For one
head with keys k_t = phi(W_k x_t) / sum, queries likewise, values v_t, and beta_t = sigmoid(w . x_t)::

    v~ = S_(t-1)^T k_t        S_t = S_(t-1) + k_t beta_t (v_t - v~)^T        y_t = D^(-1/2) S_t^T q_t

The update comes first, then the reading. Features phi of x in R^D:

    "dpfp"   u = [relu(x), relu(-x)], phi = [u * roll(u, 1), ..., u * roll(u, nu)], 2 nu D of them
    "elu"    elu(x) + 1
    "silu"   silu(x), divided by its length instead of its sum: that of DeltaNet (Yang et al. 2024, arXiv:2406.06484)

A key is never longer than 1, so the memory stays bounded. ``normalise`` divides y_t by q_t . (k_1 + ... + k_t) + 1e-5,
the paper's first version, which normalised keys make superfluous. Padding has beta = 0.

Departures: features whose sum is 0 give 0 where the authors' code gives NaN; the residual connection around the layer
adds the raw input, theirs adds the normalised one. DeltaNet's short convolutions and its norm of each head are no part
of the rule. One beta for each value channel, which the paper mentions, would need a triangular system for each.

Time O(N P (D + c)) a head for P features, in chunks of c = 64 tokens; the memory has P D numbers.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.layers import head_width
from regard.memory import LinearState, check_memory
from regard.ops.delta_rule import delta_rule
from regard.ops.masks import admit_one_sequence, check_tokens, check_values, hide, hide_rows
from regard.ops.packing import Documents
from regard.ops.scan import causal_products
from regard.ops.token_runs import in_token_runs
from regard.registry import Card, Layer, Sample, register

Keys = Literal["dpfp", "elu", "silu"]
SMALLEST = 1e-6
"""What a sum or a length is at least taken for when it divides."""


def key_features(x: Float[Tensor, "B H N D"], kind: Keys = "dpfp", nu: int = 2) -> Float[Tensor, "B H N P"]:
    """Normalised features of keys or queries, in float32 at least.

    Args:
        x: keys or queries, heads first.
        kind: which features; see the head of this file.
        nu: of "dpfp", how far it rolls.

    Example:
        >>> key_features(torch.tensor([[[[1.0, -2.0]]]]), nu=1)
        tensor([[[[1., 0., 0., 0.]]]])
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if kind == "silu":
        return F.normalize(F.silu(x), dim=-1, eps=SMALLEST)
    if kind == "elu":
        phi = F.elu(x) + 1
    else:
        u = torch.cat((F.relu(x), F.relu(-x)), -1)
        phi = torch.cat([u * u.roll(r, -1) for r in range(1, nu + 1)], -1)
    return phi / phi.sum(-1, keepdim=True).clamp(min=SMALLEST)


def fast_weights(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    beta: Float[Tensor, "B H N"],
    *,
    features: Keys = "dpfp",
    nu: int = 2,
    normalise: bool = False,
    eps: float = 1e-5,
    key_mask: Bool[Tensor, "B N"] | None = None,
    before: LinearState | None = None,
) -> tuple[Float[Tensor, "B H N Dv"], LinearState]:
    """D^(-1/2) S_t^T phi(q_t), where S_t corrects S_(t-1) towards v_t at phi(k_t); see the head of this file.

    Args:
        q, k, v: queries, keys and values, heads first.
        beta: how much of the old value is replaced, 0 to 1, or below 2.
        features, nu: as for :func:`key_features`.
        normalise: divide by q_t . (k_1 + ... + k_t) + eps.
        eps: idle without ``normalise``.
        key_mask: True for real keys; the others write nothing.
        before: the memory of earlier tokens.

    Returns:
        One row per token, 0 before the first write; and the memory after the last token: S, and the sum of the keys if
        ``normalise``, else 0.

    Example:
        >>> q = k = v = torch.randn(1, 2, 5, 4)
        >>> out, memory = fast_weights(q, k, v, torch.rand(1, 2, 5))
        >>> out.shape, memory.state.shape
        (torch.Size([1, 2, 5, 4]), torch.Size([1, 2, 16, 4]))
    """
    if before is None:
        width = key_features(k[..., :0, :], features, nu).shape[-1]
        dtype = torch.promote_types(k.dtype, torch.float32)
        before = LinearState.start(len(k), k.shape[1], width, v.shape[-1], device=v.device, dtype=dtype)
    step = partial(_step, features=features, nu=nu, normalise=normalise, eps=eps)
    return in_token_runs(step, (q, k, v, beta, key_mask), before)


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    key_mask: Tensor | None,
    before: LinearState,
    *,
    features: Keys,
    nu: int,
    normalise: bool,
    eps: float,
) -> tuple[Tensor, LinearState]:
    """Some tokens of :func:`fast_weights`."""
    with torch.autocast(q.device.type, enabled=False):
        if key_mask is not None:
            hidden = ~key_mask[:, None, :, None]
            k, v, beta = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0), beta.masked_fill(hidden[..., 0], 0.0)
        scale, phi_q, phi_k = q.shape[-1] ** -0.5, key_features(q, features, nu), key_features(k, features, nu)
        if key_mask is not None:
            phi_k = phi_k.masked_fill(~key_mask[:, None, :, None], 0.0)
        out, state = delta_rule(phi_q, phi_k, v.to(phi_k.dtype), beta.to(phi_k.dtype), before.state, scale=scale)
        if not normalise:
            return out.to(v.dtype), LinearState(state, before.normaliser)
        nothing = LinearState(before.state[..., :0], before.normaliser)
        _, total, sums = causal_products(phi_q, phi_k, out[..., :0], nothing)
        return (out / (total + eps)[..., None]).to(v.dtype), LinearState(state, sums.normaliser)


@register(
    "delta_rule",
    samples=[
        Sample(dim=12, num_heads=3),
        Sample(dim=12, num_heads=2, head_dim=5, features="elu", normalise=True, qkv_bias=True),
        Sample(dim=12, num_heads=3, features="silu", max_beta=2.0),
    ],
)
class DeltaRule(Layer):
    """Projections to queries, keys, values and beta around :func:`fast_weights`, always causal.

    Args:
        dim, num_heads, head_dim: C, H and D, by default C / H.
        features, nu: as for :func:`key_features`.
        normalise: divide outputs by what the queries find in the sum of all keys, plus ``eps``.
        max_beta: beta is a sigmoid times this; above 1 a write overshoots, which lets the memory count and alternate.
        qkv_bias: biases on all projections but the last, which has none.
        proj_drop: dropout on the output.

    Raises:
        ValueError: sizes that do not fit, unknown features, a normaliser that could be 0, or a beta with which the
            memory could grow without bounds.
    """

    card = Card(
        title="Delta Rule (Fast Weight Programmers)",
        paper="arXiv:2102.11174",
        year=2021,
        family="linear",
        data="sequence",
        causal="strict",
        streaming=True,
        smooth=True,
        refuses={
            "attn_drop": "it never forms weights that could be dropped",
            "num_kv_heads": "every head has a memory of its own",
        },
        cost="N P D",
        summary="Linear attention that overwrites: a key's value is replaced, not added to. For associative recall.",
        formula="S_t = S_(t-1) + k_t beta_t (v_t - S_(t-1)^T k_t)^T, y_t = S_t^T q_t / sqrt(D)",
    )

    causal = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        features: Keys = "dpfp",
        nu: int = 2,
        *,
        normalise: bool = False,
        eps: float = 1e-5,
        max_beta: float = 1.0,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = head_width(dim, num_heads, head_dim)
        if features not in ("dpfp", "elu", "silu"):
            raise ValueError(f'features={features!r} is none of "dpfp", "elu" and "silu"')
        if features == "dpfp" and not 1 <= nu < 2 * head_dim:
            raise ValueError(f"nu={nu}: dpfp rolls {2 * head_dim} numbers by 1 to {2 * head_dim - 1}")
        if normalise and features == "silu":
            raise ValueError('normalise=True divides by a sum of features, which for "silu" may be 0 or negative')
        if not 0 < max_beta <= 2:
            raise ValueError(f"max_beta={max_beta}: the memory stays bounded for betas above 0 and up to 2")
        self.dim, self.num_heads, self.head_dim = dim, num_heads, head_dim
        self.features: Keys = features
        self.nu, self.normalise, self.eps, self.max_beta = nu, normalise, eps, max_beta
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width = num_heads * head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, width, bias=qkv_bias, **factory) for _ in range(3))
        self.beta_proj = nn.Linear(dim, num_heads, bias=qkv_bias, **factory)
        self.out_proj = nn.Linear(width, dim, bias=False, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def reset_parameters(self) -> None:
        """As torch does it: the authors name no other way."""
        for part in (self.q_proj, self.k_proj, self.v_proj, self.beta_proj, self.out_proj):
            part.reset_parameters()

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
        """Attend within x.

        Args:
            x: (B, N, C).
            context: refused; it stands here as in every layer.
            key_mask: Bool (B, N), True for tokens that write.
            query_mask: Bool (B, N), True for real queries; each mask is the default for the other.
            segments: Int (B, N), one id a packed document, which then has a memory of its own.
            generator: idle: nothing here is random.
            return_aux: also return what else there is to tell: nothing.

        Returns:
            y (B, N, C), 0 for masked queries; with ``return_aux`` (y, {}).

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
            UnsupportedError: a context.
        """
        x, key_mask, query_mask = admit_one_sequence("delta_rule", x, self.dim, context, key_mask, query_mask, segments)
        y = hide(self._join(self._attend(x, self._heads(self.v_proj(x)), key_mask, segments)), query_mask)
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
        """What the memory makes of other values, before the output projection: it is linear in them.

        Args:
            x, context, key_mask, query_mask, segments, generator: as in ``forward``.
            values: (B or 1, H or 1, N, Dv), one for each token.

        Returns:
            (B, H, N, Dv), 0 for masked queries.
        """
        x, key_mask, query_mask = admit_one_sequence("delta_rule", x, self.dim, context, key_mask, query_mask, segments)
        check_values(values, len(x), self.num_heads, x.shape[1])
        out = self._attend(x, values.to(x.dtype).expand(len(x), self.num_heads, -1, -1), key_mask, segments)
        return hide_rows(out, query_mask)

    def memory(self, batch: int, *, device: Any = None, dtype: Any = None, static: int | None = None) -> LinearState:
        """A memory that holds nothing; its size is constant, so ``static`` has nothing to reserve."""
        width, weight = self.head_dim * (2 * self.nu if self.features == "dpfp" else 1), self.q_proj.weight
        place = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        return LinearState.start(batch, self.num_heads, width, self.head_dim, **place)

    def stream(self, x: Tensor, memory: LinearState) -> tuple[Tensor, LinearState]:
        """Continue with one token or many: -> (y, the new memory)."""
        check_tokens(x, self.dim)
        check_memory(memory, self.memory(len(x), device="meta"), x)
        out, memory = self._look(*self._project(x), self._heads(self.v_proj(x)), before=memory)
        return self._join(out), memory

    def _attend(self, x: Tensor, v: Tensor, key_mask: Tensor | None, segments: Tensor | None) -> Tensor:
        """(B, H, N, Dv), each document by itself."""
        q, k, beta = self._project(x)
        if segments is None:
            return self._look(q, k, beta, v, key_mask=key_mask)[0]
        documents = Documents.of(segments)
        q, k, beta, v = (documents.unpack(t) for t in (q, k, beta[..., None], v))
        return documents.pack(self._look(q, k, beta.squeeze(-1), v, key_mask=documents.mask(key_mask))[0])

    def _look(self, q: Tensor, k: Tensor, beta: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, LinearState]:
        options |= {"features": self.features, "nu": self.nu, "normalise": self.normalise, "eps": self.eps}
        return fast_weights(q, k, v, beta, **options)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (B, H, N, D) and beta (B, H, N), which is a sigmoid in float32."""
        beta = self.beta_proj(x).mT
        beta = self.max_beta * beta.to(torch.promote_types(beta.dtype, torch.float32)).sigmoid()
        return self._heads(self.q_proj(x)), self._heads(self.k_proj(x)), beta

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _join(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"
        return f"{sizes}, features={self.features!r}, nu={self.nu}, normalise={self.normalise}"
