"""BigBird's block-sparse attention in transformers, the paper's ETC form, and DeepSpeed's layouts."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.func import functional_call

from regard.attention import attend, merge
from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bert, bind, deepspeed, renamed
from regard.authors.deepspeed import SHORT
from regard.layers import MultiHead
from regard.mechanisms.patterned.bigbird import BigBird
from regard.patterns import from_blocks
from regard.registry import UnsupportedError


def multiset_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N Dv"],
    rand_blocks: Int[Tensor, "H rows random"],
    block: int,
    key_mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N Dv"]:
    """Their softmax over lists of blocks, where a key counts as often as its block is listed.

    Blocks that are listed once, twice, ... are parts of one softmax, joined by their lse.

    Args:
        q, k, v: queries, keys and values, heads first.
        rand_blocks: of each block but the first and the last.
        block: tokens a block, of which N is a multiple.
        key_mask: True for real keys.

    Raises:
        ValueError: a length that is not a multiple of the block, or fewer than four blocks.
    """
    times = block_counts(rand_blocks, q.shape[-2], block)
    levels = [from_blocks(times >= level, block) for level in range(1, int(times.max()) + 1)]
    parts = [attend(q, k, v, level, key_mask=key_mask, return_lse=True) for level in levels]
    return merge([out for out, _ in parts], [lse for _, lse in parts])[0]


def block_counts(rand_blocks: Int[Tensor, "H rows random"], length: int, block: int) -> Int[Tensor, "H blocks blocks"]:
    """How often each block of queries lists each block of keys: the first, the last and neighbours once.

    Example:
        >>> block_counts(torch.tensor([[[0], [5], [4], [1]]]), 12, 2)[0, 1:3].tolist()
        [[2, 1, 1, 0, 0, 1], [1, 1, 1, 1, 0, 2]]
    """
    blocks = length // block
    if length % block or blocks < 4:
        raise ValueError(f"{length} tokens are not four or more whole blocks of {block}: pad them as the authors do")
    if rand_blocks.shape[1] != blocks - 2:
        raise ValueError(f"{rand_blocks.shape[1]} rows of random blocks for {blocks} blocks: there are two rows fewer")
    row, edge = torch.arange(blocks), torch.tensor([0, blocks - 1])
    fixed = (row[:, None] - row).abs() <= 1
    fixed[edge], fixed[:, edge] = True, True
    drawn = F.one_hot(rand_blocks.cpu().clamp(min=0), blocks) * (rand_blocks.cpu() >= 0)[..., None]
    return fixed + F.pad(drawn.sum(-2), (0, 0, 1, 1))


class Multiset(BigBird):
    """Their core: blocks are listed, not marked, and count from the first slot, real or not."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """(B, H, N, Dv), 0 for padded queries; there is no dropout to draw."""
        self._check_length(k.shape[-2])
        table = self.rand_blocks[:, : max(0, k.shape[-2] // self.block - 2)]
        out = multiset_attention(q, k, v, table, self.block, key_mask)
        real = key_mask if query_mask is None else query_mask
        return out if real is None else out.masked_fill(~real[:, None, :, None], 0.0)


class External(nn.Module):
    """The paper's ETC form between the projections, its random blocks an input.

    Args:
        options: those of :class:`BigBird`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rand_blocks: Tensor, keep_mask: Tensor | None) -> Tensor:
        """(B, H, N, D), the rows of masked tokens too; blocks count from the first slot behind the global tokens."""
        core = BigBird(q.shape[1], form="etc", max_length=q.shape[-2], seed=0, **self.options)
        masks = {"key_mask": keep_mask, "query_mask": None if keep_mask is None else torch.ones_like(keep_mask)}
        return functional_call(core, {"rand_blocks": rand_blocks}, (q, k, v), masks)


def _layer(random_blocks: str, **options: Any) -> MultiHead:
    """Three projections around their core. Its random blocks are no part of their weights.

    ``random_blocks``: "legal" draws them as we do; "hf_eval" has block 0 for all of them, as theirs in evaluation.
    """
    around = {name: options.pop(name) for name in ("dim", "qkv_bias")}
    core = Multiset(**options)
    if random_blocks == "hf_eval":
        core.rand_blocks.zero_()
    layer = MultiHead(num_heads=options["num_heads"], core=core, **around)
    layer.register_module("out_proj", nn.Identity())
    layer.register_load_state_dict_pre_hook(_keep_random_blocks)
    return layer


