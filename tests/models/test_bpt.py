import pytest
import torch
from torch.testing import assert_close

from regard.models import BPT
from regard.ops.tree_attention import Tree

SIZES = {"dim": 8, "depth": 2, "num_heads": 2, "hidden": 12, "step": 2, "clip": 1}


def build(**options):
    return BPT(20, **(SIZES | options)).double().eval()


def test_a_language_model_sees_no_later_token_and_shares_its_matrix():
    model, x = build(), torch.randint(20, (2, 13))
    changed = torch.cat((x[:, :6], (x[:, 6:] + 1) % 20), 1)
    assert_close(model(changed)[:, :6], model(x)[:, :6], rtol=0, atol=1e-12)
    assert not torch.allclose(model(changed)[:, 6:], model(x)[:, 6:])
    assert model.output.weight is model.embedding.weight


def test_the_first_layer_makes_means_of_spans():
    model = build(depth=1)
    layer, x = model.layers[0], model.norm(model.embedding(torch.arange(6)[None]))
    h = torch.nn.functional.pad(x, (0, 0, 0, 3 + 2 + 1))
    heads = layer.look(h, 6, Tree(model.step, model.clip, causal=True))
    means = layer.v_proj(x)[0]
    expected = [means[0:2].mean(0), means[2:4].mean(0), means[4:6].mean(0), means[0:4].mean(0), means[4:6].mean(0)]
    assert_close(heads[0, 6:], torch.stack([*expected, means.mean(0)]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("authors_graph", [False, True])
@pytest.mark.parametrize("relative", [True, False])
def test_padding_changes_nothing(relative, authors_graph, causal):
    for read in ("tokens", "root"):
        options = {"relative": relative, "authors_graph": authors_graph and not causal, "causal": causal}
        model = build(num_classes=5, read=read, **options)
        x, mask = torch.randint(20, (3, 11)), torch.zeros(3, 11, dtype=torch.bool)
        for row, real in enumerate((slice(0, 11), slice(4, 11), slice(2, 3))):
            mask[row, real] = True
        y = model(x, key_mask=mask)
        for row in range(3):
            alone = model(x[row : row + 1, mask[row]])[0]
            assert_close(y[row] if read == "root" else y[row, mask[row]], alone, rtol=0, atol=1e-12)


def test_every_parameter_learns_and_dropout_is_drawn():
    model = BPT(20, **SIZES, num_classes=5, dropout=0.1, attn_drop=0.1, embed_drop=0.1, class_drop=0.1)
    x = torch.randint(20, (2, 13))
    y = model(x)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert not torch.allclose(y, model(x))


def test_refusals():
    with pytest.raises(ValueError, match="embed_dim=4 cannot also make logits from dim=8"):
        build(embed_dim=4)
    with pytest.raises(ValueError, match="dim=8 is no multiple of num_heads=3"):
        build(num_heads=3)
    with pytest.raises(ValueError, match="read='mean'"):
        build(read="mean")
    with pytest.raises(ValueError, match="5001 tokens, but there are 5000 positions"):
        build(relative=False)(torch.zeros(1, 5001, dtype=torch.long))
