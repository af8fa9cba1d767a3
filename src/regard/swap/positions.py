"""Learned positions beyond those that a model was trained with: its table, repeated.

Longformer (Beltagy et al. 2020, arXiv:2004.05150, section 5) starts a table of 4,096 positions with RoBERTa's 512,
eight times: the local structure is kept everywhere but at the seams, and fine-tuning does the rest.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.registry import UnsupportedError
from regard.swap.surgery import Surgery

_NAMES = ("position_embeddings", "position_embedding", "embed_positions", "wpe", "pos_embedding", "pos_embed")
_BUFFERS = ("position_ids", "token_type_ids")
_IMAGE = ("patch_embedding", "patch_embeddings", "class_embedding", "cls_token")
_SETTINGS = ("max_position_embeddings", "n_positions", "n_ctx")


def extend_positions(model: nn.Module, max_length: int, surgery: Surgery) -> list[str]:
    """Make every table of learned positions long enough, with the buffers and settings that go with it.

    Args:
        model: its tables are found by their names: position_embeddings, embed_positions, wpe, ...
        max_length: the longest sequence from now on.
        surgery: what does it, and can take it back.

    Returns:
        Sentences on what was done.

    Raises:
        UnsupportedError: positions that are no table of one place a row, such as the grid of an image.
    """
    notes: list[str] = []
    for name, parent, table in tables(model):
        before, first = _size(table)
        if before - first >= max_length:
            notes.append(f"{name} holds {before - first} positions already")
            continue
        if reason := _not_repeatable(model, parent, table):
            raise UnsupportedError(
                f"{name} holds {before} positions and none can be added up to {max_length}: {reason}"
            )
        _extend(cast(nn.Embedding, table), first + max_length, first, surgery)
        for buffer in _BUFFERS:
            values = getattr(parent, buffer, None)
            if isinstance(values, Tensor) and values.shape[-1] == before:
                surgery.set(parent, buffer, _longer(values, first + max_length))
        behind = f", behind {first} reserved rows" if first else ""
        notes.append(f"{name}: {before - first} positions repeated up to {max_length}{behind}")
    if not notes:
        notes.append(f"no table of learned positions was found to repeat for max_length={max_length}")
    return notes + _settings(model, max_length, surgery)


def _size(table: nn.Embedding | nn.Parameter) -> tuple[int, int]:
    """Rows, and those before the first position."""
    return (table.num_embeddings, reserved(table)) if isinstance(table, nn.Embedding) else (table.shape[-2], 0)


def _not_repeatable(model: nn.Module, parent: nn.Module, table: nn.Embedding | nn.Parameter) -> str:
    """Why the table is not one place a row that any length may use; empty where it is."""
    if not isinstance(table, nn.Embedding) or any(hasattr(parent, name) for name in _IMAGE):
        return (
            "they may form a grid with tokens before it, whose rows would be torn apart. Interpolate it yourself, e.g. "
            "interpolate_pos_encoding=True of transformers, and swap without max_length"
        )
    configs = (getattr(part, "config", None) for part in model.modules())
    if any(hasattr(config, "max_source_positions") for config in configs):
        return "the model adds the whole table to inputs of one fixed length; swap without max_length"
    return ""


def tables(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Embedding | nn.Parameter]]:
    """Learned positions: name, the module that holds them, and the table; a parameter where they are no embedding."""
    for path, parent in model.named_modules():
        children: list[tuple[str, Any]] = [*parent.named_children(), *parent.named_parameters(recurse=False)]
        for name, part in children:
            if name in _NAMES and isinstance(part, (nn.Embedding, nn.Parameter)):
                yield f"{path}.{name}" if path else name, parent, part


def reserved(table: nn.Embedding) -> int:
    """Rows before the first position: RoBERTa counts from padding_idx + 1, BART from its offset."""
    if isinstance(offset := getattr(table, "offset", None), int):
        return offset
    return 0 if table.padding_idx is None else table.padding_idx + 1


def _extend(table: nn.Embedding, rows: int, first: int, surgery: Surgery) -> None:
    before = table.weight.detach()
    index = torch.arange(rows - first, device=before.device) % (len(before) - first) + first
    longer = torch.cat([before[:first], before[index]])
    surgery.set(table, "weight", nn.Parameter(longer, requires_grad=table.weight.requires_grad))
    surgery.set(table, "num_embeddings", rows)


def _longer(values: Tensor, rows: int) -> Tensor:
    """Numbers 0, 1, ..., or zeros, as many as there are rows now."""
    counting = (
        torch.equal(values[0], torch.arange(values.shape[-1], device=values.device)) if not values.is_meta else True
    )
    made = torch.arange(rows, device=values.device) if counting else torch.zeros(rows, device=values.device).long()
    return made.to(values.dtype).expand(len(values), -1)


def _settings(model: nn.Module, max_length: int, surgery: Surgery) -> list[str]:
    """The number in the model's config, and in our own models' ``max_length``."""
    notes: list[str] = []
    embeddings = [part for _, _, part in tables(model) if isinstance(part, nn.Embedding)]
    rows = max([max_length, *(part.num_embeddings for part in embeddings)])
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    for config in configs.values():
        for name in _SETTINGS:
            value = getattr(config, name, None)
            if isinstance(value, int) and value < rows:
                surgery.set(config, name, rows)
                notes.append(f"config.{name} is {rows} instead of {value}")
    for part in model.modules():
        value = getattr(part, "max_length", None)
        if isinstance(value, int) and value < max_length and any(part is parent for _, parent, _ in tables(model)):
            surgery.set(part, "max_length", max_length)
    if any("config." in note for note in notes):
        notes.append(f"the tokenizer is no part of the model: set tokenizer.model_max_length = {max_length} yourself")
    return notes
