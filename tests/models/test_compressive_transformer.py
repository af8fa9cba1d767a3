import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.models.compressive_transformer import CompressiveTransformer
from regard.models.decoding import generate

CONFIGURATIONS = [
    {},
    {"compressed_length": 0, "memory_length": 6},
    {"placement": "pre", "compression": "max"},
    {"compression": "most_used", "share_biases": False},
]


def small(**options):
    options = {"dim": 8, "depth": 3, "num_heads": 2, "segment_length": 4, "ratio": 2, **options}
    return CompressiveTransformer(13, **options, dtype=torch.float64).eval()


@pytest.mark.parametrize("options", CONFIGURATIONS)
@pytest.mark.parametrize("pieces", [[1] * 21, [4, 4, 4, 4, 4, 1], [2, 9, 10]])
def test_pieces_give_what_the_whole_gives(options, pieces):
    model, tokens = small(**options), torch.randint(13, (2, 21))
    outs, memory = [], model.memory(2)
    with torch.no_grad():
        for piece in tokens.split(pieces, 1):
            logits, memory = model.stream(piece, memory)
            outs.append(logits)
    assert memory.position.tolist() == [21, 21]
    assert_close(torch.cat(outs, 1), model(tokens), rtol=0, atol=1e-11)


def test_a_layer_is_that_of_the_paper():
    """Embedding times sqrt(C), LN(h + attention), LN(a + W_2 relu(W_1 a)), and the embedding as output matrix."""
    model, tokens = small(depth=1), torch.randint(13, (1, 6))
    block = model.blocks[0]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)

    def norm(x, module):
        return F.layer_norm(x, (8,)) * module.weight + module.bias

    h = model.embedding.weight[tokens] * 8**0.5
    a = norm(h + block.attention(h), block.norms[0])
    hidden = (a @ block.first.weight.T + block.first.bias).clamp(min=0)
    y = norm(a + hidden @ block.second.weight.T + block.second.bias, block.norms[1])
    assert_close(model(tokens), y @ model.embedding.weight.T + model.bias, rtol=0, atol=1e-12)


def test_padding_and_packing_change_nothing():
    model, tokens = small(), torch.randint(13, (1, 11))
    for pads in ((3, 0), (0, 3)):
        mask = F.pad(torch.ones_like(tokens), pads) > 0
        assert_close(model(F.pad(tokens, pads), key_mask=mask)[mask], model(tokens)[0], rtol=0, atol=1e-12)
    packed = model(tokens, segments=torch.tensor([[5] * 7 + [2] * 4]))
    alone = torch.cat((model(tokens[:, :7]), model(tokens[:, 7:])), 1)
    assert_close(packed, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [True, False])
def test_biases_are_shared_unless_told_otherwise(share):
    model = small(share_biases=share)
    assert sum("content_bias" in name for name, _ in model.named_parameters()) == (1 if share else 3)
    again = small(share_biases=share)
    again.load_state_dict(model.state_dict())
    tokens = torch.randint(13, (1, 9))
    assert_close(again(tokens), model(tokens), rtol=0, atol=0)


def test_losses_carry_the_path_of_their_layer_and_are_a_mean():
    model, tokens = small(loss_weight=0.5), torch.randint(13, (1, 12))
    _, aux = model(tokens, return_aux=True)
    assert list(aux) == [f"loss/blocks.{number}.attention/reconstruction" for number in range(3)]
    assert {block.attention.loss_weight for block in model.blocks} == {0.5 / 3}
    _, _, streamed = model.stream(tokens, model.memory(1), return_aux=True)
    for name, value in aux.items():
        assert_close(streamed[name], value, rtol=0, atol=1e-12)


def test_training_on_a_stream_learns_and_reaches_every_parameter():
    """A period of 8 tokens, longer than a segment, whose order the model learns segment by segment."""
    torch.manual_seed(1)
    model = CompressiveTransformer(8, dim=16, depth=2, num_heads=2, segment_length=4, compressed_length=2, ratio=2)
    book = torch.randperm(8).repeat(15)[None]
    optimizer, memory, losses = torch.optim.Adam(model.parameters(), 2e-2), model.memory(1), []
    for read, wanted in zip(book[:, :-4].split(4, 1), book[:, 1:-3].split(4, 1), strict=True):
        logits, memory, aux = model.stream(read, memory, return_aux=True)
        assert not any(tensor.requires_grad for layer in memory.layers for tensor in layer)
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        sum(aux.values(), loss).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_generates():
    model, prompt = small(), torch.randint(13, (2, 5))
    longer = generate(model, prompt, 9, temperature=0)
    again = prompt
    for _ in range(9):
        again = torch.cat((again, model(again)[:, -1:].argmax(-1)), 1)
    assert longer.tolist() == again.tolist()


def test_refusals():
    with pytest.raises(ValueError, match="placement='middle' is neither"):
        small(placement="middle")
    with pytest.raises(ValueError, match="memory"):
        small().stream(torch.zeros(1, 3, dtype=torch.long), small(depth=2).memory(1))
