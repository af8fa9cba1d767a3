"""Cases like the recorded ones with other options: torch's loss, ESPnet's attention, searches, objectives."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors.replay import replay
from regard.registry import UnsupportedError
from tests.ops.ctc_paths import NEVER, added, drawn, posteriors, searched

TORCH = "pytorch/pytorch@2.13.0:torch.nn.functional.ctc_loss (CPU native)"
ESPNET = "espnet/espnet@202511 (PyPI wheel):espnet/nets/pytorch_backend/rnn/attentions.py:AttLoc"


def repeated(source, config, inputs, call=None, state=None, main=""):
    tensors = {f"in/{name}": t for name, t in inputs.items()}
    tensors |= {f"param/{name}": t for name, t in (state or {}).items()}
    meta = {"mechanism": "ctc", "source": source, "config": json.dumps(config), "call": json.dumps(call or {})}
    return replay(tensors, meta | {"main_output": main})


@pytest.mark.parametrize("source", [TORCH, "equations (float64)"])
@pytest.mark.parametrize("concatenated", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_losses_with_the_blank_last_empty_and_infeasible_targets(source, concatenated, zero):
    logits, frames = torch.randn(7, 3, 5, dtype=torch.float64), torch.tensor([7, 5, 3])
    targets, lengths = torch.tensor([[0, 1, 1], [0, 0, 0], [2, 2, 0]]), torch.tensor([3, 0, 2 if zero else 1])
    lengths[2] = 3 if zero else 2  # 2 2 0 needs four frames
    given = torch.cat([row[:n] for row, n in zip(targets, lengths, strict=True)]) if concatenated else targets
    inputs = {"logits": logits, "targets": given, "input_lengths": frames, "target_lengths": lengths}
    inputs["cotangent"] = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = repeated(source, {"blank": 4, "zero_infinity": zero}, inputs, main="loss_none")
    logits.requires_grad_()
    loss = F.ctc_loss(logits.log_softmax(-1), targets, frames, lengths, 4, "none", zero)
    (slope,) = torch.autograd.grad((loss * inputs["cotangent"]).sum(), logits)
    assert_close(found["out/loss_none"], loss.detach())
    assert_close(found["out/loss_mean"], (loss / lengths.clamp(min=1)).mean().detach())
    assert_close(found["grad/logits"], slope)
    assert (loss[2] == 0) == zero


def test_a_beam_with_bigrams_and_few_symbols():
    log_probs, table = drawn(2, 9, 4), drawn(5, 5, seed=2)
    config = {"beam": 4, "blank": 3, "topk": 3, "alpha": 0.6, "beta": 0.4}
    found = repeated("equations (float64)", config, {"log_probs": log_probs, "lm": table})
    options = {"blank": 3, "topk": 3, "alpha": 0.6, "beta": 0.4}
    for number, row in enumerate(log_probs):
        expected = searched(row, 4, row_of=lambda labels: table[labels[-1] if labels else -1].tolist(), **options)
        for place, (labels, score, *_) in enumerate(expected):
            length = found[f"out/{number}/lengths"][place]
            assert tuple(found[f"out/{number}/prefixes"][place, :length].tolist()) == labels
            assert found[f"out/{number}/score"][place].item() == pytest.approx(score)
    with pytest.raises(UnsupportedError, match="no table of bigrams"):
        repeated("equations", config, {"log_probs": log_probs})
    with pytest.raises(UnsupportedError, match="one row and column a class"):
        repeated("equations", config, {"log_probs": log_probs, "lm": table[:2]})


def test_prefix_scores():
    log_probs, prefixes = drawn(2, 4, 3), torch.tensor([[-1, -1], [1, -1], [2, 2]])
    found = repeated("equations", {"blank": 0, "eos": 0}, {"log_probs": log_probs, "prefixes": prefixes}, main="psi")
    for number, row in enumerate(log_probs):
        all_of_it = posteriors(row)
        for place, prefix in enumerate(((), (1,), (2, 2))):
            for label in (1, 2):
                psi = NEVER
                for labels, score in all_of_it.items():
                    psi = added(psi, score) if labels[: len(prefix) + 1] == (*prefix, label) else psi
                assert found["out/psi"][number, place, label].item() == pytest.approx(psi)
            assert found["out/psi"][number, place, 0].item() == pytest.approx(all_of_it[prefix])


def hybrid_state(p):
    names = {"embed.weight": (6, 4), "ctc_out.weight": (6, 5), "ctc_out.bias": (6,), "out.weight": (6, 7)}
    names |= {"out.bias": (6,), "cell.weight_ih": (28, 9), "cell.weight_hh": (28, 7), "cell.bias_ih": (28,)}
    names |= {"cell.bias_hh": (28,), "mlp_enc.weight": (3, 5), "mlp_enc.bias": (3,), "mlp_dec.weight": (3, 7)}
    names |= {"mlp_att.weight": (3, 2), "loc_conv.weight": (2, 1, 5), "gvec.weight": (1, 3), "gvec.bias": (1,)}
    return {name: p * torch.randn(*shape, dtype=torch.float64) for name, shape in names.items()}


CONFIG = {"att_dim": 3, "chans": 2, "dunits": 7, "emb": 4, "enc": 5, "filts": 2, "vocab": 6}


def test_label_smoothing_and_weights_of_the_hybrid():
    state, frames = hybrid_state(0.5), torch.randn(2, 8, 5, dtype=torch.float64)
    inputs = {"enc": frames, "targets": torch.tensor([[1, 2], [3, 0]]), "enc_lengths": torch.tensor([8, 6])}
    inputs["target_lengths"] = torch.tensor([2, 1])
    call = {"blank": 0, "sos": 5, "lambda": 0.2, "label_smoothing": 0.1, "scaling": 2.0}
    found = repeated("equations", CONFIG, inputs, call, state, main="loss")
    likely = found["out/decoder_logits"].log_softmax(-1)
    for number, labels in enumerate(([1, 2, 5], [3, 5])):
        rows = [likely[number, place] for place in range(len(labels))]
        expected = -sum(0.9 * row[label] + 0.1 * row.mean() for row, label in zip(rows, labels, strict=True))
        assert_close(found["out/attention"][number], expected)
    total = 0.2 * found["out/ctc"] + 0.8 * found["out/attention"]
    assert_close(found["out/loss"], total.mean())
    plain = repeated("equations", CONFIG, inputs, call | {"scaling": 1.0}, state, main="loss")
    assert not torch.allclose(plain["out/loss"], found["out/loss"])


def test_joint_decoding_is_by_score_and_holds_the_parts():
    state, frames = hybrid_state(0.8), torch.randn(2, 5, 5, dtype=torch.float64)
    call = {"beam": 3, "sos": 5, "lambda": 0.4, "maxlen": 4}
    found = repeated("equations", CONFIG, {"enc": frames, "enc_lengths": torch.tensor([5, 3])}, call, state)
    for number in range(2):
        score, ctc = found[f"out/{number}/score"], found[f"out/{number}/log_p_ctc"]
        assert_close(score, 0.4 * ctc + 0.6 * found[f"out/{number}/log_p_att"])
        assert score.tolist() == sorted(score.tolist(), reverse=True)
        assert found[f"out/{number}/prefixes"].shape == (3, int(max(found[f"out/{i}/lengths"].max() for i in (0, 1))))


def attention_state():
    shapes = {"mlp_enc.weight": (3, 5), "mlp_enc.bias": (3,), "mlp_dec.weight": (3, 4), "mlp_att.weight": (3, 2)}
    shapes |= {"loc_conv.weight": (2, 1, 1, 5), "gvec.weight": (1, 3), "gvec.bias": (1,)}
    return {name: torch.randn(*shape) for name, shape in shapes.items()}


def test_espnets_attention_from_given_weights_without_a_state_and_around_a_frame():
    config = {"eprojs": 5, "dunits": 4, "att_dim": 3, "aconv_chans": 2, "aconv_filts": 2, "han_mode": True}
    state, frames = attention_state(), torch.randn(1, 7, 5)
    before = torch.rand(1, 7).softmax(-1)
    given = {"enc": frames, "att_prev": before}
    call = {"enc_hs_len": [6], "scaling": 0.5, "last_attended_idx": 3}
    found = repeated(ESPNET, config, given, call, state, main="context")
    heard = F.conv2d(before[:, None, None], state["loc_conv.weight"], padding=(0, 2))[:, :, 0].mT
    inside = F.linear(frames, state["mlp_enc.weight"], state["mlp_enc.bias"]) + heard @ state["mlp_att.weight"].T
    energy = F.linear(inside.tanh(), state["gvec.weight"], state["gvec.bias"])[..., 0]
    place = torch.arange(7)
    weights = (0.5 * energy).masked_fill((place < 2) | (place >= 6), -math.inf).softmax(-1)
    assert_close(found["out/weights0"], weights)
    assert_close(found["out/context"], (weights[..., None] * frames).sum(1)[None])
    with pytest.raises(UnsupportedError, match="AttLoc has no option 'att_win'"):
        repeated(ESPNET, config | {"att_win": 5}, given, call, state, main="context")


def test_what_is_not_known_is_refused():
    with pytest.raises(UnsupportedError, match=r"temperature=2\.0 means nothing to us"):
        repeated("equations", {"beam": 2, "temperature": 2.0}, {"log_probs": drawn(1, 3, 3)})
    with pytest.raises(UnsupportedError, match="ctc cannot load"):
        repeated("somebody/else:file.py:Thing", {}, {"log_probs": drawn(1, 3, 3)})
