"""The SLiMPerformer of google-research, whole: its names are those of the fixtures from equations as well."""

from typing import Any

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.models.slim_performer import SlimPerformerLM
from regard.registry import UnsupportedError

FEATURES = {"elu+1": "elu", "relu": "relu", "sqr": "square"}
STEP = 4
"""Tokens in a piece where the record says that any number gives the same."""


def _arguments(config: Config) -> dict[str, Any]:
    """Their ``compute_type`` says in which order the same sums are taken."""
    kind, dim, heads = config["feature_type"], config["hidden_dim"], config["n_heads"]
    random = str(kind).startswith("favor+")
    if not random and kind not in FEATURES:
        raise UnsupportedError(
            f"feature_type={kind!r}: slim_performer has {', '.join(FEATURES)}, favor+ and favor+_<n>"
        )
    factor = int(kind.partition("_")[2] or 1) if random else None
    return {
        "vocab_size": config["vocab_size"],
        "dim": dim,
        "depth": config["n_layers"],
        "num_heads": heads,
        "ffn_dim": config["ffn_dim"],
        "features": "softmax" if random else FEATURES[kind],
        "num_features": None if factor is None else factor * (dim // heads),
        "post_norm": config.get("on_gptln", False),
    }


def _model(**options: Any) -> SlimPerformerLM:
    """Theirs draws its random rows at every step and saves none."""
    model = SlimPerformerLM(**options)
    for block in model.slim_blocks:
        block.core.register_buffer("projection", block.core.projection, persistent=False)
    return model


def _weights(state: State) -> State:
    rules = {
        "^input_map": "token_embedding",
        "^output_logit_map": "read_out",
        "^layers": "blocks",
        r"attention\.([qkv])_map": r"\1_proj",
        "U_map": "mlp.0",
        "V_map": "mlp.2",
        "layernorm": "norm",
    }
    return renamed(state, rules)


def _call(module: SlimPerformerLM, inputs: Inputs, call: Call) -> Outputs:
    """Loss in pieces, logits of all tokens but the last, and the sums of the first layer behind them.

    Random rows, theirs (H, D, m), are the inputs rfs0, rfs1 and so on, one a layer.
    """
    given = bind(inputs, call, "tokens", "nonpad")
    for number, block in enumerate(module.slim_blocks):
        if block.core.projection is not None:
            rows = inputs.get(f"rfs{number}")
            if rows is None:
                raise UnsupportedError(f"random rows are needed to repeat favor+: the input rfs{number}")
            block.core.projection = rows.detach().mT.to(block.core.projection)
    tokens, step = given["tokens"], call.get("step_size")
    loss = module.loss(tokens, given.get("nonpad"), step=step if isinstance(step, int) else STEP)
    logits, memory = module.stream(tokens[:, :-1], module.memory(len(tokens)))
    return {
        "loss": loss,
        "logits": logits,
        "num_state0": memory.layers[0].state,
        "den_state0": memory.layers[0].normaliser,
    }


_MODEL = Importer(_model, _arguments, _call, _weights)
_PATH = "google-research/google-research:performer/models/slim_performer/pytorch"
IMPORTERS = {f"{_PATH}/slim_performer_model.py:SLiMPerformer": _MODEL, "equations": _MODEL}
