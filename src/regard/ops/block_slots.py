"""One slot for every so many tokens: a strided convolution makes them, and queries look at those that are finished."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from regard.attention import attend
from regard.patterns import Causal


def convolve_blocks(
    tokens: Float[Tensor, "B M C"],
    weight: Float[Tensor, "Cout Cin f"],
    bias: Float[Tensor, " Cout"] | None,
    groups: int = 1,
) -> Float[Tensor, "B S Cout"]:
    """A convolution whose stride is its width f: each block of f tokens becomes one, the last filled up with zeros.

    Blocks do not overlap, so that it is one matrix product for each group of channels.

    Args:
        tokens: M of them, S = ceil(M / f).
        weight, bias: as torch.nn.Conv1d has them.
        groups: of channels that do not mix.

    Example:
        >>> tokens = torch.arange(5.0).reshape(1, 5, 1)
        >>> convolve_blocks(tokens, torch.tensor([[[1.0, 10.0]]]), None).flatten().tolist()
        [10.0, 32.0, 4.0]
    """
    width = weight.shape[-1]
    tokens = F.pad(tokens, (0, 0, 0, -tokens.shape[1] % width))
    slots = tokens.shape[1] // width
    table = weight.unflatten(0, (groups, -1)).permute(0, 3, 2, 1).flatten(1, 2)  # g (f c) c'
    blocks = tokens.unflatten(-1, (groups, -1)).unflatten(1, (slots, width))  # B S f g c
    blocks = blocks.permute(3, 0, 1, 2, 4).reshape(groups, len(tokens) * slots, table.shape[1])
    found = torch.bmm(blocks, table).unflatten(1, (len(tokens), slots)).permute(1, 2, 0, 3).flatten(2)
    return found if bias is None else found + bias


def attend_to_finished(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S Dv"],
    width: int,
    *,
    ahead: int = 0,
    start: int = 0,
    key_mask: Bool[Tensor, "B S"] | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    generator: Generator | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """Softmax attention of the query at position i to the slots 0 .. floor((i + ahead) / f), f = ``width``.

    Queries that see the same slots stand side by side as so many more heads, and what is left is causal attention of
    blocks to slots, for which there are fast kernels.

    Args:
        q: queries at the positions ``start``, ``start`` + 1, ...
        k, v: of all slots that the last query sees, or of more.
        width: f.
        ahead: 1 lets the last token of a block see the slot that the block has just become, if that is slot 1 + its
            number; 0 does not.
        key_mask: True for slots that take part.
        scale, dropout_p, generator: as in ``attend``.

    Example:
        >>> q, k, v = torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0], [1.0]]]])
        >>> attend_to_finished(q, k, v, 3, ahead=1).flatten().tolist()
        [0.0, 0.0, 0.5, 0.5]
    """
    heads, n = q.shape[1:3]
    first, before = divmod(start + ahead, width)
    rows = k.shape[2] - first  # the last ones are of queries that are not there
    q = F.pad(q, (0, 0, before, rows * width - before - n))
    q = q.unflatten(2, (rows, width)).transpose(2, 3).flatten(1, 2)  # (B, H f, rows, D)
    options: dict[str, Any] = {"key_mask": key_mask, "scale": scale, "dropout_p": dropout_p, "generator": generator}
    out = attend(q, k, v, Causal(), q_offset=first, enable_gqa=True, **options)
    return out.unflatten(1, (heads, width)).transpose(2, 3).flatten(2, 3)[:, :, before : before + n]
