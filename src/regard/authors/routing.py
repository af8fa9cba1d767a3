"""Routing attention of google-research (TF1) and of lucidrains/routing-transformer, on projected heads.

Both average what a token found in its clusters with a constant in the denominator, and record their clustering loss,
whose gradient their notes may ask for beside that of the output.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.chosen.routing import normalised
from regard.ops.clusters import take_rows
from regard.ops.online_kmeans import OnlineKMeans, nearest
from regard.ops.routed import scatter_mean, top_tokens
from regard.registry import UnsupportedError

FAR = -1e9
"""What TF1 code adds to the scores of pairs that may not meet."""


class RoutedHeads(nn.Module):
    """Google's: layer-normalised queries and keys, no scale, windows in the order of positions.

    Args:
        window: tokens in a cluster.
        share_qk: keys are the queries.
        masked: a lower triangle over each window; with keys of their own it is one over ranks, and not causal.
        ema: the centroids follow by moving averages; otherwise a loss of their own draws them.
        beta: weight of the loss that draws tokens to centroids.
        decay: of the moving averages.
    """

    def __init__(self, window: int, share_qk: bool, masked: bool, ema: bool, beta: float, decay: float) -> None:
        super().__init__()
        self.window, self.share_qk, self.masked, self.ema, self.beta = window, share_qk, masked, ema, beta
        self.kmeans = OnlineKMeans(1, 1, 1, decay)
        self.register_load_state_dict_pre_hook(_as_large_as_the_means)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Outputs:
        """(B, H, N, D): the output, the loss and which tokens each cluster took."""
        q = normalised(q)
        k = q if self.share_qk else normalised(k)
        affinity = [self.kmeans.affinity(x) for x in (q, k)]
        asking, asked = (top_tokens(a, self.window) for a in affinity)
        values = take_rows(v, asked)
        scores = take_rows(q, asking) @ take_rows(k, asked).mT
        hidden = (values.abs().sum(-1) == 0)[..., None, :]  # their sign of padding
        if self.masked:
            hidden = hidden | torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        weights = (scores + FAR * hidden).softmax(-1)
        out = scatter_mean(weights @ values, asking, q.shape[2], eps=1e-2)
        groups = [nearest(a, None) for a in affinity]
        loss = sum(self._loss(x, g) for x, g in zip((q, k), groups, strict=True))
        return {"out": out, "aux_loss": torch.as_tensor(loss).reshape(1), "q_indices": asking, "k_indices": asked}

    def _loss(self, x: Tensor, groups: Tensor) -> Tensor:
        means = take_rows(self.kmeans.means.expand(len(x), -1, -1, -1), groups)
        follow = F.mse_loss(x, means.detach()) * self.beta
        return follow if self.ema else follow + F.mse_loss(means, x.detach())


def _as_large_as_the_means(module: RoutedHeads, state_dict: dict[str, Tensor], *_: Any) -> None:
    means = state_dict["kmeans.means"]
    heads, clusters, width = means.shape
    decay, place = module.kmeans.decay, {"device": means.device, "dtype": means.dtype}
    module.kmeans = OnlineKMeans(heads, clusters, width, decay, **place)


def _google_arguments(config: Config) -> dict[str, Any]:
    for option in ("relative_attention", "hash_items", "strided_attention", "token_bias"):
        if config.get(option):
            raise UnsupportedError(f"{option}={config[option]!r} is not computed: routing is by centroids alone")
    return {
        "window": config.get("window", config.get("attention_window")),
        "share_qk": config.get("share_qk", False),
        "masked": config.get("masked", True),
        "ema": config.get("ema", False),
        "beta": config.get("beta", 1e-4),
        "decay": config.get("decay", 0.99),
    }


def _google_weights(state: State) -> State:
    """Without averages of their own the centroids count as tokens seen once."""
    means = state["means"]
    return {
        "kmeans.means": means,
        "kmeans.sums": state.get("ema_means", means),
        "kmeans.counts": state.get("ema_count", torch.ones_like(means[..., 0])),
    }


def _google_call(module: RoutedHeads, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "q", "k", "v")
    found = module(given["q"], given.get("k", given["q"]), given["v"])
    return _with_loss(found, call)


# lucidrains


class KmeansAttention(nn.Module):
    """Lucidrains': routing by directions, raw queries, slots of memory in each cluster, a token last to see itself.

    Args:
        num_clusters, window_size, num_heads, head_dim, causal: sizes and causality.
        context_window: keys in a cluster where they are another sequence's.
        receives_context: keys are another sequence's.
        slots: memory in each cluster, seen by all.
        shared_qk: keys are the queries' directions, and a token sees itself only if it sees nobody else.
        commitment: weight of the loss.
    """

    def __init__(
        self,
        num_clusters: int,
        window_size: int,
        num_heads: int,
        head_dim: int,
        causal: bool,
        context_window: int,
        receives_context: bool,
        slots: int,
        shared_qk: bool,
        commitment: float,
    ) -> None:
        super().__init__()
        self.window, self.causal, self.shared_qk, self.commitment = window_size, causal, shared_qk, commitment
        self.key_window = context_window if receives_context else window_size
        self.receives_context = receives_context
        self.kmeans = OnlineKMeans(num_heads, num_clusters, head_dim)
        shape = (num_heads, num_clusters, slots, head_dim)
        self.mem_key, self.mem_value = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None
    ) -> Outputs:
        """(B, H, N, D) and (B, H, M, D): the output and the loss. Their padding competes for places."""
        key_mask = query_mask if key_mask is None and not self.receives_context else key_mask
        apart = not self.shared_qk or self.receives_context
        routed = F.normalize(torch.cat((q, k), 2) if apart else q, dim=-1)
        affinity = self.kmeans.affinity(routed)
        asking = top_tokens(affinity[:, :, : q.shape[2]], self.window)
        asked = top_tokens(affinity[:, :, q.shape[2] :], self.key_window) if apart else asking
        k = k if apart else F.normalize(k, dim=-1)
        keys, values = (
            torch.cat((slots.expand(len(q), -1, -1, -1, -1), take_rows(t, asked)), 3)
            for slots, t in ((self.mem_key, k), (self.mem_value, v))
        )
        scores = take_rows(q, asking) @ keys.mT * q.shape[-1] ** -0.5
        seen, itself = self._pairs(asking, asked, query_mask, key_mask)
        slots = self.mem_key.shape[2]
        scores = scores.masked_fill(~F.pad(seen, (slots, 0), value=True), torch.finfo(scores.dtype).min)
        if self.shared_qk:
            scores = scores.masked_fill(F.pad(itself, (slots, 0), value=False), -5e4)
        out = scatter_mean(scores.softmax(-1) @ values, asking, q.shape[2], eps=1e-5)
        loss = self.commitment * self.kmeans.distance(routed, nearest(affinity, None))
        return {"out": out, "aux_loss": loss.reshape(1)}

    def _pairs(
        self, asking: Tensor, asked: Tensor, query_mask: Tensor | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Who sees whom in each cluster, and who is the same token."""
        here, there = asking[..., None], asked[..., None, :]
        seen = here >= there if self.causal else torch.ones_like(here == there)
        for mask, index, axis in ((query_mask, asking, -1), (key_mask, asked, -2)):
            if mask is not None:
                real = mask[:, None].expand(-1, index.shape[1], -1).gather(-1, index.flatten(2)).view_as(index)
                seen = seen & real.unsqueeze(axis)
        return seen, here == there


