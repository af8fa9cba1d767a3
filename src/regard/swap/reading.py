"""What an attention module says about itself, whatever its class: sizes, projections, dropout, causality."""

import copy
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regard.layers import MultiHead
from regard.registry import Core, Layer


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One attention, read in the words of :class:`regard.layers.MultiHead`.

    Attributes:
        dim, num_heads, num_kv_heads, head_dim: its sizes.
        q, k, v, out: its projections; they are the module's own where it has them as ``nn.Linear``. Without ``out``
            the heads leave side by side, as in BERT, whose projection stands in the next module.
        q_norm, k_norm, rotary: what the queries and keys pass through, as in ``MultiHead``.
        attn_drop: the rate of dropout on the weights.
        proj_drop: what the output passes through in training.
        causal: no token sees a later one; None where the call decides.
    """

    dim: int
    num_heads: int
    head_dim: int
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    out: nn.Linear | None
    num_kv_heads: int
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    rotary: nn.Module | None = None
    attn_drop: float = 0.0
    proj_drop: nn.Module = field(default_factory=nn.Identity)
    causal: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """What an attention was asked, in the words of our layers.

    Attributes:
        x: (B, N, C).
        context: (B, M, C) where it is another sequence.
        key_mask, query_mask: True for real tokens.
        batch_first: whether the module gives (B, N, C); otherwise (N, B, C).
        batched: whether the module was given a batch at all.
        segments: one id a packed document.
        settings: what else goes to the layer.
    """

    x: Tensor
    context: Tensor | None = None
    key_mask: Tensor | None = None
    query_mask: Tensor | None = None
    segments: Tensor | None = None
    batch_first: bool = True
    batched: bool = True
    settings: dict[str, Any] | None = None

    def ask(self, attention: Layer) -> Tensor:
        """The answer of a layer of ours: (B, N, C)."""
        return attention(self.x, self.context, **self.masks, **(self.settings or {}))

    @property
    def masks(self) -> dict[str, Tensor]:
        """Those that there are, under the names of our layers."""
        named = {"key_mask": self.key_mask, "query_mask": self.query_mask, "segments": self.segments}
        return {name: mask for name, mask in named.items() if mask is not None}

    def rows(self, output: Tensor) -> Tensor:
        """(B, N, C) of what the module gave."""
        output = output if self.batched else output.unsqueeze(0 if self.batch_first else 1)
        return output if self.batch_first else output.transpose(0, 1)

    def real(self) -> Tensor:
        """Bool (B, N), True for tokens whose output counts."""
        mask = self.query_mask
        if mask is None and self.context is None:
            mask = self.key_mask
        return torch.ones(self.x.shape[:2], dtype=torch.bool, device=self.x.device) if mask is None else mask


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A projection with a copy of these numbers, trainable where they are.

    Args:
        weight: (out, in).
        bias: (out,), or None.
    """
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return made


def split(weight: Tensor, bias: Tensor | None, sizes: list[int]) -> list[nn.Linear]:
    """The projections that stand one after the other in a fused one."""
    biases = [None] * len(sizes) if bias is None else list(bias.split(sizes))
    return [linear(part, shift) for part, shift in zip(weight.split(sizes), biases, strict=True)]


def with_scale(query: nn.Linear, scaling: float, head_dim: int) -> nn.Linear:
    """The projection of queries under which a scale of 1/sqrt(D) gives the scores that ``scaling`` gave."""
    factor = scaling * head_dim**0.5
    if abs(factor - 1.0) < 1e-9:
        return query
    scaled = copy.deepcopy(query)
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(factor)
    return scaled


def even_biases(reading: Reading) -> dict[str, nn.Linear]:
    """The three projections, all with a bias if one has: Whisper's keys have none, our layers have all or none."""
    parts = {"q_proj": reading.q, "k_proj": reading.k, "v_proj": reading.v}
    biased = [part for part in parts.values() if has_bias(part)]
    if not biased:
        return parts
    return {name: part if has_bias(part) else _biased(part) for name, part in parts.items()}


def has_bias(part: nn.Linear) -> bool:
    """Whether it adds one."""
    return getattr(part, "bias", None) is not None


def _biased(part: nn.Linear) -> nn.Linear:
    made = linear(part.weight, part.weight.new_zeros(part.out_features))
    made.weight = part.weight
    return made


def of_layer(layer: Layer) -> Reading | str:
    """Read a layer of ours; or why it cannot be read."""
    parts = {name: getattr(layer, name, None) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    if lacking := [name for name, part in parts.items() if not isinstance(part, (nn.Linear, nn.Identity))]:
        return f"{layer.mechanism or type(layer).__name__} has no {lacking[0]} to take weights from"
    core = getattr(layer, "core", layer)
    num_heads = int(layer.num_heads)  # pyright: ignore[reportArgumentType]
    head_dim = parts["q_proj"].out_features // num_heads  # pyright: ignore
    multi = layer if isinstance(layer, MultiHead) else None
    return Reading(
        dim=parts["q_proj"].in_features,  # pyright: ignore
        num_heads=num_heads,
        num_kv_heads=num_heads if multi is None else multi.num_kv_heads,
        head_dim=head_dim,
        q=parts["q_proj"],  # pyright: ignore
        k=parts["k_proj"],  # pyright: ignore
        v=parts["v_proj"],  # pyright: ignore
        out=parts["out_proj"] if isinstance(parts["out_proj"], nn.Linear) else None,
        q_norm=None if multi is None else multi.q_norm,
        k_norm=None if multi is None else multi.k_norm,
        rotary=None if multi is None else multi.rotary,
        attn_drop=float(getattr(core, "attn_drop", 0.0)),
        proj_drop=getattr(layer, "proj_drop", nn.Identity()),
        causal=_is_causal(core),
    )


def _is_causal(core: Layer | Core) -> bool:
    """As it was built; those that are always causal have no such option."""
    always = bool(core.card.causal) and "causal" not in inspect.signature(type(core)).parameters
    return bool(getattr(core, "causal", always))
