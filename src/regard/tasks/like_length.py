"""Batches of examples whose lengths are alike, so that little is padded; drawn anew for each pass over the data."""

import torch
from jaxtyping import Num
from torch import Generator, Tensor


def batches_of_like_length(
    lengths: Num[Tensor, " S"], count: int, jitter: float, generator: Generator
) -> list[list[int]]:
    """Each example once, in ``count`` batches of about the same total length, in random order.

    Args:
        lengths: of the examples.
        count: of batches; where a long example left one empty, another stands twice.
        jitter: examples whose lengths differ by less may change places from one pass to the next.
        generator: of the pass.

    Example:
        >>> lengths = torch.tensor([1.0, 8.0, 2.0, 9.0])
        >>> sorted(batches_of_like_length(lengths, 2, 0.0, torch.Generator().manual_seed(0)))
        [[0, 2, 1], [3]]
    """
    order = (lengths + jitter * torch.rand(len(lengths), generator=generator)).argsort()
    middles = lengths[order].cumsum(0) - lengths[order] / 2
    place = (middles * count / lengths.sum()).long().clamp(max=count - 1)
    batches = [part.tolist() for part in order.split(torch.bincount(place).tolist()) if len(part)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[shuffled[number % len(batches)]] for number in range(count)]
