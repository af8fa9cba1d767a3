"""Jukebox by its authors: openai/jukebox's attention, transformer, autoregressive prior and SimplePrior.

Their matrices are (in, out). Options that save memory (``checkpoint_*``) and ``scale`` change no number.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, jukebox_vqvae, renamed
from regard.authors.jukebox_vqvae import residual, upsampler_name
from regard.mechanisms.patterned.jukebox import KINDS, FactoredAttention
from regard.models.code_prior import CodePrior, bits
from regard.models.jukebox_block import StreamingAttention
from regard.models.jukebox_conditions import LabelEmbedding, LyricsEncoder, TimeSignal, UpperCodes
from regard.models.jukebox_prior import JukeboxPrior
from regard.models.jukebox_transformer import ORDERS, JukeboxTransformer, kinds_of
from regard.registry import UnsupportedError

_IDLE = {"scale", "init_scale", "checkpoint_attn", "checkpoint_mlp", "checkpoint_res"}
_ATTENTION = {"mask", "zero_out", "attn_dropout", "resid_dropout", "blocks", "spread", "encoder_dims", "prime_len"}
_STACK = _ATTENTION | {"res_scale", "m_attn", "m_mlp", "attn_order"}
_PRIOR = _STACK | {"input_shape", "bins", "width", "depth", "heads", "emb_dropout", "pos_init"}
_CONDITIONED = _PRIOR | {"x_cond", "y_cond", "only_encode", "merged_decoder"}


def _check(config: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := config.keys() - known - _IDLE:
        raise UnsupportedError(f"jukebox's {what} has no option {', '.join(sorted(unknown))}")


def _lines(config: Mapping[str, Any], length: int, kinds: Sequence[str]) -> dict[str, Any]:
    """Length of rows, spread and first positions, as far as these kinds need them."""
    blocks, spread, prime = (int(config.get(name) or 0) for name in ("blocks", "spread", "prime_len"))
    rows = {"row", "column", "previous_row", "summary", "spread"} & set(kinds)
    if blocks and length % blocks:
        raise UnsupportedError(f"n_ctx={length} is no multiple of blocks={blocks}: the authors' code needs that")
    for needed, name, value in ((rows or "prime" in kinds, "blocks", blocks), ("spread" in kinds, "spread", spread)):
        if needed and not value:
            raise UnsupportedError(f"attention of kinds {', '.join(kinds)} needs {name}=, in the authors' code too")
    if "prime" in kinds and config.get("prime_len") is None:
        raise UnsupportedError("attention to the first positions needs prime_len=, in the authors' code too")
    found: dict[str, Any] = {}
    if rows:
        found |= {"row_length": length // blocks, "max_length": length}
    if "spread" in kinds:
        found["spread"] = spread
    if "prime" in kinds:  # one block more than the lyrics fill
        found["prime_length"] = (prime // blocks + 1) * blocks
    return found


# attention


def _attention(dim: int, num_heads: int, head_dim: int, proj_drop: float, **core: Any) -> StreamingAttention:
    return StreamingAttention(dim, num_heads, FactoredAttention(**core), head_dim=head_dim, proj_drop=proj_drop)


def _attention_arguments(config: Config) -> dict[str, Any]:
    _check(config, _ATTENTION | {"n_in", "n_ctx", "n_state", "n_head", "attn_func"}, "FactoredAttention")
    kind = KINDS[config.get("attn_func", 0)]
    if config["n_state"] % config["n_head"]:
        raise UnsupportedError(f"n_state={config['n_state']} is no multiple of n_head={config['n_head']}")
    lines = _lines(config, config["n_ctx"], [kind])
    return {
        "dim": config["n_in"],
        "num_heads": config["n_head"],
        "head_dim": config["n_state"] // config["n_head"],
        "proj_drop": config.get("resid_dropout", 0.0),
        "kind": kind,
        "causal": bool(config.get("mask", False)) and kind != "encoder_decoder",
        "attn_drop": config.get("attn_dropout", 0.0),
        **lines,
    }


_MATRICES = {
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "c_enc_kv": ("k_proj", "v_proj"),
    "mlp.c_fc": ("first",),
    "mlp.c_proj": ("second",),
    "c_proj": ("out_proj",),
    "prime_state_proj": ("lyrics.projection",),
}
"""Their convolutions of width 1, and which of our matrices are in them, side by side."""

_CONVOLUTION = re.compile(rf"(.*?)({'|'.join(map(re.escape, _MATRICES))})\.([wb])")


def _turned(state: State) -> State:
    """Their convolutions of width 1 as our matrices and biases."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = _CONVOLUTION.fullmatch(name)
        if parts is None:
            found[name] = tensor
            continue
        path, which, letter = parts.groups()
        asks_only = which == "c_attn" and f"{path}c_enc_kv.w" in state
        sides = ("q_proj",) if asks_only else _MATRICES[which]
        pieces = (tensor.T if letter == "w" else tensor).chunk(len(sides), 0)
        ending = {"w": "weight", "b": "bias"}[letter]
        found |= {f"{path}{side}.{ending}": piece for side, piece in zip(sides, pieces, strict=True)}
    return found


