"""Axial attention: google-research's image models, written in TensorFlow 1, and lucidrains' bare layer."""

import re
from typing import Any

from torch import Tensor

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.patterned.axial import Axial
from regard.models.axial_transformer import AxialTransformer
from regard.registry import UnsupportedError

# google-research: images are (B, H, W) or (B, H, W, channels), dense weights (in, out)


def _plane_arguments(config: Config) -> dict[str, Any]:
    return {
        "height": config["img_height"],
        "width": config["img_width"],
        "num_values": config["num_embs"],
        "dim": config["emb_dim"],
        "num_heads": config["num_heads"],
        "outer_layers": config["num_outer_layers"],
        "inner_layers": config["num_inner_layers"],
        "mlp_ratio": config["hdim_factor"],
    }


def _image_arguments(config: Config) -> dict[str, Any]:
    return {
        **_plane_arguments(config),
        "channels": config["img_channels"],
        "exterior_layers": config["num_exterior_layers"],
    }


_RULES = {
    r"^.*transformer2d/": "decoder.",
    r"^.*(?=exterior_)": "encoder.",
    r"exterior_input_conv/": "input.",
    r"(outer|exterior)_(row|col)_(\d+)/": r"\1.\3.\2.",
    r"exterior\.": "blocks.",
    r"inner_row_(\d+)/": r"inner.\1.",
    r"layernorm_attn/": "norm1.",
    r"layernorm_mlp/": "norm2.",
    r"attn/proj_out/": "attention.out_proj.",
    r"attn/([qkv])/": r"attention.\1_proj.",
    r"mlp/proj_in/": "first.",
    r"mlp/proj_out/": "second.",
    r"pos_embs_h$": "positions.rows",
    r"pos_embs_w$": "positions.columns",
    r"embs$": "embedding.weight",
    r"final_ln/": "norm.",
    r"final_dense/": "output.",
    r"\.g$": ".weight",
    r"\.b$": ".bias",
}


def _model_weights(state: State) -> State:
    """The n-th pair of blocks within rows and columns are our blocks 2 n and 2 n + 1."""
    scope = _scope(state)
    several = any("transformer2d/" in name for name in state)
    found: dict[str, Tensor] = {}
    for name, tensor in renamed({name.removeprefix(scope): t for name, t in state.items()}, _RULES).items():
        name = re.sub(r"(\d+)\.(row|col)\.", lambda m: f"{2 * int(m[1]) + (m[2] == 'col')}.", name)
        if not name.startswith(("decoder.", "encoder.")):
            name = f"{'encoder' if several else 'decoder'}.{name}"
        if name.endswith(".w"):
            name, tensor = f"{name}eight", tensor.mT if tensor.ndim == 2 else tensor.permute(3, 2, 0, 1)
        found[name] = tensor
    return found


def _scope(state: State) -> str:
    """What stands before the model's own names, such as "model/"."""
    own = next((name for name in state if name.endswith("pos_embs_h") and "transformer2d/" not in name), "")
    return own.removesuffix("pos_embs_h")


def _model_call(module: AxialTransformer, inputs: Inputs, call: Call) -> Outputs:
    """With noise also a sample; of several channels all, or the one of each image that ``slice_inds_b`` names."""
    if call.get("dropout"):
        raise UnsupportedError(f"dropout={call['dropout']} draws inside of their code: only 0 can be repeated")
    named = {**inputs, "x": inputs["x_bhwc"]} if "x_bhwc" in inputs else inputs
    x, cond, noise = (named.get(name) for name in ("x", "cond", "noise"))
    if x is None:
        raise UnsupportedError(f"nothing is called x among {', '.join(inputs)}")
    several = module.encoder is not None
    x = (x.movedim(-1, 1) if several else x).long()
    channel = named.get("slice_inds_b")
    if channel is not None:
        return {"out": module.channel_logits(x, channel.long(), cond)}
    logits = module(x, cond)
    outputs = {"out": logits.movedim(1, -2) if several else logits}
    if noise is not None:
        images = module.sample(noise.movedim(-2, 1) if several else noise, cond)
        outputs["sample"] = images.movedim(1, -1) if several else images
    return outputs


# lucidrains: maps with the features in any place


class Placed(Axial):
    """Our layer on tensors with the features in any dimension.

    Args:
        place: which one.
        options: those of :class:`Axial`.
    """

    def __init__(self, place: int, **options: Any) -> None:
        super().__init__(**options)
        self.place = place

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Of the shape of x."""
        y: Any = super().forward(x.movedim(self.place, 1), *args, **options)
        return y.movedim(1, self.place)


def _layer(place: int, **options: Any) -> Axial:
    return Axial(**options) if place == 1 else Placed(place, **options)


def _layer_arguments(config: Config) -> dict[str, Any]:
    axes, place = config.get("num_dimensions", 2), config.get("dim_index", -1)
    if config.get("class", "AxialAttention") != "AxialAttention":
        raise UnsupportedError(f"of their classes AxialAttention is known, not {config['class']}")
    return {
        "place": place if place > 0 else place + axes + 2,
        "dim": config["dim"],
        "num_heads": config.get("heads", 8),
        "num_axes": axes,
        "head_dim": config.get("dim_heads"),
        "combine": "sum" if config.get("sum_axial_out", True) else "chain",
        "qkv_bias": False,
    }


def _layer_weights(state: State) -> State:
    found: dict[str, Tensor] = {}
    for name, tensor in renamed(state, {r"^axial_attentions\.(\d+)\.fn\.": r"axes.\1."}).items():
        if name.endswith("to_kv.weight"):
            path = name.removesuffix("to_kv.weight")
            found[f"{path}k_proj.weight"], found[f"{path}v_proj.weight"] = tensor.chunk(2)
        else:
            found[re.sub(r"to_(q|out)\.", r"\1_proj.", name)] = tensor
    return found


def _layer_call(module: Axial, inputs: Inputs, call: Call) -> Outputs:
    return {"out": module(bind(inputs, call, "x")["x"])}


_FILE = "google-research/google-research:axial/transformers.py"
IMPORTERS = {
    f"{_FILE}:Transformer2d": Importer(AxialTransformer, _plane_arguments, _model_call, _model_weights),
    f"{_FILE}:Transformer3d": Importer(AxialTransformer, _image_arguments, _model_call, _model_weights),
    "*axial?attention:*:AxialAttention": Importer(_layer, _layer_arguments, _layer_call, _layer_weights),
}
