import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models import Plug, ResNet, load_by_name, resnet
from regard.models.residual_blocks import Block, Bottleneck

TINY = {"depths": (2, 1, 1, 2), "widths": (4, 4, 8, 8), "num_classes": 5}
AXIAL = Plug(mechanism="axial", options={"num_heads": 2})


def forgetful(model):
    """Statistics and norms as after some training, so that each of them shows."""
    for name, tensor in model.state_dict().items():
        if "running_mean" in name or name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.3)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return model


# The network once more, from the names and shapes of its weights alone.


def norm(x, w, name):
    return F.batch_norm(x, *(w[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")))


def restated(w, x, stage_strides, dilations, stem):
    if stem == "small":
        x = F.relu(norm(F.conv2d(x, w["conv1.weight"], padding=1), w, "bn1"))
    else:
        if stem == "deep":
            x = F.relu(norm(F.conv2d(x, w["conv1.0.weight"], stride=2, padding=1), w, "conv1.1"))
            x = F.relu(norm(F.conv2d(x, w["conv1.3.weight"], padding=1), w, "conv1.4"))
            x = F.conv2d(x, w["conv1.6.weight"], padding=1)
        else:
            x = F.conv2d(x, w["conv1.weight"], stride=2, padding=3)
        x = F.max_pool2d(F.relu(norm(x, w, "bn1")), 3, 2, 1)
    for stage in range(4):
        block = 0
        while f"layer{stage + 1}.{block}.conv1.weight" in w:
            name = f"layer{stage + 1}.{block}"
            stride = 1 if block else stage_strides[stage]
            first = dilations[stage][1 if block else 0]
            last = dilations[stage][1]
            if f"{name}.conv3.weight" in w:
                y = F.relu(norm(F.conv2d(x, w[f"{name}.conv1.weight"]), w, f"{name}.bn1"))
                y = F.conv2d(y, w[f"{name}.conv2.weight"], stride=stride, padding=first, dilation=first)
                y = norm(F.conv2d(F.relu(norm(y, w, f"{name}.bn2")), w[f"{name}.conv3.weight"]), w, f"{name}.bn3")
            else:
                y = F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=first, dilation=first)
                y = F.conv2d(F.relu(norm(y, w, f"{name}.bn1")), w[f"{name}.conv2.weight"], padding=last, dilation=last)
                y = norm(y, w, f"{name}.bn2")
            if f"{name}.downsample.0.weight" in w:
                x = norm(F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride), w, f"{name}.downsample.1")
            x = F.relu(x + y)
            block += 1
    return F.linear(x.mean((2, 3)), w["fc.weight"], w["fc.bias"])


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize(
    ("stem", "output_stride", "strides", "dilations"),
    [
        ("imagenet", None, (1, 2, 2, 2), ((1, 1),) * 4),
        ("imagenet", 16, (1, 2, 2, 1), ((1, 1), (1, 1), (1, 1), (1, 2))),
        ("deep", 8, (1, 2, 1, 1), ((1, 1), (1, 1), (1, 2), (2, 4))),
        ("small", None, (1, 2, 2, 2), ((1, 1),) * 4),
    ],
)
def test_the_plain_network_is_the_published_one(block, stem, output_stride, strides, dilations):
    model = forgetful(ResNet(**TINY, block=block, stem=stem, output_stride=output_stride)).double().eval()
    x = torch.randn(2, 3, 67, 41, dtype=torch.float64)
    assert_close(model(x), restated(model.state_dict(), x, strides, dilations, stem), rtol=0, atol=1e-10)


def published_shapes(depths, bottleneck):
    """Names and shapes as torchvision documents them, conv by conv."""
    shapes = {"conv1.weight": (64, 3, 7, 7)}

    def add_norm(name, width):
        shapes.update({f"{name}.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    add_norm("bn1", 64)
    before = 64
    for stage, depth in enumerate(depths, 1):
        width = 32 * 2**stage
        out = 4 * width if bottleneck else width
        for block in range(depth):
            name = f"layer{stage}.{block}"
            kernels = [(width, before, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            if not bottleneck:
                kernels = [(width, before, 3, 3), (width, width, 3, 3)]
            for number, kernel in enumerate(kernels, 1):
                shapes[f"{name}.conv{number}.weight"] = kernel
                add_norm(f"{name}.bn{number}", kernel[0])
            if block == 0 and (before != out or stage > 1):
                shapes[f"{name}.downsample.0.weight"] = (out, before, 1, 1)
                add_norm(f"{name}.downsample.1", out)
            before = out
    return {**shapes, "fc.weight": (1000, before), "fc.bias": (1000,)}


@pytest.mark.parametrize(
    ("name", "depths", "parameters", "tensors"),
    [
        ("resnet18", (2, 2, 2, 2), 11_689_512, 62),
        ("resnet34", (3, 4, 6, 3), 21_797_672, 110),
        ("resnet50", (3, 4, 6, 3), 25_557_032, 161),
        ("resnet101", (3, 4, 23, 3), 44_549_160, 314),
    ],
)
def test_published_weights_fit_by_name(name, depths, parameters, tensors):
    model = resnet(name, device="meta")
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == published_shapes(depths, bottleneck=name not in ("resnet18", "resnet34"))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(list(model.parameters())) == tensors


def test_the_deep_stem_has_the_widths_of_timm():
    stem = ResNet((1, 1, 1, 1), stem="deep", device="meta").conv1
    assert {name: tuple(value.shape) for name, value in stem.named_parameters() if value.ndim > 1} == {
        "0.weight": (32, 3, 3, 3),
        "3.weight": (32, 32, 3, 3),
        "6.weight": (64, 32, 3, 3),
    }


@pytest.mark.parametrize("plugs", [(), (AXIAL,)], ids=["plain", "axial"])
@pytest.mark.parametrize("size", [(1, 1), (33, 7), (64, 64)])
def test_any_size_and_every_parameter_learns(plugs, size):
    model, told = ResNet(**TINY, plugs=plugs), torch.randn(2, 3, *size)
    maps, _ = model.stages(told)
    sides = [tuple(-(-side // stride) for side in size) for stride in (4, 8, 16, 32)]
    assert [tuple(x.shape) for x in maps] == [(2, w, *side) for w, side in zip(model.widths, sides, strict=True)]
    model(told).square().sum().backward()
    if size == (64, 64):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


SPATIAL = [
    Plug(mechanism="axial", options={"num_heads": 2}),
    Plug(mechanism="kronecker", options={"num_heads": 2}),
    Plug(mechanism="linear_transformer", options={"num_heads": 2}),
    Plug(mechanism="sasa", options={"num_heads": 2, "kernel": 3}),
    Plug(mechanism="halonet", options={"num_heads": 2, "block": 4, "halo": 1}),
    Plug(mechanism="lambda_networks", options={"num_heads": 2, "kernel": 3, "head_dim": 2}),
    Plug(mechanism="neighborhood", options={"num_heads": 2, "kernel": 3}),
]


@pytest.mark.parametrize("plug", SPATIAL, ids=lambda plug: plug.mechanism)
def test_what_stands_for_the_convolutions_keeps_the_sides_of_the_plain_network(plug):
    model, plain = ResNet(**TINY, plugs=[plug]), ResNet(**TINY)
    x = torch.randn(2, 3, 45, 31)
    assert [y.shape for y in model.stages(x)[0]] == [y.shape for y in plain.stages(x)[0]]
    kernels = [
        m.kernel_size for name, m in model.named_modules() if name.endswith("conv2") and hasattr(m, "kernel_size")
    ]
    assert kernels == []


@pytest.mark.parametrize("plug", SPATIAL, ids=lambda plug: plug.mechanism)
def test_the_gradient_of_a_single_image_in_training(plug):
    """Norms stand before and behind the mechanism: the slope along a direction, by differences."""
    block = Bottleneck(8, 4, 8, plugs=[plug]).double()
    x, step, weights = torch.randn(3, 1, 8, 5, 6, dtype=torch.float64).unbind()
    x.requires_grad_()
    (slope,) = torch.autograd.grad((block(x)[0] * weights).sum(), x)
    with torch.no_grad():
        above, below = ((block(x + sign * 1e-6 * step)[0] * weights).sum() for sign in (1, -1))
    assert_close((slope * step).sum(), (above - below) / 2e-6, rtol=1e-5, atol=1e-5)


def test_memory_format_and_dtypes():
    model = ResNet(**TINY, plugs=[AXIAL]).to(torch.bfloat16).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 48, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    for y in model.stages(x)[0]:
        assert y.dtype == torch.bfloat16
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert model(x).isfinite().all()


def test_where_a_mechanism_stands():
    """On the branch: before the shortcut is added. After: behind the last ReLU."""
    model = ResNet(
        **TINY,
        plugs=[
            Plug(mechanism="cbam", place="branch", stages=(1,), blocks=(1,)),
            Plug(mechanism="bam", place="after", stages=(1, 4), blocks=(-1,)),
        ],
    ).eval()
    found = {name: module.mechanism for name, module in model.named_modules() if hasattr(module, "mechanism")}
    assert found == {"layer1.1.branch.0": "cbam", "layer1.1.after.0": "bam", "layer4.1.after.0": "bam"}
    block, x = model.layer1[1], torch.randn(2, 16, 5, 6)
    branch = block.mix(x, None, {})
    gated = block.after[0](F.relu(block.branch[0](branch) + x))
    assert not torch.equal(gated, F.relu(branch + x))
    assert torch.equal(block(x)[0], gated)


def test_what_mechanisms_tell_is_found_under_their_path():
    plug = Plug(mechanism="routing", stages=(4,), blocks=(1,), options={"num_heads": 2, "window": 2})
    model = ResNet(**TINY, plugs=[plug])
    y, aux = model(torch.randn(2, 3, 64, 64), return_aux=True)
    assert y.shape == (2, 5)
    assert set(aux) == {"loss/layer4.1/conv2/commitment"}


def test_zero_init_makes_every_block_its_shortcut():
    model, x = ResNet(**TINY, zero_init=True).eval(), torch.randn(2, 16, 5, 6)
    assert torch.equal(model.layer1[1](x)[0], F.relu(x))
    assert not torch.equal(ResNet(**TINY).eval().layer1[1](x)[0], F.relu(x))


def test_convolutions_start_by_fan_out_and_mechanisms_by_themselves():
    torch.manual_seed(1)
    axial = Plug(mechanism="axial", stages=(4,), options={"num_heads": 8})
    model = ResNet((1, 1, 1, 1), plugs=[axial], widths=(4, 4, 128, 256), num_classes=2)
    assert model.layer3[0].conv2.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert model.layer4[0].conv2.axes[0].q_proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.03)


def test_loading_by_name_tells_what_did_not_fit():
    plain = ResNet(**TINY)
    model = ResNet(**{**TINY, "num_classes": 7}, plugs=[Plug(mechanism="axial", stages=(1,), options={"num_heads": 2})])
    weights = {name: value for name, value in plain.state_dict().items() if "num_batches" not in name}
    assert load_by_name(model, weights) == [
        "layer1.0.conv2 (axial) stays as drawn: the file has nothing for it",
        "layer1.1.conv2 (axial) stays as drawn: the file has nothing for it",
        "fc.weight stays as drawn: it is 5 x 32 in the file and 7 x 32 here",
        "fc.bias stays as drawn: it is 5 in the file and 7 here",
        "layer1.0.conv2.weight of the file is left: it has no place here",
        "layer1.1.conv2.weight of the file is left: it has no place here",
    ]
    assert torch.equal(model.layer4[1].conv2.weight, plain.layer4[1].conv2.weight)
    assert load_by_name(ResNet(**TINY), weights) == []
    with pytest.raises(ValueError, match=r"none of the 1 tensors fits: .*conv1.weight.*encoder.x"):
        load_by_name(model, {"encoder.x": torch.zeros(1)})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"block": "wide"}, "'wide' is neither"),
        ({"depths": (1, 1)}, r"depths=\(1, 1\)"),
        ({"stem": "large"}, "'large' is none of 'imagenet', 'deep', 'sasa', 'small'"),
        ({"output_stride": 4}, "output_stride=4: with this stem it is 32, 16 or 8"),
        ({"block": "basic", "mixed": 2}, "mixed=2 is for"),
        ({"block": "basic", "plugs": [AXIAL]}, "axial keeps 4 channels where 8 are to go out: use bottleneck"),
        ({"plugs": [AXIAL, AXIAL]}, "axial and axial cannot both stand in one place"),
        ({"plugs": [Plug(mechanism="axial", blocks=(1,))]}, r"stands nowhere in stage 2: blocks=\(1,\), and it has 1"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ValueError, match=match):
        ResNet(**{**TINY, **options})


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_refusals_of_images(shape):
    with pytest.raises(ValueError, match=r"images have shape .*, expected \(batch, 3, H, W\)"):
        ResNet(**TINY)(torch.zeros(shape))


def test_refusals_of_plugs():
    with pytest.raises(ValueError, match="place='before' is none of 'spatial', 'branch', 'after'"):
        Plug(mechanism="axial", place="before")
    with pytest.raises(ValueError, match=r"stages=\(0, 1\): name some of"):
        Plug(mechanism="axial", stages=(0, 1))
    with pytest.raises(TypeError, match="num_heads"):
        ResNet(**TINY, plugs=[Plug(mechanism="linear_transformer")])
    with pytest.raises(NotImplementedError, match="Block has no mix"):
        Block(4, 4, 1, ())(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="no ResNet is called 'resnet51': did you mean"):
        resnet("resnet51")
