"""Slots of blocks: the convolution is torch's, and who sees what is what the words say."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.ops.block_slots import attend_to_finished, convolve_blocks


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_convolution_is_torchs(groups, bias):
    conv = torch.nn.Conv1d(6, 9, 4, stride=4, groups=groups, bias=bias).double()
    tokens = torch.randn(2, 10, 6, dtype=torch.float64)
    expected = conv(F.pad(tokens, (0, 0, 0, 2)).mT).mT
    assert_close(convolve_blocks(tokens, conv.weight, conv.bias, groups), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(("n", "start"), [(7, 0), (6, 0), (1, 0), (1, 5), (4, 3), (5, 7)])
def test_every_query_sees_the_finished_slots(n, start, ahead):
    slots = 1 + (start + n) // 3
    q, (k, v) = torch.randn(2, 2, n, 4), torch.randn(2, 2, 2, slots, 4)
    mask = torch.rand(2, slots) < 0.7
    out = attend_to_finished(q, k, v, 3, ahead=ahead, start=start, key_mask=mask, scale=0.3)
    for r in range(n):
        seen = mask & (torch.arange(slots) <= (start + r + ahead) // 3)
        for b in range(2):
            scores = 0.3 * q[b, :, r, None] @ k[b][:, seen[b]].mT
            row = scores.softmax(-1) @ v[b][:, seen[b]] if seen[b].any() else torch.zeros(2, 1, 4)
            assert_close(out[b, :, r], row[:, 0])
