"""MAC by its authors: the cell of stanfordnlp/mac-network with every command-line option of theirs that works.

A configuration names a file of theirs ("argfile"), further words of the command line ("extra"), and options by name;
"dim" is all three widths of the cell. Options of training, data and the rest of the network say nothing about the cell.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from regard.authors import Call, Config, Importer, Outputs, State, bind, renamed
from regard.authors import Inputs as Given
from regard.mechanisms.pairs.mac import Cell, Mac, Start
from regard.ops.reasoning_parts import Activation, Product
from regard.ops.reasoning_units import Asker, Cells, ControlUnit, Inputs, ReadUnit, WriteUnit
from regard.registry import UnsupportedError

_Ours = TypeVar("_Ours")

_SWITCHES = """memoryVariationalDropout memoryBN unsharedCells addNullWord controlWholeQ controlContinuous
    controlContextual controlInWordsProj controlOutWordsProj controlInputUnshared controlFeedPrev controlFeedPrevAtt
    controlFeedInputs controlConcatWords controlProj readProjInputs readProjShared readMemConcatKB readMemConcatProj
    readMemProj readCtrl readCtrlConcatKB readCtrlConcatProj readCtrlConcatInter readSmryKBProj writeConcatMul
    writeInfoProj writeSelfAtt writeMergeCtrl writeMemProj writeGate writeGateShared"""

_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(_SWITCHES.split(), False),
    **dict.fromkeys(("memDim", "ctrlDim", "attDim"), 512),
    **dict.fromkeys(("initCtrl", "initMem"), "PRM"),
    **dict.fromkeys(("memoryDropout", "readDropout"), 0.85),
    **dict.fromkeys(("initKBwithQ", "controlContAct", "controlProjAct", "writeInfoAct", "writeMemAct"), "NON"),
    **dict.fromkeys(("readMemAct", "readCtrlAct"), "RELU"),
    **dict.fromkeys(("readMemAttType", "readCtrlAttType"), "MUL"),
    "netLength": 16,
    "writeDropout": 1.0,
    "writeGateBias": 1.0,
    "mulBias": 0.0,
    "relu": "STD",
    "controlInputAct": "TANH",
    "writeInputs": "BOTH",
    "writeSelfAttMod": "NON",
}
"""Theirs, of config.py."""

_USUAL = (
    "--memoryVariationalDropout --relu=ELU --controlContextual --readProjInputs --readMemConcatKB --readMemConcatProj "
    "--readMemProj --readCtrl --writeMemProj"
)
_BASE = f"{_USUAL} --initCtrl=Q --controlInputUnshared"
_FILES = {
    "args": _BASE,
    "args1": f"{_USUAL} --controlFeedPrev --controlFeedPrevAtt --controlFeedInputs --controlContAct=TANH",
    "args2": f"{_BASE} --netLength=12",
    "args3": f"{_BASE} --netLength=8 --writeSelfAtt --writeSelfAttMod=CONT",
    "args4": f"{_BASE} --netLength=8 --writeGate",
}
"""What the files in their folder "configs" say about the cell."""

_ELSEWHERE = re.compile(
    "gpus|allow|max|parallel|workers|task|useCPU|r$|restore|weights|save|calle|train|var|exp|data|generated|feature|"
    "eval|test|final|retain|get|analysis|no[BR]|[tv](Only|Max|Filter)|extra|alter|finetune|useEMA|ema|batch|epochs|lr|"
    "early|adam|l2|clip|grad|stem|output|bn|enc|q|parametric|image|useBaseline|baseline|location|wrd|ans|out"
)
"""The first letters of all their other options."""

_BROKEN = {
    "addNullWord": "it reads the lengths before they are known",
    "initKBwithQ": "it passes an argument that their function does not have",
    "writeGateShared": "its gate loses the last axis and meets the batch instead of the features",
    "readCtrlConcatInter": "its scores expect half of the features that it makes",
}
_START: dict[str, Start] = {"PRM": "learned", "ZERO": "zero", "Q": "question"}
_RELU: dict[str, Activation] = {"STD": "relu", "ELU": "elu", "PRM": "prelu"}
_PRODUCT: dict[str, Product] = {"MUL": "product", "BL": "bilinear", "ADD": "additive"}
_INPUTS: dict[str, Inputs] = {"BOTH": "both", "SUM": "sum", "INFO": "information", "MEM": "memory"}
_ASKER: dict[str, Asker] = {"NON": "control", "CONT": "continuous"}


def _options(config: Config) -> dict[str, Any]:
    """All options of the cell: defaults, then the file, the further words and single options."""
    config = dict(config)
    file, extra, dim = config.pop("argfile", None), config.pop("extra", ()), config.pop("dim", None)
    options = dict(_DEFAULTS)
    if file is not None:
        name = re.sub(r"^.*/|\.txt$", "", file)
        if name not in _FILES:
            raise UnsupportedError(f"mac knows {', '.join(_FILES)} of the authors' files, not {file!r}")
        options |= _command_line(_FILES[name].split())
    if dim is not None:
        options |= dict.fromkeys(("memDim", "ctrlDim", "attDim"), dim)
    return options | _command_line(extra.split() if isinstance(extra, str) else list(extra)) | _known(config)


def _command_line(words: Sequence[str]) -> dict[str, Any]:
    """Their command line as values: "--name=value", "--name value", "--name" for a switch."""
    found: dict[str, Any] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            found[name] = value or True
        elif name is not None:
            found[name] = word
    return _known(found)


def _known(found: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the cell by their whole names and in their types; the rest must be options of something else."""
    options: dict[str, Any] = {}
    for given, value in found.items():
        names = [given] if given in _DEFAULTS else [name for name in _DEFAULTS if name.startswith(given)]
        if len(names) == 1:
            options[names[0]] = type(_DEFAULTS[names[0]])(value)
        elif not _ELSEWHERE.match(given):
            raise UnsupportedError(f"mac-network has no option {given!r}" + (f": {', '.join(names)}?" if names else ""))
    return options


