import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import regard
from regard.inspect import Map, attention_map, bertviz
from regard.registry import Card, Core, UnsupportedError

CARD = Card(title="Toy", paper="p", year=1, family="f", data="sequence", cross=True)


def layer_of(name, **options):
    torch.manual_seed(1)
    made = regard.create(name, **{"dim": 12, "num_heads": 3, "dtype": torch.float64} | options).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.7)
    return made


def tokens(n=9, batch=2, dim=12):
    return torch.randn(batch, n, dim, dtype=torch.float64)


def heads(t, count):
    return t.unflatten(-1, (count, -1)).transpose(1, 2)


def softmax_map(layer, x, allowed, source=None, *, queries=None, keys=None):
    """softmax(q k^T / sqrt(D)) over the allowed pairs, rows without any 0."""
    q = heads((queries or layer.q_proj)(x), layer.num_heads)
    width = q.shape[-1]
    k = (keys or layer.k_proj)(x if source is None else source).unflatten(-1, (-1, width)).transpose(1, 2)
    k = k.repeat_interleave(layer.num_heads // k.shape[1], 1)
    scores = (q @ k.mT / width**0.5).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0)


def places(n):
    return torch.arange(n)[:, None], torch.arange(n)[None]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_heads": 4, "num_kv_heads": 2, "head_dim": 5}])
def test_softmax_rows(causal, options):
    layer, x = layer_of("multi_head", causal=causal, **options), tokens()
    i, j = places(9)
    found = attention_map(layer, x)
    assert found.kind == "exact"
    assert_close(found.tensor, softmax_map(layer, x, (j <= i) | (not causal)), rtol=0, atol=1e-12)
    assert_close(found.tensor.sum(-1), torch.ones(2, layer.num_heads, 9, dtype=torch.float64))


def test_more_keys_than_columns_in_a_chunk():
    layer, x, context = layer_of("multi_head"), tokens(3), tokens(150)
    found = attention_map(layer, x, context).tensor
    assert_close(found, softmax_map(layer, x, torch.tensor(True), context), rtol=0, atol=1e-12)


