import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import regard
from regard.models import BertEncoder, BigBirdEncoder, Linformer, LongformerEncoder, Nystromformer
from regard.registry import UnsupportedError

ENCODERS = {
    "longformer": lambda **options: LongformerEncoder(30, 12, 2, 3, 24, window=3, **options),
    "bigbird": lambda **options: BigBirdEncoder(30, 12, 2, 3, 24, block=2, random=1, **options),
    "linformer": lambda **options: Linformer(30, 12, 2, 3, 24, rank=4, **options),
    "nystrom": lambda **options: Nystromformer(30, 12, 2, 3, 24, num_landmarks=4, conv_kernel=3, **options),
}


def tokens(n=13):
    return torch.randint(30, (2, n))


def test_the_blocks_are_post_norm():
    attention = [regard.create("full", dim=12, num_heads=3) for _ in range(2)]
    model = BertEncoder(30, 12, 2, 24, attention.__getitem__, mlp_dim=20, position_offset=2, scale_embeddings=True)
    model, x, types = model.eval(), tokens(), torch.randint(2, (2, 13))

    def norm(y):
        return F.layer_norm(y, (12,), eps=1e-12)

    h = model.token_embedding.weight[x] * 12**0.5 + model.position_embedding.weight[2:15]
    h = norm(h + model.type_embedding.weight[types])
    for layer, block in zip(attention, model.blocks, strict=True):
        h = norm(h + layer(h))
        h = norm(h + block.mlp[2](F.gelu(block.mlp[0](h))))
    assert_close(model(x, token_types=types), h)
    assert_close(model.pooled(h), torch.tanh(h[:, 0] @ model.pool.weight.T + model.pool.bias))


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_changes_nothing(name):
    model, x = ENCODERS[name]().eval(), tokens()
    whole = model(x)
    for real in (slice(0, 13), slice(4, 17)):
        mask = torch.zeros(2, 17, dtype=torch.bool)
        mask[:, real] = True
        padded = torch.randint(30, (2, 17))
        padded[:, real] = x
        y = model(padded, key_mask=mask)
        assert_close(y[:, real], whole, rtol=0, atol=1e-5)
        assert_close(model.pooled(y, mask), model.pooled(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_learns(name):
    model = ENCODERS[name](dropout=0.1)
    y = model(tokens(24))
    ((y * torch.randn_like(y)).sum() + model.pooled(y).square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_global_token_is_seen_from_afar():
    model, x = LongformerEncoder(30, 12, 1, 3, 24, window=1, num_global=0).eval(), tokens()
    other = x.clone()
    other[:, 6] = (x[:, 6] + 1) % 30
    special = (torch.arange(13) == 6).expand(2, -1)
    assert_close(model(other)[:, 0], model(x)[:, 0])
    assert not torch.allclose(model(other, global_mask=special)[:, 0], model(x, global_mask=special)[:, 0])


def test_one_window_a_layer():
    model = LongformerEncoder(30, 12, 2, 3, 24, window=(1, 5))
    assert [block.attention.window for block in model.blocks] == [1, 5]
    with pytest.raises(ValueError, match=r"3 windows for depth=2"):
        LongformerEncoder(30, 12, 2, 3, 24, window=(1, 5, 1))


def test_layers_share_their_tables():
    def tables(share):
        model = Linformer(30, 12, 3, 3, 24, rank=4, share=share)
        return sum(p.numel() for name, p in model.named_parameters() if ".core." in name) // (4 * 24)

    assert [tables(share) for share in ("none", "heads", "kv", "layers")] == [18, 6, 3, 1]


def test_layers_draw_blocks_of_their_own():
    first, second = (block.attention.core.rand_blocks for block in BigBirdEncoder(30, 12, 2, 3, 64, block=2).blocks)
    assert not first.equal(second)


def test_refusals():
    model = ENCODERS["linformer"]().eval()
    with pytest.raises(ValueError, match=r"25 tokens.*max_length=24"):
        model(tokens(25))
    with pytest.raises(ValueError, match="token_types has shape"):
        model(tokens(), token_types=torch.zeros(2, 12, dtype=torch.long))
    with pytest.raises(ValueError, match=r"tokens has shape \(13,\)"):
        model(tokens()[0])
    with pytest.raises(ValueError, match="activation='swish'"):
        ENCODERS["nystrom"](activation="swish")


def config(**changes):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    return {"vocab_size": 30, "max_position_embeddings": 26, "attention_window": 6, **sizes, **changes}


def test_a_checkpoint_of_a_task_loads_without_its_head():
    """transformers' LongformerForMaskedLM: a prefix, a head, and no pooler."""
    ours = regard.authors.load("longformer", "LongformerModel", config(), theirs())
    state = {f"longformer.{name}": t for name, t in theirs().items() if not name.startswith("pooler")}
    headed = regard.authors.load("longformer", "LongformerModel", config(), state | {"lm_head.bias": torch.zeros(30)})
    x = tokens()
    assert_close(headed.eval()(x), ours.eval()(x), rtol=0, atol=0)
    assert not headed.pooled(headed(x)).any()


def theirs():
    """A state dict by transformers' names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embeddings.word_embeddings.weight": (30, 12),
        "embeddings.position_embeddings.weight": (26, 12),
        "embeddings.token_type_embeddings.weight": (2, 12),
        "encoder.layer.0.intermediate.dense.weight": (20, 12),
        "encoder.layer.0.intermediate.dense.bias": (20,),
        "encoder.layer.0.output.dense.weight": (12, 20),
        "encoder.layer.0.output.dense.bias": (12,),
    }
    squares = ["encoder.layer.0.attention.output.dense", "pooler.dense"]
    squares += [f"encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value")]
    squares += [f"encoder.layer.0.attention.self.{name}_global" for name in ("query", "key", "value")]
    norms = ["embeddings.LayerNorm", "encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.output.LayerNorm"]
    shapes |= {f"{name}.weight": (12, 12) for name in squares} | {f"{name}.bias": (12,) for name in squares}
    shapes |= {f"{name}.{kind}": (12,) for name in norms for kind in ("weight", "bias")}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_importers_refuse():
    with pytest.raises(UnsupportedError, match="hidden_act='swish'"):
        regard.authors.load("longformer", "LongformerModel", config(hidden_act="swish"), theirs())
    with pytest.raises(UnsupportedError, match="is_decoder"):
        regard.authors.load("bigbird", "BigBirdModel", config(is_decoder=True), {})
    with pytest.raises(UnsupportedError, match="attention_type='dense'"):
        regard.authors.load("bigbird", "BigBirdModel", config(attention_type="dense"), {})
