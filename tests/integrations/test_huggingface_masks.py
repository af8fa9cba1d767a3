import pytest
import torch

from regard.integrations.huggingface.masks import FAR, DescribedMask, describe_mask, pattern_of
from regard.patterns import Causal, Full, Window

masking = pytest.importorskip("transformers.masking_utils")

LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9]).bool()
SLIDING, NEAR = masking.sliding_window_causal_mask_function(4), masking.sliding_window_bidirectional_mask_function(2)
CHUNKED = masking.chunked_causal_mask_function(4, torch.tensor([3, 0]))


def own(batch, head, query, key):
    return (query + key) % 3 != 0


MIXED = masking.or_masks(masking.and_masks(masking.causal_mask_function, NEAR), masking.sliding_window_overlay(3))


@pytest.mark.parametrize(
    ("function", "pattern"),
    [
        (masking.causal_mask_function, Causal()),
        (masking.bidirectional_mask_function, Full()),
        (SLIDING, Window(3, FAR) & Causal()),
        (NEAR, Window(2) & Full()),
        (MIXED, Causal() & Window(2) & Full() | Window(2, FAR)),
        (CHUNKED, None),
        (own, None),
        (masking.or_masks(masking.causal_mask_function, own), None),
    ],
)
def test_their_own_functions_have_patterns(function, pattern):
    assert pattern_of(function) == pattern


@pytest.mark.parametrize("padding", [None, LEFT, LEFT.flip(1)], ids=["none", "left", "right"])
@pytest.mark.parametrize("function", [masking.causal_mask_function, SLIDING, NEAR, MIXED, CHUNKED, own])
@pytest.mark.parametrize("place", [(9, 9, 0, 0), (2, 9, 7, 0), (3, 5, 6, 4), (4, 12, 2, 0)])
def test_draws_what_they_draw(function, padding, place):
    queries, keys, q_offset, kv_offset = place
    sizes = {"batch_size": 2, "q_length": queries, "kv_length": keys, "q_offset": q_offset, "kv_offset": kv_offset}
    options = {**sizes, "mask_function": function, "attention_mask": padding}
    ours = describe_mask(**options, device="cpu", dtype=torch.float32, allow_is_causal_skip=True)
    assert isinstance(ours, DescribedMask)
    assert (ours.dense is None) == (function not in (CHUNKED, own))
    theirs = masking.sdpa_mask(**options, allow_is_causal_skip=False)
    assert ours.shape == (2, 1, queries, keys)
    assert ours.dtype == torch.bool
    assert type(ours & True) is torch.Tensor
    assert (ours & True).equal(theirs.expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    "look",
    [
        lambda mask: mask[:, :, :, :5],
        lambda mask: torch.where(mask, 0.0, -1.0),
        lambda mask: torch.cat([mask, mask], -1),
        lambda mask: ~mask,
        lambda mask: mask.to(torch.float32),
        lambda mask: mask.expand(-1, 4, -1, -1),
        lambda mask: mask.all(),
    ],
)
def test_whoever_looks_sees_an_ordinary_mask(look):
    mask = describe_mask(2, 9, 9, attention_mask=LEFT)
    seen = look(mask)
    assert type(seen) is torch.Tensor
    assert seen.equal(look(mask.draw()))


@pytest.mark.parametrize("copy", [lambda x: x.detach(), lambda x: x.clone(), lambda x: x.to("cpu", copy=True)])
@pytest.mark.parametrize("function", [SLIDING, own])
def test_copies_stay_descriptions(copy, function):
    mask = describe_mask(2, 3, 5, 6, 4, function, LEFT)
    copied = copy(mask)
    assert isinstance(copied, DescribedMask)
    assert copied.starts.equal(mask.starts)
    assert copied.draw().equal(mask.draw())
    assert type(mask.to(torch.float32)) is torch.Tensor
    assert describe_mask(2, 3, 5).to("meta").device.type == "meta"


def test_says_what_it_is():
    assert repr(describe_mask(2, 9, 9, attention_mask=LEFT)) == "DescribedMask([2, 1, 9, 9], Causal() and padding)"
    assert repr(describe_mask(2, 9, 9, mask_function=own)) == "DescribedMask([2, 1, 9, 9], Full() and a dense mask)"


def test_nothing_of_the_size_of_the_mask_is_made():
    long = 1 << 20
    mask = describe_mask(1, long, long, mask_function=SLIDING, attention_mask=torch.arange(long)[None] > 4)
    assert mask.dense is None
    assert mask.starts.tolist() == [5]


def test_a_mask_that_was_made_before_is_kept():
    mask = describe_mask(2, 9, 9)
    assert describe_mask(2, 9, 9, attention_mask=mask) is mask
