"""Which attentions of a student stand where a teacher has others."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from regard.integrations.huggingface import Site
from regard.registry import Layer, UnsupportedError
from regard.swap.conventions.convention import Convention
from regard.swap.conventions.fused_qkv import FusedQkv, FusedShell
from regard.swap.conventions.own_layers import OwnLayers
from regard.swap.conventions.torch_module import TorchModule, TorchShell
from regard.swap.conventions.transformers_module import TransformersModule, TransformersShell
from regard.swap.interface import ATTACHED, interface_sites, real_tokens, roots
from regard.swap.recording import Asked

_SHELLS: tuple[tuple[type[nn.Module], Convention], ...] = (
    (TorchShell, TorchModule()),
    (FusedShell, FusedQkv()),
    (TransformersShell, TransformersModule()),
    (Layer, OwnLayers()),
)
_KEPT = ("q_proj", "k_proj", "v_proj", "out_proj", "q_norm", "k_norm", "rotary", "proj_drop")
"""Parts of a new attention that come from the old one."""
_NO_PATTERN = (ATTACHED, "regard:full")


@dataclass(frozen=True)
class Pair:
    """One attention of the student and the one that it should do like.

    Attributes:
        name: the path of both.
        teacher, student: the modules.
        convention: how the student's is called; None where it has a core between the model's own projections.
        site: then where that stands.
    """

    name: str
    teacher: nn.Module
    student: nn.Module
    convention: Convention | None = None
    site: Site | None = None

    def real(self, asked: Asked) -> Tensor | None:
        """Bool, True for real tokens, in the layout of the output; None: all are."""
        if self.site is not None:
            return real_tokens(asked, self.site)
        assert self.convention is not None
        call = self.convention.understand(self.student, asked.args, asked.kwargs)
        return call.real() if call.batch_first else call.real().mT

    def new_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that the old attention had no like of."""
        if self.site is not None:
            core = getattr(self.student, "regard_core", nn.Identity())  # a pattern alone brings nothing along
            yield from core.named_parameters()
            return
        assert self.convention is not None
        for name, parameter in self.convention.attention(self.student).named_parameters():
            if name.partition(".")[0] not in _KEPT:
                yield name, parameter


def pairs(teacher: nn.Module, student: nn.Module) -> list[Pair]:
    """Every attention of the student that was swapped, with the one at the same path of the teacher.

    Raises:
        UnsupportedError: there is none, or the teacher has none there.
    """
    theirs = dict(teacher.named_modules())
    sites = _swapped_sites(student)
    found: list[Pair] = []
    for name, part in student.named_modules():
        if any(name.startswith(f"{outer.name}." if outer.name else "") for outer in found):
            continue
        convention = next((convention for kind, convention in _SHELLS if isinstance(part, kind)), None)
        site = sites.get(name)
        old = theirs.get(name)
        if site is None and (convention is None or _same_mechanism(part, old)):
            continue
        if old is None or hasattr(old, "regard_core") or isinstance(old, (TorchShell, FusedShell, TransformersShell)):
            what = "nothing" if old is None else "a swapped attention"
            raise UnsupportedError(
                f"the student's attention {name or 'itself'} has no teacher: the teacher has {what} there; take "
                "teacher = copy.deepcopy(model) before the swap"
            )
        found.append(Pair(name, old, part, None if site else convention, site))
    if not found:
        raise UnsupportedError(
            f"{type(student).__name__} has no attention that was swapped: call regard.swap_attention on it before"
        )
    return found


def _swapped_sites(student: nn.Module) -> dict[str, Site]:
    """Attentions of transformers' models with a core, or under a pattern that was set for all of them."""
    swapped: dict[str, Site] = {}
    implementations = {path: str(root.config._attn_implementation) for path, root in roots(student).items()}  # pyright: ignore
    for name, site in interface_sites(student).items():
        implementation = next(used for path, used in implementations.items() if name.startswith(path))
        patterned = implementation.startswith("regard:") and implementation not in _NO_PATTERN
        if hasattr(site.module, "regard_core") or (patterned and not site.cross):
            swapped[name] = site
    return swapped


def _same_mechanism(new: nn.Module, old: nn.Module | None) -> bool:
    """Whether two layers of ours are of one kind."""
    if not isinstance(new, Layer):
        return False
    return isinstance(old, Layer) and (new.mechanism, repr(new)) == (old.mechanism, repr(old))
