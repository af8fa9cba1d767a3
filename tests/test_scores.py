"""Score terms: their indices against the papers' formulas, their gradients, their travel as text."""

import math

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.testing import assert_close

import regard
from regard.patterns import Neighborhood, Window
from regard.scores import Bias, Dot, Relative, RelativeGrid, Slope, SoftCap, T5Buckets, alibi_slopes, from_spec
from tests.samples import heads_first

KEYS = torch.arange(300)


def t5(relative, bidirectional, num_buckets, max_distance):
    """The bucket of one distance, as the released code of T5 defines it, in float32."""
    bucket = 0
    if bidirectional:
        num_buckets //= 2
        bucket, relative = (num_buckets if relative > 0 else 0), abs(relative)
    else:
        relative = max(-relative, 0)
    exact = num_buckets // 2
    if relative < exact:
        return bucket + relative
    far = torch.log(torch.tensor(relative).float() / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    return bucket + min(exact + int(far), num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (17, 40), (64, 256)])
def test_t5_buckets(bidirectional, num_buckets, max_distance):
    found = T5Buckets(num_buckets, max_distance, bidirectional)(torch.tensor(150), KEYS)
    assert found.tolist() == [t5(j - 150, bidirectional, num_buckets, max_distance) for j in range(300)]


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 20])
def test_alibi_slopes(heads):
    def published(count):
        if math.log2(count).is_integer():
            return [2 ** (-8 / count * (h + 1)) for h in range(count)]
        power = 2 ** math.floor(math.log2(count))
        return published(power) + published(2 * power)[0::2][: count - power]

    assert_close(alibi_slopes(heads), torch.tensor(published(heads)))


def test_relative_is_clipped():
    queries = KEYS[:, None]
    assert torch.equal(Relative(3)(queries, KEYS), (KEYS - queries).clamp(-3, 3) + 3)


@pytest.mark.parametrize(
    ("grid", "kernel", "dilation"), [((7,), 3, 1), ((4, 5), None, 1), ((6, 6), (3, 5), 2), ((2, 3, 4), 2, 1)]
)
def test_relative_grid(grid, kernel, dilation):
    index = RelativeGrid(grid, kernel, dilation)
    reach = grid if kernel is None else (kernel,) * len(grid) if isinstance(kernel, int) else kernel
    places = torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid))
    table = torch.arange(index.size).view([2 * r - 1 for r in reach])
    found = index(torch.arange(len(places))[:, None], torch.arange(len(places)))
    seen = 0
    for a, first in enumerate(places):
        for b, second in enumerate(places):
            steps = (second - first) / dilation
            if all(step.is_integer() and abs(step) < r for step, r in zip(steps.tolist(), reach, strict=True)):
                seen += 1
                assert found[a, b] == table[tuple(int(s) + r - 1 for s, r in zip(steps.tolist(), reach, strict=True))]
    assert seen > len(places)


def equations(q, k, v, logits):
    return (q @ k.mT / q.shape[-1] ** 0.5 + logits).softmax(-1) @ v


def test_bias_adds_its_table():
    q, k, v, _ = heads_first(9, 11)
    table = torch.randn(3, 7, dtype=torch.float64)
    for chosen in (table, table[:1]):
        expected = equations(q, k, v, chosen[:, Relative(3)(torch.arange(9)[:, None] + 2, torch.arange(11))])
        assert_close(regard.attend(q, k, v, score=Bias(chosen, Relative(3))), expected)


def test_dot_has_a_query_of_its_own():
    q, k, v, _ = heads_first(9)
    own, table = torch.randn(2, 3, 9, 5, dtype=torch.float64), torch.randn(3, 7, 5, dtype=torch.float64)
    rows = table[:, Relative(3)(torch.arange(9)[:, None], torch.arange(9))]
    expected = equations(q, k, v, torch.einsum("bhid,hijd->bhij", own, rows))
    assert_close(regard.attend(q, k, v, score=Dot(own, table, Relative(3))), expected)


@pytest.mark.parametrize("heads", [1, 3])
def test_dot_reads_a_long_table_in_bands(heads):
    """Transformer-XL: a row for each distance; tiles read the few that they can meet."""
    q, k, v, _ = heads_first(600)
    own = torch.randn(2, 3, 600, 2, dtype=torch.float64)
    table = torch.randn(heads, 1201, 2, dtype=torch.float64, requires_grad=True)
    results = []
    for engine in ("tiles", "dense"):
        out = regard.attend(q, k, v, Window(40), score=Dot(own, table, Relative(600)), engine=engine)
        results.append((out, *torch.autograd.grad(out.sin().sum(), table)))
    assert_close(*results)


def test_slope_and_softcap():
    q, k, v, _ = heads_first(9)
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    slopes = torch.rand(3, dtype=torch.float64)
    for term, steep in ((Slope(slopes), slopes), (Slope(), alibi_slopes(3).double())):
        assert_close(regard.attend(q, k, v, score=term), equations(q, k, v, -steep[:, None, None] * distance))
    scores = q @ k.mT / 2
    capped = 0.5 * torch.tanh(scores / 0.5)
    assert_close(regard.attend(q, k, v, score=SoftCap(0.5)), capped.softmax(-1) @ v)


