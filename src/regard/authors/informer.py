"""zhouhaoyi/Informer2020, the authors' code: ProbSparse and full attention, distilling, whole networks.

Their code draws the keys that queries sample inside of the forward pass; recorded draws come as ``index...`` inputs.
"""

import re
from functools import partial
from typing import Any

from torch import Generator, Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.layers import MultiHead
from regard.mechanisms.chosen.informer import ProbSparse
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.models.informer import Distil, Informer
from regard.registry import UnsupportedError


class Recorded(ProbSparse):
    """ProbSparse with recorded draws, where there are some."""

    recorded: Tensor | None = None
    """(N, U): which keys each query samples."""

    def draws(
        self, q: Tensor, k: Tensor, query_mask: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The recorded draws as numbers in [0, 1): the middle of what stands for each key."""
        if self.recorded is None:
            return super().draws(q, k, query_mask, generator)
        return (self.recorded.double()[None] + 0.5) / k.shape[2]


def record(module: nn.Module, inputs: Inputs) -> None:
    """Hand out the recorded draws: those of the encoder, then those of the decoder, in the order of the calls."""
    names = sorted((name for name in inputs if name.startswith("index")), key=_place)
    cores = [core for core in module.modules() if isinstance(core, Recorded)]
    if names and len(names) != len(cores):
        raise UnsupportedError(f"{len(names)} recorded draws ({', '.join(names)}) for {len(cores)} attentions")
    for number, core in enumerate(cores):
        core.recorded = inputs[names[number]] if names else None


def _place(name: str) -> tuple[bool, list[int]]:
    return "dec" in name, [int(digits) for digits in re.findall(r"\d+", name)]


def core(kind: str, config: Config) -> Recorded | ScaledDotProduct:
    """Their ProbAttention or FullAttention."""
    causal, scale = config.get("mask_flag", True), config.get("scale") or None
    if kind == "full":
        return ScaledDotProduct(causal, scale=scale, attn_drop=config.get("attention_dropout", 0.1))
    return Recorded(config.get("factor", 5), causal, lazy="sum" if causal else "mean", scale=scale)


# attention alone: (B, N, H, D) in and out


def _attention_call(module: ProbSparse | ScaledDotProduct, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "queries", "keys", "values", "attn_mask")
    mask = given.get("attn_mask")
    if mask is not None and isinstance(module, ScaledDotProduct) and module.causal:
        raise UnsupportedError("attn_mask: a mask of one's own in place of the causal one is not computed here")
    record(module, inputs)
    q, k, v = (given[name].transpose(1, 2) for name in ("queries", "keys", "values"))
    return {"out": module(q, k, v).transpose(1, 2)}


def _as_given(config: Config) -> dict[str, Any]:
    return {"config": config}


# distilling


def _distil_weights(state: State) -> State:
    return renamed(state, {r"\bdownConv\b": "conv"})


def _distil_call(module: Distil, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


# whole networks

_NAMES = {  # theirs -> ours
    "enc_in": "inputs",
    "dec_in": "decoder_inputs",
    "c_out": "outputs",
    "out_len": "horizon",
}
_OPTIONS: dict[str, tuple[str, Any]] = {  # theirs -> ours, and their default
    "factor": ("factor", 5),
    "d_model": ("dim", 512),
    "n_heads": ("num_heads", 8),
    "e_layers": ("depth", 3),
    "d_layers": ("decoder_depth", 2),
    "dropout": ("dropout", 0.0),
    "distil": ("distil", True),
    "mix": ("mix", True),
}
_FEATURES = {"h": 4, "t": 5, "s": 6, "m": 1, "a": 1, "w": 2, "d": 3, "b": 3}


def _network(**options: Any) -> Informer:
    """Ours, with recorded draws."""
    model = Informer(lazy="sum", **options)
    for layer in model.modules():
        if isinstance(layer, MultiHead) and isinstance(layer.core, ProbSparse):
            plain = layer.core
            layer.core = Recorded(plain.factor, plain.causal, lazy=plain.lazy)
    return model


def _network_arguments(config: Config, depth: Any = 3) -> dict[str, Any]:
    options = {ours: config.get(theirs, default) for theirs, (ours, default) in _OPTIONS.items()}
    options["depth"] = config.get("e_layers", depth)
    freq, embed = config.get("freq", "h"), config.get("embed", "fixed")
    if embed == "timeF" and freq not in _FEATURES:
        raise UnsupportedError(f"freq={freq!r} has no time features; there are {', '.join(_FEATURES)}")
    width = options["dim"]
    return {
        **{ours: config[theirs] for theirs, ours in _NAMES.items()},
        **options,
        "hidden": config.get("d_ff", 512) or 4 * width,
        "attention": "prob" if config.get("attn", "prob") == "prob" else "full",
        "activation": "relu" if config.get("activation", "gelu") == "relu" else "gelu",
        "marks": {"timeF": "linear", "fixed": "fixed"}.get(embed, "learned"),
        "num_marks": _FEATURES[freq] if embed == "timeF" else 5 if freq == "t" else 4,
    }


_TABLES = ("month", "day", "weekday", "hour", "minute")
_RULES = {
    r"^enc_embedding\.": "embedding.",
    r"^dec_embedding\.": "decoder_embedding.",
    r"embedding\.value_embedding\.tokenConv\.": "embedding.values.",
    r"embedding\.temporal_embedding\.embed\.": "embedding.linear.",
    r".*\.position_embedding\.pe$": "",
    r".*_embed\.emb\.weight$": "",  # their fixed tables
    **{
        rf"embedding\.temporal_embedding\.{name}_embed\.": f"embedding.tables.{number}."
        for number, name in enumerate(_TABLES)
    },
    r"^encoder\.encoders\.": "encoders.",
    r"^encoder\.": "encoders.0.",
    r"\.attn_layers\.": ".layers.",
    r"\.conv_layers\.(\d+)\.downConv\.": r".between.\1.conv.",
    r"\.conv_layers\.": ".between.",
    r"^decoder\.layers\.": "decoder.",
    r"^decoder\.norm\.": "norm.",
    r"\.self_attention\.": ".attention.",
    r"\.cross_attention\.": ".cross.",
    **{
        rf"\b{theirs}_projection\.": f"{ours}_proj."
        for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
    },
    r"\bconv1\.": "first.",
    r"\bconv2\.": "second.",
    **{rf"\.norm{number + 1}\.": f".norms.{number}." for number in range(3)},
    r"^projection\.": "output.",
}


def _network_weights(state: State) -> State:
    """A convolution of width 1 is a matrix; later commits leave out the biases of the embeddings."""
    weights = dict(renamed(state, _RULES))
    for name, tensor in list(weights.items()):
        if re.search(r"\.(first|second)\.weight$", name):
            weights[name] = tensor.squeeze(-1)
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(("embedding.values.weight", "embedding.linear.weight")) and bias not in weights:
            weights[bias] = tensor.new_zeros(len(tensor))
    return weights


def _network_call(module: Informer, inputs: Inputs, call: Call) -> Outputs:
    record(module, inputs)
    given = bind(inputs, call, "x_enc", "x_mark_enc", "x_dec", "x_mark_dec")
    return {"out": module(*(given[name] for name in ("x_enc", "x_mark_enc", "x_dec", "x_mark_dec")))}


_SOURCE = "zhouhaoyi/Informer2020:models/"
IMPORTERS = {
    f"{_SOURCE}attn.py:ProbAttention": Importer(partial(core, "prob"), _as_given, _attention_call),
    f"{_SOURCE}attn.py:FullAttention": Importer(partial(core, "full"), _as_given, _attention_call),
    f"{_SOURCE}encoder.py:ConvLayer": Importer(
        Distil, lambda config: {"dim": config["c_in"]}, _distil_call, _distil_weights
    ),
    f"{_SOURCE}model.py:Informer": Importer(_network, _network_arguments, _network_call, _network_weights),
    f"{_SOURCE}model.py:InformerStack": Importer(
        _network, lambda config: _network_arguments(config, (3, 2, 1)), _network_call, _network_weights
    ),
}
