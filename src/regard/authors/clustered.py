"""Clustered and improved clustered attention of idiap/fast-transformers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, bind
from regard.mechanisms.chosen.clustered import Clustered, clustered_attention
from regard.ops.hamming import sign_codes

_NAMES = ("queries", "keys", "values", "attn_mask", "query_lengths", "key_lengths")


class ClusteredOfAnyWidth(Clustered):
    """:class:`Clustered` with planes as wide as the queries that come: theirs are no state and know no width."""

    def __init__(self, **options: Any) -> None:
        super().__init__(head_dim=1, **options)
        self.register_load_state_dict_pre_hook(_keep_planes)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """As :class:`Clustered`."""
        if self.planes.shape[1] != q.shape[-1] + 1:
            self.planes = q.new_empty(len(self.planes), q.shape[-1] + 1)
            self.reset_parameters()
        return super().forward(q, k, v, **options)


def _keep_planes(module: Clustered, state_dict: dict[str, Tensor], *_: Any) -> None:
    state_dict.setdefault("planes", module.planes)


def _arguments(config: Config, topk: int | None) -> dict[str, Any]:
    return {
        "clusters": config["clusters"],
        "topk": topk,
        "bits": config.get("bits", 32),
        "iterations": config.get("iterations", 10),
        "hash_bias": config.get("hash_bias", True),
        "scale": config.get("softmax_temp") or None,
        "attn_drop": config.get("attention_dropout", 0.1),
    }


def _call(module: Clustered, inputs: Inputs, call: Call) -> Outputs:
    """Theirs is (B, N, H, D). Recorded are the planes and first queries of k-means, or the clusters it ended with."""
    given = bind(inputs, call, *_NAMES)
    q, k, v = (given[name].transpose(1, 2) for name in _NAMES[:3])
    query_mask, key_mask = (_mask(given.get(name), x) for name, x in (("query_lengths", q), ("key_lengths", k)))
    planes = inputs["planes"].detach() if "planes" in inputs else None
    if planes is not None and not module.hash_bias:
        planes = F.pad(planes[:, :-1], (0, 1))
    if "groups" in inputs:
        groups = inputs["groups"].long()
        groups = groups.masked_fill((groups < 0) | ~query_mask[:, None], module.clusters)
    elif planes is not None:
        start = inputs.get("init_index")
        start = None if start is None else start.long().expand(len(q), -1)
        groups = module.groups(q, planes, query_mask, start)
    else:
        return {"out": module(q, k, v, key_mask=key_mask, query_mask=query_mask).transpose(1, 2)}
    options: dict[str, Any] = {"topk": module.topk, "scale": module.scale, "key_mask": key_mask}
    out = clustered_attention(q, k, v, groups, module.clusters, **options).transpose(1, 2)
    counts = F.one_hot(groups.clamp(max=module.clusters), module.clusters + 1).sum(2)[..., :-1]
    found = {"out": out, "counts": counts.int()}
    if planes is not None:
        bit = torch.arange(len(planes), device=q.device)
        found["hashes"] = ((sign_codes(q, planes) > 0).long() << bit).sum(-1)
    return found


def _mask(lengths: Tensor | None, x: Tensor) -> Tensor:
    """Their lengths as our mask of real tokens of x (B, H, N, D)."""
    place = torch.arange(x.shape[2], device=x.device)
    return (place < (x.shape[2] if lengths is None else lengths[:, None])).expand(len(x), -1)


_PATH = "idiap/fast-transformers:fast_transformers/attention"
IMPORTERS = {
    f"{_PATH}/clustered_attention.py:ClusteredAttention": Importer(
        ClusteredOfAnyWidth, lambda config: _arguments(config, None), _call
    ),
    f"{_PATH}/improved_clustered_attention.py:ImprovedClusteredAttention": Importer(
        ClusteredOfAnyWidth, lambda config: _arguments(config, config.get("topk", 32)), _call
    ),
}
