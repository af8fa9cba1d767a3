"""The published ResNets by name: plain ones, and those with attention in them, as a table.

Millions of parameters as the papers give them, which ours meet (tests/models/test_resnet_family.py):

===================================== =============================================================================
resnet18, 34, 50, 101, 152, 200       arXiv:1512.03385 and 1603.05027, torchvision's form
sasa_resnet26, 38, 50                 arXiv:1906.05909: 10.3, 14.1, 18.0; all 3 x 3 convolutions and the stem
halonet_h0 ... halonet_h7             arXiv:2103.12731: 5.5, 8.1, 9.4, 11.8, 19.1, 30.7, 43.4, 67.4
lambda_resnet50, 152, 200             arXiv:2102.08602: 15.0, 35, 42
cbam_resnet18, 34, 50, 101            arXiv:1807.06521, the gates on every branch
se_resnet50, 101, 152                 arXiv:1709.01507, likewise
bam_resnet18, 34, 50, 101             arXiv:1807.06514, behind the first three stages
gc_resnet50, 101                      arXiv:1904.11492, on the branches of the last three stages
nonlocal_resnet50, 101                arXiv:1711.07971, one block before the last of the third stage
===================================== =============================================================================

The larger LambdaResNets have convolutions with squeeze and excitation (r = 4) in the first two stages and lambdas in
the last two: the paper does not spell this out, but it is what gives both of its counts (all lambda: 32.8 and 35.3).
"""

import difflib
from collections.abc import Mapping
from typing import Any

from regard.models.plugs import Plug
from regard.models.residual_network import ResNet

_DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_WIDTHS = (64, 128, 256, 512)

# block, halo, value ratio, bottleneck ratio, depth of the third stage, last width: table 2 of the paper
_HALONETS: tuple[tuple[int, int, float, float, int, int | None], ...] = (
    (8, 3, 1, 0.5, 7, None),
    (8, 3, 1, 1, 10, None),
    (8, 3, 1, 1.25, 11, None),
    (10, 3, 1, 1.5, 12, 1024),
    (12, 2, 1, 3, 12, 1280),
    (14, 2, 2.5, 2, 23, 1536),
    (8, 4, 3, 2.75, 24, 1536),
    (10, 3, 4, 3.5, 26, 2048),
)


def resnet(name: str, **changes: Any) -> ResNet:
    """A published ResNet by its name in the head of this file.

    Args:
        name: e.g. "resnet50", "sasa_resnet26", "halonet_h0".
        changes: arguments of :class:`regard.models.ResNet` that shall differ, e.g. ``num_classes``.

    Raises:
        ValueError: an unknown name; the message lists the nearest ones.

    Example:
        >>> sum(parameter.numel() for parameter in resnet("resnet50", device="meta").parameters())
        25557032
    """
    if name not in RESNETS:
        near = difflib.get_close_matches(name, RESNETS, n=3, cutoff=0.4)
        raise ValueError(f"no ResNet is called {name!r}: did you mean {' or '.join(map(repr, near or RESNETS))}?")
    return ResNet(**{**RESNETS[name], **changes})


def _plain(layers: int, *plugs: Plug, **options: Any) -> dict[str, Any]:
    block = "basic" if layers < 50 else "bottleneck"
    return {"depths": _DEPTHS[layers], "block": block, "plugs": plugs, **options}


def _halonet(block: int, halo: int, values: float, ratio: float, third: int, last: int | None) -> dict[str, Any]:
    plugs = [
        Plug(mechanism="halonet", stages=(stage,), options={"block": block, "halo": halo, "num_heads": heads})
        for stage, heads in enumerate((4, 8, 8, 8), 1)
    ]
    depths = (3, 3, third, 3)
    return {"depths": depths, "plugs": plugs, "expansion": ratio, "mixed": values, "head_width": last}


_SASA = Plug(mechanism="sasa", options={"kernel": 7, "num_heads": 8})
_LAMBDA = {"num_heads": 4, "head_dim": 16, "kernel": 23}
_CBAM = Plug(mechanism="cbam", place="branch")
_SE = {"gates": ("channel",), "pools": ("avg",)}
_BAM = Plug(mechanism="bam", place="after", stages=(1, 2, 3), blocks=(-1,))
_GC = Plug(mechanism="global_context", place="branch", stages=(2, 3, 4), options={"ratio": 1 / 16})
_NON_LOCAL = Plug(mechanism="non_local", place="after", stages=(3,), blocks=(-2,))
_LATE_LAMBDA = (
    Plug(mechanism="cbam", place="branch", stages=(1, 2), options={**_SE, "reduction": 4}),
    Plug(mechanism="lambda_networks", stages=(3, 4), options=_LAMBDA),
)

RESNETS: Mapping[str, Mapping[str, Any]] = {
    **{f"resnet{layers}": _plain(layers) for layers in _DEPTHS},
    "sasa_resnet26": {"depths": (1, 2, 4, 1), "stem": "sasa", "plugs": (_SASA,)},
    "sasa_resnet38": {"depths": (2, 3, 5, 2), "stem": "sasa", "plugs": (_SASA,)},
    "sasa_resnet50": {"depths": (3, 4, 6, 3), "stem": "sasa", "plugs": (_SASA,)},
    **{f"halonet_h{number}": _halonet(*sizes) for number, sizes in enumerate(_HALONETS)},
    "lambda_resnet50": _plain(50, Plug(mechanism="lambda_networks", options=_LAMBDA), zero_init=True),
    **{f"lambda_resnet{layers}": _plain(layers, *_LATE_LAMBDA, zero_init=True) for layers in (152, 200)},
    **{f"cbam_resnet{layers}": _plain(layers, _CBAM) for layers in (18, 34, 50, 101)},
    **{
        f"se_resnet{layers}": _plain(layers, Plug(mechanism="cbam", place="branch", options=_SE))
        for layers in (50, 101, 152)
    },
    **{f"bam_resnet{layers}": _plain(layers, _BAM) for layers in (18, 34, 50, 101)},
    **{f"gc_resnet{layers}": _plain(layers, _GC) for layers in (50, 101)},
    **{f"nonlocal_resnet{layers}": _plain(layers, _NON_LOCAL) for layers in (50, 101)},
}
