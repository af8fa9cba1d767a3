"""Show, Attend and Tell by its authors: capgen.py of arctic-captions, the whole captioner with its costs."""

import re
from typing import Any

import torch
from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.models.caption_losses import CaptionLoss
from regard.models.captioner import Captioner
from regard.registry import UnsupportedError

_NAMES = {"dim": "dim", "embedding_dim": "dim_word", "context_dim": "ctx_dim", "vocab_size": "n_words"}
_SWITCHES = {"encoder": "lstm_encoder", "selector": "selector", "previous_out": "prev2out", "context_out": "ctx2out"}
_DEPTHS = {
    "num_layers": "n_layers_lstm",
    "attention_layers": "n_layers_att",
    "init_layers": "n_layers_init",
    "output_layers": "n_layers_out",
}
_DEFAULTS = {"dim": 1000, "dim_word": 100, "ctx_dim": 512, "n_words": 10_000}


def _arguments(config: Config) -> dict[str, Any]:
    """Their train() names, with its defaults; what concerns the optimiser does not concern the network."""
    found: dict[str, Any] = {ours: config.get(theirs, _DEFAULTS[theirs]) for ours, theirs in _NAMES.items()}
    found |= {ours: bool(config.get(theirs, False)) for ours, theirs in _SWITCHES.items()}
    found |= {ours: config.get(theirs, 1) for ours, theirs in _DEPTHS.items()}
    kind = config.get("attn_type", "stochastic")
    if kind not in ("stochastic", "deterministic"):
        raise UnsupportedError(f'attn_type={kind!r} is neither "stochastic" nor "deterministic"')
    if kind == "stochastic":
        found |= {"attention": "hard", "sampling": config.get("semi_sampling_p", 0.5)}
        found["temperature"] = config.get("temperature", 1.0)
    found["dropout"] = 0.5 if config.get("use_dropout") else 0.0
    return found | {"gate_dropout": bool(config.get("use_dropout_lstm"))}


_PARTS = {
    r"ff_state": "decoder.0.start_state",
    r"ff_state_(\d+)": r"decoder.{}.start_state",
    r"ff_memory": "decoder.0.start_cell",
    r"ff_memory_(\d+)": "decoder.{}.start_cell",
    r"ff_logit": "output",
    r"ff_logit_lstm": "state_out",
    r"ff_logit_ctx": "context_out",
    r"ff_init_(\d+)": "start.{}",
    r"ff_logit_h(\d+)": "hidden.{}",
}
"""Their matrices with biases, <part>_W and <part>_b."""

_DECODER = {
    "W": "from_below.weight",
    "b": "from_below.bias",
    "U": "from_state.weight",
    "Wc": "from_context.weight",
    "Wc_att": "attention.key_proj.weight",
    "b_att": "attention.key_proj.bias",
    "Wd_att": "attention.query_proj.weight",
    "U_att": "attention.u",
    "W_sel": "attention.selector.weight",
    "b_sel": "attention.selector.bias",
}


def _weights(state: State) -> State:
    """Their matrices stand on the right of what they multiply; softmax does not see the constant c_tt."""
    found: dict[str, Tensor] = {"baseline": torch.zeros(())}  # they do not save it
    for name, tensor in state.items():
        if name == "Wemb":
            found["embedding.weight"] = tensor
        elif match := re.fullmatch(r"encoder(_rev)?_([WUb])", name):
            found |= _encoder_part(match[2], "_reverse" if match[1] else "", tensor)
        elif match := re.fullmatch(r"decoder(?:_(\d+))?_([A-Za-z].*)", name):
            if match[2] != "c_tt":
                found |= _decoder_part(f"decoder.{match[1] or 0}", match[2], tensor)
        else:
            found[_name(name[:-2]) + (".weight" if name.endswith("_W") else ".bias")] = _turned(tensor)
    return found


def _name(part: str) -> str:
    """Those of start and hidden count from 1, those of the decoder from 0."""
    for pattern, ours in _PARTS.items():
        if match := re.fullmatch(pattern, part):
            number = int(match[1]) if match.groups() else 0
            return ours.format(number if ours.startswith("decoder") else number - 1)
    raise UnsupportedError(f"{part} is no part of capgen.py")


def _decoder_part(layer: str, name: str, tensor: Tensor) -> State:
    """u is a column, and what stands behind the first layer of the attention counts from 1."""
    if match := re.fullmatch(r"([Wb])_att_(\d+)", name):
        kind = "weight" if match[1] == "W" else "bias"
        return {f"{layer}.attention.layers.{int(match[2]) - 1}.{kind}": _turned(tensor)}
    ours = tensor.reshape(-1) if name in ("U_att", "b_sel") else _turned(tensor)
    return {f"{layer}.{_DECODER[name]}": ours}


def _encoder_part(name: str, direction: str, tensor: Tensor) -> State:
    """Gates i, f, o, g become torch's i, f, g, o; their bias is added twice."""
    enter, keep, leave, candidate = tensor.chunk(4, -1)
    ours = _turned(torch.cat((enter, keep, candidate, leave), -1))
    kinds = {"W": ("weight_ih",), "U": ("weight_hh",), "b": ("bias_ih", "bias_hh")}[name]
    return {f"encoder.{kind}_l0{direction}": ours for kind in kinds}


def _turned(tensor: Tensor) -> Tensor:
    return tensor.mT if tensor.ndim == 2 else tensor


def _call(model: Captioner, inputs: Inputs, call: Call) -> Outputs:
    """Their layout is time first, and their masks are numbers; without noise dropout only shrinks."""
    if call.get("use_noise"):
        raise UnsupportedError("dropout was drawn in this recording, and what was drawn is not in it")
    bound = bind(inputs, call, "x", "mask", "ctx")
    words, mask, context = bound["x"].mT, bound["mask"].mT > 0, bound["ctx"]
    options: dict[str, Any] = {}
    if model.attention == "hard" and call.get("sampling", True) and "alpha_sample" in inputs:
        options["samples"] = inputs["alpha_sample"].transpose(0, 1)
        options["sampled"] = inputs.get("h_sampling_mask", torch.ones(1)).flatten()[0] > 0.5
    run = model.run(words, context, word_mask=mask, **options)
    cost = CaptionLoss(eps=1e-8).costs(run, words, mask).sum(1)
    weights = run.log_weights.exp()
    return {"out": cost, "alpha": weights.transpose(0, 1), "alpha_sample": run.chosen.transpose(0, 1)}


IMPORTERS = {"kelvinxu/arctic-captions:capgen.py:build_model": Importer(Captioner, _arguments, _call, _weights)}
