"""Tiny models of transformers with random weights, and batches with padding for them."""

import torch
import transformers
from transformers.utils import logging

logging.set_verbosity_error()

_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}
_GROUPED = _SIZES | {
    "vocab_size": 50,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
_MODELS = {
    "llama": ("Llama", "ForCausalLM", _GROUPED),
    "mistral": ("Mistral", "ForCausalLM", _GROUPED | {"sliding_window": 5}),
    "gemma2": ("Gemma2", "ForCausalLM", _GROUPED | {"sliding_window": 5, "attn_logit_softcapping": 2.0}),
    "gpt_oss": ("GptOss", "ForCausalLM", _GROUPED | {"sliding_window": 5} | _EXPERTS),
    "gpt2": ("GPT2", "LMHeadModel", {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50, "n_positions": 64}),
    "bert": ("Bert", "ForMaskedLM", _SIZES | {"vocab_size": 50}),
    "roberta": ("Roberta", "ForMaskedLM", _SIZES | {"vocab_size": 50, "pad_token_id": 0}),
    "t5": (
        "T5",
        "ForConditionalGeneration",
        {
            "d_model": 32,
            "d_kv": 8,
            "num_heads": 4,
            "num_layers": 2,
            "d_ff": 40,
            "vocab_size": 50,
            "decoder_start_token_id": 0,
        },
    ),
    "vit": ("ViT", "ForImageClassification", _SIZES | {"image_size": 16, "patch_size": 4}),
    "whisper": (
        "Whisper",
        "ForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
        }
        | {
            "encoder_ffn_dim": 40,
            "decoder_ffn_dim": 40,
            "vocab_size": 50,
            "num_mel_bins": 8,
            "max_source_positions": 16,
        }
        | {
            "max_target_positions": 40,
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
    ),
}
NAMES = tuple(_MODELS)
DECODERS = ("llama", "mistral", "gemma2", "gpt_oss", "gpt2")


def model(name, **changes):
    """One of the models, in evaluation; its embeddings are spread so that generated tokens vary."""
    family, head, sizes = _MODELS[name]
    torch.manual_seed(0)
    built = getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1 and name != "t5":  # which starts far apart
                parameter.mul_(4.0)
    if hasattr(built, "generation_config") and built.can_generate():
        built.generation_config.update(pad_token_id=0, eos_token_id=None, bos_token_id=1)
    return built


def inputs(name):
    """A batch for it with labels, padded on the left for decoders and on the right for encoders."""
    draw = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(3, 50, (3, 9), generator=draw), torch.randint(3, 50, (3, 6), generator=draw)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=draw), "labels": torch.tensor([0, 1])}
    if name == "whisper":
        sound = torch.randn(2, 8, 32, generator=draw)
        return {"input_features": sound, "decoder_input_ids": labels[:2], "labels": labels[:2]}
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :3] = 0
    mask = mask if name in DECODERS else mask.flip(1)
    ids = ids * mask
    if name == "t5":
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    targets = ids.masked_fill(mask == 0, -100)
    targets[0, 3 if name in DECODERS else 5] = -100  # what a padded query would have to predict
    return {"input_ids": ids, "attention_mask": mask, "labels": targets}


def prompts(name):
    """The part of a batch that is continued by ``generate``."""
    return {key: value for key, value in inputs(name).items() if key not in ("labels", "decoder_input_ids")}


def additive(allowed):
    """A float mask (B, 1, L, S) as transformers' eager takes it, from a Bool one."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
