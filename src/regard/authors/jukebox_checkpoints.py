"""The files that OpenAI released for Jukebox: ``prior_level_*.pth.tar`` and ``vqvae.pth.tar`` (openai/jukebox, README).

They hold weights without settings, which are here by the authors' names. A prior is built without numbers and given
those of the file: 72 layers of width 4800 are 20 GB in float32 and half of that in bfloat16, and while they are
converted the weights of the file are there too. Load one prior at a time.
"""

import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regard.authors import State
from regard.authors.jukebox import IMPORTERS
from regard.models.jukebox_prior import JukeboxPrior
from regard.models.sound_blocks import Residual
from regard.models.vqvae import VQVAE

_SIMPLE = IMPORTERS["openai/jukebox:jukebox/prior/prior.py:SimplePrior"]
_VQVAE = IMPORTERS["openai/jukebox:jukebox/vqvae/vqvae.py:VQVAE"]

DOWNS, STRIDES, CODES = (3, 2, 2), (2, 2, 2), 2048
HOPS = (8, 32, 128)
"""Samples a code, of the three levels."""


def _upsampler(level: int) -> dict[str, Any]:
    told = {"width": 1024, "depth": 16, "dilation_growth_rate": 3, "dilation_cycle": 8, "res_scale": level == 1}
    prior = {"width": 1920, "depth": 72, "heads": 1, "attn_order": 2, "blocks": 128, "init_scale": 0.4}
    return _config(level, 8192, prior, {}, told=told)


def _config(
    level: int,
    length: int,
    prior: dict[str, Any],
    prime: dict[str, Any],
    *,
    told: dict[str, Any] | None = None,
    third: bool = False,
    shortest: float = 0.0,
    merged: bool = False,
    single: bool = False,
) -> dict[str, Any]:
    """The arguments of their SimplePrior; ``third``: version of their labels; ``shortest``: piece, in samples."""
    width, longest = prior["width"], 26_460_000.0
    labels = {"out_width": width, "init_scale": prior["init_scale"], "t_bins": 64 if third else 128}
    labels |= {"y_bins": (604, 7898) if third else (120, 4111), "max_bow_genre_size": 1 if third else 5}
    labels["t_ranges"] = ((shortest, longest), (0.0, longest), (0.0, 1.0))
    return {
        "z_shapes": [(length * HOPS[level] // hop,) for hop in HOPS],
        "l_bins": CODES,
        "level": level,
        "downs_t": DOWNS,
        "strides_t": STRIDES,
        "labels": True,
        "prior_kwargs": {"input_shape": (length,), "bins": CODES, **prior},
        "x_cond_kwargs": {"out_width": width, "init_scale": prior["init_scale"], **(told or {})},
        "y_cond_kwargs": labels,
        "prime_kwargs": {"use_tokens": bool(prime), "n_tokens": 0, "prime_loss_fraction": 0.4, **prime},
        "copy_input": False,
        "merged_decoder": merged,
        "single_enc_dec": single,
    }


_TOP = {"width": 4800, "heads": 8, "blocks": 128, "init_scale": 0.1}
_PRIME = {"width": 1280, "depth": 18, "heads": 4, "attn_order": 2, "blocks": 32, "init_scale": 0.7}
PUBLISHED: dict[str, dict[str, Any]] = {
    "upsampler_level_0": _upsampler(0),
    "upsampler_level_1": _upsampler(1),
    "prior_5b": _config(2, 8192, {**_TOP, "depth": 72, "attn_order": 2}, {}, shortest=2_646_000.0, merged=True),
    "prior_5b_lyrics": _config(
        2,
        8192,
        {**_TOP, "depth": 79, "attn_order": 10},
        {**_PRIME, "bins": 80, "n_tokens": 512},
        shortest=1_049_580.0,
        merged=True,
    ),
    "prior_1b_lyrics": _config(
        2,
        6144,
        {"width": 2048, "depth": 72, "heads": 2, "attn_order": 12, "blocks": 64, "init_scale": 0.2},
        {"bins": 79, "n_tokens": 384},
        third=True,
        shortest=786_744.0,
        single=True,
    ),
}
"""The settings of the released priors, as arguments of their SimplePrior."""


def build_prior(settings: str | Mapping[str, Any]) -> JukeboxPrior:
    """A prior without numbers (on the device "meta"), from a name of :data:`PUBLISHED` or arguments of SimplePrior.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> build_prior("prior_1b_lyrics").codes.max_length
        6528
    """
    if isinstance(settings, str):
        if settings not in PUBLISHED:
            raise ValueError(
                f"settings={settings!r}: released are {', '.join(PUBLISHED)}; or give SimplePrior's arguments"
            )
        settings = PUBLISHED[settings]
    with torch.device("meta"):
        prior = _SIMPLE.module(**_SIMPLE.arguments(settings))
    assert isinstance(prior, JukeboxPrior)
    return prior


def load_prior(
    path: str | os.PathLike[str], settings: str | Mapping[str, Any], *, dtype: torch.dtype = torch.float32
) -> JukeboxPrior:
    """A released prior, in eval mode.

    Args:
        path: the ``prior_level_*.pth.tar``.
        settings: a name of :data:`PUBLISHED`, or the arguments of SimplePrior for a file of one's own.
        dtype: of the weights.

    Raises:
        ValueError: a file of something else, or an unknown name.
        RuntimeError: weights that do not fit the settings.
    """
    prior = build_prior(settings)
    weights = {name: tensor.to(dtype) for name, tensor in _SIMPLE.weights(read_state(path)).items()}
    prior.load_state_dict(weights, strict=True, assign=True)
    return prior.eval()


def load_vqvae(path: str | os.PathLike[str]) -> VQVAE:
    """The released autoencoder of ``vqvae.pth.tar``, in eval mode: 44.1 kHz, hops of 8, 32 and 128 samples.

    Raises:
        ValueError: a file of something else.
        RuntimeError: weights that do not fit.
    """
    model = VQVAE(DOWNS, STRIDES, Residual(32, 4, growth=3), multipliers=(2, 1, 1), codes=CODES, code_width=64)
    model.load_state_dict(dict(_VQVAE.weights(read_state(path))), strict=True)
    return model.eval()


def read_state(path: str | os.PathLike[str]) -> State:
    """The weights of a checkpoint of theirs, read from the file as they are needed.

    Raises:
        ValueError: no checkpoint of theirs, or one that would have to run code.
    """
    try:  # files of old versions of torch are no archives that can be mapped
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be read as tensors and plain values only ({str(error).splitlines()[0]}); load it where you "
            "trust it, and save {'model': its weights} with a torch of today"
        ) from error
    model: Any = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or not all(isinstance(tensor, Tensor) for tensor in model.values()):
        raise ValueError(f"{path} is no checkpoint of Jukebox: it has no weights under 'model'")
    return {str(name).removeprefix("module."): tensor for name, tensor in model.items()}
