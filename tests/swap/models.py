"""Small models with attention of every kind that can be replaced, with random weights."""

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 32, "vocab_size": 50}
IDS = torch.arange(2 * 12).reshape(2, 12) * 7 % 48 + 2
RIGHT = torch.arange(12) < torch.tensor([[12], [8]])  # True for real tokens
LEFT = RIGHT.flip(1)


class FusedAttention(nn.Module):
    """The names, options and mathematics of timm's."""

    def __init__(self, dim, num_heads, qkv_bias=True, qk_norm=False, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = num_heads, dim // num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm, self.k_norm = (nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity() for _ in range(2))
        self.attn_drop, self.norm = nn.Dropout(attn_drop), nn.Identity()
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(proj_drop)

    def forward(self, x, attn_mask=None, is_causal=False):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        drop = self.attn_drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(
            self.q_norm(q), self.k_norm(k), v, attn_mask=attn_mask, dropout_p=drop, is_causal=is_causal
        )
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))


class Blocks(nn.Module):
    """Residual blocks around any attention that takes x alone."""

    def __init__(self, *attentions):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": part, "norm": nn.LayerNorm(24)}) for part in attentions)

    def forward(self, x, **options):
        for layer in self.layers:
            x = x + layer["attn"](layer["norm"](x), **options)
        return x


def encoder(batch_first=True, **options):
    layer = nn.TransformerEncoderLayer(24, 3, 32, dropout=0.1, batch_first=batch_first, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def decoder():
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(24, 3, 32, batch_first=True), 2).eval()


def bert(length=16, attention="sdpa", **options):
    import transformers

    config = transformers.BertConfig(**SIZES, max_position_embeddings=length, attn_implementation=attention, **options)
    return transformers.BertModel(config).eval()


def roberta(length=16):
    import transformers

    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=length + 2, pad_token_id=1)
    return transformers.RobertaModel(config).eval()


def gpt2(length=16, attention="sdpa"):
    import transformers

    sizes = {"n_embd": 24, "n_head": 3, "n_layer": 2, "vocab_size": 50, "n_positions": length}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, attn_implementation=attention)
    return transformers.GPT2LMHeadModel(config).eval()


def vit():
    import transformers

    sizes = {name: value for name, value in SIZES.items() if name != "vocab_size"}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=8, patch_size=2)).eval()


def state(model):
    """Everything that a swap could change: numbers, modes, settings, classes."""
    numbers = {name: value.clone() for name, value in model.state_dict(keep_vars=False).items()}
    numbers |= {f"buffer {name}": value.clone() for name, value in model.named_buffers()}
    parts = [(name, type(part), part.training, id(part)) for name, part in model.named_modules()]
    settings = model.config.to_dict() if hasattr(model, "config") else {}
    return numbers, parts, settings


def same(first, second):
    return (
        first[0].keys() == second[0].keys()
        and all(torch.equal(value, second[0][name]) for name, value in first[0].items())
        and first[1:] == second[1:]
    )


def llama(length=32):
    import transformers

    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=length, eos_token_id=None)
    return transformers.LlamaForCausalLM(config).eval()


def t5():
    import transformers

    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3, "vocab_size": 50}
    return transformers.T5Model(transformers.T5Config(**sizes)).eval()


def whisper():
    import transformers

    sides = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 3, "decoder_attention_heads": 3}
    sizes = {"d_model": 24, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50, "num_mel_bins": 4}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    limits = {"max_source_positions": 10, "max_target_positions": 16}
    return transformers.WhisperModel(transformers.WhisperConfig(**sides, **sizes, **marks, **limits)).eval()