def _port_arguments(config: Config) -> dict[str, Any]:
    causal, shared_qk = config.get("causal", False), config.get("shared_qk", False)
    window = config["window_size"]
    return {
        "num_clusters": config["num_clusters"],
        "window_size": window,
        "num_heads": config["num_heads"],
        "head_dim": config["head_dim"],
        "causal": causal,
        "context_window": config.get("context_window_size") or window,
        "receives_context": config.get("receives_context", False),
        "slots": max(config.get("num_mem_kv", 0), int(causal and not shared_qk)),
        "shared_qk": shared_qk,
        "commitment": config.get("commitment", 1e-4),
    }


def _port_weights(state: State) -> State:
    means = state["kmeans.means"]
    return {
        "kmeans.means": means,
        "kmeans.sums": means,
        "kmeans.counts": torch.ones_like(means[..., 0]),
        "mem_key": state["mem_key"],
        "mem_value": state["mem_value"],
    }


def _port_call(module: KmeansAttention, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "q", "k", "v", "query_mask", "key_mask")
    masks = {name: given[name].bool() for name in ("query_mask", "key_mask") if name in given}
    return _with_loss(module(given["q"], given.get("k", given["q"]), given["v"], **masks), call)


class _LossBeside(torch.autograd.Function):
    """The output as it is, through which the loss gets the gradient 1 that it has when it is added to the objective."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return out.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, torch.ones_like(ctx.saved_tensors[0])


def _with_loss(found: Outputs, call: Call) -> Outputs:
    """The recorded gradients are those of sum(out * cotangent) + loss where the notes on the call say so."""
    if call.get("add_aux"):
        found["out"] = _LossBeside.apply(found["out"], found["aux_loss"])
    return found


IMPORTERS = {
    "google-research/google-research:routing_transformer/utils.py:clustered_local_attention_helper": Importer(
        RoutedHeads, _google_arguments, _google_call, _google_weights
    ),
    "lucidrains/routing-transformer:routing_transformer/routing_transformer.py:KmeansAttention": Importer(
        KmeansAttention, _port_arguments, _port_call, _port_weights
    ),
}