def test_terms_apply_in_order():
    q, k, v, _ = heads_first(9)
    first, second = SoftCap(0.5), Bias(torch.randn(1, 3, dtype=torch.float64), Relative(1))
    assert (
        regard.attend(q, k, v, score=[first, second]) - regard.attend(q, k, v, score=[second, first])
    ).abs().max() > 0.01


def test_a_neighborhood_with_its_table():
    q, k, v, _ = heads_first(30)
    table = torch.randn(3, 5 * 5, dtype=torch.float64)
    term = Bias(table, RelativeGrid((5, 6), 3))
    options = {"pattern": Neighborhood((5, 6), 3), "score": term}
    assert_close(regard.attend(q, k, v, **options), regard.attend(q, k, v, **options, engine="dense"))


@pytest.mark.parametrize("engine", [name for name in regard.engines("cpu") if name != "sdpa"])
def test_gradients(engine):
    shapes = {"q": (1, 2, 5, 2), "k": (1, 2, 5, 2), "v": (1, 2, 5, 2), "table": (2, 5), "own": (1, 1, 5, 2)}
    shapes |= {"rows": (1, 5, 2), "slopes": (2,)}
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes.values()]

    def function(q, k, v, table, own, rows, slopes):
        dot = [] if engine == "native" else [Dot(own, rows, Relative(2))]
        terms = [Bias(table, Relative(2)), SoftCap(3.0), *dot, Slope(slopes)]
        return regard.attend(q, k, v, Window(2), score=terms, engine=engine)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def own_index(i, j):
    return ((i * 7 + j) % 4).abs()


def test_an_index_of_your_own():
    q, k, v, _ = heads_first(9)
    table = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for engine in ("tiles", "dense"):
        out = regard.attend(q, k, v, score=Bias(table, own_index), engine=engine)
        expected = equations(q, k, v, table[:, own_index(torch.arange(9)[:, None], torch.arange(9))])
        assert_close(out, expected)
        assert_close(*(torch.autograd.grad(o.sin().sum(), table) for o in (out, expected)))


def test_an_index_made_on_the_spot_lives_until_backward():
    q, k, v, _ = heads_first(9)
    table = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    out = regard.attend(q, k, v, score=Bias(table, lambda i, j: (i + j) % 4))
    out.sin().sum().backward()
    assert table.grad.abs().sum() > 0


TERMS = [
    Bias(torch.randn(3, 5), Relative(2)),
    Bias(torch.randn(1, 8), T5Buckets(8, 20, bidirectional=False)),
    Bias(torch.randn(3, 15), RelativeGrid((2, 3))),
    Dot(torch.randn(3, 9, 2), torch.randn(1, 5, 2), Relative(2)),
    Slope(torch.rand(3)),
    Slope(),
    SoftCap(0.1),
]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.spec)
def test_travels_as_text(term):
    again = from_spec(term.spec, term.tensors)
    assert again.spec == term.spec
    assert type(again) is type(term)
    assert all(a is b for a, b in zip(again.tensors, term.tensors, strict=True))
    assert len(term.row_tensors) == len(term.tensors)
    assert repr(term).startswith(type(term).__name__)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.spec)
def test_score_mod_is_flex_attentions(term):
    q, k, v, _ = heads_first(9, dtype=torch.float32)
    expected = regard.attend(q, k, v, score=term, engine="dense")
    found = regard.attend(q, k, v, score=term, engine="flex")
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_score_mod_is_usable_outside():
    q, k, v, _ = heads_first(9, 11)
    term = Bias(torch.randn(3, 5, dtype=torch.float64), Relative(2))
    found = flex_attention(q, k, v, score_mod=term.score_mod(q_offset=2))
    assert_close(found, regard.attend(q, k, v, score=term))


def test_refusals():
    with pytest.raises(ValueError, match=r"Relative\(2\) has 5 entries, and the table of Bias has 4"):
        Bias(torch.zeros(1, 4), Relative(2))
    with pytest.raises(ValueError, match=r"\(H or 1, R\)"):
        Bias(torch.zeros(4), Relative(2))
    with pytest.raises(ValueError, match=r"Dot takes a query"):
        Dot(torch.zeros(1, 5, 3), torch.zeros(1, 5, 4), Relative(2))
    with pytest.raises(ValueError, match="a cap is positive"):
        SoftCap(0.0)
    with pytest.raises(ValueError, match="num_buckets=2"):
        T5Buckets(2, 128)
    with pytest.raises(ValueError, match="negative"):
        Relative(-1)
    with pytest.raises(ValueError, match="not a score term"):
        from_spec("Window(3)")
    q, k, v, _ = heads_first(9)
    with pytest.raises(ValueError, match="2 slopes, and the query has 3 heads"):
        regard.attend(q, k, v, score=Slope(torch.rand(2)))
    with pytest.raises(ValueError, match="a row for each of the query's"):
        regard.attend(q, k, v, score=Dot(torch.zeros(1, 8, 4), torch.zeros(1, 5, 4), Relative(2)))
    with pytest.raises(TypeError):
        regard.attend(q, k, v, score="alibi")
