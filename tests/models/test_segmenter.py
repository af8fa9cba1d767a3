import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models import ResNet, Segmenter, load_by_name, segmentation_loss
from regard.models.segmentation_heads import HEADS

NAMES = (*HEADS, "pan")
AUXILIARY = {
    "fcn": {"auxiliary": 0.5},
    "psp": {"auxiliary": 0.4},
    "ccnet": {"auxiliary": 0.4},
    "interlaced": {"auxiliary": 0.4},
    "danet": {"position": 1.0, "channel": 1.0},
    "emanet": {},
    "efficient": {},
    "pan": {},
}


def segmenter(head, **options):
    backbone = ResNet((1, 1, 1, 1), widths=(4, 4, 8, 16), output_stride=16 if head == "pan" else 8)
    return Segmenter(backbone, head, 5, **options)


@pytest.mark.parametrize("head", NAMES)
def test_every_head_trains(head):
    model = segmenter(head)
    x, labels = torch.randn(2, 3, 70, 45), torch.randint(5, (2, 70, 45))
    logits, aux = model(x, return_aux=True)
    assert logits.shape == (2, 5, 70, 45)
    assert {name.removeprefix("logits/") for name in aux if name.startswith("logits/")} == set(AUXILIARY[head])
    assert model.auxiliary_weights == AUXILIARY[head]
    model.loss(logits, aux, labels).backward()
    still = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is None}
    # the authors' EM steps are not differentiated: what goes into them keeps its start
    assert still == ({"head.branches.attention.attention.in_proj"} if head == "emanet" else set())


@pytest.mark.parametrize("head", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (17, 64)])
def test_any_size_without_training(head, size):
    model = segmenter(head).eval()
    x = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)
    y = model(x)
    assert y.shape == (1, 5, *size)
    assert y.isfinite().all()
    assert_close(model(x, return_aux=True)[0], y)


