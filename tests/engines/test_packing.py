"""A problem survives its way through an operator, and what was planned for it is found again."""

import torch

import regard
from regard import patterns
from regard.engines.packing import pack, read, unpack
from regard.engines.tiles import plan_of
from regard.patterns import Causal, Segments, Window
from regard.scores import Bias, Relative, SoftCap


def problem(pattern, **options):
    q = torch.randn(2, 3, 1, 6, 4)
    terms = options.pop("terms", ())
    names = ("key_mask", "attn_mask", "seed")
    key_mask, attn_mask, seed = (options.get(name) for name in names)
    spec, tensors = pack(pattern.spec, pattern.tensors, key_mask, attn_mask, terms, seed)
    return unpack(q, q, q, tensors, spec, None, None, 0.0), spec


def test_everything_arrives():
    ids, key_mask = torch.arange(6) // 3, torch.rand(3, 6) < 0.5
    attn_mask, table, seed = torch.randn(6, 6), torch.randn(1, 5), torch.tensor(7)
    terms = (SoftCap(3.0), Bias(table, Relative(2)))
    found, spec = problem(Segments(ids) & Causal(), key_mask=key_mask, attn_mask=attn_mask, terms=terms, seed=seed)
    assert read(spec).terms == (("SoftCap(3.0)", 0), ("Bias(Relative(2))", 1))
    assert found.query.shape == (6, 1, 6, 4)
    assert torch.equal(found.pattern.dense(6), (Segments(ids) & Causal()).dense(6))
    assert torch.equal(found.key_mask.rows(), key_mask.repeat(2, 1))  # shared over the first leading dimension
    assert found.key_mask.tensor.shape == (3, 6)
    assert found.attn_mask.index is None
    assert torch.equal(found.attn_mask.tensor, attn_mask[None, None])
    assert found.term_tensors()[0] is table
    assert found.seed is seed
    assert (found.q_offset, found.scale) == (0, 0.5)


def test_plans_are_found_again():
    ids = torch.arange(6) // 3
    for pattern in (Window(2), Segments(ids)):
        first, second = (problem(pattern)[0] for _ in range(2))
        assert first.pattern is second.pattern
        assert plan_of(first) is plan_of(second)


def test_a_pattern_that_changes_in_place_is_planned_anew():
    q = torch.randn(1, 1, 6, 4)
    ids = torch.arange(6) // 3
    pattern = Segments(ids)
    regard.attend(q, q, q, pattern)
    ids.zero_()
    torch.testing.assert_close(regard.attend(q, q, q, pattern), regard.attend(q, q, q))


def test_few_patterns_with_tensors_are_held():
    from regard.engines import packing

    for number in range(40):
        problem(patterns.from_mask(torch.ones(6, 6, dtype=torch.bool).tril(number)))
    assert len(packing._held) <= 16


def test_a_pattern_whose_tensor_is_written_to_is_read_again():
    ids = torch.zeros(80, dtype=torch.long)
    pattern, q = Segments(ids), torch.randn(1, 2, 80, 8)
    before = regard.attend(q, q, q, pattern, engine="tiles")
    ids[30:] = 1
    after = regard.attend(q, q, q, pattern, engine="tiles")
    torch.testing.assert_close(after[:, :, :30], regard.attend(*[q[:, :, :30]] * 3))
    assert not torch.allclose(before, after)
