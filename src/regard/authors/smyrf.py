"""SMYRF's attention of giannisdaras/smyrf, on heads that are folded into the batch."""

from typing import Any

import torch
from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, bind
from regard.mechanisms.chosen.smyrf import Smyrf, smyrf_attention
from regard.ops.balanced_clusters import asymmetric_hashes
from regard.registry import UnsupportedError


class SmyrfOfAnyWidth(Smyrf):
    """:class:`Smyrf` with directions as high as the queries that come: theirs are no state and know no width."""

    def __init__(self, **options: Any) -> None:
        super().__init__(head_dim=1, **options)
        self.register_load_state_dict_pre_hook(_keep_directions)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """As :class:`Smyrf`."""
        if len(self.directions) != q.shape[-1] + 2:
            self.directions = q.new_empty(q.shape[-1] + 2, self.directions.shape[1])
            self.reset_parameters()
        return super().forward(q, k, v, **options)


def _keep_directions(module: Smyrf, state_dict: dict[str, Tensor], *_: Any) -> None:
    state_dict.setdefault("directions", module.directions)


def _arguments(config: Config) -> dict[str, Any]:
    """Their ``r`` moves all hashes alike and changes nothing."""
    if (kind := config.get("clustering_algo", "lsh")) != "lsh":
        raise UnsupportedError(f"clustering_algo={kind!r}: smyrf sorts by hashes, which is theirs by default ('lsh')")
    return {
        "num_hashes": config["n_hashes"],
        "cluster_size": config.get("k_attn_size") or config["k_cluster_size"],
        "query_cluster_size": config.get("q_attn_size") or config["q_cluster_size"],
        "scale": 1.0,
        "attn_drop": config.get("dropout", 0.0),
    }


def _call(module: Smyrf, inputs: Inputs, call: Call) -> Outputs:
    """Theirs is (B H, N, D), with an additive mask over tokens that are queries and keys alike: padding sorts last."""
    given = bind(inputs, call, "queries", "keys", "values", "attn_mask")
    q, k, v = (given[name][:, None] for name in ("queries", "keys", "values"))
    for x, size, name in ((q, module.query_cluster_size, "queries"), (k, module.cluster_size, "keys")):
        if x.shape[2] % size:
            raise UnsupportedError(f"{x.shape[2]} {name} do not divide into their clusters of {size}")
    mask = given.get("attn_mask")
    real = None if mask is None else mask.detach().reshape(len(q), -1) > -1
    scale = module.scale / call.get("norm_factor", 1) if module.scale else None
    if "alpha" not in inputs:
        return {"out": module(q, k, v, key_mask=real, query_mask=real)[:, 0]}
    hashes = asymmetric_hashes(q, k, inputs["alpha"].detach())
    if real is not None:
        hashes = tuple(h.masked_fill(~real[:, None, None], torch.inf) for h in hashes)
    queries, keys = module.clusters(*hashes)
    if real is not None:
        taken = real[:, None, None].expand(*keys.token.shape[:3], -1).gather(-1, keys.token.flatten(3))
        keys = keys._replace(filled=taken.view_as(keys.token))
    out = smyrf_attention(q, k, v, queries, keys, scale=scale)
    q_order, k_order = (h.argsort(dim=-1, stable=True)[:, 0].transpose(0, 1) for h in hashes)
    return {"out": out[:, 0], "q_positions": q_order, "k_positions": k_order}


IMPORTERS = {
    "giannisdaras/smyrf:smyrf/torch/attn.py:SmyrfAttention": Importer(SmyrfOfAnyWidth, _arguments, _call),
}