def _attention_call(attention: StreamingAttention, inputs: Inputs, call: Call) -> Outputs:
    x, lyrics = inputs["x"], inputs.get("encoder_kv")
    core = cast(FactoredAttention, attention.core)
    outputs = {"out": cast(Tensor, attention(x, lyrics))}
    if attention.across or (core.causal and not core.zero_keys):  # their code cannot sample the other kinds
        memory, steps = attention.start(len(x), lyrics, None, device=None), list[Tensor]()
        for token in x.split(1, 1):
            step, memory = attention.resume(token, memory)
            steps.append(step)
        outputs["y_sampled"] = torch.cat(steps, 1)
    return outputs


# the transformer


def _stack(
    config: Mapping[str, Any], dim: int, depth: int, num_heads: int, length: int, causal: bool
) -> dict[str, Any]:
    """The arguments of ours from their options."""
    order = config.get("attn_order", 0)
    if not 0 <= order < len(ORDERS):
        raise UnsupportedError(f"attn_order={order}: the authors' numbers go from 0 to {len(ORDERS) - 1}")
    return {
        "dim": dim,
        "depth": depth,
        "num_heads": num_heads,
        "order": order,
        "attention_ratio": config.get("m_attn", 0.25),
        "mlp_ratio": config.get("m_mlp", 1.0),
        "scale_residuals": bool(config.get("res_scale", False)),
        "zero_out": bool(config.get("zero_out", False)),
        "init_scale": config.get("init_scale", 1.0),
        "causal": causal,
        "attn_drop": config.get("attn_dropout", 0.0),
        "dropout": config.get("resid_dropout", 0.0),
        **_lines(config, length, kinds_of(order, depth)),
    }


def _transformer_arguments(config: Config) -> dict[str, Any]:
    _check(config, _STACK | {"n_in", "n_ctx", "n_head", "n_depth", "afn"}, "Transformer")
    sizes = (config["n_in"], config["n_depth"], config["n_head"], config["n_ctx"])
    return _stack(config, *sizes, bool(config.get("mask", False))) | {"activation": config.get("afn", "quick_gelu")}


_LAYERS = {
    r"_attn_mods\.(\d+)\.": r"blocks.\1.",
    r"(blocks\.\d+\.)attn\.": r"\1attention.",
    r"(blocks\.\d+\.)ln_0\.": r"\1norm1.",
    r"(blocks\.\d+\.)ln_1\.": r"\1norm2.",
}


def _transformer_weights(state: State) -> State:
    return renamed(_turned(state), _LAYERS)


def _transformer_call(model: JukeboxTransformer, inputs: Inputs, call: Call) -> Outputs:
    return {"out": model(inputs["x"], inputs.get("encoder_kv"))}


# the autoregressive prior over one kind of codes


def _prior(config: Mapping[str, Any]) -> CodePrior:
    if config.get("pos_init"):
        raise UnsupportedError("pos_init does not work in the authors' code: its get_pos_idx is not there")
    length = math.prod(config["input_shape"])
    width, depth, heads = config.get("width", 128), config.get("depth", 2), config.get("heads", 1)
    separate, encodes = config.get("merged_decoder", False), config.get("only_encode", False)
    return CodePrior(
        config["bins"],
        length,
        JukeboxTransformer(**_stack(config, width, depth, heads, length, bool(config.get("mask", True)))),
        head="none" if encodes else "separate" if separate else "tied",
        labelled=bool(config.get("y_cond", False)),
        init_scale=config.get("init_scale", 1.0),
        embedding_drop=config.get("emb_dropout", 0.0),
    )


