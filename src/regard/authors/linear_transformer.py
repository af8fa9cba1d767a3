"""Linear attention of idiap/fast-transformers: all keys, causal, token by token, and inside their AttentionLayer."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.layers import MultiHead
from regard.mechanisms.linear.linear_transformer import LinearTransformer
from regard.memory import LinearState
from regard.registry import UnsupportedError

_NAMES = ("queries", "keys", "values", "attn_mask", "query_lengths", "key_lengths")


def _arguments(config: Config, causal: bool) -> dict[str, Any]:
    feature_map = config.get("feature_map")
    if feature_map is not None and "elu" not in str(feature_map):
        raise UnsupportedError(f"feature_map={feature_map!r}: linear_transformer has elu(x) + 1")
    return {"causal": causal, "eps": config.get("eps", 1e-6)}


def _key_mask(keys: Tensor, lengths: Tensor | None) -> Tensor:
    """Their lengths, or their mask of real keys, as our mask."""
    if lengths is not None and lengths.ndim == 2:
        return lengths != 0
    place = torch.arange(keys.shape[1], device=keys.device)
    return (place < (keys.shape[1] if lengths is None else lengths[:, None])).expand(len(keys), -1)


def _call(module: Any, inputs: Inputs, call: Call) -> Outputs:
    """Theirs is (B, N, H, D); causal, it drops keys after the last query and stands both first tokens together."""
    given = bind(inputs, call, *_NAMES)
    queries, keys, values = (given[name] for name in _NAMES[:3])
    key_mask = _key_mask(keys, given.get("key_lengths"))
    if module.causal:
        n, missing = queries.shape[1], max(0, queries.shape[1] - keys.shape[1])
        key_mask = F.pad(key_mask, (0, missing), value=False)[:, :n]
        keys, values = (F.pad(t, (0, 0, 0, 0, 0, missing))[:, :n] for t in (keys, values))
    out = module(*(t.transpose(1, 2) for t in (queries, keys, values)), key_mask=key_mask).transpose(1, 2)
    return {"out": out}


_SINGULAR = {"^q$|^queries$": "query", "^k$|^keys$": "key", "^v$|^values$": "value"}
_STATES = (("Si", "S", "state_S", "state/0", "state_0"), ("Zi", "Z", "state_Z", "state/1", "state_1"))


def _recurrent_call(module: LinearTransformer, inputs: Inputs, call: Call) -> Outputs:
    """One step on (B, H, D), or a step for each token of (B, N, H, D); the state is returned, never overwritten."""
    given = bind(renamed(inputs, _SINGULAR), call, "query", "key", "value")
    single = given["query"].ndim == 3
    q, k, v = (given[name][:, None] if single else given[name] for name in ("query", "key", "value"))
    empty = LinearState.start(len(q), q.shape[2], q.shape[-1], v.shape[-1], device=q.device, dtype=q.dtype)
    state, steps = LinearState(*(_first(inputs, names, t) for names, t in zip(_STATES, empty, strict=True))), []
    for step in range(q.shape[1]):
        out, state = module.stream(q[:, step, :, None], k[:, step, :, None], v[:, step, :, None], state)
        steps.append(out.squeeze(2))
    out = steps[0] if single else torch.stack(steps, 1)
    return {"out": out, "Si": state.state, "Zi": state.normaliser}


def _first(inputs: Inputs, names: tuple[str, ...], default: Tensor) -> Tensor:
    return next((inputs[name] for name in names if name in inputs), default)


# AttentionLayer: four projections around any of the above


def _layer(dim: int, num_heads: int, head_dim: int, causal: bool, eps: float) -> MultiHead:
    return MultiHead(dim, num_heads, LinearTransformer(causal, eps=eps), head_dim=head_dim)


def _layer_arguments(config: Config) -> dict[str, Any]:
    dim, heads = config["d_model"], config["n_heads"]
    width = config.get("d_keys") or dim // heads
    if (config.get("d_values") or width) != width:
        raise UnsupportedError(f"d_values={config['d_values']} differs from d_keys={width}: MultiHead has one head_dim")
    causal = "causal" in str(config.get("attention", config.get("attention_type", "")))
    return {"dim": dim, "num_heads": heads, "head_dim": width, **_arguments(config, config.get("causal", causal))}


def _layer_weights(state: State) -> State:
    return renamed(state, {"^query_": "q_", "^key_": "k_", "^value_": "v_", "projection": "proj"})


def _layer_call(module: MultiHead, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, *_NAMES)
    x = given["queries"]
    keys = given.get("keys", x)
    return {"out": module(x, keys, key_mask=_key_mask(keys, given.get("key_lengths")))}


_PATH = "idiap/fast-transformers:fast_transformers"
IMPORTERS = {
    f"{_PATH}/attention/linear_attention.py:LinearAttention": Importer(
        LinearTransformer, partial(_arguments, causal=False), _call
    ),
    f"{_PATH}/attention/causal_linear_attention.py:CausalLinearAttention": Importer(
        LinearTransformer, partial(_arguments, causal=True), _call
    ),
    f"{_PATH}/recurrent/*:RecurrentLinearAttention": Importer(
        LinearTransformer, partial(_arguments, causal=True), _recurrent_call
    ),
    f"{_PATH}/attention/attention_layer.py:AttentionLayer": Importer(
        _layer, _layer_arguments, _layer_call, _layer_weights
    ),
    "equations": Importer(
        LinearTransformer, lambda config: _arguments(config, bool(config.get("causal", False))), _call
    ),
}