def _refuse(options: Mapping[str, Any]) -> None:
    """What their code cannot do either, and batch statistics."""
    broken = {name: reason for name, reason in _BROKEN.items() if options[name] not in (False, "NON")}
    if not options["writeGate"]:
        broken.pop("writeGateShared", None)
    if not options["readCtrl"]:
        broken.pop("readCtrlConcatInter", None)
    for name, reason in broken.items():
        raise UnsupportedError(f"{name} does not work in the authors' code: {reason}")
    beside = options["readCtrl"] and options["readCtrlConcatKB"] and options["readCtrlConcatProj"]
    if not options["readProjInputs"] and (options["readMemConcatProj"] or options["readSmryKBProj"] or beside):
        raise UnsupportedError("cells that are not projected (readProjInputs) cannot be used as projected ones")
    if options["memoryBN"]:
        raise UnsupportedError("memoryBN: with batch statistics in the memory, an answer depends on its batch mates")


def _chosen(options: Mapping[str, Any], name: str, table: Mapping[str, _Ours]) -> _Ours:
    """Ours for one of their words."""
    if options[name] not in table:
        works = ", ".join(table)
        raise UnsupportedError(f"{name}={options[name]!r} does not work in the authors' code; what works: {works}")
    return table[options[name]]


def _activation(options: Mapping[str, Any], name: str) -> Activation:
    names: dict[str, Activation] = {"NON": "none", "TANH": "tanh", "RELU": _chosen(options, "relu", _RELU)}
    return _chosen(options, name, names)


def _control(options: Mapping[str, Any]) -> ControlUnit:
    whole, feed = options["controlWholeQ"], options["controlFeedPrev"]
    fed = "attended" if options["controlFeedPrevAtt"] else "continuous"
    return ControlUnit(
        options["ctrlDim"],
        fed if feed else "none",
        not feed or options["controlFeedInputs"],
        _activation(options, "controlContAct"),
        with_words=options["controlConcatWords"],
        projection=_activation(options, "controlProjAct") if options["controlProj"] else None,
        answer="question" if whole else "continuous" if options["controlContinuous"] else "attended",
    )


def _beside(options: Mapping[str, Any], name: str) -> Cells:
    if not options[f"{name}KB"]:
        return "none"
    return "projected" if options[f"{name}Proj"] else "raw"


def _read(options: Mapping[str, Any]) -> ReadUnit:
    return ReadUnit(
        options["memDim"],
        options["ctrlDim"],
        options["attDim"] if options["readProjInputs"] else None,
        project=options["readProjInputs"],
        shared=options["readProjShared"],
        meeting=_chosen(options, "readMemAttType", _PRODUCT),
        beside=_beside(options, "readMemConcat"),
        merge=_activation(options, "readMemAct") if options["readMemProj"] else None,
        ask=options["readCtrl"],
        asking=_chosen(options, "readCtrlAttType", _PRODUCT),
        asked_beside=_beside(options, "readCtrlConcat"),
        activation=_activation(options, "readCtrlAct"),
        product_bias=options["mulBias"],
        sum_projected=options["readSmryKBProj"],
    )


def _write(options: Mapping[str, Any]) -> WriteUnit:
    inputs = _chosen(options, "writeInputs", _INPUTS)
    return WriteUnit(
        options["memDim"],
        options["ctrlDim"],
        inputs="product" if inputs == "both" and options["writeConcatMul"] else inputs,
        self_attention=_chosen(options, "writeSelfAttMod", _ASKER) if options["writeSelfAtt"] else "none",
        gate="vector" if options["writeGate"] else "none",
        gate_bias=options["writeGateBias"],
        with_control=options["writeMergeCtrl"],
        project=options["writeMemProj"],
        information=options["writeInfoProj"],
        information_activation=_activation(options, "writeInfoAct"),
        activation=_activation(options, "writeMemAct"),
    )


