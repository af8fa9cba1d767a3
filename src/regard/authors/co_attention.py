"""carrierlxk/COSNet: the co-attention and the two heads behind it; and the paper's equations."""

from typing import Any

from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.pairs.co_attention import CoAttention
from regard.models.cosnet import CoSegmentationHead
from regard.registry import UnsupportedError


def _arguments(config: Config) -> dict[str, Any]:
    """Of CoattentionModel; what concerns the encoder (block, layers) and the fixed number of pixels are not needed."""
    return {
        "dim": config.get("all_channel", 256),
        "num_classes": config.get("num_classes", 1),
        "gate_bias": False,
    }


_RULES = {
    r"^linear_e\.": "attention.affinity.",
    r"^gate\.": "attention.gate.",
    r"^conv1\.": "heads.0.0.",
    r"^conv2\.": "heads.1.0.",
    r"^bn1\.": "heads.0.1.",
    r"^bn2\.": "heads.1.1.",
    r"^main_classifier1\.": "heads.0.3.",
    r"^main_classifier2\.": "heads.1.3.",
}


def _weights(state: State) -> State:
    """The gate is a convolution of width 1, ours a matrix."""
    if any(name.startswith("encoder.") for name in state):
        raise UnsupportedError(
            "the encoder of COSNet has its strides at the first convolutions of its blocks, which our ResNet has at "
            "the second: leave its weights (encoder.*) out, and pass features instead of images"
        )
    return {
        name: tensor.flatten(1) if name.startswith("attention.gate") else tensor
        for name, tensor in renamed(state, _RULES).items()
    }


def _call(module: CoSegmentationHead, inputs: Inputs, call: Call) -> Outputs:
    """Masks, and what goes into the heads. Features come in, so there is nothing to bring back to another size."""
    bound = bind(inputs, call, "exemplar", "query")
    joined, other = module.attention(bound["exemplar"], bound["query"])
    mask, other_mask = (logits.sigmoid() for logits in module.classify(joined, other))
    return {"out": mask, "mask_query": other_mask, "joint_exemplar": joined, "joint_query": other}


def _equation_arguments(config: Config) -> dict[str, Any]:
    return {
        "dim": config["channels"],
        "kind": config.get("kind", "vanilla"),
        "gate": config.get("gate", True),
        "gate_bias": config.get("gate_bias", True),
    }


_EQUATION_RULES = {
    r"^[wW]$": "affinity.weight",
    r"^[pP]$": "p_proj.weight",
    r"^[dD]$": "diagonal",
    r"^[dD]_a$": "diagonal_a",
    r"^[dD]_b$": "diagonal_b",
    r"^w_f$": "gate.weight",
    r"^b_f$": "gate.bias",
}


def _equation_weights(state: State) -> State:
    """w_f is a vector, ours a matrix of one row; D may be given as a matrix, of which the diagonal counts."""
    found: dict[str, Tensor] = {}
    for name, tensor in renamed(state, _EQUATION_RULES).items():
        if name.startswith("diagonal") and tensor.ndim == 2:
            tensor = tensor.diagonal()
        found[name] = tensor.view(1, -1) if name == "gate.weight" else tensor.flatten() if "bias" in name else tensor
    return found


def _equation_call(module: CoAttention, inputs: Inputs, call: Call) -> Outputs:
    """One frame against one (B, C, h, w) or several (B, R, C, h, w)."""
    bound = bind(inputs, call, "va", "vb")
    answer = module if bound["vb"].ndim == 4 else module.fuse
    joined, others = answer(bound["va"], bound["vb"])
    return {"out": joined, "joint_b": others}


IMPORTERS = {
    "carrierlxk/COSNet:deeplab/siamese_model_conf.py:CoattentionModel": Importer(
        CoSegmentationHead, _arguments, _call, _weights
    ),
    "equations": Importer(CoAttention, _equation_arguments, _equation_call, _equation_weights),
}
