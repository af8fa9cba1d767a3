"""Templates: the order of the stack, attention over templates that exist, what masked ones hold."""

import pytest
import torch
from torch.testing import assert_close

from regard.models.template_pairs import TemplateAttention, TemplateEmbedding, TemplatePairStack
from tests.ops import evoformer_loops as loops


def stack(**options):
    return loops.redrawn(TemplatePairStack(2, 4, 2, 3, triangle_width=3, **options))


def test_a_stack_is_algorithm_16():
    module = stack().eval()
    _, pair, _, seen = loops.protein()
    expected = pair * seen[..., None]
    for block in module.blocks:
        for name in ("starting", "ending"):
            expected = expected + loops.triangle_attention(getattr(block, name), expected, seen)
        for name in ("outgoing", "incoming"):
            expected = expected + loops.triangle_multiplication(getattr(block, name), expected, seen)
        expected = expected + loops.transition(block.transition, expected)
    spoilt = pair.masked_fill(~seen[..., None], torch.nan)
    assert_close(module(spoilt[None], seen[None])[0], expected * seen[..., None], rtol=0, atol=1e-10)


def test_recomputation_draws_the_same():
    pair, found = loops.protein()[1][None], []
    for checkpoint in (False, True):
        module, x = stack(checkpoint=checkpoint, drop=0.5).train(), pair.clone().requires_grad_()
        y = module(x, generator=torch.Generator().manual_seed(3))
        found.append((y, *torch.autograd.grad(y.cos().sum(), [x, *module.parameters()])))
    for kept, again in zip(*found, strict=True):
        assert_close(again, kept, rtol=0, atol=1e-12)
    assert not torch.allclose(found[0][0], module.eval()(pair))


def test_attention_is_algorithm_17():
    part = loops.redrawn(TemplateAttention(4, 6, 2, 3))
    pair, templates = loops.protein()[1], torch.randn(3, 5, 5, 6, dtype=torch.float64)
    exists = torch.tensor([True, False, True])
    expected = torch.zeros_like(pair)
    for i in range(5):
        for j in range(5):
            bias = loops.no_bias(2, 1, 3)
            expected[i, j] = loops.gated(part.attention, pair[i, j][None], templates[:, i, j], bias, exists)[0]
    templates[1] = torch.nan
    assert_close(part(pair[None], templates[None], exists[None])[0], expected, rtol=0, atol=1e-12)


def test_without_templates_nothing_is_added():
    part = loops.redrawn(TemplateAttention(4, 6, 2, 3))
    pair, templates = torch.randn(2, 5, 5, 4).double(), torch.randn(2, 3, 5, 5, 6).double().requires_grad_()
    exists = torch.tensor([[False] * 3, [True] * 3])
    update = part(pair, templates, exists)
    assert not update[0].any()
    assert_close(update[1], part(pair, templates)[1], rtol=0, atol=1e-12)
    slopes = torch.autograd.grad(update.sum(), [templates, *part.parameters()])
    assert not slopes[0][0].any()
    assert all(slope.isfinite().all() for slope in slopes)


def test_embedding_is_its_parts():
    module = loops.redrawn(TemplateEmbedding(3, 4, 4, TemplatePairStack(1, 4, 2, 3, triangle_width=3), 2, 3)).eval()
    pair, features = torch.randn(2, 5, 5, 4).double(), torch.randn(2, 3, 5, 5, 3).double()
    exists, pairs = torch.tensor([[True, True, False], [True] * 3]), torch.rand(2, 5, 5) < 0.7
    each = [module.norm(module.stack(module.embed(features[:, t]) * pairs[..., None], pairs)) for t in range(3)]
    expected = module.attend(pair, torch.stack(each, 1), exists)
    spoilt = features.masked_fill(~pairs[:, None, ..., None], torch.nan)
    found = module(pair, spoilt, exists, pairs)
    assert_close(found, expected, rtol=0, atol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="num_blocks=0"):
        TemplatePairStack(0)
    with pytest.raises(ValueError, match=r"drop=1.0.*\[0, 1\)"):
        TemplatePairStack(drop=1.0)
