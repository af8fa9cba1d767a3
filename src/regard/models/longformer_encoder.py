"""Longformer: RoBERTa whose attention is a sliding window with global tokens.

Beltagy et al. 2020, arXiv:2004.05150, sections 3 and 5. Weights of transformers' ``LongformerModel`` (the published
longformer-base-4096 and -large-4096) are loaded by
``regard.authors.load("longformer", "LongformerModel", config, state_dict)``, with equal outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch

from regard.factory import create
from regard.models.bert import BertEncoder


class LongformerEncoder(BertEncoder):
    """Tokens in, one vector a token out; time and memory O(N window).

    ``forward`` also takes ``global_mask``, Bool (B, N), True for tokens that see all and are seen by all: a question, a
    separator.

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes; by default those of longformer-base-4096.
        window: keys to each side, one number or one for each layer (transformers' ``attention_window`` counts both).
        num_global: the first so many real tokens are global in addition to ``global_mask``.
        attn_drop: dropout on the weights.
        options: those of :class:`regard.models.bert.BertEncoder`.

    Raises:
        ValueError: a list of windows that has not one for each layer.

    Example:
        >>> model = LongformerEncoder(99, 16, 2, 2, 64, window=4).eval()
        >>> model(torch.randint(99, (3, 50)), global_mask=torch.arange(50).expand(3, -1) == 7).shape
        torch.Size([3, 50, 16])
    """

    def __init__(
        self,
        vocab_size: int = 50265,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        max_length: int = 4096,
        *,
        window: int | Sequence[int] = 256,
        num_global: int = 1,
        attn_drop: float = 0.1,
        position_offset: int = 2,
        norm_eps: float = 1e-5,
        num_types: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        windows = (window,) * depth if isinstance(window, int) else tuple(window)
        if len(windows) != depth:
            raise ValueError(f"{len(windows)} windows for depth={depth}: pass one, or one for each layer")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        shared: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "num_global": num_global, "attn_drop": attn_drop}
        super().__init__(
            vocab_size,
            dim,
            depth,
            max_length,
            lambda number: create("longformer", window=windows[number], **shared, **factory),
            position_offset=position_offset,
            norm_eps=norm_eps,
            num_types=num_types,
            **options,
            **factory,
        )
