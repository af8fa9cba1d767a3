import copy

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.patterned.bigbird import BigBird, bigbird_pattern, lay_out
from regard.patterns import Pattern
from regard.registry import UnsupportedError
from tests.samples import heads_first

N, BLOCK = 29, 4


def seen(i, n, core, drawn):
    """The keys of query i among n tokens, by the table at the head of the file; ``drawn`` are its random blocks."""
    b, reach, last = core.block, core.window // 2, (n - 1) // core.block
    if core.form == "etc":
        if i < core.globals:
            return set(range(n if not core.causal else i + 1))
        own = (i - core.globals) // b
        blocks = [own + step for step in range(-reach, reach + 1)] + drawn
        keys = {core.globals + x * b + t for x in blocks if x >= 0 for t in range(b)} | set(range(core.globals))
    else:
        front = core.globals if core.causal else (core.globals + 1) // 2
        everywhere = {*range(front)} if core.causal else {*range(front), *range(last - core.globals // 2 + 1, last + 1)}
        own = i // b
        blocks = {*everywhere, *drawn, *(own + step for step in range(-reach, reach + 1))}
        blocks = range(last + 1) if own in everywhere else blocks
        keys = {x * b + t for x in blocks if x >= 0 for t in range(b)}
    return {j for j in keys if j < n and (j <= i or not core.causal)}


def equations(core, q, k, v):
    """Every query for itself."""
    out = torch.zeros_like(v)
    start = core.globals if core.form == "etc" else 0
    first = 0 if core.form == "etc" else core.globals if core.causal else (core.globals + 1) // 2
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        row = (i - start) // core.block - first
        rows = core.rand_blocks[h]
        drawn = [x for x in rows[row].tolist() if x >= 0] if 0 <= row < len(rows) else []
        keys = sorted(seen(i, q.shape[2], core, drawn))
        weights = (k[b, h, keys] @ q[b, h, i] / q.shape[-1] ** 0.5).softmax(0)
        out[b, h, i] = weights @ v[b, h, keys]
    return out


FORMS = [
    {},
    {"globals": 3, "window": 5, "random": 1},
    {"globals": 0, "window": 1},
    {"random": 0},
    {"globals": 4, "random": 2},
    {"form": "etc", "globals": 5},
    {"form": "etc", "globals": 0, "random": 1},
    {"causal": True},
    {"causal": True, "globals": 2, "random": 1},
    {"causal": True, "form": "etc", "globals": 3},
]


def build(**options):
    return BigBird(3, **{"block": BLOCK, "random": 2, "max_length": N, "seed": 0, **options})


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("n", [N, 14, 4, 1])
def test_matches_the_equations(options, n):
    core = build(**options)
    q, k, v, _ = heads_first(n)
    assert_close(core(q, k, v), equations(core, q, k, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("side", ["left", "right", "both", "holes"])
def test_padding_changes_nothing(options, side):
    """Neither where the last block is cut elsewhere, nor where there are fewer blocks than global ones."""
    core, (q, k, v, _) = build(**options), heads_first(N, batch=6)
    place, real = torch.arange(N), torch.tensor([29, 24, 13, 9, 4, 1])[:, None]
    keep = {
        "left": place >= N - real,
        "right": place < real,
        "both": (place >= (N - real) // 2) & (place < (N - real) // 2 + real),
        "holes": torch.rand(6, N, generator=torch.Generator().manual_seed(1)) < real / N,
    }[side]
    out = core(q, k, v, key_mask=keep)
    for b, rows in enumerate(keep):
        alone = core(*(x[b : b + 1, :, rows] for x in (q, k, v)))[0] if rows.any() else out[b, :, rows]
        assert_close(out[b, :, rows], alone, rtol=0, atol=1e-12)
        assert not out[b, :, ~rows].any()


def test_queries_of_their_own_mask():
    """A token that asks but is not asked keeps its place."""
    core, (q, k, v, _) = build(), heads_first(N)
    keys = torch.arange(N).expand(2, N) % 5 > 0
    out = core(q, k, v, key_mask=keys, query_mask=torch.ones_like(keys))
    scores = (q @ k.mT / 2).masked_fill(~(core.pattern.dense(N, heads=3) & keys[:, None, None]), -torch.inf)
    assert_close(out, scores.softmax(-1) @ v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("back", [1, 2, 3])
def test_every_token_has_a_slot_and_the_last_blocks_are_last(back):
    part = torch.rand(9, 22, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 9)[:, None]
    slots, rows, used = lay_out(part, 4, back)
    assert rows.shape == (9, 24)
    for b, tokens in enumerate(part):
        real = tokens.nonzero().flatten()
        assert torch.equal(rows[b, slots[b, real]], real)
        assert torch.equal(used[b].nonzero().flatten(), slots[b, real])
        tail = max(0, -(-len(real) // 4) - back) * 4
        assert torch.equal(slots[b, real[:tail]], torch.arange(tail))
        assert torch.equal((slots[b, real[tail:]] - 24) % 4, (real[tail:].argsort()) % 4)
        assert (slots[b, real[tail:]] >= 24 - 4 * back).all()


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("within", [None, 4])
def test_random_blocks_are_legal(options, within):
    core = build(**options, max_length=70, random_within=within)
    tokens = 70 - core.globals if core.form == "etc" else 70
    blocks, reach = -(-tokens // BLOCK), core.window // 2
    front, back = (0, 0) if core.form == "etc" else (core.globals, 0) if core.causal else (core.front, core.back)
    assert core.rand_blocks.shape == (3, blocks - front - back, core.random)
    for i in range(front, blocks - back):
        legal = {x for x in range(front, blocks - back) if abs(x - i) > reach}
        legal -= {blocks - 2} if front and back and i == 1 else {1} if front and back and i == blocks - 2 else set()
        legal &= set(range(i)) if core.causal else legal
        legal &= set(range(blocks if within is None else within))
        for head in core.rand_blocks[:, i - front].tolist():
            drawn = [x for x in head if x >= 0]
            assert len(set(drawn)) == len(drawn) == min(core.random, len(legal))
            assert set(drawn) <= legal


@pytest.mark.parametrize(("row", "legal"), [(1, [3, 4, 5, 6]), (4, [1, 2, 6, 7]), (7, [2, 3, 4, 5])])
def test_every_legal_block_is_drawn_about_as_often(row, legal):
    """Of blocks 0 to 8; by the authors' rule block 1 does not draw 7, nor block 7 draw 1."""
    core = BigBird(4000, block=1, random=2, max_length=9, seed=0)
    counts = core.rand_blocks[:, row - 1].flatten().bincount(minlength=9)
    assert counts[legal].sum() == 8000
    assert ((counts[legal] - 2000).abs() < 5 * (4000 * 0.25) ** 0.5).all()


def test_the_draw_is_the_same_in_training_and_evaluation_and_its_own_in_every_layer():
    torch.manual_seed(3)
    first, second = BigBird(3), BigBird(3)
    torch.manual_seed(3)
    again = BigBird(3)
    assert torch.equal(first.rand_blocks, again.rand_blocks)
    assert not torch.equal(first.rand_blocks, second.rand_blocks)
    assert torch.equal(BigBird(3, seed=5).rand_blocks, BigBird(3, seed=5).rand_blocks)
    assert not torch.equal(BigBird(3, seed=5).rand_blocks, BigBird(3, seed=6).rand_blocks)
    core, (q, k, v, _) = build(), heads_first(N)
    assert_close(core.train()(q, k, v), core.eval()(q, k, v), rtol=0, atol=0)


def test_a_plan_is_made_once_and_again_when_the_random_blocks_change(monkeypatch):
    plans, make = [], Pattern.plan
    monkeypatch.setattr(Pattern, "plan", lambda self, *a, **o: plans.append(self) or make(self, *a, **o))
    layer = regard.create("bigbird", dim=12, num_heads=3, block=BLOCK, random=1, max_length=N, seed=0)
    x = torch.randn(2, N, 12)
    keep = torch.arange(N) < torch.tensor([[N], [17]])
    for _ in range(3):
        layer(x)
        layer(x).sum().backward()
    assert len(plans) == 1
    for _ in range(3):
        layer(x, key_mask=keep)
    assert len(plans) == 2  # in whole blocks: the last ones are laid at the end
    layer(x, key_mask=keep.flip(0))
    assert len(plans) == 2
    before = layer(x)
    other = regard.create("bigbird", dim=12, num_heads=3, block=BLOCK, random=1, max_length=N, seed=1)
    layer.load_state_dict(layer.state_dict() | {"core.rand_blocks": other.core.rand_blocks})
    assert not torch.allclose(layer(x), before)
    assert len(plans) == 3
    assert_close(copy.deepcopy(layer)(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"globals": 2, "random": 1}, {"form": "etc", "globals": 3}], ids=str)
@pytest.mark.parametrize("static", [None, 24])
def test_a_stream_of_pieces_is_the_whole(options, static):
    core, (q, k, v, _) = build(causal=True, **options), heads_first(22)
    memory, outs = core.memory(2, 3, 4, 4, dtype=torch.float64, static=static), []
    for q_piece, k_piece, v_piece in zip(*(x.split([5, 1, 1, 15], 2) for x in (q, k, v)), strict=True):
        out, memory = core.stream(q_piece, k_piece, v_piece, memory)
        outs.append(out)
    assert_close(torch.cat(outs, 2), core(q, k, v), rtol=0, atol=1e-12)


def test_a_short_sequence_keeps_the_blocks_that_it_has():
    core = build(max_length=60, random_within=5)
    pattern = core.pattern.dense(N, heads=3)
    cropped = bigbird_pattern(core.rand_blocks[:, :6], BLOCK).dense(N)
    assert torch.equal(pattern, cropped)
    middle = pattern[:, 5 * BLOCK, ::BLOCK].sum(-1)  # row 5: first, last, 4, 5, 6 and two random ones
    assert middle.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": 0}, "block=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"random_within": 0}, "random_within=0"),
        ({"random": -1}, "random=-1"),
        ({"globals": -1}, "globals=-1"),
        ({"window": -1}, "window=-1"),
    ],
)
def test_sizes_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=words):
        BigBird(2, **options)


def test_refusals():
    q, k, v, _ = heads_first(N + 1)
    with pytest.raises(ValueError, match=r"30 tokens.*max_length=29"):
        build()(q, k, v)
    with pytest.raises(ValueError, match="form='ect' is neither"):
        build(form="ect")
    with pytest.raises(ValueError, match="window=2 blocks"):
        build(window=2)
    with pytest.raises(UnsupportedError, match="streams only with causal=True"):
        build().memory(1, 3, 4, 4)
    causal = build(causal=True)
    with pytest.raises(ValueError, match=r"40 tokens.*max_length=29"):
        causal.memory(1, 3, 4, 4, static=40)
    with pytest.raises(ValueError, match=r"30 tokens.*max_length=29"):
        causal.stream(q, k, v, causal.memory(2, 3, 4, 4, dtype=torch.float64))
    with pytest.raises(UnsupportedError, match="takes no context"):
        regard.create("bigbird", dim=12, num_heads=3)(torch.randn(1, 5, 12), torch.randn(1, 5, 12))