def _prior_arguments(config: Config) -> dict[str, Any]:
    _check(config, _CONDITIONED, "ConditionalAutoregressive2D")
    return {"config": config}


_TABLES = {
    r"(^|\.)x_emb\.weight$": r"\1embedding.weight",
    r"(^|\.)pos_emb\.pos_emb$": r"\1position",
    r"(^|\.)start_token$": r"\1start",
    r"(^|\.)x_out\.weight$": r"\1out.weight",
}


def _prior_weights(state: State) -> State:
    """Tables by our names; an output matrix that is the embedding comes once."""
    found: dict[str, Tensor] = {}
    for name, tensor in renamed(_turned(state), _LAYERS | _TABLES).items():
        embedding = found.get(f"{name.removesuffix('out.weight')}embedding.weight")
        tied = name.endswith("out.weight") and embedding is not None and embedding.shape == tensor.shape
        if not (tied and embedding is not None and torch.equal(embedding, tensor)):
            found[name] = tensor[0] if name.endswith("start") else tensor
    return found


def _prior_call(prior: CodePrior, inputs: Inputs, call: Call) -> Outputs:
    """``x`` are the codes; a loss counts lyrics in front apart where their ``prime_len`` says so."""
    codes, start = inputs["x"].flatten(1), inputs.get("y_cond")
    options = {"condition": inputs.get("x_cond"), "context": inputs.get("encoder_kv")}
    y = prior(codes, start=None if start is None else start.flatten(1), **options)
    return {"out": y} if prior.head == "none" else {"out": bits(y, codes), "preds": y}


# the whole prior


_SIMPLE = """z_shapes l_bins encoder decoder level downs_t strides_t labels prior_kwargs x_cond_kwargs y_cond_kwargs
    prime_kwargs copy_input labels_v3 merged_decoder single_enc_dec"""


def _upper(config: Mapping[str, Any], level: int) -> UpperCodes:
    options = dict(config["x_cond_kwargs"])
    width, reverse = options.pop("out_width"), bool(options.pop("reverse_decoder_dilation", False))
    scale = options.pop("init_scale", 1.0)
    down, stride = config["downs_t"][level], config["strides_t"][level]
    return UpperCodes(config["l_bins"], width, down, stride, residual(options), reverse=reverse, init_scale=scale)


def _labels(config: Mapping[str, Any], positions: int, timed: bool) -> LabelEmbedding:
    options = config["y_cond_kwargs"]
    genres, artists = options["y_bins"]
    time = None
    if timed:
        ranges = options.get("t_ranges")
        if ranges is None:
            last = options["max_duration"] * options["sr"]
            ranges = ((options["min_duration"] * options["sr"], last), (0.0, last), (0.0, 1.0))
        total, absolute, relative = ((float(first), float(end)) for first, end in ranges)
        time = TimeSignal(positions, options["t_bins"], total, absolute, relative)
    width, most, scale = options["out_width"], options["max_bow_genre_size"], options.get("init_scale", 1.0)
    return LabelEmbedding(artists, genres, width, max_genres=most, time=time, init_scale=scale)


