"""Models of Hugging Face's transformers for ``regard check``: from a folder, or of a class in a small configuration."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from regard.inspect.measure import said

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "d_ff": 128, "num_hidden_layers": 2, "num_decoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "max_source_positions": 50, "num_mel_bins": 16, "image_size": 32, "patch_size": 8,
}  # fmt: skip
"""What is asked of a configuration that has such a size: leaks and padding do not wait for a large model."""

VOCABULARY = 1000
"""As many ids, where the special ones lie among them."""

WEIGHTS = ("*.safetensors", "*.bin")


def from_folder(folder: Path, options: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """The model that a folder holds, and a sentence on its weights.

    Args:
        folder: with ``config.json``; without weights they are random.
        options: entries of the configuration to change, such as ``attn_implementation``.

    Raises:
        ValueError: no such model, or an option that its configuration does not have.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"there is no config.json in {folder}: write a folder of Hugging Face's, or PATH.py:Class")
    transformers = _transformers()
    try:
        config, unknown = transformers.AutoConfig.from_pretrained(folder, return_unused_kwargs=True, **options)
        if unknown:
            raise ValueError(f"{type(config).__name__} has no {', '.join(unknown)}")
        cls = next((getattr(transformers, name, None) for name in config.architectures or ()), None)
        if any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
            return (cls or transformers.AutoModel).from_pretrained(folder, config=config), f"the weights in {folder}"
        return cls(config) if cls else transformers.AutoModel.from_config(config), "random weights"
    except Exception as error:
        raise ValueError(f"loading {folder} raises {said(error)}") from error


def is_network(maker: Any) -> bool:
    """Whether this is the class of a model of transformers."""
    return inspect.isclass(maker) and any(cls.__name__ == "PreTrainedModel" for cls in maker.__mro__)


def small(cls: Any, options: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """A model of this class with random weights in a small configuration, and a sentence that says so.

    Raises:
        ValueError: an option that the configuration does not have, or sizes that do not go together.
    """
    make = cls.config_class
    if make is None:
        raise ValueError(f"{cls.__name__} has no configuration of its own: take one of its subclasses")
    usual = make()
    if unknown := [name for name in options if not hasattr(usual, name) and name != "attn_implementation"]:
        raise ValueError(f"{make.__name__} has no {', '.join(unknown)}")
    sizes = {name: value for name, value in SMALL.items() if hasattr(usual, name)}
    special = [value for name, value in vars(usual).items() if name.endswith("_token_id") and isinstance(value, int)]
    if hasattr(usual, "vocab_size") and max(special, default=0) < VOCABULARY:
        sizes["vocab_size"] = VOCABULARY
    sizes |= options
    try:
        model = cls(make(**sizes))
    except Exception as error:
        raise ValueError(
            f"building a small {cls.__name__} raises {said(error)}; options of {make.__name__} are written name=value"
        ) from error
    return model, f"random weights, {', '.join(f'{name}={value}' for name, value in sizes.items())}"


def _transformers() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ValueError("a model of transformers needs them: pip install 'regard[transformers]'") from error
    return transformers
