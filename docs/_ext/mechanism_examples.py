"""One short example for each mechanism, as its page shows it; tests/docs runs every one of them."""

from regard.factory import card, find
from regard.registry import Core

HEAD = "import torch\nimport regard\n\n"

_PAIRS = {
    "abcnn": """
layer = regard.create("abcnn", dim=64, max_length=20)
y, z = layer(torch.randn(2, 12, 64), torch.randn(2, 20, 64))  # two sentences, each in the light of the other
""",
    "alphafold2": """
block = regard.create("alphafold2", dim=32, num_heads=4, head_dim=8, pair_dim=16, pair_heads=2, pair_head_dim=8)
msa, pair = block(torch.randn(1, 6, 20, 32), torch.randn(1, 20, 20, 16))  # 6 aligned sequences of 20 residues
""",
    "bahdanau": """
layer = regard.create("bahdanau", dim=64, context_dim=48)
states, source = torch.randn(2, 9, 64), torch.randn(2, 12, 48)
y = layer(states, source, key_mask=torch.ones(2, 12, dtype=torch.bool))  # True = takes part
weights = regard.inspect.attention_map(layer, states, source).tensor  # (2, 1, 9, 12)
""",
    "co_attention": """
layer = regard.create("co_attention", dim=32)
y, z = layer(torch.randn(1, 32, 9, 9), torch.randn(1, 32, 7, 11))  # two images, each in the light of the other
""",
    "cross_attention_fewshot": """
layer = regard.create("cross_attention_fewshot", size=36)  # maps of 6 x 6 pixels
prototypes, queries = torch.randn(1, 5, 64, 6, 6), torch.randn(1, 4, 64, 6, 6)
of_prototypes, of_queries = layer(prototypes, queries)  # (1, 4, 5, 64, 6, 6): for every query and class
""",
    "ctc": """
layer = regard.create("ctc", dim=64, context_dim=48)
y = layer(torch.randn(2, 9, 64), torch.randn(2, 120, 48))  # states of a decoder, frames of sound
""",
    "luong": """
layer = regard.create("luong", dim=64, alignment="local-p", half_window=10)
states, source = torch.randn(2, 9, 64), torch.randn(2, 12, 64)
y = layer(states, source, key_mask=torch.ones(2, 12, dtype=torch.bool))  # True = takes part
weights = regard.inspect.attention_map(layer, states, source).tensor  # (2, 1, 9, 12)
""",
    "mac": """
layer = regard.create("mac", dim=64, steps=4)
words, cells, question = torch.randn(2, 7, 64), torch.randn(2, 49, 64), torch.randn(2, 64)
memory, told = layer(words, cells, question=question, return_aux=True)  # (2, 64)
looked = told["map/knowledge"]  # (2, 4, 49): where each step looked
""",
    "quasi_attention": """
layer = regard.create("quasi_attention", dim=64, num_heads=4)
words, asked = torch.randn(2, 30, 64), torch.randn(2, 30, 64)  # every token comes with a context
y = layer(words, asked)
""",
    "show_attend_tell": """
layer = regard.create("show_attend_tell", dim=64, context_dim=48)
y = layer(torch.randn(2, 9, 64), torch.randn(2, 49, 48))  # words so far, places of an image
""",
}

_FURTHER = {"informer": ", strict=True"}
"""What a mechanism on sequences needs to do all that its example shows."""


def example(name: str) -> str:
    """Code that makes the mechanism and calls it once, ready to be pasted."""
    about = card(name)
    if about.data == "pair":
        return HEAD + _PAIRS[name].strip()
    if about.data == "map":
        return HEAD + _on_maps(name)
    if about.data == "set":
        lines = [
            f'layer = regard.create("{name}", dim=64, num_heads=4)',
            "y = layer(torch.randn(2, 50, 64))  # any order",
        ]
        return HEAD + "\n".join(lines)
    return HEAD + _on_sequences(name)


def _on_maps(name: str) -> str:
    lines = [f'layer = regard.create("{name}", dim=32, num_heads=4)', "x = torch.randn(2, 32, 24, 20)"]
    if "key_mask" in card(name).refuses:
        lines.append("y = layer(x)")
    else:
        lines.append(
            "y = layer(x, key_mask=torch.ones(2, 24, 20, dtype=torch.bool))  # a mask of pixels, True = takes part"
        )
    return "\n".join(lines)


def _on_sequences(name: str) -> str:
    about = card(name)
    options = (", causal=True" if about.causal else "") + _FURTHER.get(name, "")
    lines = [
        f'layer = regard.create("{name}", dim=64, num_heads=4, max_length=1024{options})',
        "x = torch.randn(2, 100, 64)",
        "y = layer(x, key_mask=torch.ones(2, 100, dtype=torch.bool))  # True = takes part",
    ]
    if about.streaming:
        lines += [
            "",
            "memory = layer.memory(2)  # decoding: of two sequences of which nothing has been seen",
            "y, memory = layer.stream(x[:, :1], memory)",
        ]
    if issubclass(find(name).cls, Core):
        lines += [
            "",
            f'core = regard.core("{name}", num_heads=4, head_dim=16, max_length=1024{options})',
            "q = k = v = torch.randn(2, 4, 100, 16)  # from projections of your own",
            "out = core(q, k, v)",
        ]
    return "\n".join(lines)
