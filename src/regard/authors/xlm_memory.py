"""The memories of facebookresearch/XLM: our layer where it computes theirs, else a module with all of their options."""

from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.authors.xlm_queries import QueryNet, Repeat
from regard.mechanisms.chosen.product_key_memory import ProductKeyMemory
from regard.ops.batch_norm import TokenBatchNorm
from regard.ops.product_keys import product_key_search, read_slots
from regard.registry import UnsupportedError


class HashingMemory(nn.Module):
    """Their memory with every option that changes what it computes; options as in their ``params``.

    Args:
        input_dim, output_dim: widths.
        flat: one key for each slot instead of pairs of sub-keys.
        options: theirs, see :data:`DEFAULTS`.
    """

    def __init__(self, input_dim: int, output_dim: int, flat: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.flat, self.options = flat, options
        self.heads, self.topk = options["heads"], options["knn"]
        width, n = options["k_dim"], options["n_keys"]
        if not flat and width % 2:
            raise UnsupportedError(f"k_dim={width} is odd, but product keys have two halves")
        slots = n if flat else n * n
        shape = (n, width) if flat else (n, width // 2)
        several = (self.heads,) if flat else (self.heads, 2)
        keys = torch.empty(*(several if options["use_different_keys"] else ()), *shape)
        if options["keys_learn"]:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        if options["shuffle_indices"]:
            self.register_buffer("head_permutations", torch.arange(slots).repeat(self.heads, 1))
        size = slots if options["modulo_size"] == -1 else options["modulo_size"]
        self.values = nn.Parameter(torch.empty(size, output_dim))
        self.query_proj, self.query_norm = self._network(input_dim)
        if not options["query_net_learn"]:
            for net in (self.query_proj, self.query_norm):
                if net is not None:
                    net.requires_grad_(False)

    def _network(self, dim: int) -> tuple[nn.Module, nn.Module | None]:
        options = self.options
        sizes, width = options["query_layer_sizes"], options["k_dim"]
        bias, norm = options["query_bias"], options["query_batchnorm"]
        if not sizes:
            return Repeat(self.heads, options["shuffle_query"]), None
        if len(sizes) == 2 and not options["input2d"]:
            features = self.heads * width
            return nn.Linear(dim, features, bias=bias), TokenBatchNorm(features) if norm else None
        count, last = (2 * self.heads, width // 2) if options["multi_query_net"] else (1, self.heads * width)
        sizes = (dim, *sizes[1:-1], last)
        kernels = options["query_kernel_sizes"] if options["input2d"] else None
        return QueryNet(sizes, kernels, count, grouped=options["grouped_conv"], bias=bias, norm=norm), None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., C) or (B, C, height, width) -> out, slots and weights (T, H, K)."""
        options = self.options
        x = x.detach() if options["query_detach_input"] else x
        x = _drop(x, options["input_dropout"], self.training)
        q = self.query_proj(x if options["input2d"] else x.flatten(0, -2))
        if self.query_norm is not None:
            q = self.query_norm(q)
        q = q.transpose(1, 3) if options["input2d"] else q  # theirs goes through columns first
        q = _drop(q.reshape(-1, self.heads, options["k_dim"]), options["query_dropout"], self.training)
        score, slot = self._search(q)
        if options["shuffle_indices"]:
            slot = self.get_buffer("head_permutations").expand(len(slot), -1, -1).gather(-1, slot)
        slot = slot if options["modulo_size"] == -1 else slot % options["modulo_size"]
        weight = self._weigh(score)
        out = _drop(
            read_slots(self.values, slot, weight, sparse=options["sparse"]), options["value_dropout"], self.training
        )
        if options["input2d"]:
            return out.view(len(x), x.shape[3], x.shape[2], -1).transpose(1, 3), slot, weight
        return out.view(*x.shape[:-1], -1), slot, weight

    def _search(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and slots (T, H, K) for queries (T, H, k)."""
        keys = self.keys
        if not self.flat:
            q = q.unflatten(-1, (2, -1))
        if self.options["normalize_query"]:
            q = q / q.norm(dim=-1, keepdim=True)
        if not self.flat:
            return product_key_search(q, keys if keys.ndim == 4 else keys.expand(self.heads, 2, -1, -1), self.topk)
        score, slot = torch.topk(q.transpose(0, 1) @ keys.mT, self.topk)
        return score.transpose(0, 1), slot.transpose(0, 1)

    def _weigh(self, score: Tensor) -> Tensor:
        """What they make of the scores (T, H, K), in their order."""
        options = self.options
        score = score / options["temperature"]
        if options["score_softmax"]:
            score = score.softmax(-1)
        subtract = options["score_subtract"]
        if subtract == "mean":
            score = score - score.mean(-1, keepdim=True)
        elif subtract:
            least = score.min(-1, keepdim=True) if subtract == "min" else score.median(-1, keepdim=True)
            score = score - least.values
        return score / score.norm(p=1, dim=-1, keepdim=True) if options["score_normalize"] else score


DEFAULTS: dict[str, Any] = {
    "implementation": "pq_fast",
    "heads": 4,
    "knn": 32,
    "k_dim": 256,
    "v_dim": -1,
    "n_keys": 512,
    "sparse": False,
    "input2d": False,
    "modulo_size": -1,
    "shuffle_indices": False,
    "shuffle_query": False,
    "keys_learn": True,
    "use_different_keys": True,
    "query_detach_input": False,
    "query_layer_sizes": (0, 0),
    "query_kernel_sizes": (),
    "query_bias": True,
    "query_batchnorm": False,
    "query_net_learn": True,
    "multi_query_net": False,
    "grouped_conv": False,
    "normalize_query": False,
    "temperature": 1,
    "score_softmax": True,
    "score_subtract": "",
    "score_normalize": False,
    "input_dropout": 0.0,
    "query_dropout": 0.0,
    "value_dropout": 0.0,
}
"""Their ``mem_...`` arguments that change what is computed, and their defaults."""

_STARTS = ("keys_type", "keys_normalized_init", "value_zero_init", "values_optimizer", "share_values")
"""Arguments that say how weights start or are trained: loaded ones are what they are."""

_DERIVED = ("n_indices", "size", "product_quantization", "query_residual")
"""What they compute from the others, and an argument that they never pass on."""

_OURS = ("implementation", "heads", "knn", "k_dim", "v_dim", "n_keys", "sparse", "query_batchnorm", "value_dropout")
"""Options that our layer has; it is theirs where all others have their default."""


def _sizes(value: Any) -> tuple[int, ...]:
    """ "0,512,0" or [0, 512, 0]."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(int(part) for part in parts if part != "")


def _options(config: Config) -> dict[str, Any]:
    given = {name.removeprefix("mem_"): value for name, value in dict(config.get("params", {})).items()}
    if unknown := [name for name in given if name not in (*DEFAULTS, *_STARTS, *_DERIVED)]:
        raise UnsupportedError(f"their memory has no {', '.join(unknown)}")
    options = DEFAULTS | {name: value for name, value in given.items() if name in DEFAULTS}
    options |= {name: _sizes(options[name]) for name in ("query_layer_sizes", "query_kernel_sizes")}
    if options["input2d"] and not options["query_layer_sizes"]:
        raise UnsupportedError("input2d=True without query_layer_sizes fails in their code")
    return options


def _arguments(config: Config) -> dict[str, Any]:
    options = _options(config)
    output = options["v_dim"] if options["v_dim"] > 0 else config["output_dim"]
    return {"input_dim": config["input_dim"], "output_dim": output, "options": options}


def _flat_arguments(config: Config) -> dict[str, Any]:
    return _arguments({**config, "params": {**config.get("params", {}), "implementation": "flat"}})


def build(input_dim: int, output_dim: int, options: dict[str, Any]) -> nn.Module:
    """Our layer where it computes what theirs does, else :class:`HashingMemory`."""
    flat = options["implementation"] == "flat"
    if flat or any(options[name] != default for name, default in DEFAULTS.items() if name not in _OURS):
        return HashingMemory(input_dim, output_dim, flat, options)
    return ProductKeyMemory(
        input_dim,
        options["heads"],
        options["k_dim"],
        options["n_keys"],
        options["knn"],
        value_dim=output_dim,
        norm="batch" if options["query_batchnorm"] else None,
        proj_drop=options["value_dropout"],
        sparse=options["sparse"],
    )


def _weights(state: State) -> State:
    """A linear query network and its batch norm are ours; longer networks keep their names."""
    names = [name for name in state if name.startswith("query_proj.query_mlps.")]
    linear = all(name.split(".")[2] in "01" and len(name.split(".")) == 4 for name in names)
    rules = {r"^values\.weight$": "values"}
    if linear:
        rules |= {r"\.query_mlps\.0": "", r"^query_proj\.query_mlps\.1": "query_norm"}
    return renamed(state, rules)


def _call(module: Any, inputs: Inputs, call: Call) -> Outputs:
    x = bind(inputs, call, "input")["input"]
    module.train(call.get("mode") == "train")
    if isinstance(module, HashingMemory):
        out, slot, weight = module(x)
    else:
        slot, weight = module.slots(x.reshape(1, -1, x.shape[-1]))
        out = module.proj_drop(read_slots(module.values, slot, weight, sparse=module.sparse)).view(*x.shape[:-1], -1)
    return {"out": out, "indices": slot, "scores": weight}


def _drop(x: Tensor, rate: float, training: bool) -> Tensor:
    return nn.functional.dropout(x, rate, training)


_FILE = "facebookresearch/XLM:xlm/model/memory/memory.py"
_MEMORY = Importer(build, _arguments, _call, _weights)
IMPORTERS = {
    f"{_FILE}:HashingMemoryProductFast": _MEMORY,
    f"{_FILE}:HashingMemoryProduct": _MEMORY,
    f"{_FILE}:HashingMemoryFlat": Importer(build, _flat_arguments, _call, _weights),
    f"{_FILE}:HashingMemory*": _MEMORY,
}