def _keep_random_blocks(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    state_dict.setdefault(f"{prefix}core.rand_blocks", module.get_buffer("core.rand_blocks"))


def _arguments(config: Config) -> dict[str, Any]:
    """Theirs has a window of three blocks and two global ones; for 4096 tokens it draws among the first 1024."""
    block, random_blocks = config.get("block_size", 64), config.get("random_blocks", "legal")
    if random_blocks not in ("legal", "hf_eval"):
        raise UnsupportedError(f'random_blocks={random_blocks!r} is neither "legal" nor "hf_eval"')
    return {
        "random_blocks": random_blocks,
        "dim": config.get("hidden_size", 768),
        "num_heads": config.get("num_attention_heads", 12),
        "qkv_bias": config.get("use_bias", True),
        "block": block,
        "random": config.get("num_random_blocks", 3),
        "max_length": config.get("max_position_embeddings", 4096),
        "random_within": max(1, 1024 // block),
        "seed": config.get("seed") or 0,
    }


def _weights(state: State) -> State:
    return renamed(state, {"^query": "q_proj", "^key": "k_proj", "^value": "v_proj"})


def _call(module: MultiHead, inputs: Inputs, call: Call) -> Outputs:
    """Without recorded random blocks theirs are those of evaluation: block 0, every time."""
    x = bind(inputs, call, "hidden_states")["hidden_states"]
    table = inputs.get("rand_blocks", torch.zeros_like(module.get_buffer("core.rand_blocks")))
    masks = {"key_mask": _real(inputs, x, "to_mask"), "query_mask": _real(inputs, x, "from_mask")}
    return {"out": functional_call(module, {"core.rand_blocks": table}, (x,), masks)}


def _real(inputs: Inputs, x: Tensor, *names: str) -> Tensor | None:
    """Which tokens are real, by one of their masks of ones and zeros."""
    mask = next((inputs[name] for name in (*names, "attention_mask") if name in inputs), None)
    return None if mask is None else mask.detach().reshape(x.shape[:2]) > 0


def _external_arguments(config: Config) -> dict[str, Any]:
    return {
        "block": config["block"],
        "window": config.get("window_blocks", 3),
        "random": config.get("num_random_blocks", 0),
        "globals": config.get("num_global", 0),
    }


def _external_call(module: External, inputs: Inputs, call: Call) -> Outputs:
    given = bind(renamed(inputs, SHORT), call, "query", "key", "value", "rand_blocks", "keep_mask")
    q, keep = given["query"], given.get("keep_mask")
    table = given.get("rand_blocks", q.new_zeros(q.shape[1], 0, 0, dtype=torch.long))
    return {"out": module(q, given["key"], given["value"], table, None if keep is None else keep > 0)}


def _layer_of(config: Config, number: int) -> nn.Module:
    """Their self-attention of one layer in evaluation; ``random_blocks="legal"`` has our blocks in place of theirs."""
    if config.get("attention_type", "block_sparse") not in ("block_sparse", "original_full"):
        raise UnsupportedError(f"attention_type={config['attention_type']!r} is neither block_sparse nor original_full")
    block, random = config.get("block_size", 64), config.get("num_random_blocks", 3)
    inner = _layer(**_arguments({"random_blocks": "hf_eval", **config, "seed": number}))
    full = config.get("attention_type") == "original_full"
    return bert.WholeBlocks(inner, block, shortest=1 << 62 if full else (5 + 2 * random) * block)


def _places(config: Config) -> tuple[int, int]:
    return 0, config.get("max_position_embeddings", 4096)


def _inner_weights(state: State) -> State:
    return {f"inner.{name}": tensor for name, tensor in _weights(state).items()}


_MODEL = bert.importer(_layer_of, _inner_weights, _places)
IMPORTERS = {
    "huggingface/transformers:*BigBirdModel": _MODEL,
    "transformers:*BigBirdModel": _MODEL,
    "huggingface/transformers:*BigBirdBlockSparseAttention": Importer(_layer, _arguments, _call, _weights),
    "transformers:*BigBirdBlockSparseAttention": Importer(_layer, _arguments, _call, _weights),
    "equations": Importer(External, _external_arguments, _external_call),
    **deepspeed.IMPORTERS,
}
