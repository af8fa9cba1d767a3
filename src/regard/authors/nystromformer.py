"""mlpen/Nystromformer, the authors' code: text and LRA, its reorganised form, and T2T-ViT.

What it does otherwise than the paper: the pseudo-inverse starts from a norm taken over the whole batch, and padded
tokens stay in the landmarks. Except in T2T-ViT, a module takes the one length that it was built for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regard.attention import attend
from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.lowrank.nystrom import column_norm, landmark_weights, pseudo_inverse_times
from regard.ops.convolution import token_convolution
from regard.ops.landmarks import segment_means
from regard.registry import UnsupportedError

Norm = Callable[[Tensor], Tensor]


def batch_norm(a: Tensor) -> Tensor:
    """The largest sum of a column in the whole batch."""
    return a.sum(-2).amax().expand(1, 1, 1, 1)


def batch_norms(a: Tensor) -> Tensor:
    """The largest sum of a column in the whole batch, times that of a row."""
    return batch_norm(a) * a.sum(-1).amax()


def through_landmarks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_landmarks: int,
    norm: Norm,
    added: Tensor | None = None,
    iterations: int = 6,
) -> Tensor:
    """The product of the three softmaxes; ``added`` (B or 1, 1, 1, N) reaches the scores of the third alone."""
    q_marks, k_marks = (segment_means(x, num_landmarks)[0] for x in (q, k))
    a = landmark_weights(q_marks, k_marks)
    y = pseudo_inverse_times(a, attend(q_marks, k, v, attn_mask=added), iterations, norm(a))
    return attend(q, k_marks, y)


class Kernel(nn.Module):
    """Their NystromAttention, between the projections.

    Args:
        num_heads: H.
        num_landmarks: m.
        length: the one length N that it takes; where it is m, this is softmax attention.
        norm: of the start of the pseudo-inverse.
        conv_kernel: the width of the filters; None: no convolution.
    """

    def __init__(
        self, num_heads: int, num_landmarks: int, length: int, norm: Norm, conv_kernel: int | None = None
    ) -> None:
        super().__init__()
        if length % num_landmarks:
            raise UnsupportedError(f"a length of {length} is not divisible by num_landmarks={num_landmarks}")
        self.num_landmarks, self.length, self.norm = num_landmarks, length, norm
        self.conv = None if conv_kernel is None else filters(num_heads, conv_kernel)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, conv_values: Tensor) -> Tensor:
        """(B, H, N, D) each; ``added`` to the scores of softmaxes over keys, ``conv_values`` for the convolution."""
        if q.shape[-2] != self.length:
            raise UnsupportedError(f"{q.shape[-2]} tokens, but this module was built for {self.length}")
        if self.num_landmarks == self.length:
            out = attend(q, k, v, attn_mask=added)
        else:
            out = through_landmarks(q, k, v, self.num_landmarks, self.norm, added)
        return out if self.conv is None else out + token_convolution(conv_values, self.conv.flatten(1))


def filters(num_heads: int, width: int) -> nn.Parameter:
    """Room for their filters of the convolution."""
    if width % 2 == 0:
        raise UnsupportedError(f"a convolution of even width {width} changes the length, which their sum cannot take")
    return nn.Parameter(torch.empty(num_heads, 1, width, 1))


def conv_name(state: State) -> State:
    """Their filters under our name."""
    return renamed(state, {r"^conv\.weight$": "conv"})


# between the projections


def _text_norm(config: Config) -> Norm:
    """Their option for a start of each matrix on its own is looked for under another name than it is read from."""
    if "inv_coeff_init_option" not in config:
        return batch_norm
    if "inv_init_coeff_option" not in config:
        raise UnsupportedError("inv_coeff_init_option without inv_init_coeff_option is a KeyError in their code")
    return batch_norm if config["inv_init_coeff_option"] == "original" else column_norm


def _text_arguments(config: Config) -> dict[str, Any]:
    return _kernel_arguments(config, config["seq_len"], _text_norm(config))


def _reorganised_arguments(config: Config) -> dict[str, Any]:
    return _kernel_arguments(config, config["max_seq_len"], batch_norms)


def _kernel_arguments(config: Config, length: int, norm: Norm) -> dict[str, Any]:
    return {
        "num_heads": config["num_head"],
        "num_landmarks": config["num_landmarks"],
        "length": length,
        "norm": norm,
        "conv_kernel": config.get("conv_kernel_size"),
    }


def _kernel_call(module: Kernel, inputs: Inputs, call: Call) -> Outputs:
    given = bind({name.lower(): t for name, t in inputs.items()}, call, "q", "k", "v", "mask")
    q, k, v = (given[name] for name in "qkv")
    real = given["mask"].to(q.dtype)[:, None, :, None]
    added = 1e9 * real.mT
    added = added - added.amax(-1, keepdim=True)  # as theirs, but 0 where a whole sequence is padding
    return {"out": module(q * real, k * real, v, added, v * real)}


# T2T-ViT: a layer with one head


class TokenLayer(nn.Module):
    """v + proj(attention + convolution): T2T-ViT's NysAttention, which scales by dim instead of the head's width.

    Args:
        dim, in_dim: widths of the input and of the one head.
        num_landmarks: m.
        norm: of the start of the pseudo-inverse.
        qkv_bias: a bias on queries, keys and values.
        conv_kernel: the width of the filter; 0: no convolution.
        proj_drop: dropout on the projection.
    """

    def __init__(
        self,
        dim: int,
        in_dim: int,
        num_landmarks: int,
        norm: Norm,
        qkv_bias: bool = False,
        conv_kernel: int = 0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_landmarks, self.norm = num_landmarks, norm
        self.factor = (in_dim / dim) ** 0.5
        self.qkv = nn.Linear(dim, 3 * in_dim, bias=qkv_bias)
        self.proj, self.proj_drop = nn.Linear(in_dim, in_dim), nn.Dropout(proj_drop)
        self.conv = filters(1, conv_kernel) if conv_kernel else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, in_dim)."""
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        out = through_landmarks(q * self.factor, k, v, self.num_landmarks, self.norm)
        if self.conv is not None:
            out = out + token_convolution(v, self.conv.flatten(1))
        return (v + self.proj_drop(self.proj(out))).squeeze(1)


def _token_arguments(config: Config) -> dict[str, Any]:
    heads = config.get("num_heads", 8)
    if heads != 1:
        raise UnsupportedError(f"num_heads={heads}: their layer can only be built to run with one head")
    return {
        "dim": config["dim"],
        "in_dim": config["in_dim"],
        "num_landmarks": config.get("num_landmarks", 64),
        "norm": batch_norm if config.get("init_option", "exact") == "original" else column_norm,
        "qkv_bias": config.get("qkv_bias", False),
        "conv_kernel": max(0, config.get("kernel_size", 0)),
        "proj_drop": config.get("proj_drop", 0.0),
    }


def _token_call(module: TokenLayer, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


_TEXT = Importer(Kernel, _text_arguments, _kernel_call, conv_name)
IMPORTERS = {
    "mlpen/Nystromformer:code/*:NystromAttention": _TEXT,
    "mlpen/Nystromformer:reorganized_code/*:NystromAttention": Importer(
        Kernel, _reorganised_arguments, _kernel_call, conv_name
    ),
    "mlpen/Nystromformer:*:NystromAttention": _TEXT,
    "mlpen/Nystromformer:*:NysAttention": Importer(TokenLayer, _token_arguments, _token_call, conv_name),
}
