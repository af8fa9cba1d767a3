"""The authors' cell with other options, against its steps written out by the names of their variables."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors import load
from regard.authors.mac import _DEFAULTS
from regard.authors.replay import replay
from regard.registry import UnsupportedError

SOURCE = "stanfordnlp/mac-network@118d9b6a5a93348af8275ba9245228eb1a25f1cc:mac_cell.py:MACCell"
USUAL = [
    "controlContextual",
    "readProjInputs",
    "readMemConcatKB",
    "readMemConcatProj",
    "readMemProj",
    "readCtrl",
    "writeMemProj",
]


class Theirs:
    """Variables come to be where they are asked for, in float64."""

    def __init__(self, options, dim, mem=None, att=None):
        self.o = dict.fromkeys(_DEFAULTS, False) | {"relu": "ELU", "initMem": "PRM", "initCtrl": "PRM"} | options
        self.dim, self.mem, self.att, self.state, self.scope = dim, mem or dim, att or dim, {}, "MACnetwork/"
        self.prelus = {}

    def variable(self, name, *shape):
        if name not in self.state:
            self.state[name] = (0.5 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
        return self.state[name]

    def act(self, kind, x, scope):
        if kind in (False, "NON"):
            return x
        if kind == "TANH":
            return x.tanh()
        if self.o["relu"] != "PRM":
            return torch.where(x > 0, x, x.exp() - 1) if self.o["relu"] == "ELU" else x.relu()
        number = self.prelus.get(scope, 0)
        self.prelus[scope] = number + 1
        alpha = self.variable(f"{scope}prelu{f'_{number}' if number else ''}/alpha", x.shape[-1])
        return torch.where(x > 0, x, alpha * x)

    def linear(self, x, out, scope, name="", act="NON", bias=0.0):
        scope = f"{scope}linearLayer{name}/"
        w = self.variable(f"{scope}weights/weight", *((x.shape[-1], out) if out > 1 else (x.shape[-1],)))
        y = x @ w + self.variable(f"{scope}biases/bias", out if out > 1 else 1) + bias
        if out == 1:  # their vector: the bias has no axis
            return x @ w + self.variable(f"{scope}biases/bias", 1)
        y = self.act(act, y, scope)
        return y if act in (False, "NON") else self.linear(y, out, scope, f"{name}_2")

    def meet(self, x, y, kind, scope):
        if kind == "ADD":
            return torch.tanh(x + y)
        if kind == "BL":
            w = self.variable(f"{scope}weights/weight", x.shape[-1], x.shape[-1])
            return x @ w * y + self.variable(f"{scope}biases/bias", x.shape[-1])
        bias = self.o["mulBias"] or 0.0
        return (x + bias) * (y + bias)

    def start(self, name, kind, q, width):
        if kind == "PRM":
            return self.variable(f"MACnetwork/{name}", width).expand(len(q), -1)
        return q if kind == "Q" else q.new_zeros(len(q), width)

    def run(self, steps, question, words, contextual, lengths, knowledge):
        o, self.steps = self.o, steps
        c, m = (
            self.start("initCtrl", o["initCtrl"], question, self.dim),
            self.start("initMem", o["initMem"], question, self.mem),
        )
        cont, controls, memories, seen, looked = c, [c], [m], [], []
        words = contextual if o["controlContextual"] else words
        scored = summed = words
        if o["controlInWordsProj"] or o["controlOutWordsProj"]:
            mapped = self.linear(words, self.dim, "MACnetwork/", "wordsProj")
            scored, summed = (mapped if o[f"control{side}WordsProj"] else words for side in ("In", "Out"))
        padding = torch.arange(words.shape[1]) >= lengths[:, None]
        for i in range(steps):
            cell, tag = "MACnetwork/MACCell/", str(i) if o["unsharedCells"] else ""
            self.prelus = {}
            u = self.act(o["controlInputAct"] or "TANH", self.linear(question, self.dim, cell, "qInput"), cell)
            u = self.linear(u, self.dim, cell, f"qInput{i if o['controlInputUnshared'] else 'U'}")
            # control
            scope = f"{cell}control{tag}/"
            if o["controlFeedPrev"]:
                fed = c if o["controlFeedPrevAtt"] else cont
                u = torch.cat((fed, u), -1) if o["controlFeedInputs"] else fed
                u = self.linear(u, self.dim, scope, "contControl", o["controlContAct"])
            x = u[:, None] * scored
            x = torch.cat((x, scored), -1) if o["controlConcatWords"] else x
            x = self.linear(x, self.dim, scope, "", o["controlProjAct"]) if o["controlProj"] else x
            a = (self.linear(x, 1, f"{scope}inter2logits/", "logits") - 1e30 * padding).softmax(-1)
            seen.append(a)
            c, cont = (a[..., None] * summed).sum(1), u
            c = u if o["controlContinuous"] else c
            c = question if o["controlWholeQ"] else c
            # read
            scope = f"{cell}read{tag}/"
            k, y = knowledge, m
            if o["readProjInputs"]:
                names = ("proj", "proj") if o["readProjShared"] else ("projX", "projY")
                k, y = (
                    self.linear(t, self.att, f"{scope}mulmemInter/", name)
                    for t, name in zip((k, y), names, strict=True)
                )
            x = self.meet(k, y[:, None], o["readMemAttType"], f"{scope}mulmemInter/")
            if o["readMemConcatKB"]:
                x = torch.cat((x, k if o["readMemConcatProj"] else knowledge), -1)
            if o["readMemProj"]:
                x = self.linear(x, k.shape[-1], scope, "memKbProj", o["readMemAct"] or "RELU")
            if o["readCtrl"]:
                x = self.meet(x, c[:, None], o["readCtrlAttType"], f"{scope}mulctrlInter/")
                if o["readCtrlConcatKB"]:
                    x = torch.cat((x, k if o["readCtrlConcatProj"] else knowledge), -1)
                x = self.act(o["readCtrlAct"] or "RELU", x, scope)
            b = self.linear(x, 1, f"{scope}inter2att/inter2logits/", "logits").softmax(-1)
            looked.append(b)
            r = (b[..., None] * (k if o["readSmryKBProj"] else knowledge)).sum(1)
            m = self.write(f"{cell}write{tag}/", r, c, cont, controls, memories)
            controls.append(c)
            memories.append(m)
        stacked = {"memories": memories[1:], "controls": controls[1:], "question_attention": seen}
        stacked |= {"knowledge_attention": looked}
        return {name: torch.stack(rows, 1) for name, rows in stacked.items()} | {"memory": m}

    def write(self, scope, r, c, cont, controls, memories):
        o, m = self.o, memories[-1]
        r = self.linear(r, self.mem, scope, "info") if o["writeInfoProj"] else r
        r = self.act(o["writeInfoAct"], r, scope)
        if o["writeSelfAtt"]:
            asker = self.linear(cont if o["writeSelfAttMod"] == "CONT" else c, self.dim, scope, "ctrlProj")
            keys = torch.stack(controls, 1) * asker[:, None]
            weights = self.linear(keys, 1, f"{scope}inter2attselfAttention/inter2logits/", "logits").softmax(-1)
            earlier = (weights[..., None] * torch.stack(memories, 1)).sum(1)
        both = torch.cat((m, r, m * r) if o["writeConcatMul"] else (m, r), -1)
        new = {"INFO": r, "SUM": m + r, "MEM": m}.get(o["writeInputs"], both)
        new = torch.cat((new, earlier), -1) if o["writeSelfAtt"] else new
        new = torch.cat((new, c), -1) if o["writeMergeCtrl"] else new
        if o["writeMemProj"] or new.shape[-1] != self.mem:
            new = self.linear(new, self.mem, scope, "newMemory")
        new = self.act(o["writeMemAct"], new, scope)
        if o["writeGate"]:
            bias = 1.0 if o["writeGateBias"] is False else o["writeGateBias"]
            z = torch.sigmoid(self.linear(c, self.mem, scope, "gate", bias=bias))
            new = z * new + (1 - z) * m
        return new


def inputs_of(dim, mem):
    sizes = {"question": (3, dim), "words": (3, 5, dim), "contextual": (3, 5, dim), "knowledge": (3, 6, mem)}
    return {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()} | {
        "lengths": torch.tensor([5, 1, 3])
    }


def compare(options, config, dim=4, mem=None, att=None, steps=3):
    theirs, inputs = Theirs(options, dim, mem, att), inputs_of(dim, mem or dim)
    expected = theirs.run(steps, **inputs)
    tensors = {f"param/{name}": tensor for name, tensor in theirs.state.items()}
    tensors |= {f"in/{name}": tensor for name, tensor in inputs.items()}
    tensors |= {"in/cotangent": torch.randn_like(expected["memory"])}
    call = {"args": ["question", "words", "contextual", "lengths", "knowledge"], "steps": steps}
    meta = {"mechanism": "mac", "source": SOURCE, "config": json.dumps(config | {"netLength": steps})}
    found = replay(tensors, meta | {"call": json.dumps(call), "main_output": "out/memory"})
    for name, value in expected.items():
        assert_close(found[f"out/{name}"], value, rtol=0, atol=1e-10)
    total = (expected["memory"] * tensors["in/cotangent"]).sum()
    slopes = torch.autograd.grad(total, list(theirs.state.values()), materialize_grads=True, allow_unused=True)
    for name, slope in zip(theirs.state, slopes, strict=True):
        assert_close(found[f"grad/{name}"], slope, rtol=0, atol=1e-10)


def on(*names, **values):
    return dict.fromkeys((*USUAL, *names), True) | values


CASES = {
    "self-attention": on("controlInputUnshared", "writeSelfAtt", initCtrl="Q", writeSelfAttMod="CONT"),
    "self-attention of the control": on("writeSelfAtt", "writeMergeCtrl", writeMemAct="TANH"),
    "gate": on("controlInputUnshared", "writeGate", initCtrl="Q", writeGateBias=-0.5),
    "continuous control": on("controlFeedPrev", "controlFeedInputs", controlContAct="RELU", initMem="ZERO"),
    "control alone": on("controlFeedPrev", "controlFeedPrevAtt", initCtrl="ZERO", initMem="Q"),
    "words": on("controlConcatWords", "controlProj", "controlInWordsProj", controlProjAct="TANH"),
    "summed words": on("controlProj", "controlOutWordsProj", "controlInWordsProj", controlInputAct="RELU", relu="STD"),
    "whole question": on("controlWholeQ", controlInputAct="NON"),
    "no attention to words": on("controlContinuous", "controlOutWordsProj"),
    "unshared cells": on("unsharedCells", "controlInputUnshared", "writeSelfAtt"),
    "shared projection": on("readProjShared", "readSmryKBProj", "readCtrlConcatKB", "readCtrlConcatProj", mulBias=0.5),
    "raw cells": on("readCtrlConcatKB", readMemConcatProj=False, readMemAttType="ADD", readMemAct="NON"),
    "bilinear": on(readMemAttType="BL", readCtrlAttType="BL", readCtrlAct="TANH"),
    "no projection": dict.fromkeys(("controlContextual", "readCtrl"), True),
    "no control": on("readMemConcatKB", readCtrl=False, readMemProj=False),
    "information": on("writeInfoProj", writeInputs="INFO", writeInfoAct="RELU", writeMemProj=False),
    "sum": on(writeInputs="SUM", writeMemProj=False),
    "memory": on("writeSelfAtt", writeInputs="MEM"),
    "product": on("writeConcatMul"),
    "slopes": on("controlFeedPrev", "controlProj", relu="PRM", controlContAct="RELU", controlProjAct="RELU"),
    "slopes of the write unit": on(relu="PRM", writeInfoAct="RELU", writeMemAct="RELU"),
    "a slope of the write unit": on(relu="PRM", writeInfoAct="TANH", writeMemAct="RELU", readCtrlAct="NON"),
    "embeddings": on(controlContextual=False),
}


@pytest.mark.parametrize("case", CASES)
def test_options_of_theirs(case):
    options = {"relu": "ELU"} | CASES[case]
    compare(options, options | {"dim": 4})


def test_widths_of_their_own():
    options = on("writeGate", "writeSelfAtt", relu="ELU")
    compare(options, options | {"ctrlDim": 4, "memDim": 6, "attDim": 4}, dim=4, mem=6, att=4)


@pytest.mark.parametrize("argfile", ["args.txt", "configs/args1.txt", "args2.txt", "args3.txt", "args4.txt"])
def test_their_files_and_command_line(argfile):
    file = {
        "args.txt": on("controlInputUnshared", initCtrl="Q"),
        "configs/args1.txt": on("controlFeedPrev", "controlFeedPrevAtt", "controlFeedInputs", controlContAct="TANH"),
        "args2.txt": on("controlInputUnshared", initCtrl="Q"),
        "args3.txt": on("controlInputUnshared", "writeSelfAtt", initCtrl="Q", writeSelfAttMod="CONT"),
        "args4.txt": on("controlInputUnshared", "writeGate", initCtrl="Q"),
    }[argfile]
    extra = ["--clip", "--writeMergeC", "--initMem", "ZERO", "--relu=STD", "--stemKernelSizes", "3", "3"]
    compare(
        file | {"writeMergeCtrl": True, "initMem": "ZERO", "relu": "STD"},
        {"argfile": argfile, "extra": extra, "dim": 4},
    )


def test_steps_and_dropouts_come_along():
    for argfile, steps in (("args.txt", 16), ("args2.txt", 12), ("args3.txt", 8)):
        theirs = Theirs(on("controlInputUnshared", initCtrl="Q") | ({"writeSelfAtt": True} if steps == 8 else {}), 4)
        theirs.run(steps, **inputs_of(4, 4))
        config = {"argfile": argfile, "dim": 4, "extra": ["--memoryDropout=0.75", "--writeDropout=0.5"]}
        mac = load("mac", SOURCE, config, {name: tensor.detach() for name, tensor in theirs.state.items()})
        assert (mac.steps, mac.memory_drop, mac.write_drop, mac.variational_drop) == (steps, 0.25, 0.5, True)
        assert abs(mac.read_drop - 0.15) < 1e-12


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--addNullWord"], "addNullWord does not work.*lengths"),
        (["--initKBwithQ=CNCT"], "initKBwithQ does not work"),
        (["--writeGate", "--writeGateShared"], "writeGateShared does not work.*last axis"),
        (["--readCtrlConcatInter"], "readCtrlConcatInter does not work"),
        (["--readMemAttType=DIAG"], "readMemAttType='DIAG' does not work.*MUL, BL, ADD"),
        (["--relu=LKY"], "relu='LKY'"),
        (["--memoryBN"], "batch mates"),
        (["--attDim=7"], "control of width 4 cannot meet interactions of width 7"),
        (["--memDim=7", "--attDim=4", "--writeMergeCtrl"], "merge a control of width 4"),
        (["--memDim=7", "--attDim=4", "--initMem=Q"], "question of width 4 cannot be a memory of width 7"),
        (["--noSuchThing"], "no option 'noSuchThing'"),
        (["--controlFeed"], "no option 'controlFeed': controlFeedPrev"),
    ],
)
def test_what_does_not_work_is_refused_in_words(extra, message):
    with pytest.raises(ValueError, match=message):
        load("mac", SOURCE, {"argfile": "args.txt", "dim": 4, "extra": extra}, {})


def test_cells_that_are_not_projected_and_unknown_files():
    for option in ("readMemConcatProj", "readSmryKBProj"):
        with pytest.raises(UnsupportedError, match="cells that are not projected"):
            load("mac", SOURCE, {"dim": 4, option: True}, {})
    with pytest.raises(UnsupportedError, match="args9"):
        load("mac", SOURCE, {"argfile": "args9.txt"}, {})