def test_rows_within_a_window():
    layer, x = layer_of("local", window=2), tokens()
    i, j = places(9)
    assert_close(attention_map(layer, x).tensor, softmax_map(layer, x, (i - j).abs() <= 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["merged", "heads"])
def test_rows_of_a_sparse_transformer(how):
    layer, x = layer_of("sparse_transformer", causal=True, kind="strided", stride=3, how=how), tokens()
    i, j = places(9)
    near, far = (j <= i) & (i - j <= 3), (j <= i) & ((i - j) % 3 == 0)
    allowed = torch.stack([far if h % 2 else near for h in range(3)]) if how == "heads" else near | far
    assert_close(attention_map(layer, x).tensor, softmax_map(layer, x, allowed), rtol=0, atol=1e-12)


@pytest.mark.parametrize("marked", [False, True], ids=["first", "marked"])
def test_rows_of_a_longformer_with_global_tokens(marked):
    layer, x = layer_of("longformer", window=2, num_global=1), tokens()
    is_global = torch.arange(9) < 1
    if marked:
        is_global = is_global | (torch.arange(9) == 5)
    i, j = places(9)
    near = softmax_map(layer, x, ((i - j).abs() <= 2) | is_global)
    wide = softmax_map(layer, x, torch.tensor(True), queries=layer.q_global, keys=layer.k_global)
    expected = torch.where(is_global[:, None], wide, near)
    if marked:  # attention_map hands on what every layer takes, the layer itself takes more
        found = layer.weigh(x, torch.eye(9)[None, None], global_mask=is_global.expand(2, 9))
    else:
        found = attention_map(layer, x).tensor
    assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_rows_of_linear_attention_are_kept_as_they_are(causal):
    layer, x = layer_of("linear_transformer", causal=causal, eps=0.5), tokens()
    q, k = (nn.functional.elu(heads(linear(x), 3)) + 1 for linear in (layer.q_proj, layer.k_proj))
    i, j = places(9)
    products = (q @ k.mT) * ((j <= i) | (not causal))
    found = attention_map(layer, x).tensor
    assert_close(found, products / (products.sum(-1, keepdim=True) + 0.5), rtol=0, atol=1e-12)
    assert (found.sum(-1) < 1).all()


@pytest.mark.parametrize("name", ["multi_head", "longformer", "linear_transformer"])
def test_documents_have_maps_of_their_own(name):
    layer, x = layer_of(name), tokens()
    segments = torch.tensor([[5, 5, 5, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 3, 3]])
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[0, 1] = False
    expected = torch.zeros(2, 3, 9, 9, dtype=torch.float64)
    for row in range(2):
        for document in segments[row].unique():
            own = ((segments[row] == document) & keep[row]).nonzero().flatten()
            expected[row, :, own[:, None], own] = attention_map(layer, x[row : row + 1, own]).tensor[0]
    found = attention_map(layer, x, segments=segments, key_mask=keep).tensor
    assert_close(found, expected, rtol=0, atol=1e-12)


def test_rotary_positions_and_norms_count():
    layer, x = layer_of("multi_head", rotary=100.0, qk_norm=True), tokens()
    q, k, _ = layer._project(x, x, torch.arange(9)[None])
    expected = (q @ k.mT / 2).softmax(-1)
    assert_close(attention_map(layer, x).tensor, expected, rtol=0, atol=1e-12)
    padded = torch.cat((tokens(4), x), 1)
    found = attention_map(layer, padded, key_mask=torch.arange(13).expand(2, 13) >= 4).tensor
    assert_close(found[..., 4:, 4:], expected, rtol=0, atol=1e-12)
    assert not found[..., :4, :].any()


def test_masks_of_both_sides():
    layer, x, context = layer_of("multi_head"), tokens(5), tokens(7)
    keys, queries = torch.rand(2, 7) < 0.6, torch.rand(2, 5) < 0.6
    expected = softmax_map(layer, x, keys[:, None, None], context) * queries[:, None, :, None]
    found = attention_map(layer, x, context, key_mask=keys, query_mask=queries)
    assert_close(found.tensor, expected, rtol=0, atol=1e-12)


class Noisy(Core):
    """Draws a temperature, from the generator or from torch's own, and drops weights in training."""

    card = CARD
    attn_drop = 0.5

    def forward(self, q, k, v, *, key_mask=None, query_mask=None, generator=None):
        weights = (q @ k.mT * torch.rand((), generator=generator, dtype=q.dtype)).softmax(-1)
        return nn.functional.dropout(weights, self.attn_drop, self.training) @ v


@pytest.mark.parametrize("kind", ["exact", "jacobian"])
def test_every_pass_makes_the_draws_of_the_next_call(kind):
    layer = regard.MultiHead(12, 3, Noisy(), dtype=torch.float64).train()
    layer.q_proj.eval()
    x, generator = tokens(70 if kind == "exact" else 4), torch.Generator().manual_seed(4)
    own, torchs = generator.get_state(), torch.get_rng_state()
    drawn = {}
    for source in (generator, None):
        drawn[source] = attention_map(layer, x, kind=kind, generator=source).tensor
        assert torch.equal(generator.get_state(), own)
        assert torch.equal(torch.get_rng_state(), torchs)
    assert not torch.allclose(drawn[generator], drawn[None])
    assert layer.training
    assert layer.core.training
    assert not layer.q_proj.training
    if kind == "exact":  # as one pass would draw
        values = tokens(70)[:, None]
        assert_close(layer.eval().weigh(x, values, generator=generator), drawn[generator] @ values)


class Squares(Core):
    """No weighted sum."""

    card = CARD
    weighs_values = False

    def forward(self, q, k, v, *, key_mask=None, query_mask=None, generator=None):
        return v.square() + q


def test_what_has_no_weights_has_a_jacobian():
    layer, x = regard.MultiHead(12, 3, Squares(), dtype=torch.float64), tokens(4)
    found = attention_map(layer, x)
    assert found.kind == "jacobian"
    assert_close(found.tensor, torch.eye(4, dtype=torch.float64).expand(2, 1, 4, 4))
    with pytest.raises(UnsupportedError, match="Squares has no weights: its output is no weighted sum of its values"):
        attention_map(layer, x, kind="exact")
    with pytest.raises(UnsupportedError, match='GRU has no weights to show: ask for kind="jacobian"'):
        attention_map(nn.GRU(12, 12), x, kind="exact")


def brute_force(layer, x, context=None, **options):
    """Row by row through torch.autograd.functional.jacobian."""
    rows = []
    for b in range(len(x)):
        own = {name: value[b : b + 1] for name, value in options.items()}
        if context is None:
            slopes = torch.autograd.functional.jacobian(lambda s, own=own: layer(s, **own), x[b : b + 1])
        else:
            ask = x[b : b + 1]
            slopes = torch.autograd.functional.jacobian(
                lambda s, own=own, ask=ask: layer(ask, s, **own), context[b : b + 1]
            )
        rows.append(slopes[0, :, :, 0].square().sum((1, 3)).sqrt())
    norms = torch.stack(rows)[:, None]
    return (norms / norms.sum(-1, keepdim=True)).nan_to_num(0.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("multi_head", {"causal": True}),
        ("longformer", {"window": 1}),
        ("sparse_transformer", {"stride": 3, "columns": 1, "causal": True}),
        ("linear_transformer", {"causal": True}),
    ],
)
def test_jacobian(name, options):
    layer, x = layer_of(name, **options), tokens(6)
    keep = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
    for given in ({}, {"key_mask": keep}, {"segments": torch.tensor([[0, 0, 1, 1, 1, 2]] * 2)}):
        found = attention_map(layer, x, kind="jacobian", **given)
        assert found.tensor.shape == (2, 1, 6, 6)
        assert_close(found.tensor, brute_force(layer, x, **given), rtol=0, atol=1e-12)


