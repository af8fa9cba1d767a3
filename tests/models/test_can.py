"""CAN: scores, losses and transductive inference restated with the replicated maps of the authors' code."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models.can import CAN, memberships, prototypes
from regard.models.resnet12 import ResNet12

WIDTH, SIZE, CLASSES = 5, 6, 7


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def model_of():
    """A model whose images are the maps themselves."""
    torch.manual_seed(0)
    model = CAN(CLASSES, backbone=torch.nn.Identity(), width=WIDTH, size=SIZE, reduction=2).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def episode(batch=2, ways=3, shots=2, queries=4):
    labels = torch.stack([torch.randperm(ways * shots) % ways for _ in range(batch)])
    return random(batch, ways * shots, WIDTH, 2, 3), labels, random(batch, queries, WIDTH, 2, 3)


def means(support, labels, ways):
    return torch.stack([
        torch.stack([maps[own == k].mean(0) for k in range(ways)]) for maps, own in zip(support, labels, strict=True)
    ])  # fmt: skip


def scored(model, classes, query):
    of_classes, of_queries = model.attention(classes, query)
    return model.scale * F.cosine_similarity(of_classes.mean((4, 5)), of_queries.mean((4, 5)), dim=-1)


def test_scores():
    model, (support, labels, query) = model_of(), episode()
    expected = scored(model, means(support, labels, 3), query)
    assert_close(model(support, labels, query, ways=3), expected, rtol=0, atol=1e-10)


def test_loss():
    model, (support, labels, query) = model_of(), episode()
    targets, true = torch.randint(3, (2, 4)), torch.randint(CLASSES, (2, 4))
    of_classes, of_queries = model.attention(means(support, labels, 3), query)
    pooled, total = of_classes.mean((4, 5)), 0
    for b, q in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        for place in range(SIZE):
            seen = of_queries[b, q].flatten(2)[:, :, place]  # one row a class
            local = 7 * F.cosine_similarity(seen, pooled[b, q], dim=-1)
            of_all = model.classes(seen[targets[b, q]])
            total += F.cross_entropy(of_all, true[b, q]) + 0.5 * F.cross_entropy(local, targets[b, q])
    found = model.loss(support, labels, query, targets, true, ways=3)
    assert_close(found.double(), total / (2 * 4 * SIZE), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("queries", "share", "counts"), [(15, 35 / 75, [7, 14]), (4, 0.5, [2, 4]), (2, 0.1, [1, 2])])
def test_transductive(queries, share, counts):
    model, (support, labels, query) = model_of(), episode(batch=2, queries=queries)
    expected = []
    for b in range(2):  # the authors' code takes one episode at a time
        scores = scored(model, means(support[b : b + 1], labels[b : b + 1], 3), query[b : b + 1])[0]
        for count in counts:
            best, guess = scores.max(-1)
            chosen = best.argsort(descending=True)[:count]
            more = torch.cat((support[b], query[b, chosen])), torch.cat((labels[b], guess[chosen]))
            scores = scored(model, means(more[0][None], more[1][None], 3), query[b : b + 1])[0]
        expected.append(scores)
    found = model.transductive(support, labels, query, ways=3, share=share)
    assert_close(found, torch.stack(expected), rtol=0, atol=1e-10)
    assert not torch.allclose(found, model(support, labels, query, ways=3))


def test_a_class_without_examples_gets_nothing():
    model, (support, labels, query) = model_of(), episode()
    scores = model(support, labels, query, ways=4)
    assert not scores[..., 3].any()
    assert_close(scores[..., :3], model(support, labels, query, ways=3), rtol=0, atol=1e-10)


def test_prototypes_take_shares():
    maps, shares = random(2, 3, 4, 1, 2), torch.rand(2, 3, 2, dtype=torch.float64)
    found = prototypes(maps, shares)
    expected = (shares[1, :, 0] @ maps[1].flatten(1) / shares[1, :, 0].sum()).view(4, 1, 2)
    assert_close(found[1, 0], expected, rtol=0, atol=1e-12)


def test_the_backbone():
    backbone = ResNet12(device="meta")
    blocks = sum(9 * (a * b + 2 * b * b) + a * b + 8 * b for a, b in [(64, 64), (64, 128), (128, 256), (256, 512)])
    assert sum(p.numel() for p in backbone.parameters()) == 27 * 64 + 128 + blocks
    for side, out in ((84, 6), (96, 6), (28, 2)):
        assert ResNet12((2, 2, 2, 2))(torch.randn(1, 3, side, side)).shape == (1, 2, out, out)


def test_everything_trains():
    model = CAN(CLASSES, backbone=ResNet12((2, 2, 2, 3)), width=3, size=1, reduction=1)
    support, query = torch.randn(2, 4, 3, 16, 16), torch.randn(2, 3, 3, 16, 16)
    labels, targets = torch.tensor([[0, 1, 0, 1]] * 2), torch.tensor([[0, 1, 1]] * 2)
    model.loss(support, labels, query, targets, targets + 2, ways=2).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_refusals():
    model, (support, labels, query) = model_of(), episode()
    with pytest.raises(ValueError, match="labels run from 0 to 2: with ways=2"):
        model(support, labels, query, ways=2)
    with pytest.raises(ValueError, match=r"labels have shape \(2, 5\), but the examples are \(2, 6\)"):
        model(support, labels[:, :5], query, ways=3)
    with pytest.raises(ValueError, match=r"query has shape \(1, 4, 5, 2, 3\) and support \(2, 6, 5, 2, 3\)"):
        model(support, labels, query[:1], ways=3)
    with pytest.raises(ValueError, match="labels run from -1"):
        memberships(labels - 1, 3, support)
