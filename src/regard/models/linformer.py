"""Linformer: RoBERTa whose keys and values are compressed to a few learned mixtures.

Wang et al. 2020, arXiv:2006.04768, sections 4 and 5.
"""

from typing import Any, Literal, cast

import torch

from regard.factory import core, create
from regard.layers import MultiHead
from regard.models.bert import BertEncoder

Share = Literal["none", "heads", "kv", "layers"]


class Linformer(BertEncoder):
    """Tokens in, one vector a token out; time and memory O(N rank).

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes.
        rank: mixtures of keys, the paper's k.
        share: which tables of mixtures are one: "none" = each head has its own e and f, "heads" = one e and one f a
            layer, "kv" = one table a layer, "layers" = one table in all, the paper's layerwise sharing.
        attn_drop: dropout on the weights over mixtures.
        options: those of :class:`regard.models.bert.BertEncoder`.

    Raises:
        ValueError: an unknown share, or more tokens than ``max_length``: the tables have no more columns.

    Example:
        >>> model = Linformer(99, 16, 2, 2, 64, rank=8, share="layers").eval()
        >>> model(torch.randint(99, (3, 50))).shape
        torch.Size([3, 50, 16])
    """

    def __init__(
        self,
        vocab_size: int = 50265,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        max_length: int = 512,
        *,
        rank: int = 128,
        share: Share = "layers",
        attn_drop: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        mixing: dict[str, Any] = {"max_length": max_length, "rank": rank, "share": "kv" if share == "layers" else share}

        def attention(number: int) -> MultiHead:
            layer = cast(MultiHead, create("linformer", dim=dim, num_heads=num_heads, **mixing, **factory))
            cast(Any, layer.core).attn_drop = attn_drop
            return layer

        super().__init__(vocab_size, dim, depth, max_length, attention, **options, **factory)
        if share == "layers":
            table = core("linformer", num_heads=num_heads, head_dim=dim // num_heads, **mixing, **factory)
            cast(Any, table).attn_drop = attn_drop
            for block in self.blocks:
                block.get_submodule("attention").core = table
