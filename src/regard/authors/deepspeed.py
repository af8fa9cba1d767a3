"""DeepSpeed's sparse self-attention: its six sparsity configurations, and attention under one of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regard.attention import attend
from regard.authors import Call, Config, Importer, Inputs, Outputs, bind, renamed
from regard.patterns import from_blocks, layouts
from regard.registry import UnsupportedError

__all__ = ["IMPORTERS", "SHORT", "DeepSpeed", "DeepSpeedLayouts"]

SHORT = {"^q$": "query", "^k$": "key", "^v$": "value"}


def _common(kwargs: Config) -> dict[str, Any]:
    return {"causal": kwargs.get("attention", "bidirectional") == "unidirectional"}


def _dense(blocks: int, kwargs: Config, random: Tensor | None) -> Tensor:
    return layouts.dense_layout(blocks)


def _fixed(blocks: int, kwargs: Config, random: Tensor | None) -> Tensor:
    return layouts.fixed_layout(
        blocks,
        heads=kwargs["num_heads"] if kwargs.get("different_layout_per_head") else 1,
        local=kwargs.get("num_local_blocks", 4),
        summary=kwargs.get("num_global_blocks", 1),
        patterns=kwargs.get("num_different_global_patterns", 1),
        horizontal=kwargs.get("horizontal_global_attention", False),
        **_common(kwargs),
    )


def _variable(blocks: int, kwargs: Config, random: Tensor | None) -> Tensor:
    return layouts.variable_layout(
        blocks,
        windows=kwargs.get("local_window_blocks", [4]),
        globals=kwargs.get("global_block_indices", [0]),
        ends=kwargs.get("global_block_end_indices"),
        random=_drawn(random, kwargs.get("num_random_blocks", 0)),
        horizontal=kwargs.get("horizontal_global_attention", False),
        **_common(kwargs),
    )


def _bigbird(blocks: int, kwargs: Config, random: Tensor | None) -> Tensor:
    return layouts.bigbird_layout(
        blocks,
        random=_drawn(random, kwargs.get("num_random_blocks", 1)),
        window=kwargs.get("num_sliding_window_blocks", 3),
        globals=kwargs.get("num_global_blocks", 1),
        **_common(kwargs),
    )


def _longformer(blocks: int, kwargs: Config, random: Tensor | None) -> Tensor:
    return layouts.longformer_layout(
        blocks,
        window=kwargs.get("num_sliding_window_blocks", 3),
        globals=kwargs.get("global_block_indices", [0]),
        ends=kwargs.get("global_block_end_indices"),
        **_common(kwargs),
    )


def _sliding(blocks: int, kwargs: Config, random: Tensor | None) -> Tensor:
    causal = kwargs.get("attention", "unidirectional") == "unidirectional"
    return layouts.sliding_layout(blocks, window=kwargs.get("num_sliding_window_blocks", 3), causal=causal)


def _drawn(random: Tensor | None, count: int) -> Tensor | None:
    if count and random is None:
        raise UnsupportedError(f"a layout with {count} random blocks a row needs the columns that were drawn")
    return random if count else None


_LAYOUTS: dict[str, Callable[[int, Config, Tensor | None], Tensor]] = {
    "DenseSparsityConfig": _dense,
    "FixedSparsityConfig": _fixed,
    "VariableSparsityConfig": _variable,
    "BigBirdSparsityConfig": _bigbird,
    "BSLongformerSparsityConfig": _longformer,
    "LocalSlidingWindowSparsityConfig": _sliding,
}


class DeepSpeed(nn.Module):
    """One of DeepSpeed's sparsity configurations: its layout for a length, and attention under it.

    Args:
        cls: the name of its class.
        kwargs: its constructor arguments.
        seq_len: the length, where it is recorded.
        key_padding: "add" or "mul", how (B, L) is meant: added to the scores, or 0 = forbidden.
        attention: the same for (L, L).
        name: of the layout, among several.
    """

    def __init__(
        self,
        cls: str,
        kwargs: Config,
        seq_len: int | None = None,
        key_padding: str = "add",
        attention: str = "mul",
        name: str = "layout",
    ) -> None:
        super().__init__()
        if cls not in _LAYOUTS:
            raise UnsupportedError(f"{cls} is none of {', '.join(_LAYOUTS)}")
        self.cls, self.kwargs, self.seq_len, self.name = cls, kwargs, seq_len, name
        self.block: int = kwargs.get("block", 16)
        self.modes = {"key_padding_mask": key_padding, "attn_mask": attention}

    def layout(self, length: int, random: Tensor | None = None) -> Tensor:
        """Bool (heads, blocks, blocks).

        Raises:
            ValueError: a length that is not a multiple of the block.
        """
        if length % self.block:
            raise ValueError(f"{length} tokens are not a multiple of the block, {self.block}")
        layout = _LAYOUTS[self.cls](length // self.block, self.kwargs, random)
        return layout.expand(self.kwargs["num_heads"], -1, -1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Tensor, masks: Inputs) -> Tensor:
        """softmax(q k^T / sqrt(D) [+ rpe] [+ key padding] [+ attention mask]) v over the blocks of the layout."""
        added: Tensor | None = None
        for name in ("rpe", "key_padding_mask", "attn_mask"):
            if (mask := masks.get(name)) is None:
                continue
            if name == "key_padding_mask":
                mask = mask[:, None, None]
            if self.modes.get(name) == "mul" or mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask == 0, -torch.inf)
            added = mask if added is None else added + mask
        return attend(q, k, v, from_blocks(layout != 0, self.block), attn_mask=added)


class DeepSpeedLayouts(nn.Module):
    """Several named configurations.

    Args:
        parts: the arguments of each :class:`DeepSpeed`.
    """

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        super().__init__()
        self.parts = [DeepSpeed(**part) for part in parts]


def _arguments(config: Config, cls: str | None) -> dict[str, Any]:
    """Of one configuration or a list, its options apart (``kwargs``) or among the others."""
    if isinstance(config, list):
        return {"parts": [_arguments(part, cls) for part in config]}
    beside = ("cls", "class", "seq_len", "name", "nnz", "key_padding_mask_mode", "attn_mask_mode", "kwargs")
    return {
        "cls": config.get("cls") or config.get("class") or cls,
        "kwargs": config.get("kwargs") or {name: value for name, value in config.items() if name not in beside},
        "seq_len": config.get("seq_len"),
        "key_padding": config.get("key_padding_mask_mode", "add"),
        "attention": config.get("attn_mask_mode", "mul"),
        "name": config.get("name", "layout"),
    }


def _module(**options: Any) -> nn.Module:
    return DeepSpeedLayouts(**options) if "parts" in options else DeepSpeed(**options)


def _call(module: DeepSpeed | DeepSpeedLayouts, inputs: Inputs, call: Call) -> Outputs:
    if isinstance(module, DeepSpeedLayouts):
        return {
            f"layout/{part.name}": part.layout(part.seq_len or 0, inputs.get(f"random_cols/{part.name}")).to(
                torch.uint8
            )
            for part in module.parts
        }
    random = inputs.get("random_cols", inputs.get(f"random_cols/{module.name}"))
    given = bind(renamed(inputs, SHORT), call, "query", "key", "value")
    if not given:
        return {"layout": module.layout(module.seq_len or 0, random).to(torch.uint8)}
    q, k, v = given["query"], given["key"], given["value"]
    layout = inputs["layout"] if "layout" in inputs else module.layout(q.shape[-2], random)
    y = module(q, k, v, layout, inputs)
    return {"out": y, "layout": layout.to(torch.uint8)}


_PATH = "microsoft/DeepSpeed:deepspeed/ops/sparse_attention"
IMPORTERS = {
    **{
        f"{_PATH}/sparsity_config.py:{cls}*": Importer(_module, partial(_arguments, cls=cls), _call) for cls in _LAYOUTS
    },
    f"{_PATH}/*": Importer(_module, partial(_arguments, cls=None), _call),
}
