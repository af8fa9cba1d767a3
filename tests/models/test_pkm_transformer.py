import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.mechanisms.chosen.product_key_memory import ProductKeyMemory
from regard.models import PKMTransformer
from regard.models.pkm_transformer import parameter_groups

MEMORY = {"num_heads": 2, "key_dim": 8, "num_keys": 6, "topk": 3}
SIZES = {"vocab_size": 20, "dim": 12, "depth": 3, "num_heads": 3, "max_length": 16, "memory": MEMORY}


def tokens(n=9):
    return torch.randint(20, (2, n))


@pytest.mark.parametrize("placement", ["instead", "beside"])
def test_the_chosen_layers_remember(placement):
    model, x = PKMTransformer(**SIZES, memory_layers=(0, 2), placement=placement).eval(), tokens()
    h = model.token_embedding.weight[x] + model.position_embedding.weight[:9]
    for number, block in enumerate(model.blocks):
        h = h + block.attention(F.layer_norm(h, (12,)))
        read, y = F.layer_norm(h, (12,)), 0
        if number == 1 or placement == "beside":
            y = y + block.mlp(read)
        if number != 1:
            y = y + block.memory(read)
        h = h + y
    assert_close(model(x), F.layer_norm(h, (12,)) @ model.token_embedding.weight.T)
    networks = sum(len(block.mlp) > 0 for block in model.blocks)
    assert networks == (1 if placement == "instead" else 3)


def test_the_middle_layer_is_the_default():
    model = PKMTransformer(**SIZES)
    assert [hasattr(block, "memory") for block in model.blocks] == [False, True, False]


def test_it_sees_no_later_token_unless_asked_to():
    x = tokens()
    changed = torch.cat((x[:, :5], (x[:, 5:] + 1) % 20), 1)
    for causal in (True, False):
        model = PKMTransformer(**SIZES, causal=causal).eval()
        same = torch.allclose(model(changed)[:, :5], model(x)[:, :5], atol=1e-6)
        assert same is causal


def test_token_by_token():
    model, x = PKMTransformer(**SIZES, placement="beside").eval(), tokens()
    memory, outs = model.memory(2), []
    for token in x.split([4, 1, 1, 1, 1, 1], 1):
        y, memory = model.stream(token, memory)
        outs.append(y)
    assert_close(torch.cat(outs, 1), model(x), rtol=0, atol=1e-5)


def test_padding_changes_nothing_in_training():
    """The batch norm of the queries takes its statistics from real tokens."""
    model = PKMTransformer(**SIZES).train()
    x, mask = tokens(13), torch.zeros(2, 13, dtype=torch.bool)
    mask[:, 4:] = True
    assert_close(model(x, key_mask=mask)[:, 4:], model(x[:, 4:]), rtol=0, atol=1e-5)


def test_what_memories_tell():
    model = PKMTransformer(**SIZES, memory_layers=(2,)).eval()
    logits, aux = model(tokens(), return_aux=True)
    assert logits.shape == (2, 9, 20)
    assert sorted(aux) == ["metric/blocks.2.memory/kl", "metric/blocks.2.memory/usage"]
    assert 0 < aux["metric/blocks.2.memory/usage"] <= 1


def test_every_parameter_learns_and_tables_have_their_own_rate():
    model = PKMTransformer(**SIZES, dropout=0.1)
    model(tokens(16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        # a bias on all keys cancels in the softmax, one on all queries in the batch norm
        assert parameter.grad.any() or "k_proj.bias" in name or "query_proj.bias" in name, name
    (table,) = (part.values for part in model.modules() if isinstance(part, ProductKeyMemory))
    assert [id(parameter) for parameter in parameter_groups(model)[1]["params"]] == [id(table)]


def test_options_reach_the_parts():
    model = PKMTransformer(**SIZES, mechanism="linear_transformer", dtype=torch.float64, mlp_ratio=2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model.blocks[0].mlp[0].out_features == 24
    assert model.blocks[1].attention.mechanism == "linear_transformer"


def test_refusals():
    for layers in ((3,), (-1,), (1, 1)):
        with pytest.raises(ValueError, match=r"memory_layers=.*depth=3"):
            PKMTransformer(**SIZES, memory_layers=layers)
    with pytest.raises(ValueError, match="placement='after' is neither"):
        PKMTransformer(**SIZES, placement="after")
    with pytest.raises(TypeError, match="no option 'heads'"):
        PKMTransformer(**SIZES, heads=3)
