"""Cross attention, padded queries, packed documents and rows that see nothing, for every registered mechanism."""

import pytest
import torch
from torch.testing import assert_close

from regard.inspect.check import run_rule
from regard.registry import UnsupportedError
from tests.contract.cases import CASES, CORES, SEQUENCES

ACROSS = ("finite", "causality", "padding right", "padding left", "batch mates", "lengths", "empty rows", "gradients")
"""Rules that also hold between two sequences."""

CROSSING = [
    case for case in CASES if case.card.cross and case.card.data in ("sequence", "set") and case.sample.inputs is None
]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def documents(n):
    """Two batches of n tokens in documents of unequal length, one of a single token."""
    ids = torch.zeros(2, n, dtype=torch.long)
    ids[0, n // 3 :], ids[0, n // 3 + 1 :] = 1, 2
    ids[1, n // 2 :] = 7
    return ids


@each(CROSSING)
@pytest.mark.parametrize("rule", ACROSS)
def test_cross_attention(case, rule):
    module = case.build()
    if case.kind == "layer":
        x = torch.randn(2, 9, module.dim)
        inputs = {"x": x, "context": torch.randn(2, 14, module.dim)}
    else:
        q, k, v = case.inputs().values()
        inputs = {"q": q[:, :, :9], "k": k[:, :, :14], "v": v[:, :, :14]}
    row = run_rule(rule, case.subject(module, inputs))
    assert row.verdict != "FAIL", f"{row.numbers} {row.explanation}"


@each([case for case in SEQUENCES if not case.build().card.cross])
def test_a_context_is_refused(case):
    layer = case.build()
    x = torch.randn(2, 9, layer.dim)
    with pytest.raises(UnsupportedError, match="context"):
        layer(x, x)


@each(SEQUENCES)
def test_padding_may_hold_anything(case):
    layer = case.build()
    x, keep = torch.randn(2, 9, layer.dim), torch.arange(9) < torch.tensor([[9], [6]])
    expected = layer(x, key_mask=keep)
    y = layer(x.masked_fill(~keep[..., None], torch.nan), key_mask=keep)
    assert_close(y[keep], expected[keep])
    assert not y[~keep].any(), "masked queries give 0"


@each(SEQUENCES)
def test_documents_do_not_see_each_other(case):
    layer = case.build()
    x, ids = torch.randn(2, 16, layer.dim), documents(16)
    y = layer(x, segments=ids)
    for row in range(2):
        for document in ids[row].unique():
            inside = ids[row] == document
            assert_close(y[row, inside], layer(x[row : row + 1, inside])[0], rtol=1e-5, atol=1e-5)


@each([case for case in CORES if case.card.empty_rows == "zero"])
def test_a_query_that_sees_nothing_gives_zero_and_gets_no_gradient(case):
    core, (q, k, v) = case.build(), (value.requires_grad_() for value in case.inputs().values())
    keep = torch.ones(2, k.shape[2], dtype=torch.bool)
    keep[0] = False
    out = core(q, k, v, key_mask=keep)
    assert not out[0].any()
    for slope in torch.autograd.grad(out.square().sum() + out.sum(), (q, k, v)):
        assert not slope[0].any()
        assert slope.isfinite().all()
    if case.causal == "strict":
        keep[0, 2:] = True
        assert not core(q, k, v, key_mask=keep)[0, :, :2].any()


def zeros_like(out):
    """0 for what a core says; one with losses of its own says them too."""
    return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)


@each([case for case in SEQUENCES if case.card.empty_rows == "zero" and hasattr(case.build(), "core")])
def test_an_empty_sequence_gives_what_the_layer_makes_of_zero(case):
    layer = case.build()
    x, context = torch.randn(2, 9, layer.dim), torch.randn(2, 9, layer.dim)
    keep = torch.tensor([[True], [False]]).expand(2, 9)
    options = {"key_mask": keep, "query_mask": torch.ones(2, 9, dtype=torch.bool)}
    arguments = (x, context) if case.card.cross else (x,)
    y = layer(*arguments, **options)
    with layer.core.register_forward_hook(lambda core, inputs, out: zeros_like(out)):
        assert_close(y[1], layer(*arguments, **options)[1])
