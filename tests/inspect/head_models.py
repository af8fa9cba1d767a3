"""Small models with heads, ours and those of transformers, each with a function that gives what comes out."""

import torch

import regard
from regard.models.bert import BertEncoder

IDS = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))


def language():
    return regard.models.TransformerLM(50, 16, 2, 4, 32), lambda model: model(IDS)


def grouped():
    model = regard.models.TransformerLM(50, 16, 2, 8, 32, num_kv_heads=4, rotary=1e4)
    return model, lambda model: model(IDS)


def translation():
    model = regard.models.Transformer(50, dim=16, num_heads=4, depth=1, hidden=24, dropout=0.0)
    return model, lambda model: model(IDS, IDS[:, :5])


def encoder():
    model = BertEncoder(50, 16, 2, 32, lambda number: regard.create("full", dim=16, num_heads=4), dropout=0.0)
    return model, lambda model: model(IDS)


def learned():
    return regard.models.TransformerLM(50, 16, 2, 4, 32, "head_pruning"), lambda model: model(IDS)


SIZES = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32, "vocab_size": 50}


def bert():
    import transformers

    config = transformers.BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertModel(config), lambda model: model(IDS).last_hidden_state


def bert_decoder():
    import transformers

    config = transformers.BertConfig(
        **SIZES, is_decoder=True, add_cross_attention=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    other = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    run = lambda model: model(IDS, encoder_hidden_states=other).last_hidden_state  # noqa: E731
    return transformers.BertModel(config), run


def gpt2():
    import transformers

    marks = {"bos_token_id": 0, "eos_token_id": 1, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    config = transformers.GPT2Config(n_embd=24, n_head=4, n_layer=2, vocab_size=50, **marks)
    return transformers.GPT2LMHeadModel(config), lambda model: model(IDS).logits


def llama():
    import transformers

    sizes = SIZES | {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)), lambda model: model(IDS).logits


OURS = [language, grouped, translation, encoder, learned]
THEIRS = [bert, bert_decoder, gpt2, llama]
