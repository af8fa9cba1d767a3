"""COSNet: both sides, several references, sizes that differ, and what trains."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models import ResNet
from regard.models.cosnet import CoSegmentationHead, COSNet, DilatedPyramid


def network(**options):
    torch.manual_seed(0)
    return COSNet(ResNet((1, 1, 1, 1), widths=(4, 4, 8, 8), output_stride=8), dim=8, branch_width=4, **options)


def test_everything_trains():
    model = network(kind="symmetric")
    y, z = model(torch.randn(2, 3, 40, 56), torch.randn(2, 3, 40, 56))
    assert y.shape == z.shape == (2, 1, 40, 56)
    (y.square().sum() + z.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_one_call_of_the_encoder_sees_what_two_calls_see():
    model = network().eval()
    images, references = torch.randn(2, 3, 40, 40), torch.randn(2, 3, 40, 40)
    calls = []
    model.backbone.conv1.register_forward_hook(lambda module, given, out: calls.append(len(given[0])))
    y, z = model(images, references)
    assert calls == [4]
    own, others = model._encode(images), model._encode(references)
    for found, logits in zip((y, z), model.head(own, others), strict=True):
        expected = F.interpolate(logits, (40, 40), mode="bilinear", align_corners=False)
        assert_close(found, expected, rtol=1e-4, atol=1e-6)
    other = model(images, torch.randn(2, 3, 33, 48))
    assert calls[-2:] == [2, 2]
    assert other[1].shape == (2, 1, 33, 48)


def test_summaries_of_references_are_averaged_not_predictions():
    head = CoSegmentationHead(6).double().eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    x, references = torch.randn(2, 6, 4, 5, dtype=torch.float64), torch.randn(2, 3, 6, 3, 4, dtype=torch.float64)
    y, z = head(x, references)
    joined, others = zip(*(head.attention(x, references[:, r]) for r in range(3)), strict=True)
    predictions = sum(head.heads[0](one) for one in joined) / 3
    assert_close(y, head.heads[0](sum(joined) / 3), rtol=0, atol=1e-10)
    assert (y - predictions).abs().max() > 0.1
    assert_close(z, torch.stack([head.heads[1](other) for other in others], 1), rtol=0, atol=1e-10)


def test_the_pyramid_is_deeplabs():
    """Counts of the authors' ASPP(2048 -> 512 a branch -> 256)."""
    pyramid = DilatedPyramid(2048, 256, device="meta")
    branches = 2 * (2048 * 512 + 512) + 3 * (2048 * 9 * 512 + 512) + 5 * 2 * 512
    assert sum(p.numel() for p in pyramid.parameters()) == branches + 5 * 512 * 9 * 256 + 256 + 2 * 256 + 1
    head = CoSegmentationHead(256, gate_bias=False, device="meta")
    assert sum(p.numel() for p in head.parameters()) == 256**2 + 256 + 2 * (512 * 9 * 256 + 2 * 256 + 257)


def test_refusals():
    with pytest.raises(ValueError, match=r"references have shape \(1, 3, 32, 32\) beside 2 images"):
        network()(torch.randn(2, 3, 32, 32), torch.randn(1, 3, 32, 32))
