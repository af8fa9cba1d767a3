import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.mechanisms.chosen.routing import Routing
from regard.mechanisms.patterned.local import Local
from regard.models.routing_transformer import RoutingTransformer

SIZES = {"vocab_size": 20, "dim": 12, "depth": 3, "num_heads": 3, "max_length": 32, "window": 8, "local_window": 4}


def tokens(n=20):
    return torch.randint(20, (2, n))


def test_the_last_layers_route_with_a_part_of_their_heads():
    model = RoutingTransformer(**SIZES, routing_layers=2, routing_heads=1)
    first, *last = (block.attention for block in model.blocks)
    assert isinstance(first.core, Local)
    assert first.core.window == 4
    for layer in last:
        assert isinstance(layer, Routing)
        assert (layer.local_heads, layer.window, layer.local_window) == (2, 8, 4)
        assert layer.kmeans.means.shape == (1, 4, 4)  # 4 clusters of 8 hold 32 tokens
    assert regard.models.RoutingTransformer is RoutingTransformer


def test_by_default_half_of_the_layers_and_heads():
    model = RoutingTransformer(20, 16, 4, 4, 64, window=20)
    kinds = [isinstance(block.attention, Routing) for block in model.blocks]
    assert kinds == [False, False, True, True]
    assert model.blocks[2].attention.local_heads == 2
    assert len(model.blocks[2].attention.kmeans.means[0]) == 4


def test_it_is_the_layers_one_after_the_other():
    model, x = RoutingTransformer(**SIZES).eval(), tokens()
    h = model.token_embedding.weight[x] + model.position_embedding.weight[:20]
    for block in model.blocks:
        h = h + block.attention(F.layer_norm(h, (12,)))
        h = h + block.mlp(F.layer_norm(h, (12,)))
    logits, aux = model(x, return_aux=True)
    assert_close(logits, F.layer_norm(h, (12,)) @ model.token_embedding.weight.T)
    assert sorted(aux) == ["loss/blocks.1.attention/commitment", "loss/blocks.2.attention/commitment"]


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal):
    model, x = RoutingTransformer(**SIZES, causal=causal).eval(), tokens()
    for real in (slice(0, 20), slice(6, 26)):
        mask = torch.zeros(2, 26, dtype=torch.bool)
        mask[:, real] = True
        padded = torch.randint(20, (2, 26))
        padded[:, real] = x
        assert_close(model(padded, key_mask=mask)[:, real], model(x), rtol=0, atol=1e-5)


def test_strict_is_causal_for_good_and_streams():
    x = tokens(30)
    changed = torch.cat((x[:, :15], (x[:, 15:] + 7) % 20), 1)
    for strict in (False, True):
        model = RoutingTransformer(**SIZES, strict=strict, dtype=torch.float64).eval()
        same = torch.allclose(model(changed)[:, :15], model(x)[:, :15], rtol=0, atol=1e-10)
        assert same == strict
    memory, outs = model.memory(2), []
    for piece in x.split([11, 1, 1, 17], 1):
        out, memory = model.stream(piece, memory)
        outs.append(out)
    assert_close(torch.cat(outs, 1), model(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("strict", [False, True])
def test_it_learns_and_so_do_its_centroids(strict):
    model, x = RoutingTransformer(**SIZES, strict=strict, decay=0.9, commitment=0.01).train(), tokens()
    before = model.blocks[2].attention.kmeans.means.clone()
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(20):
        logits, aux = model(x, return_aux=True)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()) + sum(aux.values())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.allclose(model.blocks[2].attention.kmeans.means, before)
    other = RoutingTransformer(**SIZES, strict=strict)
    other.load_state_dict(model.state_dict())
    assert_close(other.eval()(x), model.eval()(x), rtol=0, atol=0)


def test_refusals():
    for wrong in ({"routing_layers": 4}, {"routing_heads": 4}, {"routing_heads": 0}):
        with pytest.raises(ValueError, match="no more than there are"):
            RoutingTransformer(**SIZES, **wrong)
