"""Correlation, meta fusion and residual attention as loops over pairs and pixels, in float64; sizes; refusals."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.pairs.cross_attention_fewshot import CrossAttentionFewshot
from regard.registry import UnsupportedError


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def layer_of(size, reduction, **options):
    layer = CrossAttentionFewshot(size, reduction, **options).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.normal_(layer.fusion.norm.running_mean)
    torch.nn.init.uniform_(layer.fusion.norm.running_var, 0.5, 2.0)
    return layer


def kernel(fusion, g):
    hidden, norm = fusion.squeeze.weight @ g + fusion.squeeze.bias, fusion.norm
    hidden = (hidden - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
    return fusion.expand.weight @ torch.relu(hidden) + fusion.expand.bias


def attended(layer, own, other):
    """A of the pixels of own (C, m), from the whole matrix R."""
    size = own.shape[1]
    r = own.new_zeros(size, size)
    for i in range(size):
        for j in range(size):
            r[i, j] = own[:, i] @ other[:, j] / max(1e-12, own[:, i].norm()) / max(1e-12, other[:, j].norm())
    w = kernel(layer.fusion, r.mean(0))
    a = torch.stack([(w * row).mean() if layer.reduce == "mean" else w @ row for row in r])
    return 1 + torch.softmax(a / layer.temperature, 0)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize(("sides", "reduction"), [((2, 3), 2), ((1, 1), 6), ((4, 1), 1)])
def test_matches_the_equations(sides, reduction, reduce):
    size = sides[0] * sides[1]
    layer = layer_of(size, reduction, reduce=reduce, temperature=0.3)
    prototypes, queries = random(2, 3, 5, *sides), random(2, 4, 5, *sides)
    prototypes[0, 0, :, 0, 0] = 0  # a pixel without direction
    of_classes, of_queries = layer(prototypes, queries)
    assert of_classes.shape == of_queries.shape == (2, 4, 3, 5, *sides)
    for b, q, k in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(3)).tolist():
        p, s = prototypes[b, k].flatten(1), queries[b, q].flatten(1)
        assert_close(of_classes[b, q, k].flatten(1), p * attended(layer, p, s), rtol=0, atol=1e-10)
        assert_close(of_queries[b, q, k].flatten(1), s * attended(layer, s, p), rtol=0, atol=1e-10)


def test_defaults_are_the_authors():
    layer = CrossAttentionFewshot()
    assert (layer.size, layer.reduce, layer.temperature) == (36, "mean", 0.025)
    assert sum(p.numel() for p in layer.parameters()) == 36 * 6 + 6 * 36 + 42 + 12
    assert 0.9 < layer.fusion.squeeze.weight.std() / (2 / 6) ** 0.5 < 1.1
    assert 0.9 < layer.fusion.expand.weight.std() / (2 / 36) ** 0.5 < 1.1


def test_in_training_the_norm_sees_all_pairs():
    layer = CrossAttentionFewshot(4, 2).double().train()
    prototypes, queries = random(2, 3, 5, 2, 2), random(2, 4, 5, 2, 2)
    seen = []
    layer.fusion.norm.register_forward_hook(lambda module, given, out: seen.append(out.flatten(0, -2)))
    layer(prototypes, queries)
    for values in seen:
        assert values.shape == (24, 2)
        assert_close(values.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-10)
    assert int(layer.fusion.norm.num_batches_tracked) == 2  # once for each side, as in the authors' code


def test_no_class_sees_another():
    layer, prototypes, queries = layer_of(6, 2), random(1, 3, 5, 2, 3), random(1, 4, 5, 2, 3)
    alone = layer(prototypes[:, 1:2], queries[:, 2:3])
    for some, one in zip(layer(prototypes, queries), alone, strict=True):
        assert_close(some[:, 2:3, 1:2], one, rtol=0, atol=1e-12)


def test_half_precision_finds_the_same_pixels():
    layer = layer_of(6, 2, temperature=1.0).float()
    prototypes, queries = torch.randn(1, 3, 64, 2, 3), torch.randn(1, 4, 64, 2, 3)
    prototypes[0, 0, :, 0, 0] = 0
    expected, found = (layer.to(t).weights(prototypes.to(t), queries.to(t)) for t in (torch.float32, torch.float16))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float16
        assert_close(one.float(), other, rtol=0, atol=1e-2)


def test_refusals():
    layer, maps = CrossAttentionFewshot(6, 2), torch.randn(2, 3, 5, 2, 3)
    with pytest.raises(ValueError, match="the maps have 8 pixels, but this layer was built with size=6"):
        layer(torch.randn(2, 3, 5, 2, 4), torch.randn(2, 3, 5, 2, 4))
    with pytest.raises(ValueError, match=r"queries have shape \(2, 5, 2, 3\), expected \(batch, number, C, h, w\)"):
        layer(maps, maps[:, 0])
    for wrong in (maps[:1], maps[:, :, :4], maps.mT):
        with pytest.raises(ValueError, match="only their numbers, the second axis, may differ"):
            layer(maps, wrong)
    with pytest.raises(ValueError, match="reduce='max' is neither"):
        CrossAttentionFewshot(6, reduce="max")
    with pytest.raises(ValueError, match=r"size=6, reduction=2, temperature=0: all must be positive"):
        CrossAttentionFewshot(6, 2, temperature=0)
    with pytest.raises(UnsupportedError, match="cross_attention_fewshot cannot be causal: pixels have no order"):
        regard.create("cross_attention_fewshot", causal=True)
