"""blue-blue272/fewshot-CAN: the cross attention module alone, and the model around it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.pairs.cross_attention_fewshot import CrossAttentionFewshot
from regard.models.can import CAN, prototypes

_SIZES = {"size": 36, "reduction": 6}
"""Their module knows no others."""

_RULES = {
    r"(^|\.)conv1\.conv\.(?=weight$|bias$)": r"\1fusion.squeeze.",
    r"(^|\.)conv1\.bn\.": r"\1fusion.norm.",
    r"(^|\.)conv2\.": r"\1fusion.expand.",
}


def _module_weights(state: State) -> State:
    """Convolutions of width 1 are matrices."""
    return {name: _matrix(tensor) for name, tensor in renamed(state, _RULES).items()}


def _module_call(module: CrossAttentionFewshot, inputs: Inputs, call: Call) -> Outputs:
    bound = bind(inputs, call, "f1", "f2")
    of_classes, of_queries = module(bound["f1"], bound["f2"])
    return {"out": of_classes, "query_features": of_queries}


class Model(CAN):
    """Our model, whose weights say what their configuration does not: its width, and whether there is a backbone.

    Args:
        share: of the queries in each round of transductive inference.
        options: those of :class:`CAN`.
    """

    def __init__(self, *, share: float, **options: Any) -> None:
        super().__init__(**options)
        self.share = share

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Without weights for it the backbone is what hands on maps that come in as they are."""
        classes: Tensor = state_dict["classes.weight"]
        if not any(name.startswith("backbone.") for name in state_dict):
            self.backbone = nn.Identity()
        count, width = classes.shape
        self.classes = nn.Linear(width, count, device=classes.device, dtype=classes.dtype)
        return super().load_state_dict(state_dict, strict, assign)


def _model_arguments(config: Config) -> dict[str, Any]:
    return {
        "scale": config["scale_cls"],
        "share": config.get("iter_num_prob", 35 / 75),
        "num_classes": config.get("num_classes", 64),
        **_SIZES,
    }


def _model_weights(state: State) -> State:
    """Their classifier is misspelt."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part == "base":
            found[f"backbone.{rest}"] = tensor
        elif part == "clasifier":
            found[f"classes.{rest}"] = _matrix(tensor)
        else:
            found |= {f"attention.{ours}": value for ours, value in _module_weights({rest: tensor}).items()}
    return found


def _scores(module: Model, inputs: Inputs, call: Call) -> Outputs:
    """Their labels are one-hot, and in principle may be shares."""
    bound = bind(inputs, call, "xtrain", "xtest", "ytrain", "ytest")
    examples, queries = module.maps(bound["xtrain"], bound["xtest"])
    return {"out": module.scores(prototypes(examples, bound["ytrain"]), queries)}


def _transductive_scores(module: Model, inputs: Inputs, call: Call) -> Outputs:
    bound = bind(inputs, call, "xtrain", "xtest", "ytrain", "ytest")
    examples, queries = module.maps(bound["xtrain"], bound["xtest"])
    return {"out": module.rounds(examples, bound["ytrain"], queries, module.share)}


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim == 4 else tensor


_MODEL = "blue-blue272/fewshot-CAN:torchFewShot/models/net.py:Model"
IMPORTERS = {
    "blue-blue272/fewshot-CAN:torchFewShot/models/cam.py:CAM": Importer(
        CrossAttentionFewshot, lambda config: dict(_SIZES), _module_call, _module_weights
    ),
    f"{_MODEL}.test_transductive": Importer(Model, _model_arguments, _transductive_scores, _model_weights),
    f"{_MODEL}*": Importer(Model, _model_arguments, _scores, _model_weights),
}
