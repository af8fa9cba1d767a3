"""The heads of :class:`regard.models.Segmenter`: from the maps of a ResNet's stages to the classes of every pixel.

Most published heads differ in their attention, and in which of the other steps they have::

    z = fuse(attention(squeeze(x)))         squeeze, fuse, join: 3 x 3 convolution, norm, ReLU
    logits = W dropout(join([x; z]))        the dropout drops whole channels

============ ================================================= ======= ======= ==== ======= ======================
head         paper                                             squeeze fuse    join dropout auxiliary, its weight
============ ================================================= ======= ======= ==== ======= ======================
"fcn"        arXiv:1411.4038, in torchvision's form            C / 4           -    0.1     stage 3, C / 4: 0.5
"psp"        PSPNet, arXiv:1612.01105, pyramid pooling         -       C / 4   -    0.1     stage 3, C / 4: 0.4
"ccnet"      CCNet, arXiv:1811.11721, criss-cross twice        C / 4   C / 4   yes  0.1     stage 3, C / 2: 0.4
"emanet"     EMANet, arXiv:1907.13426, 64 bases                C / 4   C / 8   -    0.1     -
"interlaced" arXiv:1907.12273, cells of 8 x 8                  C / 4   -       -    0.05    stage 3, C / 2: 0.4
"efficient"  arXiv:1812.01243, in the place of the others      C / 4   -       -    0.1     -
"danet"      DANet, arXiv:1809.02983: two such branches        C / 4   C / 4   -    0.1     each branch: 1
============ ================================================= ======= ======= ==== ======= ======================

C is the width of the last stage (of stage 3 for its auxiliary head), 2048 in the papers. DANet adds its branches; each
is classified by itself as well. PAN, which reads all stages, is in :mod:`regard.models.pyramid_head`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard.models.plugs import Plug, ask, plugged

Logits = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One row of the table at the head of this file.

    Attributes:
        attention: None: there is none.
        squeeze, fuse: the share of C that goes out of each convolution; None: there is none.
    """

    attention: Plug | None
    squeeze: float | None = 1 / 4
    fuse: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A head of one branch or several, which are added.

    Attributes:
        branches: by name.
        join: the map itself is put beside the branch, and both pass a convolution.
        dropout: before the classes.
        slope: of the ReLU below 0.
        auxiliary: the share of stage 3's width that goes out of the first convolution of its head; None: there is none.
        weights: of the auxiliary losses, by name.
    """

    branches: Mapping[str, Branch]
    join: bool = False
    dropout: float = 0.1
    slope: float = 0.0
    auxiliary: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict[str, float])


def _one(mechanism: str | None, options: Mapping[str, Any] | None = None, **steps: Any) -> dict[str, Branch]:
    plug = None if mechanism is None else Plug(mechanism=mechanism, options=options or {})
    return {"attention": Branch(attention=plug, **steps)}


_DUAL = {
    which: Branch(attention=Plug(mechanism="dual_attention", options={"which": which}), fuse=1 / 4)
    for which in ("position", "channel")
}

HEADS: Mapping[str, Plan] = {
    "fcn": Plan(branches=_one(None), auxiliary=1 / 4, weights={"auxiliary": 0.5}),
    "psp": Plan(
        branches=_one("pyramid_pooling", squeeze=None, fuse=1 / 4),
        auxiliary=1 / 4,
        weights={"auxiliary": 0.4},
    ),
    "ccnet": Plan(
        branches=_one("criss_cross", {"recurrence": 2}, fuse=1 / 4),
        join=True,
        slope=0.01,
        auxiliary=1 / 2,
        weights={"auxiliary": 0.4},
    ),
    "emanet": Plan(branches=_one("em_attention", fuse=1 / 8)),
    "interlaced": Plan(branches=_one("interlaced"), dropout=0.05, auxiliary=1 / 2, weights={"auxiliary": 0.4}),
    "efficient": Plan(branches=_one("efficient_attention")),
    "danet": Plan(branches=_DUAL, weights={"position": 1.0, "channel": 1.0}),
}


class BranchedHead(nn.Module):
    """A head by plan; see the head of this file.

    Args:
        widths: the channels of the four stages.
        num_classes: of the pixels.
        plan: which steps there are.

    Example:
        >>> head = BranchedHead((4, 8, 16, 32), 5, HEADS["fcn"])
        >>> maps = [torch.randn(1, width, 6, 7) for width in (4, 8, 16, 32)]
        >>> logits, told = head(maps)
        >>> {name: tuple(value.shape) for name, value in logits.items()}
        {'': (1, 5, 6, 7), 'auxiliary': (1, 5, 6, 7)}
    """

    def __init__(self, widths: Sequence[int], num_classes: int, plan: Plan, **factory: Any) -> None:
        super().__init__()
        self.branches, self.join, self.auxiliary = nn.ModuleDict(), None, None
        width = out = widths[-1]
        for name, branch in plan.branches.items():
            steps = nn.ModuleDict()
            out = width
            if branch.squeeze is not None:
                out, before = max(1, int(width * branch.squeeze)), out
                steps["squeeze"] = convolution(before, out, plan.slope, **factory)
            if branch.attention is not None:
                steps["attention"] = attention = plugged(branch.attention, out, **factory)
                out = getattr(attention, "dim_out", out)  # only what changes the width has it
            if branch.fuse is not None:
                out, before = max(1, int(width * branch.fuse)), out
                steps["fuse"] = convolution(before, out, plan.slope, **factory)
            self.branches[name] = steps
        if plan.join:
            self.join = convolution(width + out, out, plan.slope, **factory)
        self.classes = _classifier(out, num_classes, plan.dropout, **factory)
        self.branch_classes = nn.ModuleDict()  # the losses of the branches by themselves
        if len(plan.branches) > 1:
            for name in plan.branches:
                self.branch_classes[name] = _classifier(out, num_classes, plan.dropout, **factory)
        if plan.auxiliary is not None:
            width, middle = widths[-2], max(1, int(widths[-2] * plan.auxiliary))
            first = convolution(width, middle, plan.slope, **factory)
            self.auxiliary = nn.Sequential(first, *_classifier(middle, num_classes, plan.dropout, **factory))

    def forward(
        self, maps: Sequence[Tensor], generator: Generator | None = None, auxiliary: bool = True
    ) -> tuple[Logits, dict[str, Tensor]]:
        """The maps of the four stages -> (logits by name, "" for those that count; what the attention tells).

        Args:
            maps: (B, ``widths[s]``, H_s, W_s).
            generator: the source of everything random in the attention.
            auxiliary: whether the auxiliary logits are wanted.
        """
        told: dict[str, Tensor] = {}
        outs = dict[str, Tensor]()
        for name, steps in self.branches.items():
            outs[name] = maps[-1]
            for step, _ in steps.named_children():
                outs[name] = ask(self, f"branches.{name}.{step}", outs[name], generator, told)
        z = torch.stack(list(outs.values())).sum(0) if len(outs) > 1 else next(iter(outs.values()))
        logits: Logits = {"": self.classes(z if self.join is None else self.join(torch.cat((maps[-1], z), 1)))}
        if auxiliary:
            logits |= {name: classes(outs[name]) for name, classes in self.branch_classes.items()}
        if auxiliary and self.auxiliary is not None:
            logits["auxiliary"] = self.auxiliary(maps[-2])
        return logits, told


def convolution(width_in: int, width_out: int, slope: float = 0.0, kernel: int = 3, **factory: Any) -> nn.Sequential:
    """A convolution that keeps the sides, its norm, and ReLU or its leaky form."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, bias=False, **factory),
        nn.BatchNorm2d(width_out, **factory),
        nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True),
    )


def _classifier(width: int, num_classes: int, dropout: float, **factory: Any) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1, **factory))
