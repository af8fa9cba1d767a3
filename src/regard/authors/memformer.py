"""lucidrains/memformer, a port of the paper's first version, and the paper's final equations.

The port mixes up the sides of its distances: those of the encoder have none, those of the causal decoder have one. Its
memory enters as it is, and a padded query sees everything alike.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention import attend
from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.models.memformer import Memformer
from regard.ops.memory_slots import SlotMemory
from regard.registry import UnsupportedError

BARRED = -1e30
"""Added to a score: weight 0 beside any other, and alike where there is no other."""

# lucidrains/memformer


def _port_arguments(config: Config) -> dict[str, Any]:
    decodes = not config.get("encoder_only", False)
    update: dict[str, Any] = {"update": "gru", "num_updates": config.get("num_mem_updates", 1)}
    decoder: dict[str, Any] = {}
    if decodes:
        decoder = {
            "target_vocab_size": config["dec_num_tokens"],
            "decoder_depth": config["dec_depth"],
            "decoder_heads": config.get("dec_heads", 8),
        }
    return {
        "vocab_size": config["enc_num_tokens"],
        "dim": config["dim"],
        "num_heads": config.get("enc_heads", 8),
        "depth": config["enc_depth"],
        "num_slots": config["num_memory_slots"],
        "update_heads": config.get("mem_update_attn_heads", 8),
        "two_sided": (False, True),
        **update,
        **decoder,
    }


_STACK = {
    r"^(encoder|decoder)\.(?:net\.)?token_emb": r"\1.embedding",
    r"^(encoder|decoder)\.(?:net\.)?layer_blocks\.rel_pos_emb\.relative_attention_bias": r"\1.bias",
    r"^(encoder|decoder)\.(?:net\.)?norm\.": r"\1.norm.",
    r"^decoder\.(?:net\.)?to_logits\.": "output.",
    r"^(encoder|decoder)\.(?:net\.)?layer_blocks\.layers\.": r"\1.layers.",
    r"\.0\.fn\.fn\.to_": r".near.to_",
    r"\.0\.fn\.norm\.": r".near.norm.",
    r"\.1\.fn\.fn\.to_": r".far.to_",
    r"\.1\.fn\.norm\.": r".far.norm.",
    r"\.2\.fn\.norm\.": r".norm.",
    r"\.2\.fn\.fn\.net\.": r".feed_forward.",
    r"^memory_slots$": "slots.start",
    r"^mem_updater\.": "slots.",
    r"^gru\.": "slots.gru.",
    r"^mem_ff\.fn\.norm\.": "slots.feed_forward.0.",
    r"^mem_ff\.fn\.fn\.net\.0\.": "slots.feed_forward.1.",
    r"^mem_ff\.fn\.fn\.net\.2\.": "slots.feed_forward.3.",
    r"\bto_q\.": "q_proj.",
    r"\bto_out\.": "out_proj.",
}


def _port_weights(state: State) -> State:
    found: dict[str, Tensor] = {}
    for name, tensor in renamed(state, _STACK).items():
        if "to_kv." in name:
            for side, half in zip("kv", tensor.chunk(2), strict=True):
                found[name.replace("to_kv.", f"{side}_proj.")] = half
        else:
            found[name] = tensor
    return found


def _pairs(queries: Tensor, keys: Tensor, causal: bool = False) -> Tensor:
    """What their masks add to the scores: (B, 1, N, M)."""
    seen = queries[:, None, :, None] & keys[:, None, None]
    if causal:
        seen = seen & torch.ones(seen.shape[-2:], dtype=torch.bool, device=seen.device).tril()
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, BARRED)


def _port_call(module: Memformer, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "src", "tgt", "mems", "src_mask", "tgt_mask")
    src, slots = given["src"], given.get("mems")
    slots = module.slots.initial(len(src)) if slots is None else slots
    real = given["src_mask"].detach().bool() if "src_mask" in given else None
    dtype = module.slots.start.dtype
    encoded = module.encoder(src, slots, None if real is None else _pairs(real, real).to(dtype))
    written = module.slots(slots, encoded, real)
    # by their own names: which of them is the main output, and what "out" is, a recording says for itself
    found = {"enc_out": encoded, "mem": written, "sum": torch.cat((encoded, written), 1)}
    if module.decoder is not None and "tgt" in given:
        found["dec_out"] = _decoded(module, given["tgt"], given.get("tgt_mask"), encoded, real)
    return found


def _decoded(module: Memformer, tgt: Tensor, tgt_mask: Tensor | None, encoded: Tensor, real: Tensor | None) -> Tensor:
    """Their loss: every target token but the first, padded ones too."""
    if module.decoder is None or module.output is None:
        raise UnsupportedError("encoder_only: there is nothing that decodes")
    before, dtype = tgt[:, :-1], encoded.dtype
    asks = None if tgt_mask is None or tgt_mask.shape[1] != tgt.shape[1] else tgt_mask.detach().bool()[:, :-1]
    everyone = torch.ones_like(before, dtype=torch.bool)
    there = torch.ones(encoded.shape[:2], dtype=torch.bool, device=tgt.device)
    asks, real = everyone if asks is None else asks, there if real is None else real
    x = module.decoder(before, encoded, _pairs(asks, asks, causal=True).to(dtype), _pairs(asks, real).to(dtype))
    return F.cross_entropy(module.output(x).transpose(1, 2), tgt[:, 1:])


# the equations of the final version


class ReadAndWrite(nn.Module):
    """One look of tokens at the slots, and the slots' update: single matrices, nothing around them.

    Args:
        dim, num_heads, num_slots, temperature: C, H, K and tau.
    """

    def __init__(self, dim: int, num_heads: int, num_slots: int, temperature: float) -> None:
        super().__init__()
        self.slots = SlotMemory(dim, num_heads, num_slots, temperature=temperature)
        self.read_q, self.read_k, self.read_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, x: Tensor, slots: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, N, C), slots (B, K, C) -> what the tokens read (B, N, C), and the new slots."""
        q, k, v = (self.slots._heads(t) for t in (self.read_q(x), self.read_k(slots), self.read_v(slots)))
        return attend(q, k, v).transpose(1, 2).flatten(2), self.slots(slots, x, real)


def _equations_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["C"],
        "num_heads": config["H"],
        "num_slots": config["slots"],
        "temperature": config.get("temperature", 0.25),
    }


def _equations_weights(state: State) -> State:
    names = {"wq": "slots.q_proj.weight", "wk": "slots.k_proj.weight", "wv": "slots.v_proj.weight"}
    names |= {"rq": "read_q.weight", "rk": "read_k.weight", "rv": "read_v.weight", "v_bias": "slots.start"}
    return {names.get(name, name): tensor for name, tensor in state.items()}


def _equations_call(module: ReadAndWrite, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "x", "mem", "keep_mask")
    x, real = given["x"], given.get("keep_mask")
    slots = given["mem"] if "mem" in given else module.slots.initial(len(x))
    read, written = module(x, slots, None if real is None else real.detach().bool())
    start = module.slots.initial(1)[0]
    return {"out": torch.cat((written, read), 1), "new_mem": written, "read": read, "init_mem": start}


IMPORTERS = {
    "lucidrains/memformer:memformer/memformer.py:Memformer": Importer(
        Memformer, _port_arguments, _port_call, _port_weights
    ),
    "equations": Importer(ReadAndWrite, _equations_arguments, _equations_call, _equations_weights),
}
