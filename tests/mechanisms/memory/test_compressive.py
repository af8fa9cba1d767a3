"""Algorithm 1 of the Compressive Transformer as loops, its losses, and what streaming and gradients must not do."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.memory.compressive import Compressive
from regard.registry import UnsupportedError


def made(**options):
    options = {"dim": 8, "num_heads": 2, "head_dim": 3, "segment_length": 4, "ratio": 2, **options}
    layer = Compressive(**options, dtype=torch.float64).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # the authors' 0.02 would leave every softmax flat
    return layer


def squeezed(layer, old, usage):
    """f_c of n_s states (n_s, C), slot by slot."""
    function, c = layer.compression.function, layer.compression.ratio
    slots = []
    for g in range(len(old) // c):
        group = old[g * c : (g + 1) * c]
        if function == "max":
            slots.append(group.max(0).values)
        elif function == "mean":
            slots.append(group.mean(0))
        elif function in ("conv", "dilated"):
            weight, slot = layer.compression.conv.weight, layer.compression.conv.bias
            for t in range(c):
                place = g * c + t if function == "conv" else g * c - (c - 1) + 2 * t
                slot = slot + (weight[:, :, t] @ old[place] if place >= 0 else 0)
            slots.append(slot)
    if function == "most_used":
        best = sorted(range(len(old)), key=lambda i: (-float(usage[i]), i))[: len(old) // c]
        slots = [old[i] for i in sorted(best)]
    return slots


def look(layer, kv, queries):
    """Attention of the last rows of kv (L, C): out (N, H D) and the weights summed over heads and queries (L,)."""
    D, M, length = layer.head_dim, len(kv) - queries, len(kv)
    frequency = 10000.0 ** (-torch.arange(0, layer.dim, 2, dtype=torch.float64) / layer.dim)
    out, usage = torch.zeros(queries, layer.num_heads * D, dtype=kv.dtype), torch.zeros(length, dtype=kv.dtype)
    q, k, v = (linear(kv) for linear in (layer.q_proj, layer.k_proj, layer.v_proj))
    for h in range(layer.num_heads):
        own = slice(h * D, (h + 1) * D)
        for i in range(queries):
            scores = []
            for j in range(i + M + 1):
                angle = (i + M - j) * frequency
                r = layer.r_proj(torch.cat((angle.sin(), angle.cos())))[own]
                content = (q[M + i, own] + layer.content_bias[h]) @ k[j, own]
                scores.append((content + (q[M + i, own] + layer.position_bias[h]) @ r) / D**0.5)
            weights = torch.stack(scores).softmax(0)
            out[i, own] = weights @ v[: i + M + 1, own]
            usage[: i + M + 1] += weights.detach()
    return out, usage


def algorithm(layer, x):
    """One sequence (N, C), segment by segment."""
    n, n_m, n_cm = layer.segment_length, layer.memory_length, layer.compressed_length
    empty = 0 if layer.start == "empty" else 1
    m, cm = [x.new_zeros(x.shape[1])] * n_m * empty, [x.new_zeros(x.shape[1])] * n_cm * empty
    outs, squeezes = [], []
    for h in x.split(n):
        out, usage = look(layer, torch.stack([*cm, *m, *h]), len(h))
        outs.append(layer.out_proj(out))
        if len(h) == n:
            usage = usage[len(cm) :]
            m = [*m, *h.detach()]
            if n_cm and len(m) > n_m:
                old, m = m[:n], m[n:]
                slots = squeezed(layer, torch.stack(old), usage)
                squeezes.append((h, torch.stack(old), torch.stack(slots)))
                cm = [*cm, *(slot.detach() for slot in slots)][-n_cm:]
            m = m[len(m) - n_m :] if len(m) > n_m else m
    return torch.cat(outs), squeezes


CONFIGURATIONS = [
    {"compression": "conv"},
    {"compression": "conv", "memory_length": 8, "compressed_length": 3},
    {"compression": "dilated", "ratio": 3, "compressed_length": 2},
    {"compression": "max", "segment_length": 3, "memory_length": 5, "start": "zeros"},
    {"compression": "mean", "segment_length": 5, "ratio": 2, "compressed_length": 1},
    {"compression": "most_used", "compressed_length": 3},
    {"compression": "most_used", "segment_length": 3, "memory_length": 4, "start": "zeros"},
    {"compressed_length": 0, "segment_length": 3, "memory_length": 7},
    {"compressed_length": 0, "memory_length": 2},
    {"compressed_length": 0, "memory_length": 0},
]


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_matches_algorithm_1(options):
    layer, x = made(**options), torch.randn(2, 22, 8, dtype=torch.float64)
    with torch.no_grad():
        for row, y in zip(x, layer(x), strict=True):
            assert_close(y, algorithm(layer, row)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [*CONFIGURATIONS, {"memory_length": 5}, {"memory_length": 7, "compression": "max"}])
@pytest.mark.parametrize("pieces", [[22], [1] * 22, [3, 9, 1, 1, 8], [4, 4, 4, 4, 4, 2]])
def test_pieces_of_any_size_give_what_the_whole_gives(options, pieces):
    layer, x = made(**options), torch.randn(2, 22, 8, dtype=torch.float64)
    outs, memory = [], layer.memory(2)
    with torch.no_grad():
        for piece in x.split(pieces, 1):
            y, memory = layer.stream(piece, memory)
            outs.append(y)
            kept = [tensor.shape[1] for tensor in (memory.compressed, memory.memory)]
            assert kept == [layer.compressed_length, layer.memory_length]
            assert memory.segment.shape[1] < layer.segment_length
        assert_close(torch.cat(outs, 1), layer(x), rtol=0, atol=1e-12)


def test_a_memory_that_is_not_full_ends_with_what_there_is():
    """Of 5 states kept and 8 seen the first 3 have left: one group of two with an absent state, one without."""
    layer, x = made(memory_length=5, compression="mean"), torch.randn(1, 8, 8, dtype=torch.float64)
    _, memory = layer.stream(x, layer.memory(1))
    assert memory.real[0].tolist() == [False] * 3 + [True] * 7
    assert_close(memory.compressed[0, 3:], torch.stack((x[0, 0], x[0, 1:3].mean(0))), rtol=0, atol=1e-12)
    assert_close(memory.memory, x[:, 3:], rtol=0, atol=0)


def test_a_row_forgets_where_its_mask_is_cleared():
    layer, x = made(), torch.randn(2, 20, 8, dtype=torch.float64)
    _, memory = layer.stream(x[:, :12], layer.memory(2))
    fresh = memory._replace(real=memory.real & torch.tensor([[True], [False]]))
    y, _ = layer.stream(x[:, 12:], fresh)
    assert_close(y[0], layer(x)[0, 12:], rtol=0, atol=1e-12)
    assert_close(y[1], layer(x[:, 12:])[1], rtol=0, atol=1e-12)


# gradients


@pytest.mark.parametrize("compression", ["conv", "dilated"])
@pytest.mark.parametrize("streams", [False, True])
def test_memories_have_no_gradient_and_f_c_learns_from_its_own_loss_only(compression, streams):
    layer, x = made(compression=compression), torch.randn(1, 16, 8, dtype=torch.float64, requires_grad=True)
    y, *_, aux = layer.stream(x, layer.memory(1), return_aux=True) if streams else layer(x, return_aux=True)
    (slope,) = torch.autograd.grad(y[:, 12:].sum(), x, retain_graph=True)
    assert not slope[:, :12].any()
    assert slope[:, 12:].all()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    for loss, learns in ((y.sum(), False), (aux["loss/reconstruction"], True)):
        slopes = torch.autograd.grad(loss, (*parameters, x), retain_graph=True, allow_unused=True)
        for name, found in zip((*names, "x"), slopes, strict=True):
            arrived = found is not None and bool(found.any())
            assert arrived == (learns == name.startswith("compression")), name


def test_with_bptt_the_loss_of_the_output_goes_all_the_way_back():
    layer, x = made(objective="bptt"), torch.randn(1, 16, 8, dtype=torch.float64, requires_grad=True)
    y, aux = layer(x, return_aux=True)
    assert aux == {}
    slopes = torch.autograd.grad(y[:, 12:].sum(), (x, *layer.compression.parameters()), retain_graph=True)
    assert all(slope.any() for slope in slopes)
    assert slopes[0][:, :4].any(), "the first segment is seen through slots"
    streamed, _ = layer.stream(x, layer.memory(1))
    again = torch.autograd.grad(streamed[:, 12:].sum(), (x, *layer.compression.parameters()))
    for mine, other in zip(slopes, again, strict=True):
        assert_close(mine, other, rtol=0, atol=1e-10)


def without_positions(layer, queries, states):
    """A(h, states): no distances, no biases, no W_o."""
    rows = []
    for h in range(layer.num_heads):
        own = slice(h * layer.head_dim, (h + 1) * layer.head_dim)
        q, k, v = layer.q_proj(queries)[:, own], layer.k_proj(states)[:, own], layer.v_proj(states)[:, own]
        rows.append((q @ k.T / layer.head_dim**0.5).softmax(-1) @ v)
    return torch.cat(rows, -1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"ratio": 3}, {"memory_length": 8}, {"compression": "dilated", "loss_weight": 0.3}]
)
def test_the_loss_compares_attention_to_states_and_to_slots(options, masked):
    """Over complete segments that made something leave the memory; padding is in none of them."""
    layer, x = made(**options), torch.randn(2, 23, 8, dtype=torch.float64)
    keep = torch.arange(23) >= torch.tensor([[0], [6]]) if masked else torch.ones(2, 23, dtype=torch.bool)
    _, aux = layer(x, key_mask=keep, return_aux=True)
    gaps = []
    for row, real in zip(x, keep, strict=True):
        for h, old, slots in algorithm(layer, row[real])[1]:
            gaps.append((without_positions(layer, h, old) - without_positions(layer, h, slots)).square().mean())
    assert_close(aux["loss/reconstruction"], layer.loss_weight * torch.stack(gaps).mean(), rtol=0, atol=1e-10)
    if not masked:
        streamed = layer.stream(x, layer.memory(2), return_aux=True)[-1]
        assert_close(streamed["loss/reconstruction"], aux["loss/reconstruction"], rtol=0, atol=1e-12)


def test_autoencoding_asks_for_the_states_themselves():
    layer, x = made(objective="autoencoding", ratio=3), torch.randn(1, 16, 8, dtype=torch.float64)
    weight, bias = layer.decoder.weight, layer.decoder.bias
    gaps = []
    for _, old, slots in algorithm(layer, x[0])[1]:
        told = torch.stack([slots[t // 3] @ weight[:, :, t % 3] + bias for t in range(3)])  # 4 states make 1 slot
        gaps.append((told - old[:3]).square().mean())
    aux = layer(x, return_aux=True)[1]
    assert list(aux) == ["loss/autoencoding"]
    assert_close(aux["loss/autoencoding"], torch.stack(gaps).mean(), rtol=0, atol=1e-10)


def test_there_is_no_loss_before_something_has_been_squeezed():
    layer, x = made(), torch.randn(1, 7, 8, dtype=torch.float64)
    assert layer(x, return_aux=True)[1]["loss/reconstruction"] == 0
    assert layer(torch.randn(1, 8, 8).double(), return_aux=True)[1]["loss/reconstruction"] > 0
    assert made(compression="max")(x, return_aux=True)[1] == {}


@pytest.mark.parametrize("compression", ["mean", "conv"])
def test_tokens_that_only_ask_stay_out_of_the_memories(compression):
    layer, x = made(compression=compression, ratio=4, compressed_length=2), torch.randn(1, 16, 8, dtype=torch.float64)
    keys = torch.ones(1, 16, dtype=torch.bool)
    keys[0, [1, 6]] = False
    options = {"key_mask": keys, "query_mask": torch.ones_like(keys)}
    y, changed = layer(x, **options), x.clone()
    changed[:, [1, 6]] = torch.randn(2, 8, dtype=torch.float64)
    others = keys[0]
    assert_close(layer(changed, **options)[:, others], y[:, others], rtol=0, atol=0)
    assert y[:, ~others].any()


def test_what_is_kept_for_the_backward_pass_is_linear_in_the_length():
    sizes = {}
    for length in (256, 512):
        layer, total = made(segment_length=8, memory_length=16, ratio=4), [0]

        def keep(tensor, total=total):
            total[0] += tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(torch.randn(1, length, 8, dtype=torch.float64))
        sizes[length] = total[0]
    assert sizes[512] < 2.2 * sizes[256]


def test_refusals():
    make = {"dim": 8, "num_heads": 2}
    with pytest.raises(ValueError, match="dim=9 is odd"):
        Compressive(9, 3)
    with pytest.raises(ValueError, match="segment_length=4, memory_length=3, ratio=2: they must not fall"):
        Compressive(**make, segment_length=4, memory_length=3, ratio=2)
    with pytest.raises(ValueError, match="segment_length=2, memory_length=2, ratio=4"):
        Compressive(**make, segment_length=2)
    with pytest.raises(ValueError, match="a segment needs a token"):
        Compressive(**make, segment_length=0)
    with pytest.raises(ValueError, match="compression='median' is none of"):
        Compressive(**make, compression="median")
    with pytest.raises(ValueError, match="objective='attention' is none of"):
        Compressive(**make, objective="attention")
    with pytest.raises(ValueError, match="start='full' is neither"):
        Compressive(**make, start="full")
    for options in ({"compression": "max"}, {"compressed_length": 0}):
        with pytest.raises(ValueError, match="no compression that learns"):
            Compressive(**make, **options, objective="reconstruction")
    with pytest.raises(UnsupportedError, match="takes no context"):
        regard.create("compressive", **make)(torch.randn(1, 4, 8), torch.randn(1, 4, 8))
    with pytest.raises(UnsupportedError, match="compressive is always causal"):
        regard.create("compressive", **make, causal=False)