class _OfEmbeddings(Mac):
    """Its words are embeddings, not what an encoder made of them: no ``controlContextual``."""


def _arguments(config: Config) -> dict[str, Any]:
    options = _options(config)
    _refuse(options)
    scores, values = options["controlInWordsProj"], options["controlOutWordsProj"]
    try:
        cell = Cell(_control(options), _read(options), _write(options))
    except UnsupportedError:
        raise
    except ValueError as error:
        raise UnsupportedError(f"the authors' code cannot do this either: {error}") from error
    return {
        "contextual": options["controlContextual"],
        "dim": options["ctrlDim"],
        "context_dim": options["memDim"],
        "steps": options["netLength"],
        "cell": cell,
        "unshared_cells": options["unsharedCells"],
        "unshared_inputs": options["controlInputUnshared"],
        "initial_control": _chosen(options, "initCtrl", _START),
        "initial_memory": _chosen(options, "initMem", _START),
        "memory_drop": 1 - options["memoryDropout"],
        "variational_drop": options["memoryVariationalDropout"],
        "read_drop": 1 - options["readDropout"],
        "write_drop": 1 - options["writeDropout"],
        "question_activation": _activation(options, "controlInputAct"),
        "project_words": {(0, 0): "none", (1, 0): "scores", (0, 1): "values", (1, 1): "both"}[scores, values],
    }


def _module(contextual: bool, **arguments: Any) -> Mac:
    return (Mac if contextual else _OfEmbeddings)(**arguments)


_RULES = {
    r"^MACnetwork/": "",
    r"/weights/weight$": ".weight",
    r"/biases/bias$": ".bias",
    r"/alpha$": ".slope",
    r"^initCtrl$": "control_0",
    r"^initMem$": "memory_0",
    r"^linearLayerwordsProj": "words_proj",
    r"^MACCell/linearLayerqInputU": "step_maps.0",
    r"^MACCell/linearLayerqInput(\d+)": r"step_maps.\1",
    r"^MACCell/linearLayerqInput": "question_map",
    r"^MACCell/prelu\.": "",
    r"^MACCell/(control|read|write)/": r"cells.0.\1.",
    r"^MACCell/(control|read|write)(\d+)/": r"cells.\2.\1.",
    r"inter2attselfAttention/inter2logits/linearLayerlogits": "self_logits",
    r"(inter2att/)?inter2logits/linearLayerlogits": "logits",
    r"mulmemInter\.": "meet.linear.",
    r"mulctrlInter\.": "asking.linear.",
    r"mulmemInter/linearLayerprojY": "memory_proj",
    r"mulmemInter/linearLayerprojX?": "knowledge_proj",
    r"linearLayer(contControl|memKbProj)/linearLayer\w+_2": "merge.outer",
    r"linearLayer(contControl|memKbProj)/prelu": "merge",
    r"linearLayer(contControl|memKbProj)": "merge.inner",
    r"\.linearLayer/linearLayer_2": ".project.outer",
    r"\.linearLayer/prelu": ".project",
    r"\.linearLayer\.": ".project.inner.",
    r"linearLayerinfo": "information",
    r"linearLayerctrlProj": "self_query",
    r"linearLayernewMemory": "merge",
    r"linearLayergate": "gate",
    r"\.write\.prelu\.slope": ".write.slopes.0",
    r"\.write\.prelu_1\.slope": ".write.slopes.1",
    r"\.read\.prelu\.slope": ".read.slope",
}


def _weights(state: State) -> State:
    """Their matrices are (in, out); those of scores are vectors."""

    def turned(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(".weight"):
            return tensor.T if tensor.ndim == 2 else tensor[None]
        return tensor.reshape(-1)

    return {name: turned(name, tensor) for name, tensor in renamed(state, _RULES).items()}


def _call(mac: Mac, inputs: Given, call: Call) -> Outputs:
    given = bind(inputs, call, "question", "words", "contextual", "lengths", "knowledge")
    words = given["words" if isinstance(mac, _OfEmbeddings) else "contextual"]
    real = torch.arange(words.shape[1], device=words.device) < given["lengths"][:, None]
    trace = mac.reason(words, given["knowledge"], given["question"], None, real)
    maps = {"question_attention": trace.words, "knowledge_attention": trace.knowledge}
    return {"out": trace.memories[:, -1], "memories": trace.memories, "controls": trace.controls, **maps}


IMPORTERS = {"stanfordnlp/mac-network:mac_cell.py:MACCell": Importer(_module, _arguments, _call, _weights)}
