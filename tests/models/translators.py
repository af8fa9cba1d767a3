"""What holds for every translator: steps, padding, learning."""

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.memory import reorder


def tokens(*shape_and_size):
    *shape, size = shape_and_size
    return torch.randint(size, shape)


def draw(model):
    """In float64, with weights large enough to tell everything apart."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


@torch.no_grad()
def check_steps(model):
    """One token after the other, in another order of the batch, is the whole."""
    src, tgt = tokens(3, 9, 11), tokens(3, 5, 13)
    src_mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    order = torch.tensor([2, 0, 1, 0])
    whole, memory = model(src, tgt, src_mask=src_mask)[order], reorder(model.begin(src, src_mask), order)
    for t in range(5):
        logits, memory = model.step(tgt[order, t], memory)
        assert_close(logits, whole[:, t], rtol=0, atol=1e-10)
    logits, _ = model.step(tgt[:, 0], model.begin(src))
    assert_close(logits, model(src, tgt)[:, 0], rtol=0, atol=1e-10)


@torch.no_grad()
def check_padding(model):
    """Wherever padding stands, and whatever it holds, nothing changes; without a word there are numbers still."""
    src, tgt = tokens(1, 6, 11), tokens(1, 4, 13)
    alone, aligned = model(src, tgt), model.align(src, tgt)
    for places, target_places in (([0, 1, 2, 3, 4, 5], [0, 1, 2, 3]), ([3, 4, 5, 6, 7, 8], [2, 3, 4, 5]),
                                  ([0, 2, 3, 5, 6, 8], [0, 2, 3, 5])):  # fmt: skip
        padded, target = tokens(2, 9, 11), tokens(2, 6, 13)
        mask, target_mask = torch.zeros(2, 9, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.bool)
        padded[0, places], target[0, target_places] = src[0], tgt[0]
        mask[0, places] = True
        target_mask[0, target_places] = True
        target_mask[1] = True
        found = model(padded, target, src_mask=mask, tgt_mask=target_mask)
        weights = model.align(padded, target, src_mask=mask, tgt_mask=target_mask)
        assert_close(found[0, target_places], alone[0], rtol=0, atol=1e-10)
        assert_close(weights[0, target_places][:, places], aligned[0], rtol=0, atol=1e-10)
        assert not weights[0][~target_mask[0]].any()
        assert not weights[:, :, ~mask[0]][0].any()
        assert found.isfinite().all()
        assert not weights[1].any(), "no word, no weight"


def learns_to_reverse(model, steps, *, rate=2e-2, batch=32, length=3):
    """Trained on random tokens backwards: the share of right ones, and of weights at the right place."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps + 1):
        src = torch.randint(2, 6, (batch, length))
        truth = src.flip(1)
        tgt = torch.cat((torch.ones(batch, 1, dtype=torch.long), truth[:, :-1]), 1)
        if step == steps:
            break
        loss = F.cross_entropy(model(src, tgt).flatten(0, 1), truth.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        places = torch.arange(length).flip(0)
        right = (model(src, tgt).argmax(-1) == truth).double().mean()
        pointed = model.align(src, tgt)[:, torch.arange(length), places].mean()
    return float(right), float(pointed)
