"""Models of Hugging Face's transformers under :func:`regard.check`: their inputs, masks and claims.

transformers is not imported here: whoever has such a model has imported it.
"""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regard.inspect.measure import LIMITS, largest, scale
from regard.inspect.subject import Subject
from regard.registry import Causality

LENGTH, OTHER_LENGTH = 33, 21
"""Tokens of inputs made here, and those of the encoder where there is a decoder; odd, so that nothing divides them."""

BATCH = 2
IDS, DECODER_IDS = "input_ids", "decoder_input_ids"


def as_network(module: nn.Module) -> "Network | None":
    """The module as a model of transformers, None for any other."""
    transformers = sys.modules.get("transformers")
    base = getattr(transformers, "PreTrainedModel", None)
    return Network(module) if isinstance(base, type) and isinstance(module, base) else None


@dataclass(frozen=True)
class Network:
    """A model of transformers; what its configuration tells is read here and nowhere else."""

    module: Any

    @property
    def config(self) -> Any:
        """That of the text where there are several."""
        return self.module.config.get_text_config()

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those of forward."""
        return inspect.signature(self.module.forward).parameters

    @property
    def causal(self) -> bool:
        """Whether an attention in it looks back only, and nothing else is configured."""
        looks_back = any(getattr(part, "is_causal", False) is True for part in self.module.modules())
        return looks_back and getattr(self.config, "is_causal", True) is not False

    @property
    def decodes(self) -> bool:
        """Whether the output follows the tokens of a decoder."""
        return bool(self.module.config.is_encoder_decoder) and DECODER_IDS in self.parameters

    @property
    def cache_name(self) -> str:
        """The argument of forward that holds what was computed before; empty where there is none."""
        return next((name for name in ("cache", "past_key_values") if name in self.parameters), "")

    def mask_name(self, inputs: Any) -> str:
        """The argument that marks padding: of the encoder's tokens where there are some, else of the decoder's."""
        ids = self.module.main_input_name == IDS if inputs is None else isinstance(inputs, Mapping) and IDS in inputs
        name = "decoder_attention_mask" if self.decodes and not ids else "attention_mask"
        return name if name in self.parameters else "key_mask"

    def still(self, inputs: Any) -> bool:
        """Whether nothing that is put in has a time axis, as in a model of images."""
        return inputs is None and self.module.main_input_name == "pixel_values" and not self.decodes

    def inputs(self) -> dict[str, Tensor]:
        """Two random sequences, images or sounds; ids come from the vocabulary without the padding.

        Raises:
            ValueError: a model of something else.
        """
        main = self.module.main_input_name
        makers = {IDS: self._ids, "pixel_values": self._images, "input_features": self._sounds}
        if main not in makers:
            known = ", ".join(makers)
            raise ValueError(
                f"{type(self.module).__name__} takes {main}, and inputs can be made for {known}: pass inputs as a dict"
            )
        if not self.decodes:
            return {main: makers[main](LENGTH)}
        return {DECODER_IDS: self._ids(LENGTH), main: makers[main](OTHER_LENGTH)}  # the output follows the first one

    def complete(self, subject: Subject, *, mask_dtype: torch.dtype | None, causal: Causality | None) -> Subject:
        """What a model of transformers promises and expects: causality, integer masks, positions along with a mask."""
        decoder = next((name for name in subject.axes if name.startswith("decoder_")), None)
        foreign = [name for name in subject.inputs if decoder and not name.startswith("decoder_")]
        axes = dict(subject.axes)
        if decoder:
            axes = {decoder: axes.pop(decoder), **axes}  # the output follows its tokens, whatever was given first
            if isinstance(subject.inputs.get(IDS), Tensor):
                axes[IDS] = 1
        marked = decoder if subject.mask_name.startswith("decoder_") else (IDS if decoder else None)
        by_ids = marked in axes
        claim: Causality | None = causal or ("strict" if self.causal and (decoder or not self.decodes) else None)
        completed = replace(
            subject,
            axes=axes,
            foreign=tuple(foreign),
            marks=(marked,) if marked is not None and by_ids else (),
            claim=claim,
            mask_dtype=mask_dtype or torch.int64,
        )
        notes = ["claim of the architecture: strictly causal"] if claim and not causal else []
        positions = self._positions(completed)
        if positions:
            notes.append(f"{positions} come along with every mask, counted from the first real token, as in generate()")
        return replace(completed, positions=positions, notes=tuple(notes))

    def _positions(self, subject: Subject) -> str:
        """The argument for positions, if positions counted from 0 are what the model takes by itself."""
        if not subject.axes or subject.first not in subject.masked:
            return ""
        name = "decoder_position_ids" if subject.first.startswith("decoder_") else "position_ids"
        if name not in self.parameters or name in subject.inputs:
            return ""
        places = torch.arange(subject.length(), device=subject.inputs[subject.first].device)
        try:
            alone = subject()
            told = subject({**subject.inputs, name: places.expand(subject.batch, -1)})
        except Exception:
            return ""  # check itself says that the model cannot be called
        return name if largest(told - alone) <= LIMITS[torch.float32] * scale(alone) else ""

    def _ids(self, length: int) -> Tensor:
        most = getattr(self.config, "max_position_embeddings", None) or length
        if getattr(self.config, "max_target_positions", None):
            most = min(most, self.config.max_target_positions)
        padding = getattr(self.config, "pad_token_id", None)
        ids = torch.tensor([number for number in range(self.config.vocab_size) if number != padding])
        drawn = torch.randint(len(ids), (BATCH, min(length, most)), generator=self._generator)
        return ids[drawn].to(self.module.device)

    def _images(self, _: int) -> Tensor:
        side = self.module.config.image_size
        height, width = side if isinstance(side, (tuple, list)) else (side, side)
        return self._noise(BATCH, self.module.config.num_channels, height, width)

    def _sounds(self, _: int) -> Tensor:
        return self._noise(BATCH, self.module.config.num_mel_bins, 2 * self.module.config.max_source_positions)

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.module.device, self.module.dtype)

    @property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)
