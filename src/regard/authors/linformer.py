"""Linformer: the authors' layer in fairseq, and the two ports, tatp22/linformer-pytorch and lucidrains/linformer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention import attend
from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.layers import MultiHead
from regard.mechanisms.lowrank.linformer import Linformer, MixFirst, mix
from regard.registry import UnsupportedError


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


# fairseq: tokens are mixed before they are projected, and the biases of keys and values are added afterwards


class FairseqAttention(nn.Module):
    """``MultiheadLinearAttention``: our mixtures inside fairseq's layer, which mixes in self-attention only.

    Args:
        dim, num_heads: C and H.
        key_dim, value_dim: the width of what is asked, where it is another.
        length, rank: L and R.
        mixes: it is self-attention; the other forms of theirs see every key.
        shared: one table for keys and values.
        bias: biases on all four projections.
        extra: one more key and value that are learned.
        zero: one more key and value that are 0.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        length: int,
        rank: int,
        *,
        mixes: bool,
        shared: bool,
        bias: bool,
        extra: bool,
        zero: bool,
    ) -> None:
        super().__init__()
        self.num_heads, self.mixes, self.zero = num_heads, mixes, zero
        self.q_proj, self.out_proj = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.k_proj, self.v_proj = nn.Linear(key_dim, dim, bias=bias), nn.Linear(value_dim, dim, bias=bias)
        self.compress_k = nn.Linear(length, rank, bias=False)
        self.compress_v = None if shared else nn.Linear(length, rank, bias=False)
        self.bias_k, self.bias_v = (nn.Parameter(torch.zeros(1, 1, dim)) if extra else None for _ in range(2))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sequences (B, N, C) -> out (B, N, C) and the weights (B, H, N, R)."""
        if self.mixes:
            tables = (self.compress_k, self.compress_v or self.compress_k)
            key, value = (mix(table.weight[None], query[:, None]).squeeze(1) for table in tables)
        k, v = self._with_more(self.k_proj(key), self.bias_k), self._with_more(self.v_proj(value), self.bias_v)
        q, k, v = (_heads(t, self.num_heads) for t in (self.q_proj(query), k, v))
        if attn_mask is not None:
            attn_mask = F.pad(attn_mask, (0, k.shape[-2] - attn_mask.shape[-1]))
        out = attend(q, k, v, attn_mask=attn_mask)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights

    def _with_more(self, rows: Tensor, learned: Tensor | None) -> Tensor:
        rows = rows if learned is None else torch.cat((rows, learned.expand(len(rows), -1, -1)), 1)
        return F.pad(rows, (0, 0, 0, 1)) if self.zero else rows


def _fairseq_arguments(config: Config) -> dict[str, Any]:
    dim, length = config["embed_dim"], config.get("max_seq_len", 256)
    return {
        "dim": dim,
        "num_heads": config["num_heads"],
        "key_dim": config.get("kdim") or dim,
        "value_dim": config.get("vdim") or dim,
        "length": length,
        "rank": length // config.get("compressed", 1),
        "mixes": bool(config.get("self_attention", False)),
        "shared": bool(config.get("shared_kv_compressed", 0)),
        "bias": bool(config.get("bias", True)),
        "extra": bool(config.get("add_bias_kv", False)),
        "zero": bool(config.get("add_zero_attn", False)),
    }


def _fairseq_weights(state: State) -> State:
    """A table shared by layers has a bias that their code never adds."""
    return renamed(state, {r"^compress_[kv]\.bias$": ""})


def _fairseq_call(module: FairseqAttention, inputs: Inputs, call: Call) -> Outputs:
    """Time comes first; padding is accepted and ignored, as theirs is."""
    given = bind(inputs, call, "query", "key", "value", "attn_mask")
    query = given["query"].transpose(0, 1)
    key, value = (given.get(name, given["query"]).transpose(0, 1) for name in ("key", "value"))
    out, weights = module(query, key, value, given.get("attn_mask"))
    return {"out": out.transpose(0, 1), "attention": weights.mean(1)}


# tatp22: one linear map a head, mixtures with a bias or by a convolution


class BiasedMixtures(nn.Module):
    """``MHAttention`` of linformer-pytorch: E k + b for keys, F v + c for values, or a convolution over k tokens.

    Args:
        dim, num_heads, head_dim: C, H and D.
        length, rank: L and R.
        tables: 1 where all heads share one, else H.
        shared: keys and values are mixed by the same table.
        convolution: dense over the channels of a head, as wide as its stride, instead of a table.
        full: no mixing at all.
        causal: mixture j is seen from token j on (it has seen the future all the same).
        inner: the width between two output projections, where there are two.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        length: int,
        rank: int,
        *,
        tables: int,
        shared: bool,
        convolution: bool,
        full: bool,
        causal: bool,
        inner: int | None,
    ) -> None:
        super().__init__()
        self.num_heads, self.causal, self.full = num_heads, causal, full
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, num_heads * head_dim, bias=False) for _ in range(3))
        width = length // rank
        shape, slots = ((head_dim, head_dim, width), head_dim) if convolution else ((rank, length), rank)
        self.e, self.e_bias = nn.Parameter(torch.zeros(tables, *shape)), nn.Parameter(torch.zeros(tables, slots))
        self.f, self.f_bias = (
            (None, None)
            if shared
            else (nn.Parameter(torch.zeros(tables, *shape)), nn.Parameter(torch.zeros(tables, slots)))
        )
        joined = num_heads * head_dim
        if inner is None:
            self.out_proj: nn.Module = nn.Linear(joined, dim)
        else:
            self.out_proj = nn.Sequential(nn.Linear(joined, inner), nn.Linear(inner, dim))

    def forward(self, x: Tensor, context: Tensor, key_mask: Tensor | None, query_mask: Tensor | None) -> Tensor:
        """Sequences (B, N, C) -> (B, N, C)."""
        q, k, v = self.q_proj(x), self.k_proj(context), self.v_proj(context)
        if key_mask is not None:
            k, v = (t.masked_fill(~key_mask[..., None], 0.0) for t in (k, v))
        if query_mask is not None:
            q = q.masked_fill(~query_mask[..., None], 0.0)
        q, k, v = (_heads(t, self.num_heads) for t in (q, k, v))
        if not self.full:
            k = self._mix(k, self.e, self.e_bias)
            v = self._mix(v, *((self.e, self.e_bias) if self.f is None else (self.f, self.f_bias)))
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=x.device).tril() if self.causal else None
        return self.out_proj(attend(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))

    def _mix(self, x: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        if table.ndim == 3:
            return mix(table, x) + bias[..., None]
        width = table.shape[-1]
        pieces = x[:, :, : x.shape[2] // width * width].unflatten(2, (-1, width))  # (B, H, R, width, D)
        return torch.einsum("bhrwd,hedw->bhre", pieces, table.expand(x.shape[1], -1, -1, -1)) + bias[:, None]


def _biased_arguments(config: Config) -> dict[str, Any]:
    method, sharing = config.get("method", "learnable"), config.get("parameter_sharing", "layerwise")
    if method not in ("learnable", "convolution"):
        raise UnsupportedError(f"method={method!r}: its table is in no state dict; there are learnable and convolution")
    return {
        "dim": config["channels"],
        "num_heads": config.get("nhead", 4),
        "head_dim": config["dim"],
        "length": config["input_size"],
        "rank": config["dim_k"],
        "tables": config.get("nhead", 4) if sharing == "none" else 1,
        "shared": sharing in ("kv", "layerwise"),
        "convolution": method == "convolution",
        "full": bool(config.get("full_attention", False)),
        "causal": config.get("causal_mask") not in (None, False) or bool(config.get("causal", False)),
        "inner": config.get("w_o_intermediate_dim"),
    }


def _biased_weights(state: State) -> State:
    """Their heads side by side; a table that several heads share stands in the state dict once for each."""
    heads = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("to_q."))
    found = {f"{ours}_proj.weight": torch.cat([state[f"to_{ours}.{h}.weight"] for h in range(heads)]) for ours in "qkv"}
    for theirs in ("E", "F"):
        for kind, ours in (("weight", theirs.lower()), ("bias", f"{theirs.lower()}_bias")):
            tables = [state[name] for h in range(heads) if (name := f"heads.{h}.{theirs}.{kind}") in state]
            if tables:
                alone = all(bool((table == tables[0]).all()) for table in tables)
                found[ours] = tables[0][None] if alone else torch.stack(tables)
    if "f" in found and bool((found["f"] == found["e"]).all()):
        del found["f"], found["f_bias"]
    return found | dict(renamed({k: t for k, t in state.items() if k.startswith("w_o")}, _OUTPUTS))


_OUTPUTS = {r"^w_o\.": "out_proj.", "^w_o_1": "out_proj.0", "^w_o_2": "out_proj.1"}


def _biased_call(module: BiasedMixtures, inputs: Inputs, call: Call) -> Outputs:
    """Their decoder asks ``embeddings``; ``input_mask`` hides what is asked, ``embeddings_mask`` what asks."""
    x = next(inputs[name] for name in ("x", "tensor") if name in inputs)
    masks = (inputs.get(name) for name in ("input_mask", "embeddings_mask"))
    key_mask, query_mask = (None if mask is None else mask.bool() for mask in masks)
    return {"out": module(x, inputs.get("embeddings", x), key_mask, query_mask)}


# lucidrains: our layer, its tables transposed


def _port_layer(dim: int, num_heads: int, num_kv_heads: int, head_dim: int, **options: Any) -> MultiHead:
    core = Linformer(num_heads, head_dim, **options)
    return MixFirst(dim, num_heads, core, num_kv_heads=num_kv_heads, head_dim=head_dim, qkv_bias=False)


def _port_arguments(config: Config) -> dict[str, Any]:
    dim, heads = config["dim"], config.get("heads", 8)
    return {
        "dim": dim,
        "num_heads": heads,
        "num_kv_heads": 1 if config.get("one_kv_head") else heads,
        "head_dim": config.get("dim_head") or dim // heads,
        "max_length": config["seq_len"],
        "rank": config.get("k", 256),
        "share": "kv" if config.get("share_kv") else "heads",
        "attn_drop": config.get("dropout", 0.0),
    }


def _port_weights(state: State) -> State:
    """With ``share_kv`` their values are their keys: one projection and one table."""
    values = state.get("to_v.weight", state["to_k.weight"])
    tables = {
        f"core.{ours}": state[name].mT[None] for ours, name in (("e", "proj_k"), ("f", "proj_v")) if name in state
    }
    rules = {"^to_q": "q_proj", "^to_k": "k_proj", "^to_out": "out_proj", "^to_v.*|^proj_.*": ""}
    return {**renamed(state, rules), **tables, "v_proj.weight": values}


def _port_call(module: MultiHead, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "x", "context")
    return {"out": module(given["x"], given.get("context"))}


_FAIRSEQ = Importer(FairseqAttention, _fairseq_arguments, _fairseq_call, _fairseq_weights)
IMPORTERS = {
    "facebookresearch/fairseq:*multihead_linear_attention.py:MultiheadLinearAttention": _FAIRSEQ,
    "tatp22/linformer-pytorch:linformer_pytorch/linformer_pytorch.py:MHAttention": Importer(
        BiasedMixtures, _biased_arguments, _biased_call, _biased_weights
    ),
    "lucidrains/linformer:linformer/linformer.py:LinformerSelfAttention": Importer(
        _port_layer, _port_arguments, _port_call, _port_weights
    ),
    "linformer:linformer/linformer.py:LinformerSelfAttention": Importer(
        _port_layer, _port_arguments, _port_call, _port_weights
    ),
}
