import pytest
import torch
from torch.testing import assert_close

from regard.mechanisms.patterned.sparse_transformer import SparseTransformer, sparse_pattern
from regard.patterns import Blocks, from_blocks
from regard.patterns.layouts import fixed_layout
from regard.registry import UnsupportedError
from tests.samples import heads_first

N = 25


def sets(kind, l, c=1, *, window=None, group=0, causal=True):  # noqa: E741  the paper's letter
    """The paper's local and far set, as matrices."""
    i, j = torch.arange(N)[:, None], torch.arange(N)
    reach = l if window is None else window - 1
    if kind == "strided":
        local, far = (i - j).abs() <= reach, (i - j) % l == 0
    else:
        far = (j % l >= l - c * (group + 1)) & (j % l < l - c * group)
        local, far = i // l == j // l, far.expand(N, N)
    return (local & (j <= i), far & (j <= i)) if causal else (local, far)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{}, {"c": 3}, {"window": 5}, {"c": 2, "group": 1}])
@pytest.mark.parametrize("kind", ["strided", "fixed"])
def test_pairs(kind, options, causal):
    local, far = sets(kind, 6, causal=causal, **options)
    ours = {"columns": options.get("c", 1), "window": options.get("window"), "group": options.get("group", 0)}
    for part, expected in (("local", local), ("far", far), ("merged", local | far)):
        assert torch.equal(sparse_pattern(kind, part, stride=6, causal=causal, **ours).dense(N), expected)


def softmax(q, k, v, allowed, keep):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(~(allowed & keep[:, None, None]), -torch.inf).softmax(-1).nan_to_num(0.0) @ v


@pytest.mark.parametrize("kind", ["strided", "fixed"])
def test_heads_alternate_and_a_query_without_summaries_gives_zero(kind):
    q, k, v, keep = heads_first(N)
    out = SparseTransformer(kind, 6, 2, "heads", num_heads=3, causal=True)(q, k, v)
    local, far = sets(kind, 6, 2)
    assert_close(out, softmax(q, k, v, torch.stack([local, far, local]), keep), rtol=0, atol=1e-12)
    assert bool((out[:, 1, :4] == 0).all()) == (kind == "fixed")


def test_each_head_may_have_its_own_columns():
    q, k, v, keep = heads_first(N, heads=4)
    core = SparseTransformer("fixed", 6, 2, groups=3, num_heads=4, causal=True)
    allowed = torch.stack([torch.logical_or(*sets("fixed", 6, 2, group=head % 3)) for head in range(4)])
    assert_close(core(q, k, v), softmax(q, k, v, allowed, keep), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pattern", [Blocks(4), from_blocks(fixed_layout(7, local=2), 4)])
def test_any_pattern_takes_the_place_of_the_sets(pattern):
    q, k, v, keep = heads_first(N)
    core = SparseTransformer(pattern=pattern, causal=True)
    allowed = pattern.dense(N) & torch.ones(N, N, dtype=torch.bool).tril()
    assert_close(core(q, k, v), softmax(q, k, v, allowed, keep), rtol=0, atol=1e-12)


def test_blocks_count_from_the_first_real_token_and_stay_out_of_padding():
    core = SparseTransformer("fixed", 4, 1, causal=True)
    q, k, v, _ = heads_first(13)
    mask = torch.arange(13).expand(2, 13) >= torch.tensor([[3], [5]])
    out = core(q, k, v, key_mask=mask)
    for b, start in ((0, 3), (1, 5)):
        assert_close(out[b, :, start:], core(*(x[b : b + 1, :, start:] for x in (q, k, v)))[0], rtol=0, atol=1e-12)
        assert not out[b, :, :start].any()


@pytest.mark.parametrize("options", [{}, {"kind": "strided", "how": "heads"}, {"groups": 2}])
@pytest.mark.parametrize("static", [None, 20])
def test_a_stream_of_pieces_is_the_whole(options, static):
    core = SparseTransformer(**{"stride": 4, "columns": 1, "num_heads": 3, "causal": True, **options})
    q, k, v, _ = heads_first(14)
    memory, outs = core.memory(2, 3, 4, 4, dtype=torch.float64, static=static), []
    for q_piece, k_piece, v_piece in zip(*(x.split([4, 1, 1, 8], 2) for x in (q, k, v)), strict=True):
        out, memory = core.stream(q_piece, k_piece, v_piece, memory)
        outs.append(out)
    assert_close(torch.cat(outs, 2), core(q, k, v), rtol=0, atol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match=r"columns=32 of group 1 do not fit into a block of stride=48"):
        SparseTransformer(stride=48, groups=2, num_heads=2)
    with pytest.raises(ValueError, match=r"heads differ.*num_heads=None"):
        SparseTransformer(how="heads")
    with pytest.raises(ValueError, match=r"heads differ.*num_heads=3"):
        SparseTransformer(how=["local", "far"], num_heads=3)
    with pytest.raises(ValueError, match=r"how=\['near'\] is none of"):
        SparseTransformer(how="near")
    with pytest.raises(ValueError, match="kind='dilated' is neither"):
        SparseTransformer("dilated")
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        SparseTransformer().memory(1, 3, 4, 4)
