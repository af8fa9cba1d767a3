"""The network of few-shot episodes: who can stand in it, what it computes without attention, and how it learns."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models.fewshot import FewShotNet
from regard.registry import UnsupportedError

MECHANISMS = {
    "full": {}, "linear_transformer": {}, "linformer": {"rank": 3}, "efficient_attention": {},
    "cross_attention_fewshot": {}, "co_attention": {"kind": "symmetric"}, "set_transformer": {"num_inducing": 3},
}  # fmt: skip


def network(mechanism, shots=2, **options):
    torch.manual_seed(0)
    return FewShotNet(1, 8, 2, 14, mechanism, shots=shots, depth=1, **options)


def episode(ways=3, shots=2, queries=4):
    return torch.randn(2, queries, 1, 14, 14), torch.randn(2, ways * shots, 1, 14, 14)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_whoever_goes_from_one_to_another_can_stand_in_it(mechanism):
    model, (query, support) = network(mechanism, **MECHANISMS[mechanism]).eval(), episode()
    scores, told = model(query, context=support, return_aux=True)
    assert scores.shape == (2, 4, 3)
    assert [*told] == (["loss/orthogonality"] if mechanism == "co_attention" else [])
    swapped = support.unflatten(1, (3, 2)).flip(1).flatten(1, 2)
    assert_close(model(query, context=swapped), scores.flip(2), rtol=1e-4, atol=1e-4)
    alone = model(query[:, 2:3], context=support[:, 2:4])
    assert_close(alone, scores[:, 2:3, 1:2], rtol=1e-4, atol=1e-4)  # no pair sees another
    (scores.sum() + sum(told.values())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_without_a_mechanism_it_is_a_prototype_network():
    model, (query, support) = network(None).eval(), episode()
    maps = model.backbone(support.flatten(0, 1)).mean((2, 3)).view(2, 3, 2, 8).mean(2)
    asked = model.backbone(query.flatten(0, 1)).mean((2, 3)).view(2, 4, 8)
    expected = 10 * F.cosine_similarity(asked[:, :, None], maps[:, None], dim=-1)
    assert_close(model(query, context=support), expected, rtol=1e-5, atol=1e-5)


def test_cross_attention_sees_maps_of_the_right_size():
    model = network("cross_attention_fewshot")
    assert model.meeting.attention.size == 16  # 14 pixels become 7, then 4
    assert model.backbone(torch.randn(1, 1, 14, 14)).shape == (1, 8, 4, 4)


def test_it_learns_to_compare_what_it_has_not_seen():
    """Classes are densities of bright pixels; those asked for at the end were never shown."""
    torch.manual_seed(1)
    model = network("cross_attention_fewshot", shots=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)

    def episodes(densities, batch):
        chosen = torch.stack([torch.tensor(densities)[torch.randperm(len(densities))[:3]] for _ in range(batch)])
        images = (torch.rand(2, batch, 3, 1, 14, 14) < chosen[..., None, None, None]).float()
        return images.unbind(0)

    for _ in range(30):
        query, support = episodes([0.1, 0.3, 0.5, 0.7, 0.9], 8)
        loss = F.cross_entropy(model(query, context=support).flatten(0, 1), torch.arange(3).repeat(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    query, support = episodes([0.2, 0.6, 0.8], 50)
    found = model.eval()(query, context=support).argmax(-1)
    assert (found == torch.arange(3)).double().mean() > 0.8


def test_refusals():
    model, (query, support) = network(None), episode()
    with pytest.raises(ValueError, match="5 examples are not 2 of each class"):
        model(query, context=support[:, :5])
    with pytest.raises(ValueError, match="an episode is complete"):
        model(query, context=support, key_mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(UnsupportedError, match="axial attends within one map"):
        network("axial")
