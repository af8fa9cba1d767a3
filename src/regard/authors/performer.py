"""FAVOR+ of performer-pytorch and of idiap/fast-transformers, with the constants that these add to the paper's formula.

Both store all features; a module that is to be fast and exactly causal is :class:`Performer` with their weights.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.authors.linear_transformer import _call as _favor_call
from regard.layers import MultiHead
from regard.mechanisms.linear.performer import Performer
from regard.memory import LinearState
from regard.ops.scan import causal_products
from regard.registry import UnsupportedError


def _sums(phi_q: Tensor, phi_k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """sum_j phi(q_i) . phi(k_j) v_j, and the same without the values."""
    if causal:
        batch, heads, _, width = v.shape
        before = LinearState.start(batch, heads, phi_k.shape[-1], width, device=v.device, dtype=v.dtype)
        return causal_products(phi_q, phi_k, v, before)[:2]
    return phi_q @ (phi_k.mT @ v), (phi_q @ phi_k.sum(-2)[..., None]).squeeze(-1)


class FastAttention(Performer):
    """performer-pytorch's: 1e-4 or 1e-3 in every feature, keys relative to the largest of all, a mask on values only.

    Args:
        head_dim, num_features, causal: as for :class:`Performer`.
        norms: of the rows when they are redrawn.
        kernel: their ``generalized_attention`` with this function; None: the softmax kernel.
        projected: without projection, queries and keys are normalised by a softmax instead.
    """

    def __init__(
        self,
        head_dim: int,
        num_features: int,
        causal: bool = False,
        *,
        norms: Any = "chi",
        kernel: Callable[[Tensor], Tensor] | None = None,
        projected: bool = True,
    ) -> None:
        super().__init__(head_dim, num_features, causal=causal, norms=norms)
        self.kernel, self.projected = kernel, projected

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """(B, H, N, D), (B, H, M, D) and (B, H, M, Dv); a masked key stays in the denominator."""
        if key_mask is not None:
            v = v.masked_fill(~key_mask[:, None, :, None], 0.0)
        if self.projected:
            phi_q, phi_k = self._random(q, over=-1), self._random(k, over=(-1, -2))
        else:
            phi_q, phi_k = q.softmax(-1), k.exp() if self.causal else k.softmax(-2)
        out, total = _sums(phi_q, phi_k, v, self.causal)
        if self.causal:  # they add it to each component of the sum of keys
            total = total + 1e-6 * phi_q.sum(-1)
        return out / total[..., None]

    def _random(self, x: Tensor, over: int | tuple[int, int]) -> Tensor:
        x = x * x.shape[-1] ** -0.25
        u = x @ self.projection.mT
        if self.kernel is not None:
            return self.kernel(u) + 1e-3
        norm = x.square().sum(-1, keepdim=True) / 2
        return ((u - norm - u.detach().amax(over, keepdim=True)).exp() + 1e-4) * u.shape[-1] ** -0.5


class Favor(Performer):
    """The symmetric features of fast-transformers in its linear attention.

    Args:
        head_dim, causal: as for :class:`Performer`.
        n_dims: the number of features.
        temperature: of the softmax, 1/sqrt(D) by default.
        stabilize: subtract the largest |x~|^2 of the sequence, padding included, from every exponent.
        eps: added to the denominator.
    """

    def __init__(
        self,
        head_dim: int,
        n_dims: int,
        causal: bool = False,
        *,
        temperature: float | None = None,
        stabilize: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(head_dim, n_dims // 2 * 2, "symmetric", causal)
        self.n_dims, self.stabilize, self.eps = n_dims, stabilize, eps
        self.temperature = head_dim**-0.5 if temperature is None else temperature

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """(B, H, N, D), (B, H, M, D) and (B, H, M, Dv)."""
        phi_q, phi_k = self._symmetric(q), self._symmetric(k)
        if key_mask is not None:
            phi_k = phi_k.masked_fill(~key_mask[:, None, :, None], 0.0)
        out, total = _sums(phi_q, phi_k, v, self.causal)
        return out / (total + self.eps)[..., None]

    def _symmetric(self, x: Tensor) -> Tensor:
        x = x * self.temperature**0.5
        u, norm = x @ self.projection.mT, x.square().sum(-1, keepdim=True)
        offset = norm / 2 + math.log(self.n_dims) / 2
        if self.stabilize:
            offset = offset + norm.amax(-2, keepdim=True)
        return torch.cat((u - offset, -u - offset), -1).exp()


# performer-pytorch


def _kernel(name: Any) -> Callable[[Tensor], Tensor]:
    """An activation by the name in which a configuration writes it: "ReLU", "nn.ReLU()", "torch.exp"."""
    word = re.sub(r"\(.*\)$", "", str(name)).rpartition(".")[2]
    for place in (nn, F, torch):
        if word.isidentifier() and hasattr(place, word):
            found = getattr(place, word)
            return found() if isinstance(found, type) else found
    raise UnsupportedError(f"kernel_fn={name!r} is no function of torch that is known by its name")


def _fast_arguments(config: Config) -> dict[str, Any]:
    width = config["dim_heads"]
    return {
        "head_dim": width,
        "num_features": config.get("nb_features") or int(width * math.log(width)),
        "causal": config.get("causal", False),
        "norms": "sqrt" if config.get("ortho_scaling", 0) else "chi",
        "kernel": _kernel(config.get("kernel_fn") or "ReLU") if config.get("generalized_attention") else None,
        "projected": not config.get("no_projection", False),
    }


def _one_set(state: State) -> dict[str, Tensor]:
    """Their rows (m, D) as ours of one set for all heads."""
    return {name: t[None] if name.endswith("projection") else t for name, t in state.items()}


def _fast_weights(state: State) -> State:
    return _one_set(renamed(state, {"^projection_matrix$": "projection"}))


def _fast_call(module: FastAttention, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "q", "k", "v")
    return {"out": module(given["q"], given["k"], given["v"])}


def _layer(dim: int, num_heads: int, qkv_bias: bool, out_bias: bool, dropout: float, **core: Any) -> MultiHead:
    options: dict[str, Any] = {"head_dim": core["head_dim"], "qkv_bias": qkv_bias, "proj_drop": dropout}
    layer = MultiHead(dim, num_heads, FastAttention(**core), **options)
    if not out_bias:
        layer.out_proj = nn.Linear(layer.out_proj.in_features, dim, bias=False)
    return layer


def _layer_arguments(config: Config) -> dict[str, Any]:
    if local := config.get("local_heads", 0):
        raise UnsupportedError(f"local_heads={local}: performer has no heads of local attention")
    width = config.get("dim_head", 64) or config["dim"] // config.get("heads", 8)
    return {
        "dim": config["dim"],
        "num_heads": config.get("heads", 8),
        "qkv_bias": config.get("qkv_bias", False),
        "out_bias": config.get("attn_out_bias", True),
        "dropout": config.get("dropout", 0.0),
        **_fast_arguments({**config, "dim_heads": width, "ortho_scaling": 0}),
    }


def _layer_weights(state: State) -> State:
    rules = {"^fast_attention.projection_matrix$": "core.projection", r"^to_(\w+)": r"\1_proj"}
    return _one_set(renamed(state, rules))


def _layer_call(module: MultiHead, inputs: Inputs, call: Call) -> Outputs:
    """Theirs masks the values alone: padded tokens still ask, and still count as keys."""
    given = bind(inputs, call, "x", "pos_emb", "context", "mask", "context_mask")
    if "pos_emb" in given:
        raise UnsupportedError("pos_emb: rotary tables from outside are not supported, use MultiHead(rotary=...)")
    x, cross = given["x"], "context" in given
    mask = given.get("context_mask", None if cross else given.get("mask"))
    q, k, v = module._project(x, given.get("context", x), None)
    return {"out": module._join(module.core(q, k, v, key_mask=None if mask is None else mask.bool()))}


# fast-transformers


def _favor_arguments(config: Config, causal: bool) -> dict[str, Any]:
    feature_map = config.get("feature_map")
    if feature_map is not None and "favor" not in str(feature_map).lower():
        raise UnsupportedError(f"feature_map={feature_map!r}: performer has Favor's")
    causal = causal or "causal" in str(config.get("attention", config.get("attention_type", "")))
    return {
        "head_dim": config["query_dimensions"],
        "n_dims": config.get("n_dims") or config["query_dimensions"],
        "causal": config.get("causal", causal),
        "temperature": config.get("softmax_temp"),
        "stabilize": config.get("stabilize", False),
        "eps": config.get("eps", 1e-6),
    }


def _favor_weights(state: State) -> State:
    named = renamed(state, {r"^(feature_map\.)?omega$": "projection"})
    return _one_set({name: t.mT if name == "projection" else t for name, t in named.items()})


_PATH = "idiap/fast-transformers:fast_transformers"
_PORT = "lucidrains/performer-pytorch:performer_pytorch/performer_pytorch.py"
_LAYER = Importer(_layer, _layer_arguments, _layer_call, _layer_weights)
_FAVOR = Importer(Favor, partial(_favor_arguments, causal=False), _favor_call, _favor_weights)
IMPORTERS = {
    f"{_PORT}:FastAttention": Importer(FastAttention, _fast_arguments, _fast_call, _fast_weights),
    f"{_PORT}:SelfAttention": _LAYER,
    f"{_PORT}:CrossAttention": _LAYER,
    f"{_PORT}:Attention": _LAYER,
    f"{_PATH}/attention/causal_linear_attention.py:CausalLinearAttention": Importer(
        Favor, partial(_favor_arguments, causal=True), _favor_call, _favor_weights
    ),
    f"{_PATH}/attention/linear_attention.py:LinearAttention": _FAVOR,
    "Favor": _FAVOR,  # no full name: "Favor inside CausalLinearAttention" is to be found by its second class, above
}
