"""Nystromformer: BERT whose attention passes through the means of a few segments.

Xiong et al. 2021, arXiv:2102.03902, sections 3 and 4. Weights of transformers' ``NystromformerModel`` (the published
nystromformer-512 to -4096) are loaded by ``regard.authors.load("nystrom", "NystromformerModel", config, state_dict)``,
with equal outputs.
"""

from typing import Any

import torch

from regard.factory import create
from regard.models.bert import Activation, BertEncoder


class Nystromformer(BertEncoder):
    """Tokens in, one vector a token out; time and memory O(N landmarks).

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes; by default those of nystromformer-512.
        num_landmarks: segment means.
        iterations: of the pseudo-inverse.
        conv_kernel: the width of the depthwise convolution on the values; None: no convolution.
        options: those of :class:`regard.models.bert.BertEncoder`.

    Example:
        >>> model = Nystromformer(99, 16, 2, 2, 64, num_landmarks=8, conv_kernel=5).eval()
        >>> model(torch.randint(99, (3, 50))).shape
        torch.Size([3, 50, 16])
    """

    def __init__(
        self,
        vocab_size: int = 30000,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        max_length: int = 510,
        *,
        num_landmarks: int = 64,
        iterations: int = 6,
        conv_kernel: int | None = 65,
        activation: Activation = "gelu_tanh",
        norm_eps: float = 1e-5,
        position_offset: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        landmarks = {"num_landmarks": num_landmarks, "iterations": iterations, "conv_kernel": conv_kernel}
        super().__init__(
            vocab_size,
            dim,
            depth,
            max_length,
            lambda number: create("nystrom", dim=dim, num_heads=num_heads, **landmarks, **factory),
            activation=activation,
            norm_eps=norm_eps,
            position_offset=position_offset,
            **options,
            **factory,
        )