@pytest.mark.parametrize("head", NAMES)
def test_bfloat16(head):
    model = segmenter(head).to(torch.bfloat16).eval()
    y = model(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


# Which step reads what: the convolutions once more from their weights, the attention as it is.


def convolved(x, steps, slope=0.0):
    x = F.conv2d(x, steps[0].weight, padding=steps[0].weight.shape[-1] // 2)
    mean, var, gain, bias = (t[:, None, None] for t in (*list(steps[1].buffers())[:2], steps[1].weight, steps[1].bias))
    return F.leaky_relu((x - mean) / (var + 1e-5).sqrt() * gain + bias, slope)


def classified(x, steps):
    return F.conv2d(x, steps[-1].weight, steps[-1].bias)


def restated(head, name, maps):
    """Logits by name, in evaluation."""
    x = maps[-1]
    if name == "danet":
        z = {}
        for which, steps in head.branches.items():
            z[which] = convolved(steps["attention"](convolved(x, steps["squeeze"])), steps["fuse"])
        sums = {"": classified(z["position"] + z["channel"], head.classes)}
        return sums | {which: classified(value, head.branch_classes[which]) for which, value in z.items()}
    steps = head.branches["attention"]
    out = {"auxiliary": head.auxiliary}
    if name == "fcn":
        z = convolved(x, steps["squeeze"])
    elif name == "psp":
        z = convolved(steps["attention"](x), steps["fuse"])
    elif name == "ccnet":
        z = convolved(steps["attention"](convolved(x, steps["squeeze"], 0.01)), steps["fuse"], 0.01)
        z = convolved(torch.cat((x, z), 1), head.join, 0.01)
    elif name == "emanet":
        z = convolved(steps["attention"](convolved(x, steps["squeeze"])), steps["fuse"])
    else:
        z = steps["attention"](convolved(x, steps["squeeze"]))
    logits = {"": classified(z, head.classes)}
    if head.auxiliary is not None:
        out = convolved(maps[-2], head.auxiliary[0], 0.01 if name == "ccnet" else 0.0)
        logits["auxiliary"] = classified(out, head.auxiliary)
    return logits


@pytest.mark.parametrize("name", HEADS)
def test_the_steps_of_each_head(name):
    model = segmenter(name).double().eval()
    for parameter in model.parameters():
        if parameter.ndim < 2:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.randn(2, 3, 48, 33, dtype=torch.float64)
    maps, _ = model.backbone.stages(x)
    logits, aux = model(x, return_aux=True)
    for which, expected in restated(model.head, name, maps).items():
        found = aux[f"logits/{which}"] if which else logits
        assert_close(found, F.interpolate(expected, (48, 33), mode="bilinear", align_corners=True), rtol=0, atol=1e-10)


def test_the_steps_of_pan():
    model = segmenter("pan").double().eval()
    maps, _ = model.backbone.stages(torch.randn(2, 3, 48, 33, dtype=torch.float64))
    assert [tuple(x.shape[2:]) for x in maps] == [(12, 9), (6, 5), (3, 3), (3, 3)]
    z = model.head.attention(maps[3])
    for upsample, low in zip(model.head.upsamples, (maps[2], maps[1], maps[0]), strict=True):
        z = upsample(low, z)
    expected = F.conv2d(z, model.head.classes.weight, model.head.classes.bias, padding=1)
    assert_close(model.head(maps)[0][""], expected)
    assert [u.dim_out for u in model.head.upsamples] == [32, 16, 16]


WIDTHS = {  # of the papers, where the last stage has 2048 channels: what goes out of each convolution, and the dropout
    "fcn": ({"squeeze": 512}, None, 256, 0.1),
    "psp": ({"fuse": 512}, None, 256, 0.1),
    "ccnet": ({"squeeze": 512, "fuse": 512}, 512, 512, 0.1),
    "emanet": ({"squeeze": 512, "fuse": 256}, None, None, 0.1),
    "interlaced": ({"squeeze": 512}, None, 512, 0.05),
    "efficient": ({"squeeze": 512}, None, None, 0.1),
    "danet": ({"squeeze": 512, "fuse": 512}, None, None, 0.1),
}


@pytest.mark.parametrize("name", HEADS)
def test_widths_of_the_papers(name):
    backbone = ResNet((1, 1, 1, 1), device="meta")
    head = Segmenter(backbone, name, 19, device="meta").head
    steps, join, auxiliary, dropout = WIDTHS[name]
    for branch in head.branches.values():
        assert {step: m[0].weight.shape[0] for step, m in branch.items() if step != "attention"} == steps
    assert (None if head.join is None else head.join[0].weight.shape[:2]) == (join and (join, 2048 + join))
    assert (None if head.auxiliary is None else head.auxiliary[0][0].weight.shape[:2]) == (
        auxiliary and (auxiliary, 1024)
    )
    assert head.classes[0].p == dropout


def test_the_loss():
    torch.manual_seed(2)
    model = segmenter("fcn")
    labels = torch.tensor([[[0, 255], [4, 1]], [[255, 255], [3, 3]]])
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.0])
    logits, auxiliary = torch.randn(2, 2, 5, 2, 2).unbind()

    def expected(y):
        kept = [(b, i, j) for b in range(2) for i in range(2) for j in range(2) if labels[b, i, j] != 255]
        losses = [(weights[labels[at]], -torch.log_softmax(y[at[0], :, at[1], at[2]], 0)[labels[at]]) for at in kept]
        return sum(w * loss for w, loss in losses) / sum(w for w, _ in losses)

    assert_close(segmentation_loss(logits, labels, class_weights=weights), expected(logits))
    aux = {"logits/auxiliary": auxiliary, "loss/head/x": torch.tensor(7.0), "metric/head/y": torch.tensor(100.0)}
    whole = model.loss(logits, aux, labels, class_weights=weights)
    assert_close(whole, expected(logits) + 0.5 * expected(auxiliary) + 7)
    nothing = segmentation_loss(logits.requires_grad_(), torch.full((2, 2, 2), 9), ignore=9)
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()


def test_weights_of_a_published_backbone_fit():
    plain = ResNet((1, 1, 1, 1), widths=(4, 4, 8, 16))
    model = segmenter("fcn")
    assert load_by_name(model.backbone, plain.state_dict()) == [
        "fc.weight of the file is left: it has no place here",
        "fc.bias of the file is left: it has no place here",
    ]
    assert torch.equal(model.backbone.layer4[0].conv2.weight, plain.layer4[0].conv2.weight)


def test_refusals():
    with pytest.raises(ValueError, match="head='deeplab' is none of 'fcn', 'psp'"):
        segmenter("deeplab")
    with pytest.raises(ValueError, match="has no logits/auxiliary: call the model with return_aux=True"):
        segmenter("fcn").loss(torch.zeros(1, 5, 1, 1), {}, torch.zeros(1, 1, 1, dtype=torch.long))
