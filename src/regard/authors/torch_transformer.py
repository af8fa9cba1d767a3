"""torch.nn.TransformerEncoder, TransformerDecoder, their layers and nn.Transformer, called as torch calls them."""

import re
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.authors.torch_attention import attention_state
from regard.models.transformer_2017 import Block, Stack
from regard.ops.torch_masks import keep_mask
from regard.registry import UnsupportedError

__all__ = ["IMPORTERS", "TorchTransformer"]


class TorchTransformer(nn.Module):
    """An encoder, a decoder or both, in torch's layout and with torch's masks.

    Args:
        encoder, decoder: a layer or a stack of layers each.
        num_heads: H, to tell heads apart in masks.
        batch_first: (B, N, C) instead of (N, B, C).
    """

    def __init__(
        self, encoder: Block | Stack | None, decoder: Block | Stack | None, num_heads: int, batch_first: bool = False
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.num_heads, self.batch_first = encoder, decoder, num_heads, batch_first

    def forward(
        self,
        src: Tensor | None = None,
        tgt: Tensor | None = None,
        memory: Tensor | None = None,
        *,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool = False,
        tgt_is_causal: bool = False,
    ) -> Tensor:
        """The output of the last stack there is.

        Args:
            src: what the encoder reads.
            tgt: what the decoder reads.
            memory: the encoder's output, for a decoder alone.
            src_mask, tgt_mask, memory_mask: bool (True = leave out) or float (added), for pairs.
            src_key_padding_mask, tgt_key_padding_mask, memory_key_padding_mask: the same for keys.
            src_is_causal, tgt_is_causal: no token sees a later one, where no mask says so already.
        """
        if self.encoder is not None and src is not None:
            mask = self._mask(src, src_mask, src_key_padding_mask)
            causal = src_is_causal and src_mask is None
            memory = self._turned(self.encoder(self._turned(src), mask=mask, causal=causal))
        if self.decoder is None or tgt is None:
            if memory is None:
                raise ValueError("an encoder reads src, a decoder tgt: neither was given")
            return memory
        if memory is None:
            raise ValueError("a decoder alone needs memory, the output of an encoder")
        masks: dict[str, Any] = {
            "mask": self._mask(tgt, tgt_mask, tgt_key_padding_mask),
            "memory_mask": self._mask(tgt, memory_mask, memory_key_padding_mask),
            "causal": tgt_is_causal and tgt_mask is None,
        }
        return self._turned(self.decoder(self._turned(tgt), self._turned(memory), **masks))

    def _turned(self, x: Tensor) -> Tensor:
        """Batch first, or back."""
        if x.ndim != 3:
            raise ValueError(f"expected three dimensions, got {tuple(x.shape)}: a single sequence is a batch of one")
        return x if self.batch_first else x.transpose(0, 1)

    def _mask(self, x: Tensor, pairs: Tensor | None, keys: Tensor | None) -> Tensor | None:
        return keep_mask(pairs, keys, self.num_heads, x.dtype)


_ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}
_LAYER = {  # torch's option -> ours, torch's default
    "d_model": ("dim", 512),
    "nhead": ("num_heads", 8),
    "dim_feedforward": ("hidden", 2048),
    "dropout": ("dropout", 0.1),
    "layer_norm_eps": ("norm_eps", 1e-5),
}


def _transformer(
    encoder: int | None, decoder: int | None, final_norm: bool, batch_first: bool, **options: Any
) -> TorchTransformer:
    """An encoder, a decoder or both: None for none, 0 for a bare layer, else a stack of so many."""

    def build(depth: int | None, cross: bool) -> Block | Stack | None:
        if not depth:
            return None if depth is None else Block(cross=cross, **options)
        norm = nn.LayerNorm(options["dim"], options["norm_eps"]) if final_norm else None
        return Stack((Block(cross=cross, **options) for _ in range(depth)), norm)

    return TorchTransformer(build(encoder, False), build(decoder, True), options["num_heads"], batch_first)


def _arguments(config: Config, cls: str) -> dict[str, Any]:
    for nested in ("encoder_layer", "decoder_layer", "layer"):
        config = {**config, **(config.get(nested) or {})}
    activation = config.get("activation", "relu")
    if activation not in _ACTIVATIONS:
        raise UnsupportedError(f"activation={activation!r} is none of {', '.join(_ACTIVATIONS)}")
    options = {ours: config.get(theirs, default) for theirs, (ours, default) in _LAYER.items()}
    whole, depth = cls == "Transformer", config.get("num_layers", 6) if not cls.endswith("Layer") else 0
    return {
        **options,
        "activation": _ACTIVATIONS[activation],
        "placement": "pre" if config.get("norm_first", False) else "post",
        "batch_first": config.get("batch_first", False),
        "final_norm": whole or bool(config.get("norm", config.get("final_norm", False))),
        "encoder": config.get("num_encoder_layers", 6) if whole else depth if "Encoder" in cls else None,
        "decoder": config.get("num_decoder_layers", 6) if whole else depth if "Decoder" in cls else None,
    }


def _weights(state: State, cls: str) -> State:
    part = "" if cls == "Transformer" else "encoder." if "Encoder" in cls else "decoder."
    rules = {
        r"^": part,
        r"\bself_attn\.": "self_attention.",
        r"\bmultihead_attn\.": "cross_attention.",
        r"\blinear1\b": "first",
        r"\blinear2\b": "second",
    }
    weights = renamed(attention_state(state), rules)
    weights = {re.sub(r"\bnorm(\d)\b", lambda m: f"norms.{int(m[1]) - 1}", name): t for name, t in weights.items()}
    missing = {name.removesuffix("weight") + "bias": t for name, t in weights.items() if name.endswith("weight")}
    return {name: t.new_zeros(len(t)) for name, t in missing.items()} | weights  # bias=False is a bias of zeros


_DECODER = ("tgt", "memory", "tgt_mask", "memory_mask", "tgt_key_padding_mask", "memory_key_padding_mask")
_PLACES = {  # the arguments of each forward, in order
    "TransformerEncoderLayer": ("src", "src_mask", "src_key_padding_mask"),
    "TransformerEncoder": ("src", "mask", "src_key_padding_mask", "src_mask"),
    "TransformerDecoderLayer": _DECODER,
    "TransformerDecoder": _DECODER,
    "Transformer": ("src", "tgt", "src_mask", "tgt_mask", "memory_mask", "src_key_padding_mask", *_DECODER[-2:]),
}


def _call(module: TorchTransformer, inputs: Inputs, call: Call, cls: str) -> Outputs:
    given = renamed(bind(inputs, call, *_PLACES[cls]), {"^mask$": "src_mask"})
    flags = {**call, **call.get("kwargs", {})}
    own = flags.get("is_causal", False)  # of a module with one stack
    causal = {f"{side}_is_causal": bool(flags.get(f"{side}_is_causal", own)) for side in ("src", "tgt")}
    return {"out": module(**given, **causal)}


def _importer(cls: str) -> Importer:
    arguments, weights = partial(_arguments, cls=cls), partial(_weights, cls=cls)
    return Importer(_transformer, arguments, partial(_call, cls=cls), weights)


IMPORTERS = {cls: _importer(cls) for cls in _PLACES}
