import pytest
import torch
from torch import nn
from torch.testing import assert_close

from regard.models.transformer_2017 import AnnotatedNorm, Block, Transformer, sinusoids


def small(**options):
    options = {"dim": 16, "num_heads": 4, "depth": 2, "hidden": 24, **options}
    return Transformer(14, **options).double().eval()


def test_sinusoids_are_interleaved():
    table = sinusoids(torch.arange(50), 6)
    for position, feature in ((0, 0), (7, 2), (49, 4)):
        angle = torch.tensor(position / 10000 ** (feature / 6))
        assert_close(table[position, feature : feature + 2], torch.stack([angle.sin(), angle.cos()]), rtol=0, atol=1e-6)
    assert sinusoids(torch.arange(3), 5).shape == (3, 5)


def test_the_annotated_norm_uses_the_unbiased_deviation_with_eps_outside_the_root():
    x, norm = torch.randn(3, 8).double(), AnnotatedNorm(8, eps=0.1).double()
    deviation = ((x - x.mean(-1, keepdim=True)) ** 2).sum(-1, keepdim=True) / 7
    assert_close(norm(x), (x - x.mean(-1, keepdim=True)) / (deviation.sqrt() + 0.1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_norms_stand_where_they_are_placed(placement):
    model = small(placement=placement)
    assert (model.encoder.norm is None) == (placement == "post")
    src, tgt = torch.randint(14, (2, 7)), torch.randint(14, (2, 5))
    memory = model.encode(src)
    assert_close(memory.mean(-1), torch.zeros(2, 7).double(), rtol=0, atol=1e-12)  # each ends with a norm
    assert model(src, tgt).shape == (2, 5, 14)


def test_no_target_sees_a_later_one_and_padding_changes_nothing():
    model, src, tgt = small(), torch.randint(14, (1, 6)), torch.randint(14, (1, 5))
    y, changed = model(src, tgt), tgt.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 14
    other = model(src, changed)
    assert_close(other[:, :3], y[:, :3], rtol=0, atol=1e-12)
    assert not torch.allclose(other[:, 3:], y[:, 3:])
    for side in ("left", "right"):
        pads = (2, 0) if side == "left" else (0, 2)
        src_mask, tgt_mask = (nn.functional.pad(torch.ones_like(t), pads) > 0 for t in (src, tgt))
        padded = model(*(nn.functional.pad(t, pads) for t in (src, tgt)), src_mask=src_mask, tgt_mask=tgt_mask)
        assert_close(padded[tgt_mask], y[0], rtol=0, atol=1e-12)


def test_a_mask_of_pairs_replaces_causality():
    model, src, tgt = small(), torch.randint(14, (1, 6)), torch.randint(14, (1, 5))
    causal = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    assert_close(model(src, tgt, tgt_mask=causal), model(src, tgt), rtol=0, atol=1e-12)
    assert not torch.allclose(model(src, tgt, tgt_mask=causal | True), model(src, tgt))


def test_one_matrix_is_shared_unless_the_target_has_its_own_words():
    shared, separate = small(), small(target_vocab_size=11)
    assert (
        sum(p.numel() for p in separate.parameters()) - sum(p.numel() for p in shared.parameters()) == 2 * 11 * 16 + 11
    )
    assert separate(torch.randint(14, (1, 4)), torch.randint(11, (1, 3))).shape == (1, 3, 11)


def test_the_base_model_has_the_papers_number_of_parameters():
    with torch.device("meta"):
        count = sum(p.numel() for p in Transformer(37000).parameters())
    assert 62e6 < count < 66e6


@pytest.mark.parametrize("options", [{}, {"placement": "pre"}, {"norm": "annotated"}, {"target_vocab_size": 11}])
def test_token_by_token_as_at_once(options):
    model, src, tgt = small(**options), torch.randint(14, (3, 6)), torch.randint(11, (3, 5))
    for mask in (None, torch.arange(6) < torch.tensor([[6], [2], [4]])):
        memory, found = model.begin(src, mask), []
        for tokens in tgt.unbind(1):
            logits, memory = model.step(tokens, memory)
            found.append(logits)
        assert_close(torch.stack(found, 1), model(src, tgt, src_mask=mask), rtol=0, atol=1e-12)


def test_the_source_is_read_once():
    model, src = small(), torch.randint(14, (1, 6))
    before = model.begin(src)
    _, after = model.step(torch.tensor([1]), before)
    assert all(a.cross.key is b.cross.key for a, b in zip(after.layers, before.layers, strict=True))
    assert [layer.own.key.shape[2] for layer in before.layers] == [0, 0]  # the memory from before stays as it was


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_alignments_are_the_weights_of_the_cross_attention(placement):
    model, src, tgt = small(placement=placement), torch.randint(14, (2, 6)), torch.randint(14, (2, 5))
    src_mask, tgt_mask = torch.arange(6) < torch.tensor([[6], [3]]), torch.arange(5) < torch.tensor([[5], [4]])
    seen = []
    for layer in model.decoder.layers:
        layer.cross_attention.q_proj.register_forward_hook(lambda *call: seen.append(call[2]))
        layer.cross_attention.k_proj.register_forward_hook(lambda *call: seen.append(call[2]))
    _ = model(src, tgt, src_mask=src_mask, tgt_mask=tgt_mask)
    for number in (0, 1):
        q, k = (side.unflatten(-1, (4, 4)).transpose(1, 2) for side in seen[2 * number : 2 * number + 2])
        scores = (q @ k.mT / 2).masked_fill(~src_mask[:, None, None], -torch.inf)
        found = model.align(src, tgt, src_mask=src_mask, tgt_mask=tgt_mask, layer=number)
        assert_close(found, scores.softmax(-1).mean(1), rtol=0, atol=1e-12)
    assert torch.equal(found, model.align(src, tgt, src_mask=src_mask, tgt_mask=tgt_mask))  # the last by default
    with pytest.raises(ValueError, match="layer=2: the decoder has 2"):
        model.align(src, tgt, layer=2)


def test_refusals():
    with pytest.raises(ValueError, match="norm='batch' is neither"):
        small(norm="batch")
    with pytest.raises(ValueError, match="needs the encoder's output"):
        Block(8, 2, 16, cross=True)(torch.randn(1, 3, 8))
    with pytest.raises(ValueError, match="build it with cross=True"):
        Block(8, 2, 16).begin(torch.randn(1, 3, 8))
