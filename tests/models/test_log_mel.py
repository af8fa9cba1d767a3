import math

import pytest
import torch
from torch.testing import assert_close

from regard.models.frame_norm import DEVIATION, MEAN, PRIOR, SMALLEST
from regard.models.log_mel import LogMel, mel_filters
from regard.registry import UnsupportedError


def small(normalise="none", dtype=torch.float64, **options):
    return LogMel(1000, 5, window=0.02, hop=0.008, normalise=normalise, dtype=dtype, **options)


def sounds(samples=133, rows=2):
    return torch.randn(rows, samples, dtype=torch.float64)


def equations(waveform, rate, mels, size, hop, transform, floor):
    """Log-mels of one recording, sample by sample."""
    samples, rows = waveform.tolist(), []
    top = 2595 * math.log10(1 + rate / 2 / 700)
    corner = [700 * (10 ** (top * i / (mels + 1) / 2595) - 1) for i in range(mels + 2)]
    for start in range(0, len(samples), hop):
        powers = []
        for f in range(transform // 2 + 1):
            total = 0j
            for i in range(size):
                sample = samples[start + i] if start + i < len(samples) else 0.0
                hann = 0.5 - 0.5 * math.cos(2 * math.pi * i / size)
                angle = -2 * math.pi * f * i / transform
                total += hann * sample * complex(math.cos(angle), math.sin(angle))
            powers.append(abs(total) ** 2)
        row = []
        for left, middle, right in zip(corner, corner[1:], corner[2:], strict=False):
            heard = floor
            for f, power in enumerate(powers):
                hertz = f * rate / transform
                if left < hertz <= middle:
                    heard += power * (hertz - left) / (middle - left)
                elif middle < hertz < right:
                    heard += power * (right - hertz) / (right - middle)
            row.append(math.log(heard))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def test_matches_the_equations():
    front, x = small(), sounds()
    frames, mask = front(x)
    assert mask is None
    assert frames.shape == (2, 17, 5)
    assert front.frame_count(133) == 17
    expected = torch.stack([equations(row, 1000, 5, 20, 8, 32, 1e-6) for row in x])
    assert_close(frames, expected, rtol=0, atol=1e-9)


def test_a_tone_is_heard_where_it_is():
    time = torch.arange(8000) / 8000
    frames, _ = LogMel(8000, 40, normalise="none")((2 * math.pi * 1000 * time).sin()[None])
    corners = 700 * (10 ** (torch.linspace(0, 2595 * math.log10(1 + 4000 / 700), 42) / 2595) - 1)
    assert int(frames[0, 20].argmax()) == int((corners[1:-1] - 1000).abs().argmin())


@pytest.mark.parametrize(("rate", "mels"), [(8000, 128), (16000, 80), (8000, 80), (44100, 128)])
def test_no_filter_falls_between_two_bins(rate, mels):
    front = LogMel(rate, mels)
    assert front.filters.any(0).all()
    assert front.transform >= front.size
    assert not mel_filters(8000, 256, 128, 0, 4000).any(0).all()  # where the window alone would be too short


def test_each_recording_has_mean_0_and_variance_1_over_its_real_frames():
    front, x = small("utterance"), sounds()
    mask = torch.arange(133) < torch.tensor([[133], [50]])
    frames, real = front(x, mask)
    plain, _ = small()(x, mask)
    assert real.sum(1).tolist() == [17, 7]
    for row, count in enumerate((17, 7)):
        heard = plain[row, :count]
        variance = ((heard - heard.mean(0)) ** 2).mean(0)
        assert_close(frames[row, :count], (heard - heard.mean(0)) / (variance + SMALLEST).sqrt())
    one, _ = front(x[:, :5])
    assert_close(one, torch.zeros(2, 1, 5, dtype=torch.float64))  # a single frame is its own mean


def test_running_statistics_are_those_so_far():
    front, x = small("running"), sounds()
    frames, plain = front(x)[0], small()(x)[0]
    for t in (0, 1, 7, 16):
        prior = torch.tensor([MEAN - DEVIATION, MEAN + DEVIATION]).repeat(PRIOR // 2)[:, None].expand(-1, 5)
        heard = torch.cat((prior, plain[1, : t + 1]))
        variance = heard.var(0, correction=0)
        assert_close(frames[1, t], (plain[1, t] - heard.mean(0)) / (variance + SMALLEST).sqrt())


@pytest.mark.parametrize("normalise", ["utterance", "running", "global", "none"])
def test_padding_changes_nothing(normalise):
    front, x = small(normalise), sounds()
    padded = torch.full((2, 160), math.nan, dtype=torch.float64)
    padded[:, :133] = x
    frames, mask = front(padded, (torch.arange(160) < 133).expand(2, -1))
    assert mask.sum(1).tolist() == [17, 17]
    assert_close(frames[:, :17], front(x)[0], rtol=0, atol=1e-12)
    assert not frames[:, 17:].any()
    nothing, _ = front(padded, torch.zeros(2, 160, dtype=torch.bool))
    assert not nothing.any()


@pytest.mark.parametrize("normalise", ["running", "global", "none"])
@pytest.mark.parametrize("sizes", [(133,), (1,) * 133, (7, 0, 60, 13, 53), (19, 1, 113)])
def test_pieces_are_the_whole(normalise, sizes):
    front, x = small(normalise), sounds()
    memory, found = front.memory(2), []
    for piece in x.split(sizes, 1):
        frames, memory = front.stream(piece, memory)
        found.append(frames)
    assert memory.samples.shape[1] < front.size
    frames, memory = front.stream(x[:, :0], memory, last=True)
    assert_close(torch.cat((*found, frames), 1), front(x)[0], rtol=0, atol=1e-12)


def test_calibrated_frames_have_mean_0_and_variance_1():
    front, x = small("global"), sounds(400)
    mask = torch.arange(400) < torch.tensor([[400], [200]])
    front.calibrate(x, mask)
    frames, real = front(x, mask)
    assert_close(frames[real].mean(0), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9)
    assert_close(frames[real].var(0, correction=0), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-4)
    other = small("global")
    other.load_state_dict(front.state_dict())
    assert_close(other(x)[0], front(x)[0])


@pytest.mark.parametrize("normalise", ["utterance", "running"])
def test_gradients_reach_the_samples(normalise):
    front = small(normalise)
    assert torch.autograd.gradcheck(lambda x: front(x)[0], sounds(40, 1).requires_grad_())


def test_half_precision_hears_as_well():
    front = small("none", torch.float32)
    half = small("none", torch.float32).bfloat16()
    assert half.filters.dtype == half.norm.mean.dtype == torch.float32
    assert_close(half.filters, front.filters, rtol=0, atol=0)
    x = sounds().bfloat16()
    assert half(x)[0].dtype == torch.bfloat16
    assert_close(half(x)[0], front(x.float())[0].bfloat16(), rtol=0, atol=0)
    assert small("none", torch.float32).double().window.dtype == torch.float64
    expected = front(x.float())[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(front(x.float())[0], expected, rtol=0, atol=0)


def test_refusals():
    front, x = small("utterance"), sounds()
    with pytest.raises(TypeError, match=r"waveforms are torch.int16: pass floats"):
        front((x * 1000).to(torch.int16))
    with pytest.raises(ValueError, match=r"waveforms have shape \(2, 133, 1\): expected \(batch, samples\), mono"):
        front(x[..., None])
    with pytest.raises(ValueError, match="padding stands at the end"):
        front(x, (torch.arange(133) > 3).expand(2, -1))
    with pytest.raises(UnsupportedError, match="needs whole recordings"):
        front.stream(x, front.memory(2))
    with pytest.raises(ValueError, match="normalise='batch' is none of"):
        small("batch")
    with pytest.raises(ValueError, match=r"hop=0.05 and window=0.025 seconds at 16000 Hz"):
        LogMel(hop=0.05)
    with pytest.raises(ValueError, match=r"highest=9000.*<= 8000"):
        LogMel(highest=9000)
