"""Every engine on a CUDA device, where there is one: the numbers of the dense oracle on the CPU."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.patterns import (
    BigBird,
    Causal,
    CrissCross,
    Full,
    Global,
    ListedBlocks,
    Neighborhood,
    Segments,
    Strided,
    Window,
    from_blocks,
    from_mask,
)
from regard.scores import Bias, Relative, Slope, SoftCap

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

N, HEADS, WIDTH = 240, 2, 64
PATTERNS = {
    "full": lambda: Full(),
    "causal": lambda: Causal(),
    "window": lambda: Causal() & (Window(30) | Global(2)),
    "strided": lambda: Causal() & (Window(15) | Strided(16)),
    "bigbird": lambda: BigBird(16, 3, 2, 2),
    "grid": lambda: CrissCross((15, 16)) | Neighborhood((15, 16), 5),
    "listed": lambda: ListedBlocks(16, torch.randint(15, (HEADS, 15, 2)), 0, 0) | Window(3),
    "positions": lambda: Global([3, 77]) | Window(3),
    "marks": lambda: Global(torch.rand(N) < 0.02) | Window(3),
    "segments": lambda: Segments(torch.arange(N) // 50),
    "layout": lambda: from_blocks(torch.rand(HEADS, 15, 15) < 0.5, 16),
    "mask": lambda: from_mask(torch.rand(N, N) < 0.5),
}
"""Some hold tensors, which lie on the CPU while queries and keys do not."""


def numbers(place, engine, pattern, **options):
    """out, lse and the gradients of q, k and v."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, HEADS, N, WIDTH, generator=generator).to(place).requires_grad_() for _ in "qkv"]
    weight = torch.randn(2, HEADS, N, WIDTH, generator=generator).to(place)
    given = {name: value.to(place) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    out, lse = regard.attend(*leaves, pattern, engine=engine, return_lse=True, **given)
    return [t.detach().cpu() for t in (out, lse, *torch.autograd.grad((out * weight).sum(), leaves))]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("engine", ["auto", "flex", "tiles", "dense"])
def test_patterns(name, engine):
    torch.use_deterministic_algorithms(False)
    pattern = PATTERNS[name]()
    key_mask = torch.rand(2, N) < 0.8
    assert_close(
        numbers("cuda", engine, pattern, key_mask=key_mask),
        numbers("cpu", "dense", pattern, key_mask=key_mask),
        rtol=0,
        atol=2e-4,
    )


@pytest.mark.parametrize("engine", ["flex", "tiles"])
def test_score_terms(engine):
    torch.use_deterministic_algorithms(False)
    table = torch.randn(HEADS, 9)

    def terms(place):
        return [Bias(table.to(place), Relative(4)), Slope(torch.tensor([0.1, 0.2]).to(place)), SoftCap(5.0)]

    pattern = Causal() & Window(50)
    found = numbers("cuda", engine, pattern, score=terms("cuda"))
    assert_close(found, numbers("cpu", "dense", pattern, score=terms("cpu")), rtol=0, atol=2e-4)
