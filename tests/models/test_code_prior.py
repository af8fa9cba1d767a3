import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.memory import reorder
from regard.models.code_prior import CodePrior, bits
from regard.models.jukebox_transformer import JukeboxTransformer

N, V, C = 14, 7, 12


def small(order=2, depth=3, **options):
    torch.manual_seed(0)
    transformer = JukeboxTransformer(C, depth, 2, order=order, row_length=4, attention_ratio=0.5, init_scale=10.0)
    return CodePrior(V, N, transformer, init_scale=10.0, **options).double().eval()


def codes_of(batch=2, length=N):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", ["tied", "separate", "none"])
@pytest.mark.parametrize("labelled", [False, True])
def test_it_is_the_transformer_on_shifted_codes(head, labelled):
    prior, codes = small(head=head, labelled=labelled), codes_of()
    start, condition = torch.randn(2, C, dtype=torch.float64), torch.randn(2, N, C, dtype=torch.float64)
    first = start if labelled else prior.start.expand(2, -1)
    x = torch.stack([first, *prior.embedding(codes[:, :-1]).unbind(1)], 1) + prior.position + condition
    y = prior.transformer(x)
    expected = {
        "tied": lambda: (y + condition) @ prior.embedding.weight.T,
        "separate": lambda: y @ prior.out.weight.T,
        "none": lambda: y + condition,
    }[head]()
    assert_close(prior(codes, start=start if labelled else None, condition=condition), expected, rtol=0, atol=1e-12)


def test_no_logit_knows_its_own_code_or_a_later_one():
    prior, codes = small(), codes_of()
    changed = torch.where(torch.arange(N) >= 6, (codes + 1) % V, codes)
    assert_close(prior(codes)[:, :7], prior(changed)[:, :7], rtol=0, atol=0)
    assert not torch.allclose(prior(codes)[:, 7:], prior(changed)[:, 7:])


def test_padding_on_either_side_changes_nothing():
    prior, codes = small(), codes_of()
    keep = torch.ones(2, N, dtype=torch.bool)
    keep[0, :5], keep[1, 9:] = False, False
    y = prior(codes.masked_fill(~keep, -100), key_mask=keep)
    for row in range(2):
        assert_close(y[row, keep[row]], prior(codes[row : row + 1, keep[row]])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pieces", [[0, 1, 1, 1, 5, 6], [N], [3, 11]])
def test_a_stream_is_the_whole(pieces):
    prior, codes = small(labelled=True), codes_of()
    told = {"start": torch.randn(2, C, dtype=torch.float64), "condition": torch.randn(2, N, C, dtype=torch.float64)}
    memory, outs = prior.memory(2, **told), []
    for piece in codes[:, : N - 1].split([*pieces[:-1], pieces[-1] - 1], 1):
        logits, memory = prior.stream(piece, memory)
        outs.append(logits)
    assert_close(torch.cat(outs, 1), prior(codes, **told), rtol=0, atol=1e-12)


def test_memories_branch_off():
    prior, codes = small(), codes_of()
    _, memory = prior.stream(codes[:, :5], prior.memory(2))
    turned, _ = prior.stream(codes[[1, 0], 5:7], reorder(memory, torch.tensor([1, 0])))
    straight, _ = prior.stream(codes[:, 5:7], memory)
    assert_close(turned, straight[[1, 0]], rtol=0, atol=1e-12)


def test_bits_are_the_mean_of_binary_logarithms():
    logits, codes = torch.randn(2, 3, V, dtype=torch.float64), torch.tensor([[0, 1, 2], [3, 4, 5]])
    logs = [F.log_softmax(logits[b, t], -1)[codes[b, t]].item() for b in range(2) for t in range(3)]
    assert_close(float(bits(logits, codes)), -sum(logs) / 6 / math.log(2))


def test_tables_start_as_the_authors_do():
    torch.manual_seed(0)
    prior = CodePrior(200, 300, JukeboxTransformer(64, 1, 2), init_scale=3.0)
    for table, std in ((prior.embedding.weight, 0.06), (prior.position, 0.03)):
        assert abs(float(table.detach().std()) - std) < 0.002


def test_refusals():
    prior, codes = small(), codes_of()
    with pytest.raises(ValueError, match=r"15 codes.*max_length=14"):
        prior(codes_of(length=15))
    with pytest.raises(ValueError, match="expected integers"):
        prior(codes.double())
    with pytest.raises(ValueError, match="has learned its start"):
        prior(codes, start=torch.zeros(2, C))
    with pytest.raises(ValueError, match="needs start="):
        small(labelled=True)(codes)
    with pytest.raises(ValueError, match=r"start has shape \(2, 3\)"):
        small(labelled=True)(codes, start=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"condition has shape \(2, 3, 12\), expected \(2, 14 or 1, 12\)"):
        prior(codes, condition=torch.zeros(2, 3, C))
    with pytest.raises(ValueError, match="head='own' is none"):
        small(head="own")
    with pytest.raises(ValueError, match="num_codes=0"):
        CodePrior(0, 3, JukeboxTransformer(16, 1))
    _, memory = prior.stream(codes, prior.memory(2)._replace(pending=torch.zeros(2, 0, C, dtype=torch.float64)))
    with pytest.raises(ValueError, match="14 codes and 1 more"):
        prior.stream(codes[:, :1], memory)
    with pytest.raises(TypeError, match=r"memory\(batch\)"):
        prior.stream(codes, (memory,))
