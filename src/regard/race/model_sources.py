"""A model to look at, from what the user has: the folder of an entrant, a Hugging Face folder, or a function."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from regard.inspect.loading import load_class
from regard.inspect.measure import said
from regard.inspect.sentences import bytes_of_words
from regard.race.build import build
from regard.race.entrants import Entrant, parse
from regard.race.folder import read_settings
from regard.race.job import check_owner
from regard.tasks.documents import InputError
from regard.train.checkpoint import NAME, CheckpointError, read_checkpoint

__all__ = ["Loaded", "load_model"]

TEXTS = ("lm", "classify")
"""Tasks whose tokens are the bytes of a text."""


@dataclass(frozen=True)
class Loaded:
    """A model, what makes its tokens, and its loss on them where there is one; ``name`` in words."""

    name: str
    model: nn.Module
    tokenizer: Any
    loss: Callable[[nn.Module, Tensor], Tensor] | None = None


def load_model(spec: str) -> Loaded:
    """The model that ``spec`` speaks of.

    Args:
        spec: the folder of an entrant in the folder of a race (``regard-race/entrants/full``), a folder that
            ``save_pretrained`` of transformers wrote, or "PATH.py:function", which returns (model, tokenizer) or
            (model, tokenizer, loss), see :func:`regard.inspect.heads`.

    Raises:
        InputError: nothing of the kind, or what is there cannot be read.
    """
    folder = Path(spec).expanduser()
    if folder.is_dir():
        if (folder / NAME).is_file():
            return _entrant(folder)
        if (folder / "config.json").is_file():
            return _hugging_face(folder)
        if entrants := sorted(path.parent for path in folder.glob(f"entrants/*/{NAME}")):
            raise InputError(f"{folder} is a whole race: name one of {', '.join(map(str, entrants))}")
        raise InputError(f"{folder} holds neither a checkpoint of a race nor a Hugging Face model")
    if ".py:" in spec:
        return _function(spec)
    raise InputError(
        f"{spec} is no model: expected the folder of an entrant or of a Hugging Face model, or PATH.py:function"
    )


def _function(spec: str) -> Loaded:
    try:
        found = load_class(spec)()
    except ValueError:
        raise
    except Exception as error:
        raise InputError(f"calling {spec} raises {said(error)}") from error
    if not isinstance(found, tuple) or len(found) not in (2, 3) or not isinstance(found[0], nn.Module):
        raise InputError(
            f"{spec} must return (model, tokenizer) or (model, tokenizer, loss), it returns {_kind(found)}"
        )
    return Loaded(spec, *found)


def _kind(found: Any) -> str:
    if isinstance(found, tuple):
        return f"({', '.join(type(part).__name__ for part in found)})"
    return type(found).__name__


def _entrant(folder: Path) -> Loaded:
    """A model of a race. Its data is read again, because it says what the model is."""
    race = folder.resolve().parent.parent
    known = read_settings(race)
    if known is None:
        raise InputError(f"{folder} belongs to no race: there is no race.json in {race}")
    settings = known[0]
    if settings.task not in TEXTS:
        raise InputError(
            f"{folder} ran in --task {settings.task}: only models of texts ({', '.join(TEXTS)}) read words"
        )
    try:
        found = read_checkpoint(folder)
        assert found is not None
        tensors, facts = found
        entrant = _labelled(str(facts.get("label", "")))
        check_owner(folder, facts, settings, entrant)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    model = build(entrant, settings, settings.discipline.prepare(settings).task)
    weights = {name.removeprefix("model/"): each for name, each in tensors.items() if name.startswith("model/")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the checkpoint in {folder} belongs to another model: {said(error)}") from error
    return Loaded(str(folder), model, bytes_of_words, _next_byte if settings.task == "lm" else None)


def _labelled(label: str) -> Entrant:
    return parse([label])[0]


def _next_byte(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _hugging_face(folder: Path) -> Loaded:
    """By the class that the configuration names, so that its head gives a loss; from the disk alone."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"{folder} is a Hugging Face model: pip install transformers") from error
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        named = getattr(transformers, (getattr(config, "architectures", None) or ["AutoModel"])[0], None)
        model = (named or transformers.AutoModel).from_pretrained(folder, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"transformers cannot read {folder}: {said(error)}") from error
    if config.is_encoder_decoder:
        # the encoder reads a sentence; the decoder would need another one
        return Loaded(f"{folder}, the encoder", model.get_encoder(), tokenizer)
    names_tokens = type(model).__name__.endswith(("ForMaskedLM", "LMHeadModel", "ForCausalLM"))
    return Loaded(str(folder), model, tokenizer, _own_tokens if names_tokens else None)


def _own_tokens(model: nn.Module, tokens: Tensor) -> Tensor:
    """How well the model names the tokens: the next ones, or for a masked model those that it sees."""
    return model(tokens, labels=tokens).loss
