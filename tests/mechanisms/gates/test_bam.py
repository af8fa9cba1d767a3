"""BAM by its equations in float64, masks in training, start, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.mechanisms.gates.bam import BAM


def drawn(layer):
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.3, 1.5) if "norm" in name else torch.nn.init.normal_(tensor, std=0.3)
    return layer.double().eval()


def normed(x, norm):
    if norm is None:
        return x
    shape = (-1, *[1] * (x.ndim - 2))
    mean, var, weight, bias = (t.view(shape) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def equations(layer, x, mask):
    """One map after the other, each pixel of the last layers by itself."""
    out = []
    channel, spatial, real = layer.channel, layer.spatial, mask[:, None]
    for b in range(len(x)):
        mean = torch.stack([plane[mask[b]].mean() for plane in x[b]])[None]
        m_c = channel.second(normed(channel.first(mean), channel.norm).clamp(min=0))
        m_c = normed(m_c, channel.last_norm)[0]
        hidden = torch.einsum("hc,cij->hij", spatial.reduce.weight, x[b]) + spatial.reduce.bias[:, None, None]
        hidden = normed(hidden[None], spatial.norm).clamp(min=0)
        for conv, norm in zip(spatial.convs, spatial.norms, strict=True):
            seen = (hidden * real[b]).nan_to_num()
            d = conv.dilation[0]
            hidden = normed(F.conv2d(F.pad(seen, (d,) * 4), conv.weight, conv.bias, dilation=d), norm).clamp(min=0)
        m_s = normed(F.conv2d(hidden, spatial.last.weight, spatial.last.bias), spatial.last_norm)[0, 0]
        planes = [
            x[b, c] * (1 + torch.sigmoid(m_c[c] * m_s if layer.combine == "product" else m_c[c] + m_s))
            for c in range(x.shape[1])
        ]
        out.append(torch.stack(planes) * real[b])
    return torch.stack(out)


@pytest.mark.parametrize("combine", ["sum", "product"])
@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(combine, last_norm, masked):
    layer = drawn(BAM(6, 2, dilation=2, depth=3 if masked else 1, combine=combine, last_norm=last_norm))
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    mask = torch.rand(2, 5, 4) < (0.6 if masked else 2.0)
    mask[:, 1, 1] = True
    x = x.masked_fill(~mask[:, None], 0.0)
    found = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask if masked else None)
    assert_close(found, equations(layer, x, mask), rtol=0, atol=1e-12)


def test_padding_is_in_no_statistic_of_training():
    """Neither pixels nor whole maps."""
    layer, alone = BAM(4, 2).train(), BAM(4, 2).train()
    alone.load_state_dict(layer.state_dict())
    x = torch.randn(3, 4, 5, 6)
    mask = torch.zeros(3, 5, 6, dtype=torch.bool)
    mask[:2, :4, :3] = True
    y = layer(x.masked_fill(~mask[:, None], torch.nan), key_mask=mask)
    assert_close(y[:2, :, :4, :3], alone(x[:2, :, :4, :3]))
    assert not y[2].any()
    for name, buffer in alone.named_buffers():
        assert_close(dict(layer.named_buffers())[name], buffer, msg=name)


def test_the_published_size():
    """C h + h + 2 h + h C + C of one branch; C h + h + 2 h, twice 9 h^2 + h + 2 h, h + 1 of the other."""
    layer = BAM(64, last_norm=False)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 64 * 4 + 12 + 64 + 64 * 4 + 12 + 2 * (144 + 12) + 5
    assert sum(p.numel() for p in BAM(64).parameters()) == sum(p.numel() for p in layer.parameters()) + 2 * 65


def test_refusals():
    with pytest.raises(ValueError, match="combine='mean'"):
        BAM(8, combine="mean")
    with pytest.raises(ValueError, match="reduction=0"):
        BAM(8, reduction=0)
    with pytest.raises(ValueError, match=r"shape \(1, 1\) .* train with two maps or more"):
        BAM(8).train()(torch.randn(1, 8, 3, 3))
    assert BAM(8).eval()(torch.randn(1, 8, 3, 3)).isfinite().all()
