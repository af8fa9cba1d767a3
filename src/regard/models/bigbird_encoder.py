"""BigBird: BERT whose attention is a window of blocks, global blocks and random ones.

Zaheer et al. 2020, arXiv:2007.14062, section 4 and appendix E. Weights of transformers' ``BigBirdModel`` (the published
bigbird-roberta-base and -large) are loaded by ``regard.authors.load("bigbird", "BigBirdModel", config, state_dict)``,
with the outputs that transformers gives in evaluation; ``{**config, "random_blocks": "legal"}`` loads the same weights
around this file's attention, where no block counts twice.
"""

from typing import Any

import torch

from regard.factory import create
from regard.models.bert import Activation, BertEncoder


class BigBirdEncoder(BertEncoder):
    """Tokens in, one vector a token out; time and memory O(N block).

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes; by default those of bigbird-roberta-base.
        block: tokens a block.
        random: random blocks for each block of queries; each layer draws its own.
        attn_drop: dropout on the weights; the authors' block-sparse code has none.
        options: those of :class:`regard.models.bert.BertEncoder`.

    Example:
        >>> BigBirdEncoder(99, 16, 2, 2, 64, block=4).eval()(torch.randint(99, (3, 50))).shape
        torch.Size([3, 50, 16])
    """

    def __init__(
        self,
        vocab_size: int = 50358,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        max_length: int = 4096,
        *,
        block: int = 64,
        random: int = 3,
        attn_drop: float = 0.0,
        activation: Activation = "gelu_tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        shared: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "max_length": max_length, "attn_drop": attn_drop}
        super().__init__(
            vocab_size,
            dim,
            depth,
            max_length,
            lambda number: create("bigbird", block=block, random=random, seed=number, **shared, **factory),
            activation=activation,
            **options,
            **factory,
        )
