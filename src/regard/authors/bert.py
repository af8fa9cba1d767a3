"""Whole encoders of transformers that are BERT with another attention: names, sizes, and one attention for each."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention import attend
from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.layers import MultiHead
from regard.models.bert import Activation, BertEncoder
from regard.ops.masks import hide
from regard.registry import UnsupportedError

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class WithOutput(nn.Module):
    """Their self-attention, which ends before the output projection, and that projection.

    Args:
        inner: their self-attention, (B, N, C) -> (B, N, C).
        dim: C.
    """

    def __init__(self, inner: nn.Module, dim: int) -> None:
        super().__init__()
        self.inner, self.out_proj = inner, nn.Linear(dim, dim)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """(B, N, C)."""
        return self.out_proj(self.inner(x, **{name: value for name, value in options.items() if value is not None}))


class WholeBlocks(nn.Module):
    """Their BigBird's self-attention for any length: padded to whole blocks, and full attention for short sequences.

    Args:
        inner: the block-sparse layer, with projections ``q_proj``, ``k_proj`` and ``v_proj``.
        block: tokens a block.
        shortest: up to so many tokens they attend to all.
    """

    def __init__(self, inner: MultiHead, block: int, shortest: int) -> None:
        super().__init__()
        self.inner, self.block, self.shortest = inner, block, shortest

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, N, C)."""
        n = x.shape[1]
        if n <= self.shortest:
            q, k, v, *_ = self.inner._project(x, x, None)
            return attend(q, k, v, key_mask=key_mask).transpose(1, 2).flatten(2)
        extra = -n % self.block
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if key_mask is None else key_mask
        return self.inner(F.pad(x, (0, 0, 0, extra)), key_mask=F.pad(real, (0, extra)))[:, :n]


def encoder(attention: Callable[[Config, int], nn.Module]) -> Callable[..., BertEncoder]:
    """Builds an encoder from their configuration, whose layer ``number`` has ``attention(config, number)``."""

    def build(config: Config, position_offset: int, max_length: int) -> BertEncoder:
        activation = config.get("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise UnsupportedError(f"hidden_act={activation!r} is none of {', '.join(_ACTIVATIONS)}")
        if config.get("is_decoder"):
            raise UnsupportedError("is_decoder=True makes another network of it: only encoders are loaded")
        dim = config.get("hidden_size", 768)
        return BertEncoder(
            config["vocab_size"],
            dim,
            config.get("num_hidden_layers", 12),
            max_length,
            lambda number: WithOutput(attention(config, number), dim),
            mlp_dim=config.get("intermediate_size", 3072),
            num_types=config.get("type_vocab_size", 2),
            position_offset=position_offset,
            scale_embeddings=config.get("rescale_embeddings", False),
            activation=_ACTIVATIONS[activation],
            norm_eps=config.get("layer_norm_eps", 1e-12),
            dropout=config.get("hidden_dropout_prob", 0.1),
        )

    return build


def weights(inner: Callable[[State], State]) -> Callable[[State], State]:
    """Their names to ours; ``inner`` renames those of one self-attention. Heads, and prefixes of a head's model, go.

    A checkpoint without a pooler gets one of zeros.
    """

    def convert(state: State) -> State:
        state = renamed(
            state, {r"^(longformer|bert|nystromformer)\.": "", r"^(lm_head|cls|classifier|qa_outputs)\..*": ""}
        )
        attention = r"^encoder\.layer\.(\d+)\.attention\.self\."
        body = renamed(
            {name: tensor for name, tensor in state.items() if ".attention.self." not in name},
            {
                r"^embeddings\.(position|token_type)_ids$": "",
                r"^embeddings\.word_embeddings": "token_embedding",
                r"^embeddings\.position_embeddings": "position_embedding",
                r"^embeddings\.token_type_embeddings": "type_embedding",
                r"^embeddings\.LayerNorm": "norm",
                r"^pooler\.(dense\.)?": "pool.",
                r"^encoder\.layer\.(\d+)\.attention\.output\.dense": r"blocks.\1.attention.out_proj",
                r"^encoder\.layer\.(\d+)\.attention\.output\.LayerNorm": r"blocks.\1.norm1",
                r"^encoder\.layer\.(\d+)\.intermediate\.dense": r"blocks.\1.mlp.0",
                r"^encoder\.layer\.(\d+)\.output\.dense": r"blocks.\1.mlp.2",
                r"^encoder\.layer\.(\d+)\.output\.LayerNorm": r"blocks.\1.norm2",
            },
        )
        found = dict(body)
        parts = renamed(
            {name: tensor for name, tensor in state.items() if ".attention.self." in name}, {attention: r"\1/"}
        )
        for number in sorted({name.split("/")[0] for name in parts}):
            own = {name.split("/", 1)[1]: tensor for name, tensor in parts.items() if name.startswith(f"{number}/")}
            found |= {f"blocks.{number}.attention.inner.{name}": tensor for name, tensor in inner(own).items()}
        if "pool.weight" not in found:
            dim = found["norm.weight"]
            found |= {"pool.weight": dim.new_zeros(len(dim), len(dim)), "pool.bias": torch.zeros_like(dim)}
        return found

    return convert


def call(module: BertEncoder, inputs: Inputs, call: Call) -> Outputs:
    """Vectors of the real tokens, 0 for padding, and what their pooler makes of the first token."""
    names = ("input_ids", "attention_mask", "token_type_ids", "global_attention_mask")
    given = bind(inputs, call, *names)
    tokens, mask = given["input_ids"], given.get("attention_mask")
    real = None if mask is None else mask > 0
    special = given.get("global_attention_mask")
    options = {} if special is None else {"global_mask": special > 0}
    x = module(tokens, key_mask=real, token_types=given.get("token_type_ids"), **options)
    return {"out": hide(x, real), "pooler_output": module.pooled(x)}


def importer(
    attention: Callable[[Config, int], nn.Module],
    inner: Callable[[State], State],
    places: Callable[[Config], tuple[int, int]],
) -> Importer:
    """Of a whole encoder.

    Args:
        attention: their configuration and the number of a layer -> its self-attention.
        inner: renames the weights of one self-attention.
        places: their configuration -> (position offset, longest sequence).
    """

    def arguments(config: Config) -> dict[str, Any]:
        offset, longest = places(config)
        return {"config": config, "position_offset": offset, "max_length": longest}

    return Importer(encoder(attention), arguments, call, weights(inner))