def test_jacobian_of_another_sequence():
    layer, x, context = layer_of("multi_head"), tokens(4), tokens(6)
    found = attention_map(layer, x, context, kind="jacobian").tensor
    assert_close(found, brute_force(layer, x, context), rtol=0, atol=1e-12)


class Unbatched(torch.autograd.Function):
    """3 x, whose backward cannot be batched."""

    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, slope):
        assert float(slope.abs().max()) >= 0  # reads a value
        return 3 * slope


def test_jacobian_of_anything_callable(monkeypatch):
    x = tokens(5)
    gru = nn.GRU(12, 7, batch_first=True).double()
    expected = brute_force(lambda s: gru(s)[0], x)
    assert_close(attention_map(gru, x).tensor, expected, rtol=0, atol=1e-12)
    monkeypatch.setattr("regard.inspect.maps.ENTRIES", 100)  # chunks of outputs, the last one short
    assert_close(attention_map(gru, x).tensor, expected, rtol=0, atol=1e-12)
    assert_close(attention_map(lambda s: gru(Unbatched.apply(s / 3))[0], x).tensor, expected, rtol=0, atol=1e-12)
    assert not attention_map(lambda s: torch.ones_like(s), x).tensor.any(), "nothing depends on anything"
    assert not any(parameter.grad is not None for parameter in gru.parameters())
    with torch.inference_mode():
        assert_close(attention_map(gru, x).tensor, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["exact", "jacobian"])
def test_short_floats(dtype, kind):
    layer, x = layer_of("multi_head", causal=True), tokens(6)
    expected = attention_map(layer, x, kind=kind).tensor
    found = attention_map(copy.deepcopy(layer).to(dtype), x.to(dtype), kind=kind).tensor
    assert found.dtype == dtype
    assert_close(found.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)


def test_wrong_requests_are_refused():
    layer, x = layer_of("multi_head"), tokens(5)
    with pytest.raises(ValueError, match=r"kind='softmax' is none of"):
        attention_map(layer, x, kind="softmax")
    with pytest.raises(ValueError, match=r"x has shape \(5, 12\), expected \(batch, length, dim\)"):
        attention_map(layer, x[0])
    with pytest.raises(ValueError, match=r"context has shape"):
        attention_map(layer, x, x[0])
    with pytest.raises(UnsupportedError, match="takes no context"):
        attention_map(layer_of("longformer"), x, x)
    for shape in ((2, 3, 4, 7), (2, 2, 5, 7), (3, 1, 5, 7), (5, 7)):
        for name in ("multi_head", "longformer"):
            with pytest.raises(ValueError, match=r"values has shape .* expected \(2 or 1, 3 or 1, 5, any width\)"):
                layer_of(name).weigh(x, torch.zeros(shape))


def test_a_map_says_its_kind():
    found = Map(torch.rand(2, 3, 4, 5), "exact")
    assert repr(found) == "Map(exact weights: batch=2, heads=3, queries=4, keys=5)"
    assert "Jacobian norm" in repr(Map(torch.rand(1, 1, 4, 4), "jacobian"))


def test_pictures():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    found = Map(torch.rand(2, 3, 4, 5), "exact")
    axes = found.plot(batch=1, head=2, tokens=["a", "b\n", "c", "d", "e"])
    assert axes.get_title() == "exact weights, head 2"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", r"b\n", "c", "d", "e"]
    assert not axes.get_yticks().size
    (image,) = axes.get_images()
    row = found.tensor[1, 2, 3]
    assert_close(torch.tensor(image.get_array().data[3]), row / row.max())
    assert image.colorbar is not None
    given = pyplot.figure().subplots()
    assert Map(torch.tensor([[[[1.0, -2.0], [0.0, 0.0]]]]), "jacobian").plot(ax=given) is given
    assert given.get_title() == "Jacobian norm"
    assert given.get_images()[0].get_array().tolist() == [[0.5, -1.0], [0.0, 0.0]]
    assert found.plot().get_title() == "exact weights, mean of 3 heads"
    with pytest.raises(ValueError, match="3 tokens, but the map has 4 queries and 5 keys"):
        found.plot(tokens=["a", "b", "c"])
    for wrong in ({"head": 3}, {"batch": 2}):
        with pytest.raises(ValueError, match="does not exist: the map has"):
            found.plot(**wrong)
    pyplot.close("all")


def test_the_form_of_bertviz():
    maps = [Map(torch.rand(2, 3, 4, 4, dtype=torch.float64), "exact") for _ in range(2)]
    assert [(t.shape, t.dtype) for t in bertviz(*maps)] == [((2, 3, 4, 4), torch.float32)] * 2
    first, second = bertviz(*maps, batch=1)
    # what bertviz.util.format_attention does
    assert torch.stack([first.squeeze(0), second.squeeze(0)]).shape == (2, 3, 4, 4)
    assert_close(second[0].double(), maps[1].tensor[1], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"equal numbers of heads, these have \[1, 3\]"):
        bertviz(maps[0], Map(torch.rand(1, 1, 4, 4), "jacobian"))
