"""Nystrom attention as layers with several heads, transformers and lucidrains, beside the authors' own code."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bert, bind, nystromformer, renamed
from regard.authors.nystromformer import Kernel, batch_norm, batch_norms, filters, through_landmarks
from regard.ops.convolution import token_convolution
from regard.registry import UnsupportedError


class Heads(nn.Module):
    """transformers' NystromformerSelfAttention: three projections around :class:`Kernel`, none after it.

    Args:
        dim: C.
        options: those of :class:`Kernel`.
    """

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.kernel = Kernel(num_heads, **options)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, N, C)."""
        q, k, v = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        return self.kernel(q, k, v, added, v).transpose(1, 2).flatten(2)


def _heads_arguments(config: Config) -> dict[str, Any]:
    if config.get("inv_coeff_init_option"):
        raise UnsupportedError("with inv_coeff_init_option their layer cannot be built: it reads an option as an item")
    return {
        "dim": config.get("hidden_size", 768),
        "num_heads": config.get("num_attention_heads", 12),
        "num_landmarks": config.get("num_landmarks", 64),
        "length": config.get("segment_means_seq_len", 64),
        "norm": batch_norm,
        "conv_kernel": config.get("conv_kernel_size", 65),
    }


def _heads_weights(state: State) -> State:
    return renamed(state, {r"^conv\.weight$": "kernel.conv"})


def _heads_call(module: Heads, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "hidden_states", "attention_mask")
    return {"out": module(given["hidden_states"], given.get("attention_mask"))}


class Padded(nn.Module):
    """lucidrains' NystromAttention: zeros stand before the sequence until its length divides.

    Args:
        dim: C.
        num_heads, head_dim: H and D.
        num_landmarks: m.
        iterations: of the pseudo-inverse.
        conv_kernel: the width of the filters; None: no convolution.
    """

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, num_landmarks: int, iterations: int, conv_kernel: int | None
    ) -> None:
        super().__init__()
        self.num_heads, self.num_landmarks, self.iterations = num_heads, num_landmarks, iterations
        self.to_qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, dim)
        self.conv = None if conv_kernel is None else filters(num_heads, conv_kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C)."""
        length = x.shape[1]
        x = F.pad(x, (0, 0, -length % self.num_landmarks, 0))
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = through_landmarks(q, k, v, self.num_landmarks, batch_norms, iterations=self.iterations)
        if self.conv is not None:
            out = out + token_convolution(v, self.conv.flatten(1))
        return self.to_out(out.transpose(1, 2).flatten(2)[:, -length:])


def _padded_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["dim"],
        "num_heads": config.get("heads", 8),
        "head_dim": config.get("dim_head", 64),
        "num_landmarks": config.get("num_landmarks", 256),
        "iterations": config.get("pinv_iterations", 6),
        "conv_kernel": config.get("residual_conv_kernel", 33) if config.get("residual", True) else None,
    }


def _padded_weights(state: State) -> State:
    return renamed(state, {r"^res_conv\.weight$": "conv", r"^to_out\.0": "to_out"})


def _padded_call(module: Padded, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "x", "mask")
    if "mask" in given:
        raise UnsupportedError("their masks leave uniform rows in the pseudo-inverse: use regard's own nystrom instead")
    return {"out": module(given["x"])}


def _layer_of(config: Config, number: int) -> Heads:
    return Heads(**_heads_arguments(config))


def _places(config: Config) -> tuple[int, int]:
    return 2, config.get("max_position_embeddings", 510)


_MODEL = bert.importer(_layer_of, _heads_weights, _places)
_LAYER = Importer(Heads, _heads_arguments, _heads_call, _heads_weights)
IMPORTERS = {
    **nystromformer.IMPORTERS,
    "transformers:*:NystromformerModel": _MODEL,
    "huggingface/transformers:*:NystromformerModel": _MODEL,
    "transformers:*:NystromformerSelfAttention": _LAYER,
    "huggingface/transformers:*:NystromformerSelfAttention": _LAYER,
    "*nystrom?attention:*NystromAttention": Importer(Padded, _padded_arguments, _padded_call, _padded_weights),
}
