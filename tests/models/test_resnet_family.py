import pytest
import torch

from regard.models import resnet

# millions of parameters as the papers have them: SASA's table 1, HaloNet's 2, LambdaNetworks' 4 and 5, CBAM's 4,
# BAM's 3, GCNet's 6 (its non-local and its global context blocks)
PUBLISHED = {
    "sasa_resnet26": 10.3,
    "sasa_resnet38": 14.1,
    "sasa_resnet50": 18.0,
    **{f"halonet_h{n}": m for n, m in enumerate((5.5, 8.1, 9.4, 11.8, 19.1, 30.7, 43.4, 67.4))},
    "lambda_resnet50": 15.0,
    "lambda_resnet152": 35.0,
    "lambda_resnet200": 42.0,
    "cbam_resnet18": 11.78,
    "cbam_resnet34": 21.96,
    "cbam_resnet50": 28.09,
    "se_resnet50": 28.09,
    "bam_resnet50": 25.92,
    "gc_resnet50": 28.08,
    "nonlocal_resnet50": 27.66,
}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_parameters_of_the_papers(name, millions):
    model = resnet(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)


@pytest.mark.parametrize(
    "name",
    [
        "sasa_resnet26",
        "halonet_h0",
        "halonet_h7",
        "lambda_resnet50",
        "lambda_resnet152",
        "cbam_resnet18",
        "cbam_resnet50",
        "se_resnet50",
        "bam_resnet50",
        "gc_resnet50",
        "nonlocal_resnet50",
    ],
)
def test_one_of_each_kind_trains(name):
    """Narrow, with a block a stage, or as many as its mechanism needs."""
    depths = (1, 1, 2, 1) if name.startswith("nonlocal") else (1, 1, 1, 1)
    model = resnet(name, depths=depths, widths=(16, 16, 32, 32), num_classes=3)
    model(torch.randn(2, 3, 64, 48)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
