"""The attentions of a model: which can be replaced, which are left alone and why."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from regard.integrations.huggingface import Site
from regard.registry import UnsupportedError
from regard.swap.conventions.convention import Convention
from regard.swap.conventions.fused_qkv import FusedQkv
from regard.swap.conventions.own_layers import OwnLayers
from regard.swap.conventions.torch_module import TorchModule
from regard.swap.conventions.transformers_module import TransformersModule
from regard.swap.reading import Reading

Layers = Sequence[str | int] | Callable[[str, nn.Module], bool] | None

CONVENTIONS: tuple[Convention, ...] = (OwnLayers(), TorchModule(), TransformersModule(), FusedQkv())


@dataclass(frozen=True, kw_only=True)
class Found:
    """One attention of a model.

    Attributes:
        name: its path, "" for the model itself.
        module: what stands there.
        convention: how it is built and called; None where that is unknown, or nobody needs to know.
        reading: what it says about itself.
        site: where it calls transformers' interface; then only what stands between its projections is replaced.
        reason: why it must be left alone; empty where it need not.
        cross: it asks one sequence from another.
    """

    name: str
    module: nn.Module
    convention: Convention | None = None
    reading: Reading | None = None
    site: Site | None = None
    reason: str = ""
    cross: bool = False

    @property
    def readable(self) -> Reading:
        """The reading, of one that is replaced as a whole."""
        if self.reading is None:
            raise UnsupportedError(f"{self.name} cannot be replaced: {self.reason}")
        return self.reading

    @property
    def known(self) -> Convention:
        """The convention, of one that is replaced as a whole."""
        if self.convention is None:
            raise UnsupportedError(f"{self.name} cannot be replaced: {self.reason}")
        return self.convention

    @property
    def kind(self) -> str:
        """For the report."""
        if self.site is not None:
            return "transformers interface"
        return self.convention.title if self.convention else type(self.module).__name__


def find(model: nn.Module, sites: Mapping[str, Site]) -> list[Found]:
    """Every attention of the model in its order, the outermost where one stands inside another.

    Args:
        model: where to look.
        sites: attentions that are replaced through transformers' interface.
    """
    found: list[Found] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer.name}." if outer.name else "") for outer in found if not outer.reason):
            continue
        one = _site(name, module, sites) or _known(model, name, module)
        if one is None and _looks_like_one(module):
            one = Found(name=name, module=module, reason="an attention of a class that is not known")
        if one is not None:
            found.append(one)
    inner = tuple(one.name for one in found if one.convention or one.site)
    return [
        one for one in found if one.convention or one.site or not any(path.startswith(f"{one.name}.") for path in inner)
    ]  # what merely holds a known attention is none itself


def _site(name: str, module: nn.Module, sites: Mapping[str, Site]) -> Found | None:
    site = sites.get(name)
    return None if site is None else Found(name=name, module=module, site=site, cross=site.cross)


def _known(model: nn.Module, name: str, module: nn.Module) -> Found | None:
    for convention in CONVENTIONS:
        reading = convention.read(name, module)
        if isinstance(reading, str):
            return Found(name=name, module=module, convention=convention, reason=reading)
        if reading is not None:
            cross = _is_cross(model, name)
            return Found(name=name, module=module, convention=convention, reading=reading, cross=cross)
    return None


def choose(found: Sequence[Found], layers: Layers, cross: bool) -> dict[str, str]:
    """Why each attention that is not to be replaced is left alone, by name; those to replace are absent.

    Args:
        found: all.
        layers: names, numbers in the order of the model, or a rule (name, module) -> bool; None: every one.
        cross: whether attentions between two sequences are asked for.

    Raises:
        ValueError: a name or a number that does not exist.
        UnsupportedError: an attention was named that cannot be replaced.
    """
    reasons = {one.name: one.reason for one in found if one.reason}
    reasons |= {one.name: "cross attention: pass cross=True" for one in found if one.cross and not cross}
    if layers is None:
        return reasons
    if callable(layers):
        wanted = {one.name for one in found if layers(one.name, one.module)}
        return {one.name: "not chosen" for one in found if one.name not in wanted} | {
            name: reason for name, reason in reasons.items() if name in wanted
        }
    if isinstance(layers, str):
        raise TypeError(f"layers={layers!r} is one string: pass a list of names or numbers")
    names = [_resolve(layer, [one.name for one in found]) for layer in layers]
    for name in names:
        if name in reasons:
            raise UnsupportedError(f"{name} cannot be replaced: {reasons[name]}")
    return {one.name: "not chosen" for one in found if one.name not in names}


def none_left(model: nn.Module, reasons: Mapping[str, str]) -> str:
    """Why nothing was replaced, in words."""
    what = type(model).__name__
    if not reasons:
        return (
            f"{what} has no attention that could be replaced: known are torch.nn.MultiheadAttention, modules with "
            "qkv, proj and num_heads as in timm, self-attentions of transformers, and layers of regard"
        )
    lines = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in reasons.items())
    return f"nothing of {what} was replaced: {lines}"


def _resolve(layer: str | int, names: Sequence[str]) -> str:
    if isinstance(layer, int):
        if not -len(names) <= layer < len(names):
            raise ValueError(f"there is no attention number {layer}: the model has {len(names)}, {', '.join(names)}")
        return names[layer]
    if layer not in names:
        near = difflib.get_close_matches(layer, names, n=3, cutoff=0.5) or names
        raise ValueError(f"there is no attention {layer!r} in this model: did you mean {' or '.join(near)}?")
    return layer


def _is_cross(model: nn.Module, name: str) -> bool:
    """Whether it stands where a decoder of torch has the attention to its memory."""
    above, _, own = name.rpartition(".")
    return own == "multihead_attn" and isinstance(model.get_submodule(above), nn.TransformerDecoderLayer)


def _looks_like_one(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return ("attention" in name or "attn" in name) and any(True for _ in module.children())
