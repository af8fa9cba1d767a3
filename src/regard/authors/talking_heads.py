"""Talking heads, computed straight from the paper's equations; the authors' code is pseudo-code in the paper."""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, bind
from regard.mechanisms.talking_heads import mixed_weights


class Equations(nn.Module):
    """The paper's layer with a projection for each head, under the paper's letters.

    Args:
        query_width, memory_width, out_width: of what asks, of what is asked, and of the result.
        key_dim, value_dim: D and Dv.
        heads, softmax_heads, value_heads: H of queries and keys, S, and Hv.
    """

    def __init__(
        self,
        query_width: int,
        memory_width: int,
        out_width: int,
        key_dim: int,
        value_dim: int,
        heads: int,
        softmax_heads: int,
        value_heads: int,
    ) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.zeros(heads, query_width, key_dim))
        self.k = nn.Parameter(torch.zeros(heads, memory_width, key_dim))
        self.v = nn.Parameter(torch.zeros(value_heads, memory_width, value_dim))
        self.o = nn.Parameter(torch.zeros(value_heads, value_dim, out_width))
        self.pl = nn.Parameter(torch.zeros(heads, softmax_heads))
        self.pw = nn.Parameter(torch.zeros(softmax_heads, value_heads))

    def forward(self, x: Tensor, memory: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, N, .) and memory (B, M, .) -> y (B, N, .) and the mixed weights (B, Hv, N, M)."""
        q, k, v = x[:, None] @ self.q, memory[:, None] @ self.k, memory[:, None] @ self.v
        weights = mixed_weights(q, k, self.pl, self.pw, allowed=allowed)
        return (weights @ v @ self.o).sum(1), weights


def _arguments(config: Config) -> dict[str, Any]:
    return {
        "query_width": config["dim_q"],
        "memory_width": config["dim_m"],
        "out_width": config["dim_out"],
        "key_dim": config["dk"],
        "value_dim": config["dv"],
        "heads": config["hk"],
        "softmax_heads": config["h"],
        "value_heads": config["hv"],
    }


def _call(module: Equations, inputs: Inputs, call: Call) -> Outputs:
    """``allow`` is (B, N, M), or smaller where it is the same for all."""
    given = bind(inputs, call, "x", "memory", "allow")
    allow = given.get("allow")
    if allow is not None:
        allow = allow.bool()[(None,) * (3 - allow.ndim)][:, None]
    y, weights = module(given["x"], given.get("memory", given["x"]), allow)
    return {"out": y, "mixed_weights": weights}


IMPORTERS = {"equations": Importer(Equations, _arguments, _call)}
