"""Streaming of attention that looks ahead as far as the end of its chunk, and back over a few chunks.

Chen et al. 2020, arXiv:2010.11395, section 3.2. As a whole it is the mechanism "local" over blocks::

    create("local", window=w, form="blocks", look_backward=h, look_forward=0, ...)

so that state i sees the states of its chunk of w and of the h chunks before it. The layers above add nothing ahead: a
chunk of the top layer is known with the same chunk of the input, after w states at most.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.attention import attend
from regard.layers import MultiHead
from regard.memory import LayerMemory, RollingWindow
from regard.registry import UnsupportedError


def chunk_options(mechanism: str, chunk: int, history: int, causal: bool) -> dict[str, Any]:
    """What :func:`regard.create` needs to make the mechanism see chunks.

    Raises:
        ValueError: sizes without meaning.
        UnsupportedError: another mechanism than "local", or a causal one.
    """
    if chunk < 1 or history < 0:
        raise ValueError(f"chunk={chunk} and history={history}: a chunk has a state at least, history none or more")
    if mechanism != "local":
        raise UnsupportedError(
            f'chunk={chunk} looks ahead within chunks, which "local" does and {mechanism!r} does not'
        )
    if causal:
        raise UnsupportedError(f"causal=True sees nothing ahead, chunk={chunk} does: choose one of them")
    return {"window": chunk, "form": "blocks", "look_backward": history, "look_forward": 0}


def chunk_memory(layer: MultiHead, batch: int, length: int) -> LayerMemory:
    """The memory of ``batch`` sequences of which nothing has been seen: room for the last ``length`` states."""
    weight = layer.k_proj.weight
    sizes = (batch, layer.num_kv_heads, length, layer.head_dim, layer.head_dim)
    window = RollingWindow.start(*sizes, device=weight.device, dtype=weight.dtype)
    return LayerMemory(window, torch.zeros(batch, dtype=torch.long, device=weight.device))


def stream_chunk(
    layer: MultiHead, x: Float[Tensor, "B N C"], memory: LayerMemory
) -> tuple[Float[Tensor, "B N C"], LayerMemory]:
    """The next whole chunk, or the last one, which may be shorter: its states see each other and the memory.

    Args:
        layer: made with :func:`chunk_options`.
        x: the chunk.
        memory: from :func:`chunk_memory` or the chunk before.
    """
    places = memory.position[:, None] + torch.arange(x.shape[1], device=x.device)
    q, k, v = layer._project(x, x, places)
    keys, values, real, window = memory.core.append(k, v)
    out = attend(q, keys.to(q.dtype), values.to(q.dtype), key_mask=real, enable_gqa=True)
    return layer._join(out), LayerMemory(window, memory.position + x.shape[1])
