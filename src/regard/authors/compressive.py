"""Attention of kimiyoung/transformer-xl, its authors' code, and of lucidrains' port of the Compressive Transformer.

The port has a learned row for each distance instead of sinusoids and biases, pads what it evicts with as many zeros as
are left over (so that the newest states are dropped), and a padded query of it sees the memory only or, without one,
everything alike. Its gradient of K and V ends with the first compression in training; here it does not.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.ops.compression import Compression
from regard.ops.relative_attention import distance_products, relative_attention

# kimiyoung/transformer-xl


class RelativeLayer(nn.Module):
    """``RelPartialLearnableMultiHeadAttn``: attention, residual and norm, with memory, sinusoids and biases given.

    Args:
        dim, num_heads, head_dim: C, H and D.
        pre_norm: the norm stands before the projections, of the memory too, and not after the sum.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, pre_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.pre_norm = num_heads, head_dim, pre_norm
        self.q_proj, self.k_proj, self.v_proj, self.r_proj = (
            nn.Linear(dim, num_heads * head_dim, bias=False) for _ in range(4)
        )
        self.out_proj = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, memory: Tensor, r: Tensor, u: Tensor, w: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """x (B, N, C), memory (B, M, C), r (M + N, C), u and w (H, D); hidden Bool (N, M + N or more) or by batch."""
        states = torch.cat((memory, x), 1)
        states = self.norm(states) if self.pre_norm else states
        q = self._heads(self.q_proj(states[:, memory.shape[1] :]))
        k, v = self._heads(self.k_proj(states)), self._heads(self.v_proj(states))
        r, scale = self._heads(self.r_proj(r)[None]).squeeze(0), self.head_dim**-0.5
        content, position = q + u[:, None], q + w[:, None]
        if hidden is None:
            out = relative_attention(content, k, v, position, r, scale=scale)
        else:
            scores = scale * (content @ k.mT + distance_products(position, r))
            out = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        x = x + self.out_proj(out.transpose(1, 2).flatten(2))
        return x if self.pre_norm else self.norm(x)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _relative_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["d_model"],
        "num_heads": config["n_head"],
        "head_dim": config["d_head"],
        "pre_norm": bool(config.get("pre_lnorm", False)),
    }


def _relative_weights(state: State) -> State:
    names = {r"^r_net": "r_proj", r"^o_net": "out_proj", r"^layer_norm": "norm", r"^qkv_net.*": ""}
    q, k, v = state["qkv_net.weight"].chunk(3)
    return {**renamed(state, names), "q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v}


def _relative_call(module: RelativeLayer, inputs: Inputs, call: Call) -> Outputs:
    """Time comes first; their mask, True = hidden, is causal unless one is given."""
    given = bind(inputs, call, "w", "r", "r_w_bias", "r_r_bias", "attn_mask", "mems")
    x = given["w"].transpose(0, 1)
    memory = given["mems"].transpose(0, 1) if "mems" in given else x[:, :0]
    hidden = given.get("attn_mask")
    if hidden is not None:
        hidden = hidden.detach().bool()
        hidden = hidden if hidden.ndim == 2 else hidden.permute(2, 0, 1)[:, None]
    r = given["r"].flatten(0, 1)
    return {"out": module(x, memory, r, given["r_w_bias"], given["r_r_bias"], hidden).transpose(0, 1)}


# lucidrains/compressive-transformer-pytorch


class PortAttention(nn.Module):
    """``SelfAttention``: one segment, and what becomes of its memories.

    Args:
        dim, num_heads: C and H.
        segment_length, memory_length, compressed_length, ratio: n_s, n_m, n_cm and c.
    """

    def __init__(
        self, dim: int, num_heads: int, segment_length: int, memory_length: int, compressed_length: int, ratio: int
    ) -> None:
        super().__init__()
        self.num_heads, self.ratio = num_heads, ratio
        self.segment_length, self.memory_length = segment_length, memory_length
        self.compressed_length = compressed_length
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(dim, dim)
        self.compression = Compression("conv", dim, ratio)

    def forward(
        self, x: Tensor, memory: Tensor, slots: Tensor, table: Tensor | None = None, real: Tensor | None = None
    ) -> Tensor:
        """x (B, N, C), memory and slots (B, _, C), a table (H, distances, D) that ends with 0, real Bool (B, N)."""
        states = torch.cat((slots, memory, x), 1)
        batch, length, _ = states.shape
        q, k, v = (self._heads(t) for t in (self.q_proj(x), self.k_proj(states), self.v_proj(states)))
        p, r = (None, None) if table is None else (q, table[:, -length:])
        past = length - x.shape[1]
        scale = q.shape[-1] ** -0.5
        if real is None:
            out = relative_attention(q, k, v, p, r, scale=scale)
        else:
            seen = F.pad(real, (past, 0), value=True)
            out = relative_attention(q, k, v, p, r, scale=scale, key_mask=seen)
            only = torch.arange(length, device=x.device).expand(batch, -1) < past
            alone = relative_attention(q, k, v, p, r, scale=scale, key_mask=only) if past else v.mean(2, keepdim=True)
            out = torch.where(real[:, None, :, None], out, alone)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def memories(self, x: Tensor, memory: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Both memories after x; shorter pieces than a segment change nothing."""
        if x.shape[1] < self.segment_length:
            return memory, slots
        states = torch.cat((memory, x), 1)
        evicted = max(0, states.shape[1] - self.memory_length)
        old, memory = states[:, :evicted], states[:, evicted:]
        if evicted and self.compressed_length > 0:
            old = F.pad(old, (0, 0, evicted % self.ratio, 0))
            new, _ = self.compression(old, torch.ones(old.shape[:2], dtype=torch.bool, device=x.device))
            slots = torch.cat((slots, new), 1)[:, -self.compressed_length :]
        return memory, slots

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _port_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["dim"],
        "num_heads": config.get("heads", 8),
        "segment_length": config["seq_len"],
        "memory_length": config["mem_len"],
        "compressed_length": config["cmem_len"],
        "ratio": config.get("cmem_ratio", 4),
    }


def _port_weights(state: State) -> State:
    names = {r"^compress_mem_fn": "compression", r"^to_q": "q_proj", r"^to_out": "out_proj", r"^to_kv.*": ""}
    k, v = state["to_kv.weight"].chunk(2)
    return {**renamed(state, names), "k_proj.weight": k, "v_proj.weight": v}


def _port_call(module: PortAttention, inputs: Inputs, call: Call) -> Outputs:
    given = {name: inputs[name] for name in ("x", "mem", "cmem", "pos_emb", "input_mask") if name in inputs}
    x = given["x"]
    memory, slots = (given.get(name, x[:, :0]) for name in ("mem", "cmem"))
    mask = given.get("input_mask")
    out = module(x, memory, slots, given.get("pos_emb"), None if mask is None else mask.detach().bool())
    keeps = call.get("calc_memory", dict(call.get("kwargs", {})).get("calc_memory", True))
    new = module.memories(x, memory, slots) if keeps else (memory, slots)
    return {"out": out, "new_mem": new[0].detach(), "new_cmem": new[1].detach()}


IMPORTERS = {
    "kimiyoung/transformer-xl:pytorch/mem_transformer.py:RelPartialLearnableMultiHeadAttn": Importer(
        RelativeLayer, _relative_arguments, _relative_call, _relative_weights
    ),
    "lucidrains/compressive-transformer-pytorch:*:SelfAttention": Importer(
        PortAttention, _port_arguments, _port_call, _port_weights
    ),
}