def _simple(config: Mapping[str, Any]) -> JukeboxPrior:
    level, levels = config["level"], len(config["z_shapes"])
    positions, labelled = config["z_shapes"][level][0], bool(config["labels"])
    prime, options = dict(config["prime_kwargs"]), dict(config["prior_kwargs"])
    tokens, used = prime.pop("n_tokens", 0), prime.pop("use_tokens", False)
    fraction = prime.pop("prime_loss_fraction", 0.4)
    if config.get("copy_input"):
        prime["bins"] = config["l_bins"]
    in_front = bool(config.get("single_enc_dec", False))
    apart = bool(tokens and used and not in_front)
    _check(options, _PRIOR, "prior_kwargs")
    _check(prime, _PRIOR, "prime_kwargs")
    lyrics = None
    if in_front:
        shape = (tokens + math.prod(options["input_shape"]),)
        whole = {"bins": prime["bins"] + options["bins"], "input_shape": shape, "y_cond": True, "prime_len": tokens}
    else:
        whole = {"y_cond": labelled, "merged_decoder": config.get("merged_decoder", False)}
    if apart:
        encoder = _prior({**prime, "input_shape": (tokens,), "only_encode": True})
        lyrics = LyricsEncoder(encoder, options.get("width", 128), init_scale=options.get("init_scale", 1.0))
    hops = [stride**down for stride, down in zip(config["strides_t"], config["downs_t"], strict=True)]
    return JukeboxPrior(
        _prior({**options, **whole}),
        labels=_labels(config, positions, timed=level == levels - 1) if labelled else None,
        upper=_upper(config, level + 1) if level < levels - 1 else None,
        lyrics=lyrics,
        lyric_tokens=tokens,
        lyric_vocabulary=prime["bins"] if in_front else 0,
        copy_input=bool(config.get("copy_input", False)),
        lyric_loss=fraction,
        hop=math.prod(hops[: level + 1]),
    )


def _simple_arguments(config: Config) -> dict[str, Any]:
    if unknown := config.keys() - set(_SIMPLE.split()):
        raise UnsupportedError(f"jukebox's SimplePrior has no option {', '.join(sorted(unknown))}")
    return {"config": config}


_PARTS = {
    r"^prior\.": "codes.",
    r"^prime_prior\.": "lyrics.prior.",
    r"^prime_state_ln\.": "lyrics.norm.",
    r"^prime_x_out\.": "lyrics.out.",
    r"^y_emb\.artist_emb\.emb\.": "labels.artist.",
    r"^y_emb\.bow_genre_emb\.emb\.": "labels.genre.",
    r"^y_emb\.total_length_emb\.emb\.": "labels.total.",
    r"^y_emb\.absolute_pos_emb\.emb\.": "labels.absolute.",
    r"^y_emb\.relative_pos_emb\.emb\.": "labels.relative.",
    r"^conditioner_blocks\.0\.x_emb\.": "upper.embedding.",
    r"^conditioner_blocks\.0\.ln\.": "upper.norm.",
}


def simple_weights(state: State) -> State:
    """The weights of their SimplePrior by our names."""
    ends = renamed(state, _PARTS)
    upper = {name: tensor for name, tensor in ends.items() if name.startswith("conditioner_blocks.")}
    rest = {name: tensor for name, tensor in ends.items() if name not in upper}
    upper = {upsampler_name(name): tensor for name, tensor in upper.items()}
    return {**_prior_weights(rest), **renamed(upper, {r"^conditioner_blocks\.0\.cond\.": "upper.upsampler."})}


def _simple_call(prior: JukeboxPrior, inputs: Inputs, call: Call) -> Outputs:
    upper = [tensor for name, tensor in sorted(inputs.items()) if name.startswith("z_cond")]
    told: dict[str, Any] = {"upper_codes": upper[0] if upper else None, "labels": inputs.get("y")}
    codes = inputs["z"]
    loss = prior.bits(codes, **told)
    logits = prior.joint_logits(codes, **told)
    return {"out": loss.total, "gen_loss": loss.codes, "bpd": loss.codes, "prime_loss": loss.lyrics, "preds": logits}


IMPORTERS = {
    "openai/jukebox:jukebox/transformer/factored_attention.py:FactoredAttention": Importer(
        _attention, _attention_arguments, _attention_call, _turned
    ),
    "openai/jukebox:jukebox/transformer/transformer.py:Transformer": Importer(
        JukeboxTransformer, _transformer_arguments, _transformer_call, _transformer_weights
    ),
    "openai/jukebox:jukebox/prior/autoregressive.py:ConditionalAutoregressive2D": Importer(
        _prior, _prior_arguments, _prior_call, _prior_weights
    ),
    "openai/jukebox:jukebox/prior/prior.py:SimplePrior": Importer(
        _simple, _simple_arguments, _simple_call, simple_weights
    ),
    **jukebox_vqvae.IMPORTERS,
}
